// Package batch runs many independent commands in one call: each in a fresh
// sandbox of its own, or all in one that exists. It decides how many run at a
// time, waits where the team's limits say so, bounds what it keeps of their
// output, and leaves no sandbox behind. What a sandbox is and may do is package
// sandbox's business, the wire that of api/native.
package batch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// Sandboxes is what this package needs of sandbox.Manager.
type Sandboxes interface {
	Check(ctx context.Context, who identity.Principal, r sandbox.CreateRequest) error
	Create(ctx context.Context, who identity.Principal, r sandbox.CreateRequest) (sandbox.Sandbox, error)
	Get(ctx context.Context, who identity.Principal, id sandbox.ID) (sandbox.Sandbox, error)
	Extend(ctx context.Context, who identity.Principal, id sandbox.ID, ttl time.Duration) (sandbox.Sandbox, error)
	Kill(ctx context.Context, who identity.Principal, id sandbox.ID, reason string) error
	Agent(ctx context.Context, id sandbox.ID) (*agentclient.Client, error)
	Live(id sandbox.ID) (*sandbox.Live, bool)
}

// Config makes a Runner. All but Allow must be set.
type Config struct {
	Sandboxes Sandboxes
	// Allow counts a create against the team's rate; when it is refused it says
	// after how long to ask again. Nil allows all.
	Allow func(team identity.TeamID) (retryAfter time.Duration, ok bool)
	// MaxConcurrency bounds Request.Concurrency, MaxTimeout the life of a
	// sandbox.
	MaxConcurrency int
	MaxTimeout     time.Duration
	Log            *slog.Logger
}

// Runner runs batches. Its methods are safe for concurrent use.
type Runner struct {
	cfg Config

	mu      sync.Mutex // guards running
	running map[identity.TeamID]int
}

// MaxBatches is how many batches a team may have at a time: what they keep of
// output is in this process's memory.
const MaxBatches = 16

// New returns a Runner that starts nothing.
func New(c Config) (*Runner, error) {
	if c.Sandboxes == nil || c.Log == nil || c.MaxConcurrency < 1 || c.MaxTimeout <= 0 {
		return nil, fmt.Errorf("batch runner: a setting is missing: %w", errdefs.ErrInvalidArgument)
	}
	return &Runner{cfg: c, running: map[identity.TeamID]int{}}, nil
}

// Admit counts a batch of a team until release is called, once; it is
// errdefs.ErrResourceExhausted when the team has MaxBatches.
func (b *Runner) Admit(team identity.TeamID) (release func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running[team] >= MaxBatches {
		return nil, apierr.New(errdefs.ErrResourceExhausted, "team %s has %d batches running, and may have no more at a time", team, MaxBatches)
	}
	b.running[team]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.running[team]--; b.running[team] == 0 {
			delete(b.running, team)
		}
	}, nil
}

// Request asks for a batch.
type Request struct {
	// Create is what each item's sandbox is like; its Timeout and Progress are
	// set here. It has no meaning with Shared.
	Create sandbox.CreateRequest
	// Shared, when set, is the running sandbox of the caller's team that all
	// items run in. It is neither extended nor ended.
	Shared sandbox.ID
	// Concurrency is how many items run at a time; 0 means DefaultConcurrency,
	// or as many as there are items.
	Concurrency int
	// Timeout bounds two things, each: waiting for an item's sandbox, and its
	// command. It must be set.
	Timeout time.Duration
	// StopOnError starts no more items once one has failed; those that run go on.
	StopOnError bool
	// Env, Dir and User are for every command; the agent's defaults when empty.
	Env       map[string]string
	Dir, User string
	Items     []Item
}

// DefaultConcurrency is how many items run at a time unless the request says.
const DefaultConcurrency = 8

// Item is one command.
type Item struct {
	// ID names it in events; its index when empty.
	ID string
	// Cmd is looked up in PATH when it has no slash. Code, in its place, is run
	// by the interpreter of Language: python (also when empty), javascript or
	// bash. Args are those of either.
	Cmd, Code, Language string
	Args                []string
	// Env goes over the request's; Dir, when set, replaces it.
	Env map[string]string
	Dir string
	// Stdin is the whole input; nil for none.
	Stdin []byte
	// Files are written before the command starts.
	Files []File
	// Collect are paths of files to return when it has ended.
	Collect []string
}

// File is a file in a sandbox. A relative path begins at the user's home.
type File struct {
	Path    string
	Content []byte
}

// Event is one thing that happened; exactly one member is set. Of each item that
// was started there is a Started, unless it got no sandbox, and then a Result.
// The last event is the Summary.
type Event struct {
	Started *Started
	Result  *Result
	Summary *Summary
}

// Started says that an item's command is about to run.
type Started struct {
	ID      string
	Index   int
	Sandbox sandbox.ID
	// Waited is how long the item waited for its sandbox.
	Waited time.Duration
}

// Result is how an item ended.
type Result struct {
	ID      string
	Index   int
	Sandbox sandbox.ID // empty when it got none
	// ExitCode is -1 when a signal or a limit ended the command, or Err is set.
	ExitCode int
	// Status is a text such as "exit status 3", "signal: killed" or the limit
	// that was hit; empty when Err is set.
	Status         string
	Stdout, Stderr Output
	Files          []Collected
	Waited, Took   time.Duration
	// Err is why the command could not be run to its end.
	Err error
}

// OK reports whether the command succeeded.
func (r Result) OK() bool { return r.Err == nil && r.ExitCode == 0 }

// Output is what a command wrote: all of it, or its first and its last part with
// a line between that says how much is missing.
type Output struct {
	Text string
	// Bytes is how many there were.
	Bytes     int64
	Truncated bool
}

// Collected is a file that an item asked for, or why it is not there.
type Collected struct {
	File
	Err error
}

// Summary ends a batch.
type Summary struct {
	Items, Succeeded, Failed int
	// Skipped were not started.
	Skipped int
	Took    time.Duration
}
