// Package meter measures what sandboxes use: samples of CPU, memory and disk
// for graphs, and the figures of every run for bills. A run is one stretch of a
// sandbox's life with a box, from its start or resume to its pause or end.
//
// Everything is measured from outside: by the provider (control groups, the
// size of the writable layer) and by the egress gateway. The guest is not asked,
// so it cannot lie. One Meter measures all sandboxes of a server; package store
// keeps what it finds, and begins and ends runs in the transactions that change
// the state of a sandbox. Only server makes one; api reads it.
package meter

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
)

// Config says how often is measured and how long the result is kept. Zero
// fields get the defaults named.
type Config struct {
	// Interval is the time between two samples of a sandbox, and the most that
	// a run's figures lag behind: what a server that is killed loses. Default
	// 5 s; at least MinInterval.
	Interval time.Duration
	// AtOnce bounds sandboxes being measured at a time. Default 4.
	AtOnce int
	// Timeout bounds measuring one sandbox. Default 2 s.
	Timeout time.Duration
	// KeepSamples is how long the coarsest samples are kept. Default 7 d.
	KeepSamples time.Duration
	// KeepRuns is how long the figures of ended runs are kept. Default 400 d.
	KeepRuns time.Duration
}

// The bounds of Config.Interval.
const (
	MinInterval = time.Second
	MaxInterval = time.Minute
)

const (
	defaultInterval = 5 * time.Second
	// maxWaiting bounds the samples of a sandbox that wait to be written; the
	// oldest go first when the database is away for long.
	maxWaiting = 120
	// flushChunk bounds the sandboxes written in one transaction, so that other
	// writers get their turn.
	flushChunk = 100
	flushLimit = 5 * time.Second
	pruneEvery = time.Minute
	// linger is how long the track of a sandbox that is gone is kept: longer
	// than a pause can take to fail, after which the run goes on.
	linger = 5 * time.Minute
)

// Store keeps runs and samples. Implemented by package store.
type Store interface {
	// OpenRun returns the run that a sandbox is in, with the figures stored so
	// far; errdefs.ErrNotFound when it is in none.
	OpenRun(ctx context.Context, sandboxID string) (Run, error)
	// WriteMeasures adds samples and sets the figures of their runs, all in one
	// transaction. Writing the same again changes nothing.
	WriteMeasures(ctx context.Context, batch []Measured) error
	// SandboxRuns returns all runs of a sandbox of that team, oldest first.
	SandboxRuns(ctx context.Context, team, sandboxID string) ([]Run, error)
	// Samples returns the stored samples from since to until, both included,
	// in order of time.
	Samples(ctx context.Context, sandboxID string, since, until time.Time) ([]Sample, error)
	// LastSamples returns the newest n stored samples, in order of time.
	LastSamples(ctx context.Context, sandboxID string, n int) ([]Sample, error)
	// EachRun yields the runs of a team, and the times it had something saved,
	// that overlap with the time from since to before; an error ends it.
	EachRun(ctx context.Context, team string, since, before time.Time) iter.Seq2[Run, error]
	// TeamSpans returns begin and end of the runs of a team that overlap with
	// the time from since to before, in no order.
	TeamSpans(ctx context.Context, team string, since, before time.Time) ([]Span, error)
	// PruneSamples deletes samples of a tier that are older than before,
	// PruneRuns runs that ended before.
	PruneSamples(ctx context.Context, tier Tier, before time.Time) error
	PruneRuns(ctx context.Context, before time.Time) error
}

// Deps are what a Meter measures and where it writes. All but Measured must be
// set.
type Deps struct {
	Store Store
	// Boxes yields the id of every running sandbox, with a channel that is
	// closed when it runs no more and that differs for each time it is started.
	Boxes iter.Seq2[string, <-chan struct{}]
	// Stats asks the provider about a running sandbox.
	Stats func(ctx context.Context, sandboxID string) (provider.Stats, error)
	// Traffic is what passed the egress gateway since the sandbox was attached
	// to it; false when it is not.
	Traffic func(sandboxID string) (in, out int64, ok bool)
	// Measured is told what a sandbox has used over all its runs, after each
	// sample but the last. It must not block. May be nil.
	Measured func(sandboxID string, t Total)
	Log      *slog.Logger
}

// Meter is safe for concurrent use.
type Meter struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	mu     sync.Mutex // guards tracks and what they point to
	tracks map[string]*track
}

// New returns a Meter that measures nothing yet; Run does.
func New(cfg Config, deps Deps) (*Meter, error) {
	if deps.Store == nil || deps.Boxes == nil || deps.Stats == nil || deps.Traffic == nil || deps.Log == nil {
		return nil, fmt.Errorf("meter: a dependency is missing: %w", errdefs.ErrInvalidArgument)
	}
	orDefault(&cfg.Interval, defaultInterval)
	orDefault(&cfg.AtOnce, 4)
	orDefault(&cfg.Timeout, 2*time.Second)
	orDefault(&cfg.KeepSamples, 7*24*time.Hour)
	orDefault(&cfg.KeepRuns, 400*24*time.Hour)
	cfg.Interval = min(max(cfg.Interval, MinInterval), MaxInterval)
	return &Meter{cfg: cfg, deps: deps, log: deps.Log, tracks: map[string]*track{}}, nil
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
