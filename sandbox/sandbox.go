// Package sandbox is the lifecycle of sandboxes: the record, its state table,
// and the Manager that creates, times out, kills and recovers them over the
// provider port. The wire formats live in api, SQL in store.
package sandbox

import (
	"context"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

// ID names a sandbox: "i" and 20 characters of [a-z0-9].
type ID string

// State is where a sandbox stands in its life.
type State string

// The states. A Paused sandbox has no box, only an artifact (Sandbox.Saved).
const (
	Pending  State = "pending"
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Killing  State = "killing"
	Killed   State = "killed"
	Failed   State = "failed"
)

// Sandbox is the record; what runs is a provider.Box.
type Sandbox struct {
	ID       ID
	Team     identity.TeamID
	Template template.ID
	// Alias is the template's first name at creation.
	Alias string
	// Name is a label given by the CLI or Nexus; not unique, may be empty.
	Name  string
	Build template.BuildID
	State State
	// Reason says why the sandbox is Killed or Failed: "killed", "timeout",
	// "oom", "crashed", "engine_lost", "exited", "budget", "retention", "shutdown",
	// or an error text for Failed.
	Reason    string
	Node      string
	Handle    provider.Handle
	Network   Network
	Egress    egress.Policy // effective: compiled from Network and server config
	Resources provider.Resources
	Parent    snapshot.ID
	Metadata  map[string]string
	CreatedAt time.Time
	StartedAt time.Time
	EndsAt    time.Time
	EndedAt   time.Time
	OnTimeout string // OnTimeoutKill or OnTimeoutPause
	Lifecycle Lifecycle
	// Sealed is what the agent is told at every start (environment, user,
	// working directory), encrypted under the installation's seed.
	Sealed string
	// Saved is the artifact of a Paused or Resuming sandbox, else nil.
	Saved *snapshot.Artifact
	// Origin says of what it is a copy; Parent is the snapshot's artifact.
	Origin Origin
	// Idempotency is the key that it was created with.
	Idempotency Idempotency
	Version     int64
}

// What happens to a sandbox at its end.
const (
	OnTimeoutKill  = "kill"
	OnTimeoutPause = "pause"
)

// Lifecycle is what a sandbox wants of pause and resume, as created.
type Lifecycle struct {
	// AutoResume resumes a sandbox that was paused with its memory when traffic
	// reaches it.
	AutoResume bool `json:"autoResume,omitempty"`
	// FilesOnly makes a pause on timeout keep the files and not the memory.
	FilesOnly bool `json:"filesOnly,omitempty"`
	// Timeout is the one given at create: a resume on traffic gives this much
	// life, and MinResume at least.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Budget is the most it may use over all its runs. Spent names the member
	// that is used up, while the sandbox may not be resumed for that.
	Budget Budget `json:"budget,omitzero"`
	Spent  string `json:"spent,omitempty"`
}

// MinResume is the least life that a resume on traffic gives.
const MinResume = 5 * time.Minute

// Network is the network configuration as the user gave it (E2B contract
// §2.5); the egress part is compiled into Sandbox.Egress.
type Network struct {
	// AllowInternet is nil when not given; only false narrows (decisions.md 26).
	AllowInternet *bool    `json:"allowInternet,omitempty"`
	AllowOut      []string `json:"allowOut,omitempty"`
	DenyOut       []string `json:"denyOut,omitempty"`
	// PrivateTraffic, when true, requires the traffic token on every port but
	// the agent's (allowPublicTraffic: false on the wire).
	PrivateTraffic bool `json:"privateTraffic,omitempty"`
	// PrivatePorts are ports that require it in any case; the template's, not
	// the caller's.
	PrivatePorts []uint16 `json:"privatePorts,omitempty"`
	// MaskRequestHost replaces the Host header; "${PORT}" is the port.
	MaskRequestHost string `json:"maskRequestHost,omitempty"`
}

// CreateRequest asks for a sandbox. Its JSON is what fingerprints are made of:
// what is not set must not show in it, or a field that is added changes them all.
type CreateRequest struct {
	Template string `json:"template,omitzero"` // reference: name, name:tag or ID
	Name     string `json:"name,omitzero"`
	// Timeout is the life from when the sandbox runs; the caller applies its
	// wire's default. 0 < Timeout <= Manager's maximum.
	Timeout  time.Duration     `json:"timeout,omitzero"`
	Env      map[string]string `json:"env,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Network  Network           `json:"network,omitzero"`
	// Resources override the template's defaults; they may not exceed the
	// server's maxima. Zero fields keep the default.
	Resources provider.Resources `json:"resources,omitzero"`
	// OnTimeout is OnTimeoutKill (also when empty) or OnTimeoutPause.
	OnTimeout string `json:"onTimeout,omitzero"`
	// AutoResume and FilesOnly go to Lifecycle.
	AutoResume bool `json:"autoResume,omitzero"`
	FilesOnly  bool `json:"filesOnly,omitzero"`
	// Budget goes to Lifecycle; members that are not set are the server's.
	Budget Budget `json:"budget,omitzero"`
	// IdempotencyKey makes several Creates of a team with the same request one;
	// see Manager.Create. It is not part of what the request asks for.
	IdempotencyKey string `json:"-"`
	// Progress, when set, is told of each Stage as it begins, from the create's
	// own goroutine: it must not block. A create that is refused at once is told
	// of none. Of several creates with one key only the first is told.
	Progress func(Stage) `json:"-"`
}

// Filter selects sandboxes for List.
type Filter struct {
	Team         identity.TeamID // "" means all, for the system only
	States       []State         // empty means all but Killed and Failed
	Metadata     map[string]string
	Template     template.ID
	StartedAfter time.Time // inclusive
	Ascending    bool      // by StartedAt, ties by ID; default newest first
	Limit        int       // 1..100
	Cursor       string    // opaque, from the last call
}

// Store keeps sandbox records. Every write carries its audit event in the same
// transaction. Implemented by package store, checked by store/storetest.
type Store interface {
	// Insert adds a Pending or Running record. When the team already has as many live
	// sandboxes (Pending, Running, Resuming) as it may, nothing is written and
	// the error is errdefs.ErrResourceExhausted. The limit is the team's own,
	// else maxLive; zero means none. Counting and inserting are one step, so
	// concurrent calls cannot overshoot. In the same transaction the record takes
	// its idempotency key: from one that failed or whose time with it is over by
	// CreatedAt, otherwise nothing is written and the error is ErrKeyTaken.
	Insert(ctx context.Context, s Sandbox, maxLive int, evs ...audit.Event) error
	// Get is errdefs.ErrNotFound for unknown ids.
	Get(ctx context.Context, id ID) (Sandbox, error)
	// ByKey returns the record that has a team's idempotency key, also when it
	// failed or its time with the key is over; errdefs.ErrNotFound.
	ByKey(ctx context.Context, team identity.TeamID, key string) (Sandbox, error)
	// List returns one page, the cursor of the next ("" at the end) and the
	// number of Running records that match before paging.
	List(ctx context.Context, f Filter) (page []Sandbox, next string, running int, err error)
	// Mutate loads, applies fn, writes the row and the event in one
	// transaction, retried on conflict, so fn must have no side effects. An
	// error of fn aborts and is returned. A change of State that the table
	// does not know is errdefs.ErrFailedPrecondition.
	Mutate(ctx context.Context, id ID, fn func(*Sandbox) (audit.Event, error)) (Sandbox, error)
	// Admit is Mutate for a step that makes the sandbox live: like Insert it
	// refuses, with errdefs.ErrResourceExhausted, what is above the limit.
	Admit(ctx context.Context, id ID, maxLive int, fn func(*Sandbox) (audit.Event, error)) (Sandbox, error)
	// Unfinished returns every record that is not Killed or Failed, for
	// recovery.
	Unfinished(ctx context.Context) ([]Sandbox, error)
	// Prune deletes Killed and Failed rows that ended before t and whose
	// idempotency key is over.
	Prune(ctx context.Context, t time.Time) (int, error)
	// Record writes an audit event that changes no record.
	Record(ctx context.Context, ev audit.Event) error
	Expiry
}

// Expiry is the part of Store that finds what has to end.
type Expiry interface {
	// ClaimExpired leases due rows to one node, so that a cluster reaps each
	// once.
	ClaimExpired(ctx context.Context, node string, now time.Time, limit int) ([]Sandbox, error)
	// NextDeadline is the earliest EndsAt of Running rows of the node; zero
	// when there are none.
	NextDeadline(ctx context.Context, node string) (time.Time, error)
}

// Live is what the data plane needs of a running sandbox; it comes from
// memory, without a query.
type Live struct {
	ID   ID
	Team identity.TeamID
	// AgentToken guards port 49983; TrafficToken PrivatePorts, and all other
	// ports when PrivateTraffic is set.
	AgentToken      secret.Value
	TrafficToken    secret.Value
	PrivateTraffic  bool
	PrivatePorts    []uint16
	MaskRequestHost string
	// Gone is closed the moment the sandbox is marked gone, before its
	// processes die: streams must then be broken, not ended (decisions.md 29).
	Gone <-chan struct{}
	// Enter waits while the sandbox stands still to be saved, or until ctx or
	// Gone ends; a new request calls it first, and what it returns once when its
	// answer begins. Nil means that there is nothing to wait for.
	Enter func(ctx context.Context) (leave func())
	// Route reaches a port inside.
	Route func(ctx context.Context, port uint16) (provider.Route, error)
}
