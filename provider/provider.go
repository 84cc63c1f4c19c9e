// Package provider is the port that every isolation backend implements. It
// holds interfaces and values only; providers import it and what is below it,
// never sandbox, store or api.
package provider

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
)

// Provider creates boxes.
type Provider interface {
	Name() string
	// Capabilities is constant for the life of the process.
	Capabilities() Capabilities
	// Probe says cheaply whether this host can create a box now; the error
	// names the cause and the next step.
	Probe(ctx context.Context) error
	// Create makes and starts a box whose agent answers on its control
	// channel. On error nothing is left behind. A limit in spec.Resources
	// that cannot be enforced is an error, never dropped.
	Create(ctx context.Context, spec Spec) (Box, error)
	// Open takes a box over after a restart of this process;
	// errdefs.ErrNotFound when it is gone.
	Open(ctx context.Context, h Handle, a egress.Attachment) (Box, error)
	// List returns all that this provider owns, for the orphan sweep.
	List(ctx context.Context) ([]Handle, error)
}

// Box is one running isolation unit.
type Box interface {
	Handle() Handle
	// Route says how to reach a TCP port inside, also one bound to localhost.
	// The error of its Dial satisfies errors.Is(err, ErrPortClosed) when the
	// box runs and nothing listens.
	Route(ctx context.Context, port uint16) (Route, error)
	// Control is the private channel to the agent.
	Control() *control.Client
	Stats(ctx context.Context) (Stats, error)
	// Wait blocks until the box has ended, however it ended.
	Wait(ctx context.Context) (Exit, error)
	// Destroy ends the box and removes all it had on the host. Idempotent.
	Destroy(ctx context.Context) error
}

// Freezer freezes a box in place. Pause is not this: it is snapshot and
// destroy.
type Freezer interface {
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
}

// Claimer binds an identity to a pooled box.
type Claimer interface {
	Claim(ctx context.Context, id Identity) error
}

// Identity is what a pooled box learns only when it is claimed.
type Identity struct {
	SandboxID string
	Env       map[string]string
	Labels    map[string]string
	Egress    egress.Attachment
	Token     secret.Value
}

// Snapshotter is a Box that can save its state. The box keeps running.
type Snapshotter interface {
	Snapshot(ctx context.Context, k snapshot.Kind, v snapshot.Vault) (snapshot.Artifact, error)
}

// Restorer is a Provider that can start a box from saved state.
type Restorer interface {
	Restore(ctx context.Context, spec Spec, a snapshot.Artifact, v snapshot.Vault) (Box, error)
}

// Fitter is a Restorer that can tell beforehand, and cheaply, that it could not
// restore an artifact: snapshot.ErrOtherEngine.
type Fitter interface {
	Fits(a snapshot.Artifact) error
}

// LayerExporter is a Box that can write what differs in its root filesystem from
// the image below, as a tar stream with owners and modes. A deleted file is a
// character device 0/0; a directory with the extended attribute
// trusted.overlay.opaque "y" hides what the image has there. Mounts such as /tmp
// and sockets are not in it.
type LayerExporter interface {
	ExportLayer(ctx context.Context, w io.Writer) error
}

// Destroyer is a Provider that can destroy a box without opening it: one whose
// agent does not answer, or one that has ended and whose remains it keeps, so
// that Open can tell how it ended.
type Destroyer interface {
	// Destroy ends the box, if it still runs, and removes all that it had on
	// the host; errdefs.ErrNotFound when there is nothing of such a box.
	Destroy(ctx context.Context, h Handle) error
}

// Prebooter is a Provider that can boot boxes ahead of what they are for, which
// is the slower half of starting one.
type Prebooter interface {
	// Preboot boots a box of which nothing of the guest has run. It ends with this
	// process, or before.
	Preboot(ctx context.Context, spec PrebootSpec) (Prebooted, error)
	// Takes reports whether a prebooted box can be started from an artifact, if
	// image and resources are the same.
	Takes(a snapshot.Artifact) bool
}

// PrebootSpec is what is fixed when a box is booted.
type PrebootSpec struct {
	// ID is [a-z0-9]+ and unique; no sandbox ever has it.
	ID        string
	Rootfs    image.Rootfs
	Resources Resources
}

// Prebooted is a box that waits to be started, as Spec.Prebooted. It has no
// agent, no network and nothing of anybody's.
type Prebooted interface {
	Handle() Handle
	Stats(ctx context.Context) (Stats, error)
	// Wait blocks until the box has ended before it was used.
	Wait(ctx context.Context) (Exit, error)
	// Destroy ends the box, unless it has been used. Idempotent.
	Destroy(ctx context.Context) error
}

// Limit names a resource limit that a provider can enforce.
type Limit string

// The limits of a box. Wall time per command, output size and process count
// are the agent's and hold with every provider.
const (
	LimitMemory    Limit = "memory"
	LimitCPU       Limit = "cpu"
	LimitDisk      Limit = "disk"
	LimitProcesses Limit = "processes"
)

// Capabilities tells honestly what a provider can do on this host.
type Capabilities struct {
	Freeze         bool            `json:"freeze"`
	Claim          bool            `json:"claim"`
	Preboot        bool            `json:"preboot"`
	Restore        bool            `json:"restore"`
	Snapshots      []snapshot.Kind `json:"snapshots"`
	EnforcesEgress bool            `json:"enforcesEgress"`
	ExportsLayers  bool            `json:"exportsLayers"`
	Limits         []Limit         `json:"limits"`
}

// Handle identifies a box across restarts: opaque, versioned, stored.
type Handle struct {
	Provider string          `json:"provider"`
	Version  int             `json:"version"`
	ID       string          `json:"id"`
	Data     json.RawMessage `json:"data,omitempty"`
}

// Route reaches one port of a box: a local box gives Dial, a remote one URL
// and Header.
type Route struct {
	URL    *url.URL
	Header http.Header
	Dial   func(ctx context.Context) (net.Conn, error)
}

// Resources are the limits of one box. Zero means: no limit of that kind.
type Resources struct {
	// MemoryMiB caps memory of the whole box.
	MemoryMiB int64 `json:"memoryMiB"`
	// CPUs is the number of virtual CPUs shown, and the CPU-time quota.
	CPUs int `json:"cpus"`
	// DiskMiB caps what the box may write to its root filesystem.
	DiskMiB int64 `json:"diskMiB"`
	// Processes caps processes and threads per user inside.
	Processes int64 `json:"processes"`
}

// Spec says what to create.
type Spec struct {
	// SandboxID is [a-z0-9]+ and unique; the provider uses it as its own id.
	SandboxID string
	Hostname  string
	Rootfs    image.Rootfs
	Resources Resources
	Labels    map[string]string
	// Egress was decided before; nil is an error, never "no policy".
	Egress egress.Attachment
	// Deadline, when set, is a hard end that holds even while the server is
	// down.
	Deadline time.Time
	// Prebooted, when set, is the box to start, of the same image and resources.
	// It is used up, also by an error, which may be its fault: the same spec
	// without it can be tried then.
	Prebooted Prebooted
}

// Deadliner is a Box whose hard end can be moved.
type Deadliner interface {
	SetDeadline(ctx context.Context, t time.Time) error
}

// Stats is a sample of what a box uses.
type Stats struct {
	At       time.Time
	CPUUsage time.Duration // CPU time since the box started
	// MemoryBytes is what counts against the limit and cannot be dropped at
	// once; CacheBytes is page cache that can.
	MemoryBytes    int64
	CacheBytes     int64
	MemoryMaxBytes int64
	// DiskBytes is what the box's changes to its file system take on the host's
	// disk, without the template below them. Zero where it is not known.
	DiskBytes int64
	Processes int // host processes of the box
}

// Exit tells how a box ended.
type Exit struct {
	// Reason is one of the Reason constants.
	Reason string
	// Status is the exit status of the box's first process where known.
	Status int
	At     time.Time
	Detail string
}

// Reasons for the end of a box.
const (
	ReasonExited     = "exited"      // the agent ended by itself
	ReasonDestroyed  = "destroyed"   // Destroy was called
	ReasonOOM        = "oom"         // the memory limit was hit
	ReasonDeadline   = "timeout"     // the hard deadline passed
	ReasonEngineLost = "engine_lost" // the engine process died
	ReasonCrashed    = "crashed"     // the sentry died
)
