package sandbox

import (
	"context"
	"sync"
)

// tasks are goroutines that belong to Manager.Run: they start when it runs,
// stop when its context ends, and it waits for them. The zero value is ready.
type tasks struct {
	mu     sync.Mutex // guards what follows
	start  func(func(context.Context))
	queued []func(context.Context)
	closed bool
}

// add runs fn on a goroutine, now or when run is called; after run has ended it
// drops fn.
func (t *tasks) add(fn func(context.Context)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
	case t.start != nil:
		t.start(fn)
	default:
		t.queued = append(t.queued, fn)
	}
}

// try runs fn on a goroutine if run is under way; false when it is not, and the
// caller does it.
func (t *tasks) try(fn func(context.Context)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.start == nil {
		return false
	}
	t.start(fn)
	return true
}

// ended reports whether run is over.
func (t *tasks) ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// run starts what was queued and calls body; when that returns, it cancels and
// awaits every goroutine.
func (t *tasks) run(ctx context.Context, body func(context.Context) error) error {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	t.mu.Lock()
	t.start = func(fn func(context.Context)) { wg.Go(func() { fn(ctx) }) }
	for _, fn := range t.queued {
		t.start(fn)
	}
	t.queued = nil
	t.mu.Unlock()

	err := body(ctx)

	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	cancel()
	wg.Wait()
	return err
}
