package batch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
)

const (
	// lease is how long an item's sandbox outlives a server that is killed; it is
	// renewed three times as often.
	lease = 90 * time.Second
	// firstRetry and lastRetry are how long an item waits before it asks again
	// for a sandbox that the team's limit refused. One of its own batch that
	// ends is not waited for.
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
	// endLimit bounds ending a sandbox or a command.
	endLimit = 30 * time.Second
)

// run is one batch under way.
type run struct {
	*Runner
	who    identity.Principal
	req    Request
	events chan Event
	next   atomic.Int64 // the item to start next
	stop   atomic.Bool  // start no more
	freed  chan struct{}
	// What follows belongs to the goroutine that runs Run.
	ok, failed int
}

// Run runs a batch that Check has approved and returns when nothing of it runs
// and none of its sandboxes is left. emit is told of events, one at a time; it
// may take its time, which holds the batch up. Its first error, or the end of
// ctx, starts no more items and kills those that run.
func (b *Runner) Run(ctx context.Context, who identity.Principal, r Request, emit func(Event) error) Summary {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	x := &run{Runner: b, who: who, req: r, events: make(chan Event), freed: make(chan struct{}, 1)}
	var workers sync.WaitGroup
	for range max(1, r.Concurrency) {
		workers.Go(func() { x.work(ctx) })
	}
	go func() {
		workers.Wait()
		close(x.events)
	}()
	broken := false
	tell := func(ev Event) {
		if broken {
			return
		}
		if err := emit(ev); err != nil {
			broken = true
			cancel(fmt.Errorf("nobody listens: %w: %w", errdefs.ErrAborted, err))
		}
	}
	for ev := range x.events {
		if ev.Result != nil && ev.Result.OK() {
			x.ok++
		} else if ev.Result != nil {
			x.failed++
		}
		tell(ev)
	}
	s := Summary{Items: len(r.Items), Succeeded: x.ok, Failed: x.failed, Took: time.Since(began)}
	s.Skipped = s.Items - s.Succeeded - s.Failed
	tell(Event{Summary: &s})
	return s
}

// work runs items, in their order, until there are none left.
func (x *run) work(ctx context.Context) {
	for ctx.Err() == nil && !x.stop.Load() {
		i := int(x.next.Add(1)) - 1
		if i >= len(x.req.Items) {
			return
		}
		res := x.item(ctx, i)
		if !res.OK() && x.req.StopOnError {
			x.stop.Store(true)
		}
		x.events <- Event{Result: &res}
	}
}

// item runs one item in its sandbox, which is gone when it returns.
func (x *run) item(ctx context.Context, i int) Result {
	it := x.req.Items[i]
	res := Result{ID: it.ID, Index: i, ExitCode: -1, Sandbox: x.req.Shared}
	if x.req.Shared == "" {
		began := time.Now()
		var err error
		res.Sandbox, err = x.create(ctx)
		res.Waited = time.Since(began)
		if err != nil {
			res.Err = err
			return res
		}
		defer x.destroy(ctx, res.Sandbox)
		renewing, release := context.WithCancel(ctx)
		var renewal sync.WaitGroup
		renewal.Go(func() { x.renew(renewing, res.Sandbox) })
		defer func() { release(); renewal.Wait() }()
	}
	x.events <- Event{Started: &Started{ID: it.ID, Index: i, Sandbox: res.Sandbox, Waited: res.Waited}}
	x.execute(ctx, it, &res)
	return res
}

func (b *Runner) createRequest(r Request) sandbox.CreateRequest {
	c := r.Create
	c.Timeout, c.Env = min(lease, b.cfg.MaxTimeout), r.Env
	return c
}

// create makes a sandbox. What the team's rate or its limit refuses is asked for
// again, until the item's timeout.
func (x *run) create(ctx context.Context) (sandbox.ID, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, x.req.Timeout, errSlow)
	defer cancel()
	var refused error
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		id, again, err := x.tryCreate(ctx)
		switch {
		case err == nil:
			return id, nil
		case ctx.Err() != nil:
			return "", notCreated(ctx, refused, err)
		case again == 0:
			return "", err
		}
		refused = err
		timer := time.NewTimer(max(wait, again))
		select {
		case <-x.freed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return "", notCreated(ctx, refused, err)
		}
		timer.Stop()
	}
}

var errSlow = errors.New("no sandbox within the timeout of the item")

// tryCreate asks for a sandbox once; again is not 0 when it is worth asking
// again after that long.
func (x *run) tryCreate(ctx context.Context) (id sandbox.ID, again time.Duration, err error) {
	if x.cfg.Allow != nil {
		if after, ok := x.cfg.Allow(x.who.Team); !ok {
			return "", max(after, firstRetry), fmt.Errorf("too many creates: %w", errdefs.ErrResourceExhausted)
		}
	}
	req, admitted := x.createRequest(x.req), false
	req.Progress = func(st sandbox.Stage) { admitted = admitted || st != sandbox.Queued }
	sb, err := x.cfg.Sandboxes.Create(ctx, x.who, req)
	if err != nil && errdefs.IsResourceExhausted(err) && !admitted {
		return "", firstRetry, err
	}
	return sb.ID, 0, err
}

// destroy ends an item's sandbox, whatever became of the caller.
func (x *run) destroy(ctx context.Context, id sandbox.ID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if err := x.cfg.Sandboxes.Kill(ctx, x.who, id, ""); err != nil && !errdefs.IsNotFound(err) {
		// It ends by itself when its lease does.
		x.cfg.Log.WarnContext(ctx, "sandbox of a batch could not be ended", slog.String("sandbox", string(id)), slog.Any("error", err))
	}
	select {
	case x.freed <- struct{}{}:
	default:
	}
}

// renew keeps an item's sandbox alive until ctx ends. A renewal that fails is
// tried again at the next turn; when all fail the sandbox ends by itself.
func (x *run) renew(ctx context.Context, id sandbox.ID) {
	life := x.createRequest(x.req).Timeout
	tick := time.NewTicker(life / 3)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_, _ = x.cfg.Sandboxes.Extend(ctx, x.who, id, life)
		case <-ctx.Done():
			return
		}
	}
}
