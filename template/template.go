// Package template keeps templates and their builds: what a sandbox starts
// from. The stock templates are built from Debian packages (StockTemplates), others
// from a tar file; OCI images and recipes are not built yet.
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
	// Artifact is the saved state of a snapshot's build, else nil. With one,
	// Sealed holds what the agent of the source was told (user, working
	// directory and environment, encrypted under the installation's seed), and
	// Sandbox is the id of the source.
	Artifact *snapshot.Artifact
	Sealed   string
	Sandbox  string
}

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
