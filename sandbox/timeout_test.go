package sandbox_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

// endedWithin checks that a sandbox ended by timeout, at most a second late.
func endedWithin(t *testing.T, p *process, id sandbox.ID, want time.Time) {
	t.Helper()
	sb, err := p.w.db.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if late := sb.EndedAt.Sub(want); sb.State != sandbox.Killed || sb.Reason != "timeout" || late < 0 || late > time.Second {
		t.Errorf("sandbox is %s %q and ended %v after its time", sb.State, sb.Reason, late)
	}
}

func TestTimeoutIsExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		var all []sandbox.Sandbox
		for i := range 20 {
			r := request()
			r.Timeout = time.Duration(20-i)*1300*time.Millisecond + time.Hour
			sb, err := p.Create(t.Context(), alice, r)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, sb)
		}
		early := all[19].EndsAt.Add(-time.Millisecond)
		time.Sleep(time.Until(early))
		synctest.Wait()
		if n := len(w.boxes.ids()); n != 20 {
			t.Errorf("%d boxes a millisecond before the first end, want 20", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, sb := range all {
			endedWithin(t, p, sb.ID, sb.EndsAt)
		}
		if n := len(w.boxes.ids()); n != 0 {
			t.Errorf("%d boxes are left", n)
		}
	})
}

func TestSetTimeoutAndExtend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := create(t, p) // one minute
		expect := func(what string, ttl time.Duration) {
			t.Helper()
			synctest.Wait()
			row, err := w.db.Get(t.Context(), sb.ID)
			want := time.Now().Add(ttl)
			if err != nil || !row.EndsAt.Equal(want) {
				t.Errorf("%s: EndsAt = %v, want %v (%v)", what, row.EndsAt, want, err)
			}
			if d := w.boxes.get(sb.ID).deadline; !d.Equal(want.Add(10 * time.Second)) {
				t.Errorf("%s: hard deadline = %v, want 10 s after %v", what, d, want)
			}
		}
		expect("created", time.Minute)
		if got, err := p.Extend(t.Context(), alice, sb.ID, 30*time.Second); err != nil || !got.EndsAt.Equal(sb.EndsAt) {
			t.Errorf("Extend(shorter) = %v, %v, want no change", got.EndsAt, err)
		}
		expect("extended by less", time.Minute)
		if _, err := p.Extend(t.Context(), alice, sb.ID, 10*time.Minute); err != nil {
			t.Errorf("Extend() = %v", err)
		}
		expect("extended", 10*time.Minute)
		if err := p.SetTimeout(t.Context(), alice, sb.ID, 20*time.Second); err != nil {
			t.Errorf("SetTimeout(shorter) = %v", err)
		}
		expect("shortened", 20*time.Second)
		for _, ttl := range []time.Duration{-1, 3 * time.Hour} {
			if err := p.SetTimeout(t.Context(), alice, sb.ID, ttl); !errdefs.IsInvalidArgument(err) {
				t.Errorf("SetTimeout(%v) = %v, want invalid argument", ttl, err)
			}
		}
		// A change that cannot be made leaves the old end standing.
		for _, at := range []int64{1, 2} { // the box's deadline, the record
			p.failAt.Store(p.calls.Load() + at)
			if err := p.SetTimeout(t.Context(), alice, sb.ID, time.Hour); !errors.Is(err, errInjected) {
				t.Errorf("SetTimeout() with a fault at %d = %v", at, err)
			}
			row, err := w.db.Get(t.Context(), sb.ID)
			if want := time.Now().Add(20 * time.Second); err != nil || !row.EndsAt.Equal(want) {
				t.Errorf("EndsAt after a fault at %d = %v, want %v (%v)", at, row.EndsAt, want, err)
			}
		}
		end := time.Now().Add(20 * time.Second)
		time.Sleep(21 * time.Second)
		synctest.Wait()
		endedWithin(t, p, sb.ID, end)
		if _, err := p.Extend(t.Context(), alice, sb.ID, time.Minute); !errdefs.IsNotFound(err) {
			t.Errorf("Extend(ended) = %v, want not found", err)
		}
		if err := p.SetTimeout(t.Context(), alice, sb.ID, 0); !errdefs.IsNotFound(err) {
			t.Errorf("SetTimeout(ended) = %v, want not found", err)
		}
		other := create(t, p)
		if err := p.SetTimeout(t.Context(), alice, other.ID, 0); err != nil {
			t.Errorf("SetTimeout(0) = %v", err)
		}
		checkGone(t, p, other.ID, sandbox.Killed, "timeout")
	})
}

// A box whose agent never answers is given up on in time, with the cause.
func TestSilentAgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boxes.silent = true
		p := w.boot(t, testConfig()).run(t)
		began := time.Now()
		_, err := p.Create(t.Context(), alice, request())
		if took := time.Since(began); !errdefs.IsUnavailable(err) || took != time.Minute {
			t.Errorf("Create() = %v after %v, want unavailable after 1m", err, took)
		}
		if len(w.boxes.ids()) != 0 || len(p.guard.ids()) != 0 {
			t.Errorf("boxes %v and attachments %v are left", w.boxes.ids(), p.guard.ids())
		}
	})
}
