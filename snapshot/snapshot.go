// Package snapshot describes saved sandbox state: what kinds there are, what an
// artifact is made of, and where artifacts live. It does no engine work itself.
package snapshot

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// ErrOtherEngine says that an artifact was saved by an engine or agent whose
// state this one cannot take up; an errdefs.ErrFailedPrecondition.
var ErrOtherEngine = fmt.Errorf("another engine is needed: %w", errdefs.ErrFailedPrecondition)

// ID names one snapshot; lower-case letters and digits.
type ID string

// Kind says what a snapshot holds.
type Kind string

const (
	// Filesystem holds the writable layer only.
	Filesystem Kind = "filesystem"
	// Memory holds processes and memory as well as the writable layer.
	Memory Kind = "memory"
)

// Artifact is what a provider made of one snapshot, as stored beside its row.
type Artifact struct {
	ID   ID   `json:"id"`
	Kind Kind `json:"kind"`
	// ABI is the engine's snapshot ABI; an artifact of another ABI cannot be
	// restored with its memory (engine.md §0.10).
	ABI string `json:"abi"`
	// RootfsDigest is the image the writable layer lies on.
	RootfsDigest string `json:"rootfsDigest"`
	SizeBytes    int64  `json:"sizeBytes"`
}

// Snapshot is the record of one saved state.
type Snapshot struct {
	ID        ID
	SandboxID string
	Parent    ID
	Kind      Kind
	Artifact  Artifact
	CreatedAt time.Time
}

// Stored is one artifact that a vault has, complete or not.
type Stored struct {
	ID        ID
	ChangedAt time.Time
}

// Vault stores artifacts in local directories.
type Vault interface {
	// Dir returns the absolute directory of id, created (mode 0700) if absent.
	Dir(ctx context.Context, id ID) (string, error)
	// Sync makes what was written to the directory of id survive a power cut.
	Sync(ctx context.Context, id ID) error
	// List returns what there is, also what nobody refers to.
	List(ctx context.Context) ([]Stored, error)
	// Delete removes the artifact; deleting what is absent is no error.
	Delete(ctx context.Context, id ID) error
	// Export writes the artifact as one stream.
	Export(ctx context.Context, a Artifact, w io.Writer) error
}

// Scratch is a Vault for artifacts that are read at once and then deleted: they
// need not reach the disk.
type Scratch struct{ Vault }
