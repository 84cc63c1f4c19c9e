package pool_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
)

// host makes boxes and knows which live.
type host struct {
	mu    sync.Mutex
	n     int
	boxes map[string]*box
	fails error
	slow  time.Duration
	renew time.Duration // what setting a deadline takes
	bytes int64
	most  int // made at a time
	now   int
}

type box struct {
	provider.Box

	host  *host
	id    string
	key   pool.Key
	ended chan struct{}
	until time.Time
}

func (h *host) make(ctx context.Context, k pool.Key, id string) (pool.Box, error) {
	h.mu.Lock()
	h.now++
	h.most = max(h.most, h.now)
	slow, fails := h.slow, h.fails
	h.mu.Unlock()
	defer func() { h.mu.Lock(); h.now--; h.mu.Unlock() }()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if fails != nil {
		return nil, fails
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b := &box{host: h, id: id, key: k, ended: make(chan struct{})}
	h.boxes[id] = b
	return b, nil
}

func (h *host) ids() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.boxes))
}

func (b *box) Handle() provider.Handle { return provider.Handle{ID: b.id} }

func (b *box) Wait(ctx context.Context) (provider.Exit, error) {
	select {
	case <-b.ended:
		return provider.Exit{Reason: provider.ReasonCrashed}, nil
	case <-ctx.Done():
		return provider.Exit{}, ctx.Err()
	}
}

func (b *box) Destroy(context.Context) error {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	if b.host.boxes[b.id] != nil {
		delete(b.host.boxes, b.id)
		close(b.ended)
	}
	return nil
}

func (b *box) Stats(context.Context) (provider.Stats, error) {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	return provider.Stats{MemoryBytes: b.host.bytes}, nil
}

func (b *box) SetDeadline(_ context.Context, t time.Time) error {
	time.Sleep(b.host.renew)
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	b.until = t
	return nil
}

// start runs a pool in a bubble of its own; body gets it, and after it when it
// has ended.
func start(t *testing.T, h *host, o pool.Options, body func(*pool.Pool), after ...func(*pool.Pool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h.boxes = map[string]*box{}
		o.Make = h.make
		o.NewID = func() string { h.mu.Lock(); defer h.mu.Unlock(); h.n++; return fmt.Sprintf("box%03d", h.n) }
		o.Log = slog.New(slog.DiscardHandler)
		p, err := pool.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.Run(ctx) }()
		body(p)
		cancel()
		<-done
		for _, f := range after {
			f(p)
		}
	})
}

var (
	small = pool.Key{Build: "b1", Resources: provider.Resources{MemoryMiB: 512}}
	large = pool.Key{Build: "b1", Resources: provider.Resources{MemoryMiB: 4096}}
)

func plan(k pool.Key, hot int) map[pool.Key]pool.Plan { return map[pool.Key]pool.Plan{k: {Hot: hot}} }

func hot(p *pool.Pool, k pool.Key) int {
	for _, s := range p.Status() {
		if s.Key == k {
			return s.Hot
		}
	}
	return 0
}

func TestKeepsPlan(t *testing.T) {
	t.Parallel()
	h := &host{slow: 100 * time.Millisecond}
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 3), map[pool.Key]pool.Label{small: {Template: "base"}})
		time.Sleep(time.Second)
		if got := hot(p, small); got != 3 {
			t.Fatalf("hot = %d, want 3", got)
		}
		first, ok := p.Take(small, "base")
		time.Sleep(time.Second)
		if got := hot(p, small); got != 2 {
			t.Errorf("hot = %d while a box is lent, want 2", got)
		}
		p.Settle(small, first)
		if !ok || first.Handle().ID != "box001" {
			t.Fatalf("Take() = %v, %t, want the oldest", first, ok)
		}
		if _, ok := p.Take(large, "base"); ok {
			t.Error("a box of other resources was handed out")
		}
		time.Sleep(time.Second)
		if got := hot(p, small); got != 3 {
			t.Errorf("hot = %d after a refill, want 3", got)
		}
		if s := p.Status()[0]; s.Hits != 1 || s.Made != 4 || s.Template != "base" || s.MadeIn != 100*time.Millisecond || s.Bytes != 3*pool.LeastBytes {
			t.Errorf("status %+v", s)
		}
		p.SetPlan(nil, nil) // but one was asked for lately, and demand is off
		time.Sleep(time.Second)
		if got := h.ids(); !slices.Equal(got, []string{"box001"}) {
			t.Errorf("boxes %v, want only the one that was taken", got)
		}
		if h.most != 1 {
			t.Errorf("%d were made at a time", h.most)
		}
	})
	if got := h.ids(); !slices.Equal(got, []string{"box001"}) {
		t.Errorf("boxes after the end: %v, want the one that was taken", got)
	}
}

// A taken box is nobody's orphan until its taker answers for it.
func TestOwns(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		h.slow = time.Second
		p.SetPlan(plan(small, 1), nil)
		time.Sleep(time.Millisecond)
		if !p.Owns("box001") {
			t.Error("a box that is being made is not owned")
		}
		time.Sleep(time.Second)
		if !p.Owns("box001") {
			t.Error("a held box is not owned")
		}
		b, _ := p.Take(small, "")
		if !p.Owns("box001") {
			t.Error("a taken box is not owned")
		}
		p.Settle(small, b)
		if p.Owns("box001") || p.Owns("other") {
			t.Error("a settled box is owned")
		}
	})
}

func TestReturn(t *testing.T) {
	t.Parallel()
	h := &host{}
	var b pool.Box
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 1), nil)
		synctest.Wait()
		b, _ = p.Take(small, "")
		p.Return(small, b)
		synctest.Wait()
		again, ok := p.Take(small, "")
		if !ok {
			t.Fatal("nothing to take after a return")
		}
		b = again
	}, func(p *pool.Pool) {
		p.Return(small, b)
		if got := h.ids(); len(got) != 0 {
			t.Errorf("boxes after the end: %v", got)
		}
		if _, ok := p.Take(small, ""); ok {
			t.Error("a box was handed out after the end")
		}
	})
}

func TestDemand(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{MaxDemand: 4}, func(p *pool.Pool) {
		if _, ok := p.Take(small, "base"); ok {
			t.Fatal("there is a box already")
		}
		time.Sleep(time.Second)
		if got := hot(p, small); got != 1 {
			t.Fatalf("hot = %d after one create, want 1", got)
		}
		take := func() {
			if b, ok := p.Take(small, "base"); ok {
				p.Settle(small, b)
			}
		}
		for range 3 {
			take()
		}
		time.Sleep(time.Second)
		if got := hot(p, small); got != 4 {
			t.Errorf("hot = %d after four creates within ten seconds, want 4", got)
		}
		for range 20 {
			take()
		}
		time.Sleep(time.Second)
		if got := hot(p, small); got != 4 {
			t.Errorf("hot = %d, want the most that demand may keep, 4", got)
		}
		time.Sleep(290 * time.Second)
		if got := hot(p, small); got != 4 {
			t.Errorf("hot = %d within five minutes, want 4", got)
		}
		time.Sleep(30 * time.Second)
		if got := p.Status(); len(got) != 0 {
			t.Errorf("five minutes later there is %+v", got)
		}
	})
}

func TestDeadBoxesGo(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 1), nil)
		synctest.Wait()
		h.mu.Lock()
		dead := h.boxes["box001"]
		h.mu.Unlock()
		close(dead.ended)
		h.mu.Lock()
		delete(h.boxes, "box001")
		h.mu.Unlock()
		synctest.Wait()
		b, ok := p.Take(small, "")
		if !ok || b.Handle().ID != "box002" {
			t.Errorf("Take() = %v, want a living box", b)
		}
	})
}

func TestFailuresBackOff(t *testing.T) {
	t.Parallel()
	h := &host{fails: errors.New("no room")}
	var attempts []time.Time
	o := pool.Options{Metrics: pool.Metrics{Made: func(_ pool.Tier, _ time.Duration, err error) {
		if err == nil {
			t.Error("a box was made")
		}
		attempts = append(attempts, time.Now())
	}}}
	start(t, h, o, func(p *pool.Pool) {
		began := time.Now()
		p.SetPlan(plan(small, 5), nil)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(attempts); n < 10 || n > 20 {
			t.Errorf("%d attempts in ten minutes, want a growing pause between them", n)
		}
		if attempts[1].Sub(began) != time.Second || attempts[2].Sub(attempts[1]) != 2*time.Second {
			t.Errorf("attempts at %v", attempts[:3])
		}
		if s := p.Status()[0]; s.Problem != "no room" || s.Failed == 0 {
			t.Errorf("status %+v, want the problem", s)
		}
	})
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	h := &host{bytes: 100 << 20}
	start(t, h, pool.Options{MaxBytes: 250 << 20}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 10), nil)
		time.Sleep(time.Minute)
		s := p.Status()[0]
		if s.Hot != 3 || s.Problem == "" { // the third began at 200 MiB
			t.Errorf("status %+v, want 3 boxes and the reason why there are no more", s)
		}
		b, _ := p.Take(small, "")
		p.Settle(small, b)
		time.Sleep(time.Minute)
		if got := hot(p, small); got != 3 {
			t.Errorf("hot = %d after one was taken, want 3", got)
		}
	})
}

func TestLeaseAndAge(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{Lease: 4 * time.Minute, MaxAge: 30 * time.Minute}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 2), nil)
		for range 60 {
			time.Sleep(time.Minute)
			h.mu.Lock()
			for id, b := range h.boxes {
				if !b.until.IsZero() && time.Until(b.until) < time.Minute {
					t.Errorf("the lease of %s ends in %s", id, time.Until(b.until))
				}
			}
			h.mu.Unlock()
			if s := p.Status()[0]; s.Hot != 2 || s.Oldest > 32*time.Minute {
				t.Fatalf("status %+v", s)
			}
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.boxes["box001"] != nil {
			t.Error("the first box is still there after an hour")
		}
	})
}

// A lease that is being renewed could outdo the deadline of who takes the box.
func TestNoTakeWhileRenewing(t *testing.T) {
	t.Parallel()
	h := &host{renew: time.Second}
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 1), nil)
		synctest.Wait()
		b, _ := p.Take(small, "")
		p.Return(small, b) // its lease is renewed at once
		synctest.Wait()
		if b, ok := p.Take(small, ""); ok {
			t.Errorf("%s was taken while its lease is being renewed", b.Handle().ID)
		}
		time.Sleep(2 * time.Second)
		got, ok := p.Take(small, "")
		if !ok {
			t.Fatal("nothing to take after the renewal")
		}
		mine := time.Now().Add(time.Hour)
		if err := got.(*box).SetDeadline(t.Context(), mine); err != nil {
			t.Fatal(err)
		}
		p.Settle(small, got)
		time.Sleep(10 * time.Minute)
		if until := got.(*box).until; !until.Equal(mine) {
			t.Errorf("deadline of the box that was taken is %v, want %v", until, mine)
		}
	})
}

// Many takers at once: nobody gets another's box.
func TestTakersAtOnce(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{Parallel: 4}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 50), nil)
		time.Sleep(time.Second)
		var mu sync.Mutex
		seen := map[string]bool{}
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				b, ok := p.Take(small, "")
				if !ok {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if seen[b.Handle().ID] {
					t.Errorf("%s was handed out twice", b.Handle().ID)
				}
				seen[b.Handle().ID] = true
			})
		}
		wg.Wait()
		if len(seen) < 50 {
			t.Errorf("%d were handed out, want at least 50", len(seen))
		}
	})
	if h.most > 4 {
		t.Errorf("%d were made at a time, want at most 4", h.most)
	}
}

// Creates have the machine for themselves, but not for ever.
func TestRefillWaitsForQuiet(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 10), nil)
		synctest.Wait()
		take := func() {
			if b, ok := p.Take(small, ""); ok {
				p.Settle(small, b)
			}
			synctest.Wait()
		}
		take()
		time.Sleep(99 * time.Millisecond)
		synctest.Wait()
		if got := hot(p, small); got != 9 {
			t.Errorf("hot = %d right after a create, want 9", got)
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if got := hot(p, small); got != 10 {
			t.Errorf("hot = %d when it is quiet, want 10", got)
		}
		for range 5 { // one create every 50 ms
			time.Sleep(50 * time.Millisecond)
			take()
		}
		if got := hot(p, small); got != 5 {
			t.Errorf("hot = %d during a burst, want 5", got)
		}
		for range 200 {
			time.Sleep(50 * time.Millisecond)
			take()
			if got := hot(p, small); got < 2 {
				t.Fatalf("hot = %d under steady creates, want it to be refilled", got)
			}
		}
	})
}

// A long run of creates has the machine for itself while there are plenty.
func TestRefillWaitsWhileThereArePlenty(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 100), nil)
		synctest.Wait()
		take := func(n int) {
			for range n { // one create every 75 ms
				if b, ok := p.Take(small, ""); ok {
					p.Settle(small, b)
				}
				time.Sleep(75 * time.Millisecond)
				synctest.Wait()
			}
		}
		take(45)
		if got := hot(p, small); got != 55 {
			t.Errorf("hot = %d after 3.4 s of creates, want 55", got)
		}
		take(10)
		if got := hot(p, small); got <= 45 {
			t.Errorf("hot = %d with less than half left, want it to be refilled", got)
		}
	})
}

// What runs in a box may take more than it took in the beginning.
func TestBoxesThatGrow(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{Lease: 4 * time.Minute, MaxBytes: 10 * pool.LeastBytes}, func(p *pool.Pool) {
		p.SetPlan(plan(small, 1), nil)
		time.Sleep(time.Second)
		h.mu.Lock()
		h.bytes = 9 * pool.LeastBytes
		h.mu.Unlock()
		time.Sleep(3 * time.Minute)
		if all := p.Status(); len(all) != 1 || all[0].Bytes != 9*pool.LeastBytes {
			t.Errorf("pool: %+v, want a box of %d bytes", all, 9*pool.LeastBytes)
		}
		h.mu.Lock()
		h.bytes = 0 // of those that are made now
		h.mu.Unlock()
		p.SetPlan(plan(small, 4), nil)
		time.Sleep(30 * time.Second)
		if got := h.ids(); len(got) != 2 {
			t.Errorf("boxes %v, want one more within the limit", got)
		}
	})
}
