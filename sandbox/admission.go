package sandbox

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/containerd/errdefs"
)

const (
	// leastMemory is what a sandbox takes of the host at least, before it does
	// anything, in bytes.
	leastMemory = 12 << 20
	// Retry-After is between these, and unknownRetry while nothing was started
	// lately.
	leastRetry, mostRetry, unknownRetry = time.Second, time.Minute, 5 * time.Second
	// rateOver is over how many starts, and what time at most, their rate is told.
	rateOver, rateWindow = 32, time.Minute
)

// Why an admission refuses, for Metrics.Refused.
const (
	RefusedFull   = "queue_full"
	RefusedWait   = "queue_wait"
	RefusedMemory = "memory"
)

// admission is what everything that starts a box passes: a number of slots, and
// a bounded queue before them in which teams take turns. Within a team the order
// is that of arrival.
type admission struct {
	most  int           // that wait
	wait  time.Duration // of each
	free  func() (bytes int64, err error)
	keep  int64 // bytes that stay free
	slots int
	tell  Metrics

	mu      sync.Mutex // guards what follows
	taken   int
	waiting int
	// lines holds who waits, by team; turns are the teams with a line, the next
	// one first.
	lines map[identity.TeamID][]*place
	turns []identity.TeamID
	// done are the times of the last starts.
	done []time.Time
}

// place is one in a line. Its channel gets one value: nil with the slot, or why
// it was turned away.
type place struct{ called chan error }

func newAdmission(cfg Config, deps Deps) *admission {
	return &admission{
		most: max(cfg.CreateQueue, 0), wait: cfg.CreateQueueWait, slots: cfg.ConcurrentCreates,
		free: deps.FreeMemory, keep: cfg.MemoryReserve, tell: deps.Metrics, lines: map[identity.TeamID][]*place{},
	}
}

// enter returns when a box may be started; leave must be called when it was. It
// is errdefs.ErrResourceExhausted, create_queue_full, when too many wait or it
// has waited too long, and ErrUnavailable, no_memory, when the host has no
// memory for one more. When ctx ends, the place in the queue is free at once.
// waits, when set, is called before it waits.
func (a *admission) enter(ctx context.Context, team identity.TeamID, waits func()) (leave func(), err error) {
	began := time.Now()
	p, err := a.stand(team)
	if err != nil {
		return nil, err
	}
	if p != nil {
		if waits != nil {
			waits()
		}
		if err := a.queue(ctx, team, p); err != nil {
			return nil, err
		}
	}
	if f := a.tell.QueueWaited; f != nil {
		f(time.Since(began))
	}
	if err := a.fits(); err != nil {
		a.release()
		a.refused(RefusedMemory)
		return nil, err
	}
	return func() { a.noteDone(); a.release() }, nil
}

// stand takes a slot, when nobody waits for one, or a place in the team's line.
func (a *admission) stand(team identity.TeamID) (*place, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.taken < a.slots {
		a.taken++ // with a free slot nobody waits
		return nil, nil
	}
	if a.waiting >= a.most && !a.makeRoom(team) {
		a.refused(RefusedFull)
		return nil, a.errFull()
	}
	p := &place{called: make(chan error, 1)}
	if len(a.lines[team]) == 0 {
		a.turns = append(a.turns, team)
	}
	a.lines[team] = append(a.lines[team], p)
	a.count(1)
	return p, nil
}

// makeRoom turns the last one of the longest line away when that line stays
// longer than team's will be: one team's burst must not lock others out.
// a.mu is held.
func (a *admission) makeRoom(team identity.TeamID) bool {
	longest := team
	for other, line := range a.lines {
		if len(line) > len(a.lines[longest]) {
			longest = other
		}
	}
	line := a.lines[longest]
	if len(line) <= len(a.lines[team])+1 {
		return false
	}
	last := line[len(line)-1]
	a.drop(longest, last)
	a.refused(RefusedFull)
	last.called <- a.errFull()
	return true
}

// queue waits at a place until it is called.
func (a *admission) queue(ctx context.Context, team identity.TeamID, p *place) error {
	timer := time.NewTimer(a.wait)
	defer timer.Stop()
	var why error
	select {
	case err := <-p.called:
		return err
	case <-timer.C:
		why = a.errWait()
	case <-ctx.Done():
		why = context.Cause(ctx)
	}
	a.mu.Lock()
	left := a.drop(team, p)
	a.mu.Unlock()
	if !left { // called meanwhile
		if err := <-p.called; err != nil {
			return err
		}
		if ctx.Err() == nil {
			return nil
		}
		a.release()
		return why
	}
	if ctx.Err() == nil {
		a.refused(RefusedWait)
	}
	return why
}

// drop takes a place out of its line, and reports whether it was there. a.mu is
// held.
func (a *admission) drop(team identity.TeamID, p *place) bool {
	line := a.lines[team]
	i := slices.Index(line, p)
	if i < 0 {
		return false
	}
	a.count(-1)
	if line = slices.Delete(line, i, i+1); len(line) > 0 {
		a.lines[team] = line
		return true
	}
	delete(a.lines, team)
	if i := slices.Index(a.turns, team); i >= 0 {
		a.turns = slices.Delete(a.turns, i, i+1)
	}
	return true
}

// release gives a slot to the first of the team whose turn it is, or back.
func (a *admission) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.turns) == 0 {
		a.taken--
		return
	}
	team := a.turns[0]
	p := a.lines[team][0]
	a.drop(team, p)
	if len(a.lines[team]) > 0 { // the others have their turn first
		a.turns = append(a.turns[1:], team)
	}
	p.called <- nil
}

// count tells how many wait. a.mu is held.
func (a *admission) count(by int) {
	a.waiting += by
	if f := a.tell.Queued; f != nil {
		f(a.waiting)
	}
}

func (a *admission) refused(why string) {
	if f := a.tell.Refused; f != nil {
		f(why)
	}
}

func (a *admission) noteDone() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.done) == rateOver {
		a.done = slices.Delete(a.done, 0, 1)
	}
	a.done = append(a.done, time.Now())
}

// retryAfter is when the queue of now will be gone, as far as the rate of the
// last starts tells. a.mu is held.
func (a *admission) retryAfter() time.Duration {
	now := time.Now()
	for len(a.done) > 0 && now.Sub(a.done[0]) > rateWindow {
		a.done = a.done[1:]
	}
	if len(a.done) < 2 {
		return unknownRetry
	}
	each := now.Sub(a.done[0]) / time.Duration(len(a.done)-1)
	return min(max(time.Duration(a.waiting+1)*each, leastRetry), mostRetry).Round(time.Second)
}

// errFull is the error of one that finds no place. a.mu is held.
func (a *admission) errFull() error {
	return a.busy("limits.create_queue", "%d sandboxes are waiting to be started, as many as limits.create_queue allows", a.most)
}

func (a *admission) errWait() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.busy("limits.create_queue_wait", "the sandbox waited for %s to be started, as long as limits.create_queue_wait allows", a.wait)
}

func (a *admission) busy(limit, format string, args ...any) error {
	after := a.retryAfter()
	e := apierr.New(errdefs.ErrResourceExhausted, format+": try again in %d second(s)", append(args, int64(after/time.Second))...).WithCode("create_queue_full")
	e.Limit, e.RetryAfter = limit, after
	return e
}

// fits refuses when the host's free memory, less what is kept of it and what
// those that are being started have yet to take, does not hold one more sandbox
// that does nothing. Limits are not reserved: they are meant to be overcommitted.
// Where the memory cannot be read nothing is refused.
func (a *admission) fits() error {
	if a.free == nil {
		return nil
	}
	free, err := a.free()
	if err != nil {
		return nil //nolint:nilerr // the host's own limits hold all the same
	}
	a.mu.Lock()
	starting := int64(max(a.taken, 1)) // this one included
	a.mu.Unlock()
	if need := starting * leastMemory; free-a.keep < need {
		e := apierr.New(errdefs.ErrUnavailable,
			"the host has %d MiB of memory available and keeps %d MiB (limits.memory_reserve_mib): too little for %d sandbox(es) being started, which take at least %d MiB; end or pause some, or add memory",
			free>>20, a.keep>>20, starting, need>>20).WithCode("no_memory")
		e.Limit, e.RetryAfter = "limits.memory_reserve_mib", unknownRetry
		return e
	}
	return nil
}
