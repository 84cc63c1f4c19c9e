package sandbox_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

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
		p.onStep = func(name string) {
			if name != "open" { // of the old box, which was judged already
				return
			}
			p.onStep = nil
			go func() {
				_, _, err := p.Connect(t.Context(), alice, sb.ID, time.Hour)
				connected <- err
			}()
			time.Sleep(time.Second) // it would be done by now
		}
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
