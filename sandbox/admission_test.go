package sandbox_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// counted keeps what the metrics of admission say.
type counted struct {
	queued, waited, most atomic.Int64
	mu                   sync.Mutex
	refused              map[string]int
}

func (c *counted) metrics() sandbox.Metrics {
	c.refused = map[string]int{}
	return sandbox.Metrics{
		Queued:      func(n int) { c.queued.Store(int64(n)); c.most.Store(max(c.most.Load(), int64(n))) },
		QueueWaited: func(time.Duration) { c.waited.Add(1) },
		Refused: func(why string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.refused[why]++
		},
	}
}

func burstConfig() sandbox.Config {
	cfg := testConfig()
	cfg.ConcurrentCreates, cfg.CreateQueue, cfg.MaxPerTeam = 8, 64, 0
	return cfg
}

// Three hundred creates at once: as many as there are slots and places run, the
// others are told to come back, and nothing is left of them. The bubble finds
// goroutines that leak.
func TestBurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var c counted
		w.metrics = c.metrics()
		p := w.boot(t, burstConfig()).run(t)
		proceed := make(chan struct{})
		w.boxes.creating = func(context.Context, provider.Spec) error { <-proceed; return nil }
		var ok, refused atomic.Int64
		var wg sync.WaitGroup
		burst := func(who identity.Principal, n int) {
			for range n {
				wg.Go(func() {
					_, err := p.Create(t.Context(), who, request())
					if err == nil {
						ok.Add(1)
						return
					}
					e, is := errors.AsType[*apierr.Error](err)
					if !is || e.Code != "create_queue_full" || e.Limit != "limits.create_queue" || e.RetryAfter < time.Second || !errdefs.IsResourceExhausted(err) {
						t.Errorf("Create() = %v", err)
					}
					refused.Add(1)
				})
			}
		}
		burst(alice, 300)
		synctest.Wait()
		if got := c.queued.Load(); got != 64 || refused.Load() != 228 {
			t.Errorf("%d wait and %d were refused, want 64 and 228", got, refused.Load())
		}
		// Another team comes to the full queue and gets half of it.
		burst(mallory, 100)
		synctest.Wait()
		close(proceed)
		wg.Wait()
		if ok.Load() != 72 || refused.Load() != 328 {
			t.Errorf("%d created and %d refused, want 72 and 328", ok.Load(), refused.Load())
		}
		_, _, hers, err := p.List(t.Context(), alice, sandbox.Filter{})
		_, _, his, err2 := p.List(t.Context(), mallory, sandbox.Filter{})
		if err != nil || err2 != nil || hers != 40 || his != 32 {
			t.Errorf("%d and %d sandboxes, want 8+32 and 32 (%v, %v)", hers, his, err, err2)
		}
		if w.boxes.most > 8 || len(w.boxes.ids()) != 72 {
			t.Errorf("%d boxes, %d at once, want 72 and at most 8", len(w.boxes.ids()), w.boxes.most)
		}
		all, _, _, err := p.List(t.Context(), identity.System, sandbox.Filter{States: []sandbox.State{sandbox.Failed, sandbox.Pending}})
		if len(all) != 0 || err != nil {
			t.Errorf("%d records of what was refused (%v), want none", len(all), err)
		}
		if c.refused[sandbox.RefusedFull] != 328 || c.waited.Load() != 72 || c.queued.Load() != 0 || c.most.Load() != 64 {
			t.Errorf("metrics: refused %v, waited %d, queued %d, at most %d", c.refused, c.waited.Load(), c.queued.Load(), c.most.Load())
		}
	})
}

// stuck fills the one slot and returns what frees it.
func stuck(t *testing.T, w *world, p *process) (free func()) {
	t.Helper()
	proceed := make(chan struct{})
	w.boxes.mu.Lock()
	w.boxes.creating = func(context.Context, provider.Spec) error { <-proceed; return nil }
	w.boxes.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { create(t, p) })
	synctest.Wait()
	return sync.OnceFunc(func() { close(proceed); wg.Wait() })
}

func TestClientLeavesQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.ConcurrentCreates, cfg.CreateQueue = 1, 1
		p := w.boot(t, cfg).run(t)
		free := stuck(t, w, p)
		for _, r := range []sandbox.CreateRequest{request(), keyed("k")} {
			ctx, leave := context.WithCancel(t.Context())
			out := make(chan error, 1)
			go func() { _, err := p.Create(ctx, alice, r); out <- err }()
			synctest.Wait()
			if _, err := p.Create(t.Context(), alice, request()); !errdefs.IsResourceExhausted(err) {
				t.Errorf("Create() with the queue full = %v", err)
			}
			leave()
			if err := <-out; !errors.Is(err, context.Canceled) {
				t.Errorf("Create() whose caller left = %v", err)
			}
		}
		out := make(chan error, 1)
		go func() { _, err := p.Create(t.Context(), alice, keyed("k")); out <- err }()
		synctest.Wait()
		free()
		if err := <-out; err != nil {
			t.Errorf("Create() in the place that was freed = %v", err)
		}
	})
}

// A resume waits in the same queue; refused, the sandbox is paused as before.
func TestResumeWaitsItsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.ConcurrentCreates, cfg.CreateQueue = 1, 1
		p := w.boot(t, cfg).run(t)
		var paused []sandbox.ID
		for range 3 {
			sb := create(t, p)
			if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
				t.Fatal(err)
			}
			paused = append(paused, sb.ID)
		}
		events := len(eventTypes(t, w, paused[1]))
		free := stuck(t, w, p)
		defer free()
		out := make(chan error, 1)
		connect := func(id sandbox.ID) error {
			_, _, err := p.Connect(t.Context(), alice, id, time.Minute)
			return err
		}
		go func() { out <- connect(paused[0]) }()
		synctest.Wait()
		if err := connect(paused[1]); !errdefs.IsResourceExhausted(err) {
			t.Errorf("Connect() with the queue full = %v", err)
		}
		if sb, err := w.db.Get(t.Context(), paused[1]); err != nil || sb.State != sandbox.Paused || len(eventTypes(t, w, paused[1])) != events {
			t.Errorf("the refused one is %s (%v), want paused and no event", sb.State, err)
		}
		// One that is killed while it waits frees its place and its artifact.
		if err := p.Kill(t.Context(), alice, paused[0], ""); err != nil {
			t.Errorf("Kill(waiting) = %v", err)
		}
		if err := <-out; !errdefs.IsNotFound(err) {
			t.Errorf("Connect(killed while it waited) = %v", err)
		}
		if sb, err := w.db.Get(t.Context(), paused[0]); err != nil || sb.State != sandbox.Killed || len(w.vault.ids()) != 2 {
			t.Errorf("the killed one is %s (%v), artifacts %v", sb.State, err, w.vault.ids())
		}
		go func() { out <- connect(paused[2]) }()
		synctest.Wait()
		free()
		if err := <-out; err != nil {
			t.Errorf("Connect() in the freed place = %v", err)
		}
		if err := connect(paused[1]); err != nil {
			t.Errorf("Connect() of the refused one later = %v", err)
		}
	})
}

// Children of a fork stand in the line of their team.
func TestForkWaitsItsTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.ConcurrentCreates, cfg.CreateQueueWait = 1, 10*time.Second
		p := w.boot(t, cfg).run(t)
		src := create(t, p)
		free := stuck(t, w, p)
		defer free()
		out, err := p.Fork(t.Context(), alice, src.ID, 2, time.Minute)
		if err != nil || len(out) != 2 {
			t.Fatalf("Fork() = %v, %v", out, err)
		}
		for _, f := range out {
			wantCode(t, "child", f.Err, "create_queue_full", errdefs.ErrResourceExhausted)
		}
	})
}

func TestNoMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var c counted
	w.metrics = c.metrics()
	var free atomic.Int64
	w.memory = func() (int64, error) { return free.Load(), nil }
	cfg := testConfig()
	cfg.MemoryReserve = 256 << 20
	p := w.boot(t, cfg).run(t)
	free.Store(260 << 20)
	_, err := p.Create(t.Context(), alice, keyed("k"))
	wantCode(t, "Create() without memory", err, "no_memory", errdefs.ErrUnavailable)
	if rows, _, _, err := p.List(t.Context(), alice, sandbox.Filter{States: []sandbox.State{sandbox.Failed, sandbox.Pending}}); err != nil || len(rows) != 0 {
		t.Errorf("%d records (%v), want none", len(rows), err)
	}
	if c.refused[sandbox.RefusedMemory] != 1 {
		t.Errorf("refused %v", c.refused)
	}
	free.Store(1 << 30)
	mustCreate(t, p, alice, keyed("k"))
}
