// Package queue is everything about builds of templates but carrying them out:
// registering, checking and starting them, the files that they copy, their turn
// on this machine, their logs, their end. A template.Executor does the work.
//
// A build is registered (waiting), started with a recipe (building, also while
// it waits its turn) and ends ready or error. What a server leaves unfinished the
// next one begins again. Earlier builds of a template stay what they are until
// a new one is ready, and then only lose its tags.
//
// Package api/e2b is the face of it; package server wires it.
package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

// Store keeps builds; implemented by package store.
type Store interface {
	// RegisterBuild adds a waiting build to the team's template of that name or
	// id, which is made, with b.Template as its id, when there is none.
	// errdefs.ErrAlreadyExists when a snapshot has the name, ErrResourceExhausted
	// when the team has most waiting builds already.
	RegisterBuild(ctx context.Context, team identity.TeamID, name string, b template.Build, most int, actor string) (template.Template, error)
	// BeginBuild makes a waiting build one that is building, with its sealed
	// recipe. errdefs.ErrFailedPrecondition when it is not waiting,
	// ErrResourceExhausted above the limits.
	BeginBuild(ctx context.Context, team identity.TeamID, b template.Build, sealed string, l Limits, actor string) error
	Attempts
	// FinishBuild ends a build. One that is ready gets its tags, all at once, but
	// those of a build that was registered after it.
	// errdefs.ErrNotFound when its template was deleted; ErrCancelled, and nothing is
	// changed, for one that is ready and was cancelled.
	FinishBuild(ctx context.Context, b template.Build, actor string) error
	// DiscardBuild deletes a waiting build as if it had never been registered, and
	// its template with it when that has no other build.
	DiscardBuild(ctx context.Context, b template.Build, actor string) error
	// ExpireBuilds fails what was registered before a time and never started.
	ExpireBuilds(ctx context.Context, before time.Time, reason string) (int, error)
	Journal
	// UseUpload notes a link's nonce; errdefs.ErrAlreadyExists the second time.
	UseUpload(ctx context.Context, nonce string, expires time.Time) error
}

// Attempts keeps what a server that takes over must know of builds under way.
type Attempts interface {
	// AttemptBuild counts that one is begun, RetractAttempt that it was not to blame
	// for its end. AttemptBuild returns ErrCancelled for one that was cancelled.
	AttemptBuild(ctx context.Context, id template.BuildID) error
	RetractAttempt(ctx context.Context, id template.BuildID) error
	// CancelBuild notes that one must be ended; errdefs.ErrFailedPrecondition when
	// it is not building.
	CancelBuild(ctx context.Context, team identity.TeamID, b template.Build, actor string) error
	// PendingBuilds returns what is building, the oldest first.
	PendingBuilds(ctx context.Context) ([]template.Pending, error)
}

// Journal keeps the lines of builds.
type Journal interface {
	AppendBuildLog(ctx context.Context, id template.BuildID, entries []template.Entry) error
	// LastBuildLog is the number of the last line, 0 when there is none.
	LastBuildLog(ctx context.Context, id template.BuildID) (int64, error)
	BuildLog(ctx context.Context, id template.BuildID, f template.LogFilter) ([]template.Entry, error)
}

// Tags names builds of a template; implemented by package store. Snapshots have
// tags of another kind: for them all but ListTags are errdefs.ErrInvalidArgument.
type Tags interface {
	// ListTags returns the tags, those assigned last first.
	ListTags(ctx context.Context, t template.ID) ([]template.Tag, error)
	// AssignTags gives the build that has the tag source more tags;
	// errdefs.ErrNotFound when none has it.
	AssignTags(ctx context.Context, t template.ID, source string, tags []string, actor string) (template.BuildID, error)
	// RemoveTags takes tags away, all or none; errdefs.ErrNotFound for one that
	// there is not, ErrInvalidArgument for template.DefaultTag.
	RemoveTags(ctx context.Context, t template.ID, tags []string, actor string) error
	SetPublic(ctx context.Context, t template.ID, public bool, actor string) error
}

// Catalog finds templates and builds; implemented by template.Catalog.
type Catalog interface {
	Find(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Reference, error)
	Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error)
	Build(ctx context.Context, id template.BuildID) (template.Build, error)
}

// Records reads builds whatever their state; implemented by package store.
type Records interface {
	GetBuild(ctx context.Context, id template.BuildID) (template.Build, error)
}

// Files are the uploads that recipes copy; implemented by upload.Files.
type Files interface {
	// Has says whether a file is there, and keeps it from being removed for a
	// while.
	Has(team identity.TeamID, hash string) (bool, error)
	// Open returns it, gzipped; errdefs.ErrNotFound when it is not there.
	Open(team identity.TeamID, hash string) (io.ReadCloser, error)
}

// Limits bound builds that are started and not finished.
type Limits struct {
	// PerTeam and Total bound those of a team and of all; 0 means no limit.
	PerTeam, Total int
}

// Config of a Queue. Zero durations and numbers mean the defaults.
type Config struct {
	Limits Limits
	// Parallel is how many are built at a time: 2.
	Parallel int
	// Timeout is the longest time of one: 30 minutes.
	Timeout time.Duration
	// Defaults and Maxima are those of sandboxes.
	Defaults, Maxima provider.Resources
}

// Deps are what a Queue works with. Vault may be nil, and Executor too: then
// nothing can be started.
type Deps struct {
	Store    Store
	Records  Records
	Catalog  Catalog
	Files    Files
	Executor template.Executor
	// Vault makes the memory of a finished build survive a power cut.
	Vault interface {
		Sync(ctx context.Context, id snapshot.ID) error
	}
	Seed identity.Seed
	Log  *slog.Logger
}

// Queue is safe for concurrent use.
type Queue struct {
	cfg  Config
	deps Deps
	wake chan struct{}

	mu      sync.Mutex // guards waiting, running and those in them
	waiting []*job
	running map[template.BuildID]*job
}

// job is a build that was started and has not ended.
type job struct {
	template.Pending
	cancel context.CancelCauseFunc // set while it runs
	// ended is why it must not go on, when that was decided before it ran.
	ended error
	// counted says that its attempt is in the store; the goroutine that runs it
	// owns that.
	counted bool
}

// ErrCancelled says that a build must be ended because Cancel was called.
var ErrCancelled = fmt.Errorf("the build was cancelled: %w", errdefs.ErrAborted)

var (
	errDeleted  = fmt.Errorf("the template was deleted: %w", errdefs.ErrAborted)
	errStopping = errors.New("the server stops")
)

const (
	// maxAttempts is how often a build is begun that servers did not survive.
	maxAttempts = 3
	// maxWaiting bounds what a team registers and does not start.
	maxWaiting = 100
	// waitingAge is when a build that was never started fails: later than any
	// upload for it can end.
	waitingAge    = 24 * time.Hour
	expireEvery   = 10 * time.Minute
	finishTimeout = 30 * time.Second
)

// New returns a Queue that does nothing until Run.
func New(c Config, d Deps) (*Queue, error) {
	if d.Store == nil || d.Records == nil || d.Catalog == nil || d.Files == nil || d.Log == nil {
		return nil, fmt.Errorf("a build queue needs its stores and a log: %w", errdefs.ErrInvalidArgument)
	}
	if c.Parallel <= 0 {
		c.Parallel = 2
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Minute
	}
	return &Queue{cfg: c, deps: d, wake: make(chan struct{}, 1), running: map[template.BuildID]*job{}}, nil
}

// Run begins what an earlier server left and builds until ctx ends; then it
// stops what is being built, which the next server begins again.
func (q *Queue) Run(ctx context.Context) error {
	return q.work(ctx, func(template.Pending) bool { return true })
}

// RunOnly is Run for one template's builds, in a process that is no server: those
// of others are left to the next one.
func (q *Queue) RunOnly(ctx context.Context, t template.ID) error {
	return q.work(ctx, func(p template.Pending) bool { return p.Template == t })
}

func (q *Queue) work(ctx context.Context, ours func(template.Pending) bool) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	if err := q.recover(ctx, ours); err != nil {
		return err
	}
	tick := time.NewTicker(expireEvery)
	defer tick.Stop()
	for {
		for j := q.next(ctx); j != nil; j = q.next(ctx) {
			workers.Go(func() {
				q.run(ctx, j)
				q.mu.Lock()
				delete(q.running, j.Build)
				q.mu.Unlock()
				q.signal()
			})
		}
		select {
		case <-q.wake:
		case <-tick.C:
			q.expire(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (q *Queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// recover queues what was under way when the last server ended.
func (q *Queue) recover(ctx context.Context, ours func(template.Pending) bool) error {
	q.expire(ctx)
	if q.deps.Executor == nil {
		return nil
	}
	pending, err := q.deps.Store.PendingBuilds(ctx)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	queued := map[template.BuildID]bool{}
	for _, j := range q.waiting {
		queued[j.Build] = true // started through the API meanwhile
	}
	for _, p := range pending {
		if queued[p.Build] || !ours(p) {
			continue
		}
		j := &job{Pending: p}
		if p.Cancelled {
			j.ended = ErrCancelled
		}
		q.waiting = append(q.waiting, j)
	}
	return nil
}

func (q *Queue) expire(ctx context.Context) {
	_, err := q.deps.Store.ExpireBuilds(ctx, time.Now().Add(-waitingAge), "the build was registered and not started within a day")
	if err != nil && ctx.Err() == nil {
		q.deps.Log.WarnContext(ctx, "builds that were not started cannot be ended", slog.Any("error", err))
	}
}

// next takes the build whose turn it is: one that must only be ended, else the
// oldest one of a team that has the fewest running. nil when all places are taken
// or none waits.
func (q *Queue) next(ctx context.Context) *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 || ctx.Err() != nil {
		return nil
	}
	best := slices.IndexFunc(q.waiting, func(j *job) bool { return j.ended != nil })
	if best < 0 {
		if len(q.running) >= q.cfg.Parallel {
			return nil
		}
		best = q.fairest()
	}
	j := q.waiting[best]
	q.waiting = slices.Delete(q.waiting, best, best+1)
	q.running[j.Build] = j
	return j
}

// fairest finds the place in waiting of the build that goes next; mu is held.
func (q *Queue) fairest() int {
	busy := map[identity.TeamID]int{}
	for _, j := range q.running {
		busy[j.Team]++
	}
	best := 0
	for i, j := range q.waiting {
		if busy[j.Team] < busy[q.waiting[best].Team] {
			best = i
		}
	}
	return best
}

// Cancel ends a build of the caller's team that is building, with the reason
// "the build was cancelled". It returns at once; the state follows, even when
// the server is killed meanwhile.
// errdefs.ErrFailedPrecondition when it is not being built here.
func (q *Queue) Cancel(ctx context.Context, who identity.Principal, ref string, id template.BuildID) error {
	_, b, err := q.Build(ctx, who, ref, id)
	if err != nil {
		return err
	}
	if b.Status == template.Waiting {
		b.Status, b.Reason, b.FinishedAt = template.Failed, "the build was cancelled before it was started", now()
		return q.deps.Store.FinishBuild(ctx, b, who.KeyID)
	}
	err = q.deps.Store.CancelBuild(ctx, who.Team, b, who.KeyID)
	if errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("build %q is not under way, its state is %s: %w", id, b.Status, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return err
	}
	q.stop(func(j *job) bool { return j.Build == id }, ErrCancelled) // another process ends it when it looks
	q.deps.Log.InfoContext(ctx, "build cancelled", slog.String("build", string(id)), slog.String("by", who.KeyID))
	return nil
}

// Forget ends the builds of a template that was deleted.
func (q *Queue) Forget(t template.ID) {
	q.stop(func(j *job) bool { return j.Template == t }, errDeleted)
}

// stop ends jobs.
func (q *Queue) stop(which func(*job) bool, cause error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, j := range q.waiting {
		if which(j) {
			j.ended = cause
		}
	}
	for _, j := range q.running {
		if !which(j) {
			continue
		}
		j.ended = cause
		if j.cancel != nil {
			j.cancel(cause)
		}
	}
	q.signal()
}

// now is the time as records hold it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
