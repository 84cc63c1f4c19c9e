package template

import (
	"time"

	"github.com/caisson-dev/caisson/identity"
)

// Snapshot is one tag of a template that was saved from a running sandbox.
type Snapshot struct {
	Template ID
	Team     identity.TeamID
	// Name is the template's alias, empty for one that was saved without.
	Name  string
	Tag   string
	Build Build
	// TaggedAt is when the tag got this build; listings are ordered by it.
	TaggedAt time.Time
}

// Reference is how a create names the snapshot: team/name:tag, or ID:tag for
// one without a name.
func (s Snapshot) Reference() string {
	if s.Name == "" {
		return string(s.Template) + ":" + s.Tag
	}
	return s.FullName() + ":" + s.Tag
}

// FullName is team/name, or empty for a snapshot without a name.
func (s Snapshot) FullName() string {
	if s.Name == "" {
		return ""
	}
	return string(s.Team) + "/" + s.Name
}

// SnapshotFilter selects snapshots of one team.
type SnapshotFilter struct {
	Team identity.TeamID
	// Sandbox, Template and Tag narrow the listing where they are set.
	Sandbox  string
	Template ID
	Tag      string
	// NewestTag shows only the tag of each template that was set last.
	NewestTag bool
	Limit     int    // 1..100
	Cursor    string // opaque, from the last call
}

// NewID returns a fresh template ID.
func NewID() ID { return newID() }
