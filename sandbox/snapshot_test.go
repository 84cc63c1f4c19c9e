package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestSnapshotAndCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, func(r *sandbox.CreateRequest) {
		r.Timeout = time.Hour
		r.Env = map[string]string{"KEPT": "source", "OVER": "source"}
		r.Metadata = map[string]string{"of": "source"}
		r.Resources = provider.Resources{MemoryMiB: 768, CPUs: 2}
	})
	before, _ := p.Live(src.ID)
	snap := save(t, p, src.ID, "checked:v1")
	runsOn(t, p, before)
	if got, want := snap.Reference(), string(alice.Team)+"/checked:v1"; got != want {
		t.Errorf("Reference() = %q, want %q", got, want)
	}

	r := startFrom(snap.Reference())
	r.Env = map[string]string{"OVER": "child"}
	r.Network.AllowOut = []string{"npmjs.org"}
	child, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatalf("Create(snapshot) = %v", err)
	}
	live, _ := p.Live(child.ID)
	if live.AgentToken.Equal(before.AgentToken.Reveal()) || live.TrafficToken.Equal(before.TrafficToken.Reveal()) || live.PrivateTraffic {
		t.Error("the child has something of the source's access")
	}
	got := w.boxes.get(child.ID).init
	want := map[string]string{"LANG": "C.UTF-8", "KEPT": "source", "OVER": "child"}
	if d := cmp.Diff(want, got.EnvVars); d != "" || got.SandboxID != string(child.ID) || got.Hostname != string(child.ID) ||
		got.DefaultUser != "user" || got.DefaultWorkdir != "/home/user" {
		t.Errorf("the child's agent was told %+v (-want +got):\n%s", got, d)
	}
	pol, _ := p.guard.policy(child.ID)
	if len(pol.Rules) != 1 || !slices.Equal(pol.Rules[0].Hosts, []string{"npmjs.org"}) {
		t.Errorf("policy of the child is %+v, want that of its create", pol)
	}
	if child.Template != snap.Template || child.Build != snap.Build.ID || child.Metadata != nil || child.Resources != src.Resources ||
		child.Origin != (sandbox.Origin{Sandbox: src.ID, Snapshot: snap.Reference()}) || child.Parent != snap.Build.Artifact.ID {
		t.Errorf("child is %+v", child)
	}
	row, err := w.db.Get(t.Context(), child.ID)
	if err != nil || row.Origin != child.Origin {
		t.Errorf("recorded origin is %+v (%v)", row.Origin, err)
	}

	// Private to the team, kept while in use, whatever becomes of the source.
	if _, err := p.Create(t.Context(), mallory, startFrom(snap.Reference())); !errdefs.IsNotFound(err) {
		t.Errorf("Create() by another team = %v, want not found", err)
	}
	if page, _, err := p.ListSnapshots(t.Context(), mallory, template.SnapshotFilter{}); err != nil || len(page) != 0 {
		t.Errorf("another team sees %v, %v", page, err)
	}
	tmpl, err := w.db.GetTemplate(t.Context(), alice.Team, string(snap.Template))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteSnapshot(t.Context(), mallory, tmpl, ""); !errdefs.IsNotFound(err) {
		t.Errorf("DeleteSnapshot() by another team = %v, want not found", err)
	}
	if err := p.Kill(t.Context(), alice, src.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := remove(t, p, snap, ""); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("DeleteSnapshot() in use = %v, want failed precondition", err)
	}
	if err := p.Pause(t.Context(), alice, child.ID, snapshot.Memory); err != nil {
		t.Fatalf("Pause() of a child = %v", err)
	}
	if err := remove(t, p, snap, "v1"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("DeleteSnapshot() with a paused child = %v, want failed precondition", err)
	}
	if _, _, err := p.Connect(t.Context(), alice, child.ID, time.Hour); err != nil {
		t.Errorf("Connect() of a child = %v", err)
	}
	if err := p.Kill(t.Context(), alice, child.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := remove(t, p, snap, "v1"); err != nil {
		t.Errorf("DeleteSnapshot() = %v", err)
	}
	if ids := w.vault.ids(); len(ids) != 0 {
		t.Errorf("artifacts %v are left", ids)
	}
	if err := remove(t, p, snap, ""); !errdefs.IsNotFound(err) {
		t.Errorf("DeleteSnapshot() again = %v, want not found", err)
	}
}

func TestSnapshotNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	for _, name := range []string{"no spaces", "a/b/c", "other/name", "name:" + "0b8e5c1e-0000-4000-8000-000000000001", "base", string(src.Template), strings.Repeat("n", 129)} {
		if _, err := p.Snapshot(t.Context(), alice, src.ID, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Snapshot(%q) = %v, want invalid argument", name, err)
		}
	}
	unnamed := save(t, p, src.ID, "")
	if want := string(unnamed.Template) + ":default"; unnamed.Reference() != want || unnamed.FullName() != "" {
		t.Errorf("unnamed snapshot is %q, %q", unnamed.Reference(), unnamed.FullName())
	}
	first := save(t, p, src.ID, " Team-SNAP ")
	v1 := save(t, p, src.ID, string(alice.Team)+"/team-snap:v1")
	again := save(t, p, src.ID, "team-snap")
	if first.Template != v1.Template || first.Template != again.Template || first.Template == unnamed.Template {
		t.Error("one name does not mean one template")
	}
	// The tag has moved; the artifact of the old build is gone.
	recorded := w.recorded(t)
	if slices.Contains(recorded, first.Build.Artifact.ID) || len(recorded) != 3 || !slices.Equal(recorded, w.vault.ids()) {
		t.Errorf("artifacts %v, recorded %v", w.vault.ids(), recorded)
	}
	child, err := p.Create(t.Context(), alice, startFrom("team-snap"))
	if err != nil || child.Build != again.Build.ID {
		t.Errorf("Create() right after = build %s (%v), want the newest", child.Build, err)
	}
	if _, err := p.Create(t.Context(), alice, startFrom("team-snap:v2")); !errdefs.IsNotFound(err) {
		t.Errorf("Create(unknown tag) = %v, want not found", err)
	}
	// A build whose tag moves on lives as long as its sandboxes.
	save(t, p, src.ID, "team-snap")
	if !slices.Contains(w.vault.ids(), again.Build.Artifact.ID) {
		t.Error("the artifact of a live sandbox is gone")
	}
	if err := remove(t, p, v1, "v1"); err != nil {
		t.Errorf("DeleteSnapshot() of an unused tag = %v", err)
	}
	if _, err := p.Create(t.Context(), alice, startFrom("team-snap:v1")); !errdefs.IsNotFound(err) {
		t.Errorf("Create(deleted tag) = %v, want not found", err)
	}
	// A name of its own does not touch that of another team.
	other, err := p.Create(t.Context(), mallory, request())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := p.Snapshot(t.Context(), mallory, other.ID, "team-snap")
	if err != nil || theirs.Template == first.Template {
		t.Errorf("Snapshot() by another team = %+v, %v", theirs, err)
	}
	if _, err := p.Snapshot(t.Context(), mallory, src.ID, ""); !errdefs.IsNotFound(err) {
		t.Errorf("Snapshot() of another team's sandbox = %v, want not found", err)
	}
}

func TestSnapshotResources(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, func(r *sandbox.CreateRequest) { r.Resources.MemoryMiB = 768 })
	snap := save(t, p, src.ID, "")
	for _, res := range []provider.Resources{{MemoryMiB: 512}, {CPUs: 2}, {DiskMiB: 1}, {Processes: 5}} {
		r := startFrom(snap.Reference())
		r.Resources = res
		if _, err := p.Create(t.Context(), alice, r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "resources.") {
			t.Errorf("Create(%+v) = %v, want one that names the member", res, err)
		}
	}
	r := startFrom(snap.Reference())
	r.Resources.MemoryMiB = 768
	if sb, err := p.Create(t.Context(), alice, r); err != nil || sb.Resources != src.Resources {
		t.Errorf("Create() with the same resources = %+v, %v", sb.Resources, err)
	}
	// A record that lost one must not mean a sandbox without a limit.
	tmpl, err := w.db.GetTemplate(t.Context(), alice.Team, string(snap.Template))
	if err != nil {
		t.Fatal(err)
	}
	lost := snap.Build
	lost.Resources.MemoryMiB = 0
	if err := w.db.PutTemplate(t.Context(), tmpl, lost); err != nil {
		t.Fatal(err)
	}
	if sb, err := p.Create(t.Context(), alice, startFrom(snap.Reference())); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "resources.memoryMiB") {
		t.Errorf("Create() without a limit of memory = %+v, %v, want a refusal that names it", sb.Resources, err)
	}
}

func TestSnapshotFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"snapshot", "sync", "put snapshot"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			src := pausable(t, p, nil)
			before, _ := p.Live(src.ID)
			p.failNext(call)
			if _, err := p.Snapshot(t.Context(), alice, src.ID, "name"); !errors.Is(err, errInjected) {
				t.Fatalf("Snapshot() = %v, want the injected error", err)
			}
			runsOn(t, p, before)
			if ids := w.vault.ids(); len(ids) != 0 {
				t.Errorf("artifacts %v are left", ids)
			}
			save(t, p, src.ID, "name") // it can be tried again
			runsOn(t, p, before)
		})
	}
}

// A source whose agent cannot be told who it is any more ends, with a reason.
func TestSnapshotLosesAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	w.boxes.mu.Lock()
	w.boxes.saving = func(context.Context, provider.Spec) error {
		w.boxes.mu.Lock()
		defer w.boxes.mu.Unlock()
		w.boxes.all[string(src.ID)].refuse = true
		return nil
	}
	w.boxes.mu.Unlock()
	if _, err := p.Snapshot(t.Context(), alice, src.ID, ""); err == nil {
		t.Error("Snapshot() of a sandbox that it broke succeeded")
	}
	checkGone(t, p, src.ID, sandbox.Killed, provider.ReasonCrashed)
	if ids := w.vault.ids(); len(ids) != 0 {
		t.Errorf("artifacts %v are left", ids)
	}
}

// While a sandbox is copied, other copies and pauses are refused, a kill ends
// it, and its own end pauses it afterwards.
func TestMeanwhile(t *testing.T) {
	t.Parallel()
	for name, during := range map[string]func(t *testing.T, p *process, id sandbox.ID) error{
		"snapshot": func(t *testing.T, p *process, id sandbox.ID) error {
			_, err := p.Snapshot(t.Context(), alice, id, "")
			return err
		},
		"fork": func(t *testing.T, p *process, id sandbox.ID) error {
			_, err := p.Fork(t.Context(), alice, id, 1, time.Minute)
			return err
		},
		"pause": func(t *testing.T, p *process, id sandbox.ID) error {
			return p.Pause(t.Context(), alice, id, snapshot.Memory)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			src := pausable(t, p, nil)
			before, _ := p.Live(src.ID)
			entered := make(chan struct{})
			w.boxes.saving = func(context.Context, provider.Spec) error {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				before.Enter(ctx)()
				if ctx.Err() == nil {
					t.Error("new traffic does not wait")
				}
				go func() { defer close(entered); before.Enter(context.WithoutCancel(t.Context()))() }()
				if err := during(t, p, src.ID); !errdefs.IsConflict(err) {
					t.Errorf("meanwhile = %v, want conflict", err)
				}
				return nil
			}
			save(t, p, src.ID, "")
			<-entered
			runsOn(t, p, before)
		})
	}
}

func TestKillWhileCopying(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	w.boxes.saving = func(context.Context, provider.Spec) error {
		return p.Kill(context.WithoutCancel(t.Context()), alice, src.ID, "")
	}
	_, err := p.Snapshot(t.Context(), alice, src.ID, "")
	checkGone(t, p, src.ID, sandbox.Killed, "killed")
	// The fake box can be saved after its end; then there is a whole snapshot.
	if got := w.recorded(t); !slices.Equal(got, w.vault.ids()) || (err == nil) != (len(got) == 1) {
		t.Errorf("Snapshot() = %v with artifacts %v, recorded %v", err, w.vault.ids(), got)
	}
}

func TestEndWhileCopying(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		src := pausable(t, p, func(r *sandbox.CreateRequest) { r.OnTimeout = sandbox.OnTimeoutPause })
		w.boxes.saving = func(context.Context, provider.Spec) error {
			w.boxes.mu.Lock()
			w.boxes.saving = nil
			w.boxes.mu.Unlock()
			time.Sleep(61 * time.Second) // its time is over
			return nil
		}
		save(t, p, src.ID, "")
		time.Sleep(time.Second)
		synctest.Wait()
		checkPaused(t, p, src.ID)
		if n := len(w.vault.ids()); n != 2 {
			t.Errorf("%d artifacts, want that of the snapshot and that of the pause", n)
		}
	})
}

func TestSnapshotsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	all := make(chan struct{})
	w.boxes.saving = func(context.Context, provider.Spec) error { <-all; return nil }
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() {
			if _, errs[i] = p.Snapshot(t.Context(), alice, src.ID, ""); errdefs.IsConflict(errs[i]) {
				return
			}
		})
	}
	time.AfterFunc(50*time.Millisecond, func() { close(all) })
	wg.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !errdefs.IsConflict(err) {
			t.Errorf("Snapshot() at once = %v, want conflict", err)
		}
	}
	if done != 1 || len(w.vault.ids()) != 1 {
		t.Errorf("%d succeeded with artifacts %v, want 1", done, w.vault.ids())
	}
}

// A process that dies at any call of snapshot, create from it and delete leaves
// no artifact without a record and no record without an artifact, and the source
// runs and knows who it is.
func TestCrashAtEveryStepOfSnapshot(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at++ {
		done := false
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			src := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = 2 * time.Hour })
			p.dieAt.Store(p.calls.Load() + at)
			snap, err := p.Snapshot(t.Context(), alice, src.ID, "name")
			saved := err == nil
			if saved {
				_, err = p.Snapshot(t.Context(), alice, src.ID, "name") // the tag moves
			}
			var child sandbox.Sandbox
			if err == nil {
				child, err = p.Create(t.Context(), alice, startFrom("name"))
			}
			if err == nil {
				err = p.Kill(t.Context(), alice, child.ID, "")
			}
			if err == nil {
				err = remove(t, p, snap, "")
			}
			survived := !p.dead.Load()
			p.kill9()

			next := w.boot(t, testConfig()).run(t)
			before, ok := next.Live(src.ID)
			if !ok {
				t.Fatalf("died at call %d: the source is gone", at)
			}
			runsOn(t, next, before)
			time.Sleep(15 * time.Minute) // for the sweep
			synctest.Wait()
			recorded := w.recorded(t)
			if !slices.Equal(recorded, w.vault.ids()) {
				t.Errorf("died at call %d: artifacts %v, recorded %v", at, w.vault.ids(), recorded)
			}
			if saved && !survived {
				if _, err := next.Create(t.Context(), alice, startFrom("name")); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("died at call %d: Create(snapshot) = %v", at, err)
				}
			}
			if survived {
				done = true
				if err != nil || at < 15 || len(recorded) != 0 {
					t.Errorf("%d calls, %v, artifacts %v: want every step tried, and nothing left", at, err, recorded)
				}
			}
		})
		if done || t.Failed() {
			return
		}
	}
}

func TestSnapshotOfAnotherEngine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, nil)
	snap := save(t, p, src.ID, "")
	w.boxes.creating = func(context.Context, provider.Spec) error { return snapshot.ErrOtherEngine }
	_, err := p.Create(t.Context(), alice, startFrom(snap.Reference()))
	e, ok := errors.AsType[*apierr.Error](err)
	if !ok || !errdefs.IsFailedPrecondition(err) || e.Code != "engine_mismatch" || !strings.Contains(e.Message, "make it again") {
		t.Errorf("Create() = %v, want one that says what to do", err)
	}
	if len(w.boxes.ids()) != 1 || !slices.Equal(w.vault.ids(), w.recorded(t)) {
		t.Errorf("boxes %v, artifacts %v are left", w.boxes.ids(), w.vault.ids())
	}
}

// A snapshot that is saved over between finding it and recording a sandbox of it
// is not started from: what it was made of is gone.
func TestSnapshotReplacedDuringCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	src := pausable(t, p, func(r *sandbox.CreateRequest) { r.Timeout = time.Hour })
	snap := save(t, p, src.ID, "point")
	p.atStep(func(name string) {
		if name == "insert" {
			p.atStep(nil)
			save(t, p, src.ID, "point")
		}
	})
	_, err := p.Create(t.Context(), alice, startFrom(snap.Reference()))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "replaced meanwhile") {
		t.Errorf("Create() = %v, want that it was replaced", err)
	}
	if _, err := p.Create(t.Context(), alice, startFrom(snap.Reference())); err != nil {
		t.Errorf("Create() again = %v", err)
	}
}
