package sandbox_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// A disk on which every write takes seconds makes everything slow and nothing
// fail; one that takes longer than a save may take fails that save alone, and
// the sandbox runs on.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig())
		var write, sync atomic.Int64
		p.atStep(func(name string) {
			switch name {
			case "mutate", "insert", "admit", "put snapshot", "snapshot", "delete", "swap names":
				time.Sleep(time.Duration(write.Load()))
			case "sync":
				time.Sleep(time.Duration(sync.Load()))
			}
		})
		p.run(t)
		write.Store(int64(3 * time.Second))
		sync.Store(int64(20 * time.Second))
		long := func(r *sandbox.CreateRequest) { r.Timeout = 2 * time.Hour }
		sb, other := pausable(t, p, long), pausable(t, p, long)
		if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
			t.Fatalf("Pause() = %v", err)
		}
		checkPaused(t, p, sb.ID)
		if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Hour); err != nil {
			t.Fatalf("Connect() = %v", err)
		}
		save(t, p, sb.ID, "point")
		if _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); err != nil {
			t.Fatalf("Rollback() = %v", err)
		}

		time.Sleep(time.Minute) // what is no longer needed is deleted after the answer
		sync.Store(int64(10 * time.Minute))
		kept := len(w.vault.ids())
		before, _ := p.Live(other.ID)
		for name, try := range map[string]func() error{
			"pause":    func() error { return p.Pause(t.Context(), alice, sb.ID, snapshot.Memory) },
			"rollback": func() error { _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); return err },
			"snapshot": func() error { _, err := p.Snapshot(t.Context(), alice, sb.ID, ""); return err },
		} {
			if err := try(); !errdefs.IsUnavailable(err) {
				t.Errorf("%s on a disk that hangs = %v, want unavailable", name, err)
			}
			row, err := w.db.Get(t.Context(), sb.ID)
			if _, ok := p.Live(sb.ID); !ok || err != nil || row.State != sandbox.Running {
				t.Errorf("after %s it is live %v, %s (%v)", name, ok, row.State, err)
			}
			if n := len(w.vault.ids()); n != kept {
				t.Errorf("after %s %d artifacts, want %d", name, n, kept)
			}
		}
		if now, ok := p.Live(other.ID); !ok || now != before {
			t.Error("another sandbox was disturbed")
		}
	})
}

// shift makes a record look as it does after the clock was set forward by d.
func shift(t *testing.T, w *world, id sandbox.ID, d time.Duration) {
	t.Helper()
	_, err := w.db.Mutate(t.Context(), id, func(s *sandbox.Sandbox) (audit.Event, error) {
		s.EndsAt = s.EndsAt.Add(-d)
		return audit.Event{Type: "test", Actor: "test"}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A clock that is set forward ends what is over by it, within half a minute, and
// pauses what is to be paused; one that is set back ends nothing early.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		cfg := testConfig()
		cfg.KeepPaused = 10 * time.Hour
		p := w.boot(t, cfg).run(t)
		life := func(d time.Duration, atEnd string) sandbox.ID {
			return pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout, r.OnTimeout = d, atEnd }).ID
		}
		short, asleep, long := life(30*time.Minute, ""), life(30*time.Minute, sandbox.OnTimeoutPause), life(2*time.Hour, "")
		paused := life(time.Hour, "")
		if err := p.Pause(t.Context(), alice, paused, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		state := func(id sandbox.ID) sandbox.State {
			t.Helper()
			row, err := w.db.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return row.State
		}
		jump := func(d time.Duration) {
			for _, id := range []sandbox.ID{short, asleep, long, paused} {
				if s := state(id); !s.Ended() {
					shift(t, w, id, d)
				}
			}
			p.ClockJumps(d)
		}

		jump(-time.Hour) // back
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		for _, id := range []sandbox.ID{short, asleep, long} {
			if s := state(id); s != sandbox.Running {
				t.Errorf("half an hour after the clock was set back by one, %s is %s", id, s)
			}
		}
		jump(time.Hour) // and forward again: two of them are over by a minute
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if s := state(short); s != sandbox.Killed {
			t.Errorf("one whose time is over is %s", s)
		}
		checkPaused(t, p, asleep)
		if s := state(long); s != sandbox.Running {
			t.Errorf("one whose time is not over is %s", s)
		}
		// What was saved survives, and gives back the life that is asked for.
		if _, _, err := p.Connect(t.Context(), alice, asleep, time.Hour); err != nil {
			t.Errorf("Connect() = %v", err)
		}
		if row, err := w.db.Get(t.Context(), asleep); err != nil || time.Until(row.EndsAt).Round(time.Minute) != time.Hour {
			t.Errorf("it ends in %s (%v), want an hour", time.Until(row.EndsAt), err)
		}
		// Retention counts from when it was paused, by the clock.
		jump(-5 * time.Hour)
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		checkPaused(t, p, paused)
		jump(5 * time.Hour)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := state(paused); s != sandbox.Killed {
			t.Errorf("one that was paused for longer than it is kept is %s", s)
		}
	})
}
