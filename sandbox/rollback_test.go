package sandbox_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
)

// nameOf gives a name of a sandbox, or of a build, an address.
func (w *world) nameOf(t *testing.T, id, name, addr string) {
	t.Helper()
	if err := w.db.PutName(t.Context(), id, name, netip.MustParseAddr(addr)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) names(t *testing.T, id sandbox.ID) map[string]string {
	t.Helper()
	all, err := w.db.Names(t.Context(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name, addr := range all {
		out[name] = addr.String()
	}
	return out
}

func TestRollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	w.nameOf(t, string(sb.ID), "old.test", "198.18.0.1")
	snap := save(t, p, sb.ID, "point")
	w.nameOf(t, string(sb.ID), "new.test", "198.18.0.2")
	before, _ := p.Live(sb.ID)
	was := w.boxes.get(sb.ID).init

	got, err := p.Rollback(t.Context(), alice, sb.ID, "point")
	if err != nil {
		t.Fatalf("Rollback() = %v", err)
	}
	select {
	case <-before.Gone:
	default:
		t.Error("streams to the old state were not broken")
	}
	now, ok := p.Live(sb.ID)
	if !ok || now.AgentToken.Reveal() != before.AgentToken.Reveal() {
		t.Errorf("live %v with another token", ok)
	}
	x := w.boxes.get(sb.ID)
	if x.from != snap.Build.Artifact.ID {
		t.Errorf("it was restored from %s, want the snapshot %s", x.from, snap.Build.Artifact.ID)
	}
	was.Now, x.init.Now = time.Time{}, time.Time{}
	if diff := cmp.Diff(was, x.init); diff != "" {
		t.Errorf("what its agent is told differs (-before +after):\n%s", diff)
	}
	row, err := w.db.Get(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, row); diff != "" {
		t.Errorf("returned and stored differ:\n%s", diff)
	}
	if row.State != sandbox.Running || !row.EndsAt.Equal(sb.EndsAt) || row.Build != sb.Build || row.Saved != nil {
		t.Errorf("record is %+v", row)
	}
	if got, want := w.names(t, sb.ID), map[string]string{"old.test": "198.18.0.1"}; !cmp.Equal(got, want) {
		t.Errorf("names are %v, want those of the snapshot, %v", got, want)
	}
	soon(func() bool { return slices.Equal(w.vault.ids(), w.recorded(t)) })
	if !slices.Equal(w.vault.ids(), w.recorded(t)) {
		t.Errorf("artifacts %v, recorded %v", w.vault.ids(), w.recorded(t))
	}
	// Once more, and after the snapshot is gone it is as any other.
	if _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); err != nil {
		t.Errorf("second Rollback() = %v", err)
	}
	if err := remove(t, p, snap, ""); err != nil {
		t.Errorf("delete of the snapshot: %v", err)
	}
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
		t.Errorf("Pause() = %v", err)
	}
}

func TestRollbackOfPaused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	snap := save(t, p, sb.ID, "point")
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	own := checkPaused(t, p, sb.ID).Saved.ID
	p.failNext("restore")
	if _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); !errors.Is(err, errInjected) {
		t.Errorf("Rollback(restore fails) = %v", err)
	}
	if now := checkPaused(t, p, sb.ID).Saved.ID; now != own {
		t.Errorf("its state is %s now, was %s", now, own)
	}
	if _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); err != nil {
		t.Fatalf("Rollback() = %v", err)
	}
	if x := w.boxes.get(sb.ID); x == nil || x.from != snap.Build.Artifact.ID {
		t.Errorf("it runs from %+v, want the snapshot", x)
	}
	soon(func() bool { return slices.Equal(w.vault.ids(), w.recorded(t)) })
	if !slices.Equal(w.vault.ids(), w.recorded(t)) {
		t.Errorf("artifacts %v, recorded %v", w.vault.ids(), w.recorded(t))
	}
}

func TestRollbackRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	before, _ := p.Live(sb.ID)
	big := pausable(t, p, func(r *sandbox.CreateRequest) { r.Resources.MemoryMiB = 1024 })
	save(t, p, big.ID, "big")
	save(t, p, sb.ID, "own")
	for name, c := range map[string]struct {
		ref  string
		as   func() error
		kind func(error) bool
		code string
	}{
		"no such":         {ref: "none", kind: errdefs.IsNotFound},
		"a template":      {ref: "base", kind: errdefs.IsInvalidArgument},
		"other resources": {ref: "big", kind: errdefs.IsFailedPrecondition, code: "snapshot_mismatch"},
	} {
		_, err := p.Rollback(t.Context(), alice, sb.ID, c.ref)
		e, _ := errors.AsType[*apierr.Error](err)
		if !c.kind(err) || (c.code != "" && (e == nil || e.Code != c.code)) {
			t.Errorf("Rollback(%s) = %v", name, err)
		}
	}
	if _, err := p.Rollback(t.Context(), mallory, sb.ID, "own"); !errdefs.IsNotFound(err) {
		t.Errorf("Rollback() of another team's = %v", err)
	}
	runsOn(t, p, before)
	if err := p.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Rollback(t.Context(), alice, sb.ID, "own"); !errdefs.IsNotFound(err) {
		t.Errorf("Rollback() of one that ended = %v", err)
	}
}

// Whatever fails, the sandbox goes on with its own state, names and end.
func TestRollbackFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"snapshot", "sync", "mutate", "swap names", "attach", "restore", "init"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = time.Hour })
			w.nameOf(t, string(sb.ID), "old.test", "198.18.0.1")
			snap := save(t, p, sb.ID, "point")
			w.nameOf(t, string(sb.ID), "new.test", "198.18.0.2")
			if call == "init" {
				n := 0
				w.boxes.creating = func(context.Context, provider.Spec) error {
					if n++; n == 1 {
						return errInjected
					}
					return nil
				}
			} else {
				p.failNext(call)
			}
			if _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); !errors.Is(err, errInjected) {
				t.Fatalf("Rollback() = %v, want the fault", err)
			}
			row, err := w.db.Get(t.Context(), sb.ID)
			if err != nil || row.State != sandbox.Running || !row.EndsAt.Equal(sb.EndsAt) {
				t.Errorf("record is %s until %s (%v), want it running until %s", row.State, row.EndsAt, err, sb.EndsAt)
			}
			if _, ok := p.Live(sb.ID); !ok {
				t.Error("it is not routable")
			}
			if x := w.boxes.get(sb.ID); x == nil || x.from == snap.Build.Artifact.ID || x.init.AccessToken == "" {
				t.Errorf("its box is %+v, want its own state with its token", x)
			}
			if got := w.names(t, sb.ID); len(got) != 2 {
				t.Errorf("names are %v, want its own two", got)
			}
			soon(func() bool { return slices.Equal(w.vault.ids(), w.recorded(t)) })
			if !slices.Equal(w.vault.ids(), w.recorded(t)) {
				t.Errorf("artifacts %v, recorded %v", w.vault.ids(), w.recorded(t))
			}
		})
	}
}

// A server that dies at any call of a rollback leaves the sandbox with its own
// state or that of the snapshot, and nothing else.
func TestCrashAtEveryStepOfRollback(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at++ {
		done := false
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = 2 * time.Hour })
			w.nameOf(t, string(sb.ID), "old.test", "198.18.0.1")
			snap := save(t, p, sb.ID, "point")
			w.nameOf(t, string(sb.ID), "new.test", "198.18.0.2")
			p.dieAt.Store(p.calls.Load() + at)
			_, err := p.Rollback(t.Context(), alice, sb.ID, "point")
			survived := !p.dead.Load()
			p.kill9()

			next := w.boot(t, testConfig()).run(t)
			synctest.Wait()
			if _, _, cerr := next.Connect(t.Context(), alice, sb.ID, time.Hour); cerr != nil {
				t.Fatalf("died at call %d: Connect() = %v", at, cerr)
			}
			x := w.boxes.get(sb.ID)
			rolled := x != nil && x.from == snap.Build.Artifact.ID
			if err == nil && !rolled {
				t.Errorf("died at call %d: the rollback was acknowledged and is not there", at)
			}
			if got := len(w.names(t, sb.ID)); (rolled && got != 1) || (!rolled && got != 2) {
				t.Errorf("died at call %d: %d names after a rollback %v", at, got, rolled)
			}
			time.Sleep(15 * time.Minute) // for the sweep
			synctest.Wait()
			soon(func() bool { return slices.Equal(w.vault.ids(), w.recorded(t)) })
			if _, ok := next.Live(sb.ID); !ok || len(w.boxes.ids()) != 1 || len(next.guard.ids()) != 1 || !slices.Equal(w.vault.ids(), w.recorded(t)) {
				t.Errorf("died at call %d: live %v, boxes %v, attachments %v, artifacts %v",
					at, ok, w.boxes.ids(), next.guard.ids(), w.vault.ids())
			}
			if survived {
				done = true
				if err != nil || at < 10 {
					t.Errorf("%d calls and %v, want every step tried", at, err)
				}
			}
		})
		if done || t.Failed() {
			return
		}
	}
}

func TestKillDuringRollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	save(t, p, sb.ID, "point")
	inside, killed := make(chan struct{}), make(chan error, 1)
	w.boxes.creating = func(ctx context.Context, _ provider.Spec) error {
		close(inside)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	go func() { <-inside; killed <- p.Kill(t.Context(), alice, sb.ID, "") }()
	if _, err := p.Rollback(t.Context(), alice, sb.ID, "point"); !errdefs.IsNotFound(err) {
		t.Errorf("Rollback() = %v, want not found", err)
	}
	if err := <-killed; err != nil {
		t.Errorf("Kill() = %v", err)
	}
	row, err := w.db.Get(t.Context(), sb.ID)
	soon(func() bool { return slices.Equal(w.vault.ids(), w.recorded(t)) })
	if err != nil || row.State != sandbox.Killed || len(w.boxes.ids()) != 0 || !slices.Equal(w.vault.ids(), w.recorded(t)) {
		t.Errorf("record is %s (%v), boxes %v, artifacts %v", row.State, err, w.boxes.ids(), w.vault.ids())
	}
}

func TestPromote(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	made, err := p.Fork(t.Context(), alice, src.ID, 2, time.Hour)
	if err != nil || made[0].Err != nil || made[1].Err != nil {
		t.Fatalf("Fork() = %+v, %v", made, err)
	}
	winner, other := made[0].Sandbox.ID, made[1].Sandbox.ID
	w.nameOf(t, string(winner), "of-the-winner.test", "198.18.0.1")
	w.nameOf(t, string(src.ID), "of-the-source.test", "198.18.0.1")

	p.failNext("restore")
	if _, err := p.Promote(t.Context(), alice, winner); !errors.Is(err, errInjected) {
		t.Errorf("Promote(restore fails) = %v", err)
	}
	for _, id := range []sandbox.ID{src.ID, winner, other} {
		if _, ok := p.Live(id); !ok {
			t.Errorf("after a promotion that failed %s does not run", id)
		}
	}
	got, err := p.Promote(t.Context(), alice, winner)
	if err != nil || got.ID != src.ID || got.State != sandbox.Running || !got.EndsAt.Equal(src.EndsAt) {
		t.Fatalf("Promote() = %+v, %v", got, err)
	}
	if x := w.boxes.get(src.ID); x == nil || x.from == "" || x.init.AccessToken == "" {
		t.Errorf("the source runs on %+v", x)
	}
	if got, want := w.names(t, src.ID), map[string]string{"of-the-winner.test": "198.18.0.1"}; !cmp.Equal(got, want) {
		t.Errorf("names of the source are %v, want %v", got, want)
	}
	if row, err := w.db.Get(t.Context(), winner); err != nil || row.State != sandbox.Killed || row.Reason != sandbox.ReasonPromoted {
		t.Errorf("the copy is %s for %q (%v)", row.State, row.Reason, err)
	}
	if _, ok := p.Live(other); !ok {
		t.Error("the other copy is gone")
	}
	soon(func() bool { return len(w.vault.ids()) == 0 })
	if len(w.vault.ids()) != 0 {
		t.Errorf("artifacts %v are left", w.vault.ids())
	}
	for name, id := range map[string]sandbox.ID{"no copy": src.ID} {
		if _, err := p.Promote(t.Context(), alice, id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Promote(%s) = %v", name, err)
		}
	}
	if err := p.Kill(t.Context(), alice, src.ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Promote(t.Context(), alice, other); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Promote(copy of one that ended) = %v", err)
	}
	if _, ok := p.Live(other); !ok {
		t.Error("a promotion that was refused ended the copy")
	}
}
