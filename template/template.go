// Package template keeps templates and their builds: what a sandbox starts
// from. The stock templates are built from Debian packages (StockTemplates), others
// from a tar file here; recipes are queued by package template/queue and carried
// out by an Executor.
package template

import (
	"context"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// ID names a template: 20 characters of [a-z0-9].
type ID string

// BuildID names one build of a template: a UUID.
type BuildID string

// Status is the state of a build.
type Status string

// The states of a build; the spellings are E2B's.
const (
	Waiting  Status = "waiting"
	Building Status = "building"
	Ready    Status = "ready"
	Failed   Status = "error"
)

// KindSnapshot marks a template that was saved from a running sandbox.
const KindSnapshot = "snapshot"

// Template is a named, versioned starting point.
type Template struct {
	ID   ID
	Team identity.TeamID
	// Kind is KindSnapshot or empty; it never changes.
	Kind string
	// Names are aliases, lower-case [a-z0-9-_]+, the first is shown.
	Names     []string
	Public    bool
	Current   BuildID
	Spawned   Spawned
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Build is one artefact of a template.
type Build struct {
	ID       BuildID
	Template ID
	Status   Status
	// Reason says why a build failed.
	Reason string
	// Source is a human-readable origin such as "debian bookworm" or "tar".
	Source string
	Rootfs image.Rootfs
	// Resources are the defaults of sandboxes of this build; zero fields
	// mean the server's defaults. Those of a snapshot are fixed.
	Resources provider.Resources
	// User and Workdir apply when a request names none.
	User       string
	Workdir    string
	Env        map[string]string
	CreatedAt  time.Time
	FinishedAt time.Time
	// Tags are those that the build gets when it is ready.
	Tags []string
	// Start and Ready are the commands of the recipe, or of the template that it
	// stands on: what runs in every sandbox of the build from its beginning, and
	// what says that it does. Both may be empty.
	Start, Ready string
	// Step names the step that failed: StepBase, a number from 1 on, or
	// StepFinalize; empty when none is to blame.
	Step string
	// Artifact is the saved state that sandboxes of the build start from, nil
	// when they boot. With one, Resources are complete, and fixed.
	Artifact *snapshot.Artifact
	// Sealed holds what the agent of a snapshot's source was told (user, working
	// directory and environment, encrypted under the installation's seed), and
	// Sandbox is the id of the source. Both are empty for a template that was
	// built: its state has no source, and no secrets of one.
	Sealed  string
	Sandbox string
}

// FromSandbox says whether the build was saved from somebody's sandbox.
func (b Build) FromSandbox() bool { return b.Sealed != "" }

// Store keeps templates; implemented by package store.
type Store interface {
	// PutTemplate inserts or updates t and b together; when b is Ready it
	// becomes t.Current.
	PutTemplate(ctx context.Context, t Template, b Build) error
	// GetTemplate finds by ID or name (team's own first, then public ones);
	// errdefs.ErrNotFound otherwise.
	GetTemplate(ctx context.Context, team identity.TeamID, ref string) (Template, error)
	GetBuild(ctx context.Context, id BuildID) (Build, error)
	// TaggedBuild is the id of the build that has a tag; errdefs.ErrNotFound
	// when none has. DefaultTag is Template.Current instead.
	TaggedBuild(ctx context.Context, t ID, tag string) (BuildID, error)
	// ListTemplates leaves snapshots out.
	ListTemplates(ctx context.Context, team identity.TeamID) ([]Template, error)
	ListBuilds(ctx context.Context, t ID) ([]Build, error)
	// DeleteTemplate refuses with errdefs.ErrFailedPrecondition while live
	// sandboxes are based on it.
	DeleteTemplate(ctx context.Context, id ID) error
	// RootfsDigests returns every digest that a build or a live sandbox
	// still refers to, for garbage collection.
	RootfsDigests(ctx context.Context) ([]string, error)
}
