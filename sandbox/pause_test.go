package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
)

func pausable(t *testing.T, p *process, change func(*sandbox.CreateRequest)) sandbox.Sandbox {
	t.Helper()
	r := request()
	r.Env = map[string]string{"SECRET": "value"}
	r.Network = sandbox.Network{AllowOut: []string{"pypi.org"}, PrivateTraffic: true}
	if change != nil {
		change(&r)
	}
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	return sb
}

// checkPaused checks that nothing of a sandbox is left but its record and one
// artifact.
func checkPaused(t *testing.T, p *process, id sandbox.ID) sandbox.Sandbox {
	t.Helper()
	sb, err := p.w.db.Get(t.Context(), id)
	if err != nil || sb.State != sandbox.Paused || sb.Saved == nil {
		t.Fatalf("record is %s with artifact %v (%v), want a paused one", sb.State, sb.Saved, err)
	}
	if _, ok := p.Live(id); ok {
		t.Error("it is routable")
	}
	soon(func() bool { return p.w.boxes.get(id) == nil && !slices.Contains(p.guard.ids(), string(id)) })
	if p.w.boxes.get(id) != nil {
		t.Error("its box is left")
	}
	if _, ok := p.guard.policy(id); ok {
		t.Error("its egress attachment is left")
	}
	if got := p.w.vault.ids(); !slices.Contains(got, sb.Saved.ID) {
		t.Errorf("artifact %s is not among %v", sb.Saved.ID, got)
	}
	return sb
}

func TestPauseAndConnect(t *testing.T) {
	t.Parallel()
	for _, kind := range []snapshot.Kind{snapshot.Memory, snapshot.Filesystem} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, nil)
			before, _ := p.Live(sb.ID)
			first := w.boxes.get(sb.ID).init
			if err := p.Pause(t.Context(), alice, sb.ID, kind); err != nil {
				t.Fatalf("Pause() = %v", err)
			}
			select {
			case <-before.Gone:
			default:
				t.Error("streams were not broken")
			}
			paused := checkPaused(t, p, sb.ID)
			if paused.Saved.Kind != kind {
				t.Errorf("saved %s, want %s", paused.Saved.Kind, kind)
			}
			if err := p.Pause(t.Context(), alice, sb.ID, kind); !errdefs.IsConflict(err) {
				t.Errorf("Pause() of a paused sandbox = %v, want conflict", err)
			}
			if err := p.SetTimeout(t.Context(), alice, sb.ID, time.Minute); !errdefs.IsConflict(err) {
				t.Errorf("SetTimeout() of a paused sandbox = %v, want conflict", err)
			}
			if err := p.Pause(t.Context(), mallory, sb.ID, kind); !errdefs.IsNotFound(err) {
				t.Errorf("Pause() by another team = %v, want not found", err)
			}
			if _, _, err := p.Connect(t.Context(), mallory, sb.ID, time.Minute); !errdefs.IsNotFound(err) {
				t.Errorf("Connect() by another team = %v, want not found", err)
			}

			got, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Minute)
			if err != nil || !resumed || got.State != sandbox.Running || got.Saved != nil {
				t.Fatalf("Connect() = %+v, %v, %v", got, resumed, err)
			}
			after, ok := p.Live(sb.ID)
			if !ok || !after.AgentToken.Equal(before.AgentToken.Reveal()) || !after.PrivateTraffic {
				t.Errorf("Live() after resume = %+v, %v", after, ok)
			}
			second := w.boxes.get(sb.ID).init
			first.Now, second.Now = time.Time{}, time.Time{}
			if d := cmp.Diff(first, second); d != "" || second.EnvVars["SECRET"] != "value" {
				t.Errorf("the agent was told something else (-first +resumed):\n%s", d)
			}
			if pol, ok := p.guard.policy(sb.ID); !ok || len(pol.Rules) != 1 {
				t.Errorf("policy after resume = %+v, %v", pol, ok)
			}
			soon(func() bool { return len(w.vault.ids()) == 0 })
			if ids := w.vault.ids(); len(ids) != 0 {
				t.Errorf("artifacts %v are left", ids)
			}
			if _, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil || resumed {
				t.Errorf("Connect() of a running one = %v, %v", resumed, err)
			}
		})
	}
}

func TestKillPaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(t.Context(), mallory, sb.ID, ""); !errdefs.IsNotFound(err) {
		t.Errorf("Kill() by another team = %v, want not found", err)
	}
	if err := p.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Fatalf("Kill() = %v", err)
	}
	checkGone(t, p, sb.ID, sandbox.Killed, "killed")
	if ids := w.vault.ids(); len(ids) != 0 {
		t.Errorf("artifacts %v are left", ids)
	}
	if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); !errdefs.IsNotFound(err) {
		t.Errorf("Connect() of a killed one = %v, want not found", err)
	}
}

func TestPausedIsNotLive(t *testing.T) {
	t.Parallel()
	cfg := testConfig()
	cfg.MaxPerTeam = 1
	w := newWorld(t)
	p := w.boot(t, cfg).run(t)
	first := pausable(t, p, nil)
	if err := p.Pause(t.Context(), alice, first.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	second := pausable(t, p, nil) // a paused one does not count
	if _, _, err := p.Connect(t.Context(), alice, first.ID, time.Minute); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Connect() above the limit = %v, want resource exhausted", err)
	}
	checkPaused(t, p, first.ID)
	if err := p.Kill(t.Context(), alice, second.ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, resumed, err := p.Connect(t.Context(), alice, first.ID, time.Minute); err != nil || !resumed {
		t.Errorf("Connect() below the limit = %v, %v", resumed, err)
	}
}

// All of many calls at once succeed; each transition happens once.
func TestPauseAndConnectAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		// A call that comes when all is over finds a paused sandbox: the first is
		// held until all have come.
		w.boxes.saving = func(context.Context, provider.Spec) error { time.Sleep(time.Second); return nil }
		p := w.boot(t, testConfig()).run(t)
		sb := pausable(t, p, nil)
		both := func(what string, call func() error) {
			t.Helper()
			var wg sync.WaitGroup
			errs := make([]error, 8)
			for i := range errs {
				wg.Go(func() { errs[i] = call() })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		for range 5 {
			both("pause", func() error { return p.Pause(t.Context(), alice, sb.ID, snapshot.Memory) })
			checkPaused(t, p, sb.ID)
			both("connect", func() error {
				_, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute)
				if _, ok := p.Live(sb.ID); err == nil && !ok {
					err = errors.New("returned before the sandbox is usable")
				}
				return err
			})
		}
		if n := len(w.boxes.ids()); n != 1 {
			t.Errorf("%d boxes, want 1", n)
		}
	})
}

func TestPauseFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"mutate", "snapshot", "sync"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, nil)
			p.failNext(call)
			if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); !errors.Is(err, errInjected) {
				t.Fatalf("Pause() = %v, want the injected error", err)
			}
			l, ok := p.Live(sb.ID)
			row, err := w.db.Get(t.Context(), sb.ID)
			if !ok || err != nil || row.State != sandbox.Running || row.Saved != nil {
				t.Fatalf("sandbox does not run on: live %v, record %s %v (%v)", ok, row.State, row.Saved, err)
			}
			if w.boxes.get(sb.ID).init.AccessToken == "" {
				t.Error("the agent was not told its token again")
			}
			if ids := w.vault.ids(); len(ids) != 0 {
				t.Errorf("artifacts %v are left", ids)
			}
			// It is watched and reachable as before.
			w.boxes.die(sb.ID, provider.ReasonOOM)
			<-l.Gone
			p.halt()
			checkGone(t, p, sb.ID, sandbox.Killed, "oom")
		})
	}
}

func TestBoxDiesWhilePausing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	w.boxes.saving = func(context.Context, provider.Spec) error {
		w.boxes.die(sb.ID, provider.ReasonOOM)
		return errors.New("sandbox is gone")
	}
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err == nil {
		t.Fatal("Pause() of a dying box succeeded")
	}
	p.halt()
	row, err := w.db.Get(t.Context(), sb.ID)
	if err != nil || row.State != sandbox.Killed || w.boxes.get(sb.ID) != nil || len(p.guard.ids()) != 0 {
		t.Errorf("record %s %q (%v), attachments %v", row.State, row.Reason, err, p.guard.ids())
	}
}

func TestKillWhilePausing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	killed := make(chan error, 1)
	w.boxes.saving = func(context.Context, provider.Spec) error {
		go func() { killed <- p.Kill(context.WithoutCancel(t.Context()), alice, sb.ID, "") }()
		time.Sleep(50 * time.Millisecond) // for the kill to be waiting; any order is correct
		return nil
	}
	_ = p.Pause(t.Context(), alice, sb.ID, snapshot.Memory)
	if err := <-killed; err != nil {
		t.Errorf("Kill() = %v", err)
	}
	checkGone(t, p, sb.ID, sandbox.Killed, "killed")
	if ids := w.vault.ids(); len(ids) != 0 {
		t.Errorf("artifacts %v are left", ids)
	}
}

func TestResumeFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"admit", "attach", "restore", "create", "mutate"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, nil)
			if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
				t.Fatal(err)
			}
			p.failNext(call)
			if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); !errors.Is(err, errInjected) {
				t.Fatalf("Connect() = %v, want the injected error", err)
			}
			checkPaused(t, p, sb.ID)
			if _, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil || !resumed {
				t.Errorf("Connect() again = %v, %v", resumed, err)
			}
		})
	}
}

func TestPauseOnTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.OnTimeout = sandbox.OnTimeoutPause })
		files := pausable(t, p, func(r *sandbox.CreateRequest) { r.OnTimeout, r.FilesOnly = sandbox.OnTimeoutPause, true })
		if d := w.boxes.get(sb.ID).deadline; d.Before(sb.EndsAt.Add(24 * time.Hour)) {
			t.Errorf("hard deadline %v would lose what is to be paused at %v", d, sb.EndsAt)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		got := checkPaused(t, p, sb.ID)
		if late := got.EndsAt.Sub(sb.EndsAt); got.Saved.Kind != snapshot.Memory || late < 0 || late > time.Second {
			t.Errorf("paused with %s, %v after its time", got.Saved.Kind, late)
		}
		if got := checkPaused(t, p, files.ID); got.Saved.Kind != snapshot.Filesystem {
			t.Errorf("paused with %s, want files", got.Saved.Kind)
		}
		if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil {
			t.Fatal(err)
		}
		// It pauses again: the setting survives.
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		checkPaused(t, p, sb.ID)

		// A pause that fails is tried again; meanwhile the sandbox lives.
		if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil {
			t.Fatal(err)
		}
		p.failNext("snapshot")
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if _, ok := p.Live(sb.ID); !ok {
			t.Error("a sandbox whose pause failed does not live on")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		checkPaused(t, p, sb.ID)
	})
}

func TestSetTimeoutZeroPauses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.OnTimeout = sandbox.OnTimeoutPause })
	if err := p.SetTimeout(t.Context(), alice, sb.ID, 0); err != nil {
		t.Fatalf("SetTimeout(0) = %v", err)
	}
	checkPaused(t, p, sb.ID)
}

// A server that was down at the end of a sandbox that is to be paused pauses it
// when it is back.
func TestPauseAfterDowntime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.boot(t, testConfig()).run(t)
		sb := pausable(t, first, func(r *sandbox.CreateRequest) { r.OnTimeout = sandbox.OnTimeoutPause })
		first.kill9()
		time.Sleep(time.Hour)
		p := w.boot(t, testConfig()).run(t)
		time.Sleep(time.Second)
		synctest.Wait()
		checkPaused(t, p, sb.ID)
	})
}

func TestWake(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.boot(t, testConfig()).run(t)
	on := func(r *sandbox.CreateRequest) { r.AutoResume = true }
	wants := pausable(t, first, on)
	filesOnly, asleep := pausable(t, first, on), pausable(t, first, nil)
	for _, sb := range []sandbox.Sandbox{wants, asleep} {
		if err := first.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Pause(t.Context(), alice, filesOnly.ID, snapshot.Filesystem); err != nil {
		t.Fatal(err)
	}
	if d, ok := first.Dormant(wants.ID); !ok || !d.PrivateTraffic {
		t.Errorf("Dormant() = %+v, %v", d, ok)
	}
	first.kill9()
	p := w.boot(t, testConfig()).run(t)
	for name, id := range map[string]sandbox.ID{"files only": filesOnly.ID, "not asked for": asleep.ID} {
		if _, ok := p.Dormant(id); ok {
			t.Errorf("%s: would be woken by traffic", name)
		}
	}
	if _, ok := p.Dormant(wants.ID); !ok {
		t.Fatal("Dormant() after a restart finds nothing")
	}
	l, err := p.Wake(t.Context(), wants.ID)
	if err != nil || l.ID != wants.ID {
		t.Fatalf("Wake() = %+v, %v", l, err)
	}
	row, err := w.db.Get(t.Context(), wants.ID)
	if life := row.EndsAt.Sub(row.StartedAt); err != nil || life != sandbox.MinResume {
		t.Errorf("life after Wake() = %v, %v, want %v", life, err, sandbox.MinResume)
	}
	if _, ok := p.Dormant(wants.ID); ok {
		t.Error("a running sandbox is dormant")
	}
}

// A process that dies at any call of pause and resume loses neither the sandbox
// nor an acknowledged pause, and leaves no box and no artifact behind.
func TestCrashAtEveryStepOfPause(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at++ {
		done := false
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = time.Hour })
			p.dieAt.Store(p.calls.Load() + at)
			err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory)
			paused := err == nil
			if paused && !p.dead.Load() {
				_, _, err = p.Connect(t.Context(), alice, sb.ID, time.Hour)
				paused = err != nil
			}
			survived := !p.dead.Load()
			p.kill9()

			next := w.boot(t, testConfig()).run(t)
			synctest.Wait() // orphans go after the take-over
			row, gerr := w.db.Get(t.Context(), sb.ID)
			switch {
			case gerr != nil:
				t.Fatal(gerr)
			case row.State == sandbox.Paused:
				checkPaused(t, next, sb.ID)
			case row.State == sandbox.Running && !paused:
				if x := w.boxes.get(sb.ID); x == nil || x.init.AccessToken == "" {
					t.Errorf("died at call %d: runs without a box, or its agent has no token", at)
				}
			default:
				t.Errorf("died at call %d (pause acknowledged: %v): record is left %s", at, paused, row.State)
			}
			if _, _, err := next.Connect(t.Context(), alice, sb.ID, time.Hour); err != nil {
				t.Errorf("died at call %d: Connect() = %v", at, err)
			}
			time.Sleep(15 * time.Minute) // for the sweep
			synctest.Wait()
			if _, ok := next.Live(sb.ID); !ok || len(w.boxes.ids()) != 1 || len(next.guard.ids()) != 1 || len(w.vault.ids()) != 0 {
				t.Errorf("died at call %d: live %v, boxes %v, attachments %v, artifacts %v",
					at, ok, w.boxes.ids(), next.guard.ids(), w.vault.ids())
			}
			if survived {
				done = true
				if err != nil || at < 12 {
					t.Errorf("%d calls and %v, want every step of pause and resume tried", at, err)
				}
			}
		})
		if done || t.Failed() {
			return
		}
	}
}

// Who connects to a sandbox on its way out learns that it is gone, not that it
// is going.
func TestConnectWhileItEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ending, release := make(chan struct{}), make(chan struct{})
	w.boxes.destroying = sync.OnceFunc(func() { close(ending); <-release })
	p := w.boot(t, testConfig()).run(t)
	sb := create(t, p)
	killed := make(chan error, 1)
	go func() { killed <- p.Kill(t.Context(), alice, sb.ID, "") }()
	<-ending
	connected := make(chan error, 1)
	go func() {
		_, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute)
		connected <- err
	}()
	select {
	case err := <-connected:
		t.Fatalf("Connect() = %v before the end", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-connected; !errdefs.IsNotFound(err) {
		t.Errorf("Connect() = %v, want not found", err)
	}
	if err := <-killed; err != nil {
		t.Errorf("Kill() = %v", err)
	}
}

// What is sealed for one sandbox opens for no other, whoever can write to the
// database.
func TestSealedEnvironmentIsItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	theirs := pausable(t, p, nil)
	r := request()
	r.Timeout = time.Hour
	mine, err := p.Create(t.Context(), mallory, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(t.Context(), mallory, mine.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	_, err = w.db.Mutate(t.Context(), mine.ID, func(s *sandbox.Sandbox) (audit.Event, error) {
		s.Sealed = theirs.Sealed
		return audit.Event{Type: "test"}, nil
	})
	if err != nil || theirs.Sealed == "" {
		t.Fatalf("%q, %v", theirs.Sealed, err)
	}
	if _, _, err := p.Connect(t.Context(), mallory, mine.ID, time.Hour); err == nil {
		t.Errorf("Connect() = nil: the agent was told %v", w.boxes.get(mine.ID).init.EnvVars)
	}
	checkPaused(t, p, mine.ID)
}

// A resume whose last commit goes through, and only its answer is lost, has
// happened: taken back, the sandbox would have neither a box nor its artifact.
func TestResumeAnswerLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	p.loseRunning.Store(true)
	got, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Hour)
	if err != nil || !resumed || got.State != sandbox.Running {
		t.Errorf("Connect() = %s, %t, %v; want it resumed", got.State, resumed, err)
	}
	if _, ok := p.Live(sb.ID); !ok || w.boxes.get(sb.ID) == nil {
		t.Errorf("it is live: %t, with a box: %t", ok, w.boxes.get(sb.ID) != nil)
	}
}
