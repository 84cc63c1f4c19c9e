package sandbox_test

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

func TestRestartKeepsSandboxes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.boot(t, testConfig()).run(t)
	r := request()
	r.Network = sandbox.Network{AllowOut: []string{"pypi.org"}, PrivateTraffic: true}
	sb, err := first.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatal(err)
	}
	old, _ := first.Live(sb.ID)
	first.kill9()

	p := w.boot(t, testConfig()).run(t)
	l, ok := p.Live(sb.ID)
	if !ok || !l.PrivateTraffic || !l.AgentToken.Equal(old.AgentToken.Reveal()) {
		t.Fatalf("Live() after a restart = %+v, %v", l, ok)
	}
	if pol, ok := p.guard.policy(sb.ID); !ok || len(pol.Rules) != 1 {
		t.Errorf("policy after a restart = %+v, %v", pol, ok)
	}
	if a, ok := w.boxes.get(sb.ID).network.(attachment); !ok || a.id != string(sb.ID) {
		t.Error("the box was opened with another network")
	}
	w.boxes.die(sb.ID, provider.ReasonOOM)
	<-l.Gone
	p.halt()
	checkGone(t, p, sb.ID, sandbox.Killed, "oom")
}

func TestRecoveryEndsWhatIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.boot(t, testConfig()).run(t)
		expired, lost, kept, oom := create(t, first), create(t, first), create(t, first), create(t, first)
		if err := first.SetTimeout(t.Context(), alice, oom.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := first.SetTimeout(t.Context(), alice, kept.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := first.SetTimeout(t.Context(), alice, lost.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		first.kill9()
		w.boxes.die(lost.ID, provider.ReasonEngineLost)
		w.boxes.die(oom.ID, provider.ReasonOOM)
		w.boxes.known = map[string]provider.Exit{string(oom.ID): {Reason: provider.ReasonOOM}}
		if deadline := w.boxes.get(expired.ID).deadline; !deadline.Equal(expired.EndsAt.Add(10 * time.Second)) {
			t.Errorf("hard deadline is %v, want 10 s after %v", deadline, expired.EndsAt)
		}
		time.Sleep(2 * time.Minute)
		p := w.boot(t, testConfig()).run(t)
		checkGone(t, p, expired.ID, sandbox.Killed, "timeout")
		checkGone(t, p, lost.ID, sandbox.Killed, "engine_lost")
		checkGone(t, p, oom.ID, sandbox.Killed, "oom")
		if _, ok := p.Live(kept.ID); !ok {
			t.Error("a good sandbox was not kept")
		}
	})
}

// A process that dies at any call leaves nothing that the next one does not
// find: afterwards every box has a running record and the other way round.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at++ {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		p.dieAt.Store(p.calls.Load() + at)
		sb, err := p.Create(t.Context(), alice, request())
		if err == nil {
			err = p.Kill(t.Context(), alice, sb.ID, "")
		}
		survived := !p.dead.Load()
		p.kill9()
		next := w.boot(t, testConfig()).run(t)
		rows, _, _, listErr := next.List(t.Context(), alice, sandbox.Filter{})
		if listErr != nil {
			t.Fatal(listErr)
		}
		var ids []string
		for _, row := range rows {
			if row.State != sandbox.Running {
				t.Errorf("died at call %d: record is left %s", at, row.State)
			}
			if _, ok := next.Live(row.ID); !ok {
				t.Errorf("died at call %d: running record is not routable", at)
			}
			ids = append(ids, string(row.ID))
		}
		if got := w.boxes.ids(); !slices.Equal(got, ids) || !slices.Equal(next.guard.ids(), ids) {
			t.Errorf("died at call %d: running %v, boxes %v, attachments %v", at, ids, got, next.guard.ids())
		}
		if survived {
			if err != nil || at < 7 {
				t.Errorf("%d calls and %v, want every step of create and kill tried", at, err)
			}
			return
		}
	}
}

func TestKillBeforeRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.boot(t, testConfig()).run(t)
	sb, kept := create(t, first), create(t, first)
	first.kill9()
	p := w.boot(t, testConfig())
	if err := p.Kill(t.Context(), mallory, sb.ID, ""); !errdefs.IsNotFound(err) {
		t.Errorf("Kill() by another team = %v, want not found", err)
	}
	if err := p.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Errorf("Kill() before Run = %v", err)
	}
	checkGone(t, p, sb.ID, sandbox.Killed, "killed")
	if _, err := p.Extend(t.Context(), alice, kept.ID, time.Hour); err != nil {
		t.Errorf("Extend() before Run = %v", err)
	}
	p.run(t)
	if _, ok := p.Live(kept.ID); !ok {
		t.Error("the other one is gone")
	}
}

func TestOrphansAreDestroyed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := create(t, p)
		orphan := func() {
			_, err := faultyProvider{w.boxes, p}.Create(t.Context(), provider.Spec{SandboxID: "iorphan", Egress: attachment{}})
			if err != nil {
				t.Fatal(err)
			}
		}
		orphan()
		time.Sleep(61 * time.Second) // SweepInterval
		synctest.Wait()
		if w.boxes.get("iorphan") != nil {
			t.Error("the sweep left an orphan")
		}
		orphan()
		p.kill9()
		next := w.boot(t, testConfig()).run(t)
		synctest.Wait()
		if w.boxes.get("iorphan") != nil {
			t.Error("the start left an orphan")
		}
		events, err := w.db.Events(t.Context(), audit.Filter{SandboxID: "iorphan"})
		if err != nil || len(events) != 2 || events[0].Type != "sandbox.orphan_destroyed" {
			t.Errorf("Events() = %+v, %v", events, err)
		}
		// Its own box was due meanwhile; nothing else was touched.
		checkGone(t, next, sb.ID, sandbox.Killed, "timeout")
	})
}

// TestBoxesOfOthersAreNoOrphans: a box in use elsewhere stays until its owner has
// let go of it.
func TestBoxesOfOthersAreNoOrphans(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var owned atomic.Bool
		owned.Store(true)
		w.owned = func(id string) bool { return id == "iorphan" && owned.Load() }
		p := w.boot(t, testConfig()).run(t)
		_, err := faultyProvider{w.boxes, p}.Create(t.Context(), provider.Spec{SandboxID: "iorphan", Egress: attachment{}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if w.boxes.get("iorphan") == nil {
			t.Error("the sweep took a box that is in use")
		}
		owned.Store(false)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if w.boxes.get("iorphan") != nil {
			t.Error("the sweep left a box that nobody uses any more")
		}
	})
}

func TestVanishedBoxIsNoticed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := create(t, p)
		if err := p.SetTimeout(t.Context(), alice, sb.ID, time.Hour); err != nil {
			t.Fatal(err)
		}
		w.boxes.vanish(sb.ID)
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		checkGone(t, p, sb.ID, sandbox.Killed, "engine_lost")
	})
}

func TestFailedEndIsRetried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for step, name := range []string{"killing", "destroy", "detach", "killed"} {
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := create(t, p)
			synctest.Wait()
			p.failAt.Store(p.calls.Load() + int64(step) + 1)
			err := p.Kill(t.Context(), alice, sb.ID, "")
			if _, ok := p.Live(sb.ID); ok {
				t.Errorf("failing %s: routable after Kill", name)
			}
			if name != "killing" {
				if !errors.Is(err, errInjected) {
					t.Errorf("failing %s: Kill() = %v, want the fault", name, err)
				}
				if err := p.Kill(t.Context(), alice, sb.ID, ""); !errdefs.IsNotFound(err) {
					t.Errorf("failing %s: Kill(again) = %v, want not found", name, err)
				}
			} else if err != nil {
				t.Errorf("Kill() without a Killing record = %v", err)
			}
			time.Sleep(61 * time.Second)
			synctest.Wait()
			checkGone(t, p, sb.ID, sandbox.Killed, "killed")
		}
	})
}

// A kill that meets a take-over is not lost when what that takes over cannot be
// ended at first.
func TestKillWhileTakingOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.boot(t, testConfig()).run(t)
		sb := create(t, first)
		first.kill9()

		p := w.boot(t, testConfig())
		killed := make(chan error, 1)
		p.atStep(func(name string) {
			if name != "attach" {
				return
			}
			p.atStep(nil)
			p.failNext("destroy")
			go func() { killed <- p.Kill(t.Context(), alice, sb.ID, "") }()
			synctest.Wait() // it waits for the take-over to end
		})
		p.run(t)
		if err := <-killed; err != nil {
			t.Errorf("Kill() = %v", err)
		}
		checkGone(t, p, sb.ID, sandbox.Killed, "killed")
		time.Sleep(5 * time.Minute) // for the sweep
		checkGone(t, p, sb.ID, sandbox.Killed, "killed")
	})
}
