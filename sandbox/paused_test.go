package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

func TestPausedSandboxesExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.KeepPaused = 24 * time.Hour
		first := w.boot(t, cfg).run(t)
		old := pausable(t, first, func(*sandbox.CreateRequest) {})
		if err := first.Pause(t.Context(), alice, old.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		time.Sleep(23 * time.Hour)
		young := pausable(t, first, func(*sandbox.CreateRequest) {})
		if err := first.Pause(t.Context(), alice, young.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		first.kill9() // the time goes on without a server
		p := w.boot(t, cfg).run(t)
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		checkPaused(t, p, old.ID)
		time.Sleep(time.Hour)
		synctest.Wait()
		checkGone(t, p, old.ID, sandbox.Killed, sandbox.ReasonRetention)
		checkPaused(t, p, young.ID)
		if _, _, err := p.Connect(t.Context(), alice, young.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		if _, ok := p.Live(young.ID); !ok {
			t.Error("a sandbox that was resumed in time is gone")
		}
	})
}

func TestPausedLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.MaxPaused = 1
		p := w.boot(t, cfg).run(t)
		one, two := pausable(t, p, func(*sandbox.CreateRequest) {}), pausable(t, p, func(*sandbox.CreateRequest) {})
		if err := p.Pause(t.Context(), alice, one.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		err := p.Pause(t.Context(), alice, two.ID, snapshot.Memory)
		if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "limits.paused_per_team is 1") {
			t.Errorf("Pause() over the limit = %v", err)
		}
		if _, ok := p.Live(two.ID); !ok {
			t.Error("the sandbox that could not be paused does not run")
		}
		// Another team has its own; a place that is freed can be taken.
		r := request()
		r.Timeout = time.Hour
		other, err := p.Create(t.Context(), mallory, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Pause(t.Context(), mallory, other.ID, snapshot.Memory); err != nil {
			t.Errorf("Pause() by another team = %v", err)
		}
		if err := p.Kill(t.Context(), alice, one.ID, ""); err != nil {
			t.Fatal(err)
		}
		if err := p.Pause(t.Context(), alice, two.ID, snapshot.Memory); err != nil {
			t.Errorf("Pause() after one was killed = %v", err)
		}
	})
}

// The sweep finds a box of a paused sandbox that should be gone, just as
// somebody resumes it: it takes the old one, and not the new one of that name.
func TestSweepDuringResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.boot(t, testConfig()).run(t)
		sb := pausable(t, first, func(r *sandbox.CreateRequest) { r.Timeout = time.Hour })
		old := w.boxes.get(sb.ID)
		if err := first.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		first.kill9()
		w.boxes.mu.Lock()
		w.boxes.all[string(sb.ID)] = &box{host: w.boxes, spec: old.spec, network: old.network, ended: make(chan struct{})}
		w.boxes.mu.Unlock()
		p := w.boot(t, testConfig())
		connected := make(chan error, 1)
		p.atStep(func(name string) {
			if name != "open" { // of the old box, which was judged already
				return
			}
			p.atStep(nil)
			go func() {
				_, _, err := p.Connect(t.Context(), alice, sb.ID, time.Hour)
				connected <- err
			}()
			time.Sleep(time.Second) // it would be done by now
		})
		p.run(t)
		if err := <-connected; err != nil {
			t.Fatalf("Connect() = %v", err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if _, ok := p.Live(sb.ID); !ok || w.boxes.get(sb.ID) == nil {
			t.Errorf("the resumed sandbox is live: %v, its box is there: %v", ok, w.boxes.get(sb.ID) != nil)
		}
	})
}

// Who is killed while it is being resumed is paused no more: its place is free.
func TestKillWhileResuming(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.MaxPaused = 1
		p := w.boot(t, cfg).run(t)
		one, two := pausable(t, p, nil), pausable(t, p, nil)
		if err := p.Pause(t.Context(), alice, one.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		w.boxes.mu.Lock()
		w.boxes.creating = func(ctx context.Context, _ provider.Spec) error { <-ctx.Done(); return context.Cause(ctx) }
		w.boxes.mu.Unlock()
		resumed := make(chan error, 1)
		go func() {
			_, _, err := p.Connect(t.Context(), alice, one.ID, time.Hour)
			resumed <- err
		}()
		synctest.Wait()
		if err := p.Kill(t.Context(), alice, one.ID, ""); err != nil {
			t.Fatalf("Kill() = %v", err)
		}
		if err := <-resumed; !errdefs.IsNotFound(err) {
			t.Errorf("Connect() = %v, want not found", err)
		}
		checkGone(t, p, one.ID, sandbox.Killed, "killed")
		if ids := w.vault.ids(); len(ids) != 0 {
			t.Errorf("artifacts %v are left", ids)
		}
		if err := p.Pause(t.Context(), alice, two.ID, snapshot.Memory); err != nil {
			t.Errorf("Pause() after the only paused one was killed = %v", err)
		}
	})
}

// What a pause left of its box does not stand in the way of a resume that comes
// before the sweep.
func TestResumeBesideLeftBox(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = time.Hour })
		p.failNext("destroy")
		if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		old := w.boxes.get(sb.ID)
		if old == nil {
			t.Fatal("its box is gone; this tests nothing")
		}
		if _, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Hour); err != nil || !resumed {
			t.Fatalf("Connect() = %v, %v", resumed, err)
		}
		if now := w.boxes.get(sb.ID); now == old || now == nil {
			t.Errorf("the sandbox runs in box %p, which was saved as %p", now, old)
		}
		time.Sleep(5 * time.Minute) // for the sweep
		if _, ok := p.Live(sb.ID); !ok {
			t.Error("the resumed sandbox is gone")
		}
	})
}

// A resume that waits for its turn gives it up when its caller goes away, and
// others who wait for the same sandbox get it.
func TestResumeLeavesQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.ConcurrentCreates = 1
		p := w.boot(t, cfg).run(t)
		sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = time.Hour })
		if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		w.boxes.mu.Lock()
		w.boxes.creating = func(context.Context, provider.Spec) error { <-release; return nil }
		w.boxes.mu.Unlock()
		go func() { _, _ = p.Create(t.Context(), alice, request()) }() // has the only turn
		synctest.Wait()
		connect := func(ctx context.Context) chan error {
			done := make(chan error, 1)
			go func() {
				_, _, err := p.Connect(ctx, alice, sb.ID, time.Hour)
				done <- err
			}()
			synctest.Wait()
			return done
		}
		ctx, leave := context.WithCancel(t.Context())
		first, second := connect(ctx), connect(t.Context())
		leave()
		select {
		case err := <-first:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Connect() of who left = %v", err)
			}
		case <-time.After(time.Second):
			t.Error("Connect() waits in the queue for nobody")
		}
		close(release)
		if err := <-second; err != nil {
			t.Errorf("Connect() of who stayed = %v", err)
		}
	})
}
