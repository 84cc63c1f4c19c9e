package pool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
)

var (
	blank = pool.Key{Tier: pool.Booted, Image: "sha256:1", Resources: provider.Resources{MemoryMiB: 512}}
	label = pool.Label{Template: "base", Build: "b1"}
)

// takeBooted takes a box that is there, and settles it.
func takeBooted(t *testing.T, p *pool.Pool) pool.Box {
	t.Helper()
	b, ok := p.TakeBooted(context.Background(), blank, label)
	if !ok {
		t.Fatal("TakeBooted() found none")
	}
	p.Settle(blank, b)
	return b
}

func TestBootedPlanAndUse(t *testing.T) {
	t.Parallel()
	h := &host{slow: 50 * time.Millisecond}
	start(t, h, pool.Options{Booted: 2, MaxDemand: 16}, func(p *pool.Pool) {
		if _, ok := p.TakeBooted(context.Background(), blank, label); ok {
			t.Error("TakeBooted() found one that nobody made")
		}
		time.Sleep(time.Second)
		if got := hot(p, blank); got != 2 {
			t.Errorf("%d boxes after one was asked for, want 2", got)
		}
		if s := p.Status()[0]; s.For != "b1" || s.Template != "base" || s.Misses != 1 {
			t.Errorf("status %+v, want what they are for", s)
		}
		first := takeBooted(t, p)
		if h.boxes[first.Handle().ID].key.Build != "b1" {
			t.Errorf("it was made with %+v, want the build that says where the image is", h.boxes[first.Handle().ID].key)
		}
		second := takeBooted(t, p)
		if first.Handle().ID == second.Handle().ID {
			t.Error("the same box was handed out twice")
		}
		time.Sleep(time.Second)
		if got := hot(p, blank); got != 2 {
			t.Errorf("%d boxes after two were taken, want 2", got)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := hot(p, blank); got != 0 {
			t.Errorf("%d boxes ten minutes after the last use, want none", got)
		}
		p.Want(blank, label, time.Hour)
		time.Sleep(59 * time.Minute)
		if got := hot(p, blank); got != 2 {
			t.Errorf("%d boxes within the hour for which they are wanted, want 2", got)
		}
		p.SetPlan(plan(blank, 3), map[pool.Key]pool.Label{blank: label})
		time.Sleep(3 * time.Hour)
		if got := hot(p, blank); got != 3 {
			t.Errorf("%d boxes by plan, want 3", got)
		}
	}, func(*pool.Pool) {
		if left := h.ids(); len(left) != 2 { // the two that were taken
			t.Errorf("boxes %v after the end", left)
		}
	})
}

func TestBootedOff(t *testing.T) {
	t.Parallel()
	h := &host{}
	start(t, h, pool.Options{MaxDemand: 1}, func(p *pool.Pool) {
		p.Want(blank, label, time.Hour)
		p.Rush(blank, label, 5)
		if _, ok := p.TakeBooted(context.Background(), blank, label); ok {
			t.Error("TakeBooted() found one")
		}
		time.Sleep(time.Minute)
		if got := p.Status(); len(got) != 0 {
			t.Errorf("pools %+v, want none", got)
		}
	})
}

// Who finds none waits for one that is just being made, and no longer.
func TestTakeBootedWaits(t *testing.T) {
	t.Parallel()
	h := &host{slow: 100 * time.Millisecond}
	start(t, h, pool.Options{Booted: 1}, func(p *pool.Pool) {
		p.Want(blank, label, time.Hour)
		synctest.Wait()
		began := time.Now()
		got := make(chan pool.Box, 2)
		for range 2 { // one is being made
			go func() {
				b, _ := p.TakeBooted(context.Background(), blank, label)
				got <- b
			}()
		}
		if b := <-got; b != nil {
			t.Error("the second one got a box, too, or had to wait")
		}
		if b := <-got; b == nil || time.Since(began) != 100*time.Millisecond {
			t.Errorf("the first one got %v after %s, want the box that was being made", b, time.Since(began))
		} else {
			p.Settle(blank, b)
		}
		synctest.Wait()
		// A caller that goes away leaves the box to the shelf.
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		time.Sleep(110 * time.Millisecond) // until it is being made again
		if hot(p, blank) == 0 {
			if _, ok := p.TakeBooted(ctx, blank, label); ok {
				t.Error("TakeBooted() of one that went away found a box")
			}
		}
		time.Sleep(time.Second)
		if n := hot(p, blank); n != 1 {
			t.Errorf("%d boxes, want 1", n)
		}
		// What cannot be made is waited for no longer.
		takeBooted(t, p)
		h.mu.Lock()
		h.fails = errors.New("no room")
		h.mu.Unlock()
		time.Sleep(110 * time.Millisecond)
		synctest.Wait()
		if _, ok := p.TakeBooted(context.Background(), blank, label); ok {
			t.Error("TakeBooted() found a box that could not be made")
		}
	})
}

// Before a fork as many are made as the host can at a time, and no more than
// were asked for.
func TestRush(t *testing.T) {
	t.Parallel()
	h := &host{slow: 100 * time.Millisecond}
	start(t, h, pool.Options{Booted: 1, Most: 4}, func(p *pool.Pool) {
		p.Rush(blank, label, 6)
		time.Sleep(250 * time.Millisecond)
		synctest.Wait()
		if h.most != 4 || hot(p, blank) != 6 {
			t.Errorf("%d boxes, %d at a time; want 6, 4 at a time", hot(p, blank), h.most)
		}
		for range 5 {
			takeBooted(t, p)
		}
		time.Sleep(5 * time.Second)
		if n := hot(p, blank); n != 1 {
			t.Errorf("%d boxes after five of six were taken, want 1", n)
		}
		if n := len(h.ids()); n != 6 {
			t.Errorf("%d boxes were made, want 6", n)
		}
	})
}

// Hot boxes gain more than booted ones, and come before them where memory is
// short.
func TestHotBeforeBooted(t *testing.T) {
	t.Parallel()
	h := &host{slow: 10 * time.Millisecond}
	start(t, h, pool.Options{Booted: 4, MaxBytes: 5 * pool.LeastBytes}, func(p *pool.Pool) {
		p.Want(blank, label, time.Hour)
		time.Sleep(time.Second)
		if n := hot(p, blank); n != 4 {
			t.Fatalf("%d booted boxes, want 4", n)
		}
		p.SetPlan(plan(small, 3), nil)
		time.Sleep(time.Second)
		if hot(p, small) != 3 || hot(p, blank) != 2 {
			t.Errorf("%d hot and %d booted boxes, want 3 and what memory is left for, 2", hot(p, small), hot(p, blank))
		}
	})
}
