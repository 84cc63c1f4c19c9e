package queue_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
)

func imported(name string) queue.Imported {
	return queue.Imported{
		Name: name, Source: "of a test", Rootfs: image.Rootfs{Digest: "sha256:" + strings.Repeat("ef", 32)},
		User: "app", Workdir: "/app", Env: map[string]string{"A": "b"}, Resources: provider.Resources{CPUs: 3, MemoryMiB: 100},
	}
}

func TestImportIsReady(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	for name, change := range map[string]func(*queue.Imported){
		"plain": func(*queue.Imported) {},
		"memory": func(i *queue.Imported) {
			i.Start, i.Artifact = "serve", &snapshot.Artifact{ID: "a", Kind: snapshot.Memory}
		},
	} {
		i := imported(name + ":v1")
		change(&i)
		var settled template.BuildID
		i.Settle = func(ctx context.Context, id template.BuildID) error {
			settled = id
			if b, err := f.store.GetBuild(ctx, id); err != nil || b.Status != template.Waiting {
				t.Errorf("build when it is settled = %+v, %v", b, err)
			}
			return nil
		}
		tmpl, b, err := f.Import(t.Context(), who, i)
		if err != nil || b.Status != template.Ready || b.ID != settled {
			t.Fatalf("Import() = %+v, %v", b, err)
		}
		got, err := f.store.GetBuild(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := template.Build{
			ID: b.ID, Template: tmpl.ID, Status: template.Ready, Source: "archive of a test", Rootfs: i.Rootfs, User: "app", Workdir: "/app", Env: i.Env,
			Resources: provider.Resources{CPUs: 3, MemoryMiB: 100, DiskMiB: 1024, Processes: 64}, Tags: []string{"v1"},
			Start: i.Start, Artifact: i.Artifact, CreatedAt: got.CreatedAt, FinishedAt: got.FinishedAt,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if id, err := f.store.TaggedBuild(t.Context(), tmpl.ID, "v1"); err != nil || id != b.ID {
			t.Errorf("TaggedBuild() = %s, %v", id, err)
		}
		if !got.FromRecipe() {
			t.Error("what was imported under a stock template's name would be taken for one")
		}
	}
}

// A start command is run by a build upon the files that were imported.
func TestImportBuilds(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	i := imported("mine")
	i.Start = "serve"
	tmpl, b, err := f.Import(t.Context(), who, i)
	if err != nil || b.Status != template.Building {
		t.Fatalf("Import() = %+v, %v", b, err)
	}
	p := <-f.exec.began
	if p.Base == nil || p.Base.Status != template.Ready || p.Base.Rootfs != i.Rootfs || p.Base.User != "app" || len(p.Steps) != 0 ||
		p.Start != "serve" || p.Ready != "sleep 20" || p.Resources.CPUs != 3 {
		t.Errorf("plan = %+v", p)
	}
	if got, err := f.store.GetTemplate(t.Context(), who.Team, string(tmpl.ID)); err != nil || got.Current != "" {
		t.Errorf("template before it is ready = %+v, %v", got, err)
	}
	f.restart(queue.Config{}) // it goes on after a restart, too
	<-f.exec.began
	f.exec.end <- nil
	if got := f.ended(b.ID); got.Status != template.Ready {
		t.Errorf("build = %+v", got)
	}
}

func TestImportLeavesNothing(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{Parallel: 1, Limits: queue.Limits{PerTeam: 1}})
	f.start(who, "busy", queue.Recipe{Image: "one"})
	<-f.exec.began
	failing := imported("mine")
	broken := errors.New("broken")
	failing.Settle = func(context.Context, template.BuildID) error { return broken }
	limited := imported("mine")
	limited.Start = "serve"
	large := imported("mine")
	large.Resources.CPUs = 99
	theirs := imported("other/mine")
	for name, c := range map[string]struct {
		i  queue.Imported
		is func(error) bool
	}{
		"settle": {failing, func(err error) bool { return errors.Is(err, broken) }},
		"limit":  {limited, errdefs.IsResourceExhausted},
		"team":   {theirs, errdefs.IsInvalidArgument},
		"name":   {imported("no name"), errdefs.IsInvalidArgument},
	} {
		if _, _, err := f.Import(t.Context(), who, c.i); !c.is(err) {
			t.Errorf("%s: Import() = %v", name, err)
		}
		if got, err := f.store.GetTemplate(t.Context(), who.Team, "mine"); !errdefs.IsNotFound(err) {
			t.Errorf("%s: left %+v, %v", name, got, err)
		}
	}
	// Nor is a template touched that is there.
	if _, _, err := f.Import(t.Context(), who, imported("mine")); err != nil {
		t.Fatal(err)
	}
	before, err := f.store.GetTemplate(t.Context(), who.Team, "mine")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Import(t.Context(), who, failing); !errors.Is(err, broken) {
		t.Errorf("Import() = %v", err)
	}
	after, err := f.store.GetTemplate(t.Context(), who.Team, "mine")
	builds, berr := f.store.ListBuilds(t.Context(), before.ID)
	if err != nil || berr != nil || after.Current != before.Current || len(builds) != 1 {
		t.Errorf("template = %+v with builds %+v, %v, want %+v", after, builds, errors.Join(err, berr), before)
	}
	f.stop()
	f.restart(queue.Config{Maxima: provider.Resources{CPUs: 8}})
	if _, _, err := f.Import(t.Context(), who, large); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Import() above the most CPUs = %v", err)
	}
}

// A cancel that was acknowledged holds although the server is killed at once.
func TestCancelSurvivesAKill(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.stop() // nothing runs: as if the server were killed before it could act
	b := f.start(who, "mine", queue.Recipe{Image: "debian"})
	if err := f.Cancel(t.Context(), who, "mine", b.ID); err != nil {
		t.Fatalf("Cancel() = %v", err)
	}
	f.restart(queue.Config{})
	if got := f.ended(b.ID); got.Status != template.Failed || !strings.Contains(got.Reason, "cancelled") {
		t.Errorf("build = %+v", got)
	}
	select {
	case p := <-f.exec.began:
		t.Errorf("it was begun: %+v", p)
	default:
	}
}

// A process that is no server does its own template's builds, and no other.
func TestRunOnly(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.stop()
	const others = 5 // that wait longer
	for range others {
		f.start(identity.Principal{Team: "other", KeyID: "x"}, "theirs", queue.Recipe{Image: "theirs"})
	}
	mine := f.start(who, "mine", queue.Recipe{Image: "mine"})
	q, err := queue.New(queue.Config{Parallel: 1}, queue.Deps{
		Store: f.store, Records: f.store, Catalog: catalog{f.store}, Files: noFiles{}, Executor: f.exec, Seed: f.seed, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.RunOnly(ctx, mine.Template) })
	if p := <-f.exec.began; p.Build != mine.ID {
		t.Errorf("it builds %s of %s", p.Build, p.Team)
	}
	f.exec.end <- nil
	f.ended(mine.ID)
	cancel()
	wg.Wait()
	pending, err := f.store.PendingBuilds(t.Context())
	if err != nil || len(pending) != others {
		t.Errorf("PendingBuilds() = %+v, %v, want the other team's", pending, err)
	}
	for _, p := range pending {
		if p.Attempts != 0 || p.Team != "other" {
			t.Errorf("left is %+v, want it not begun", p)
		}
	}
	f.stop = func() {}
}

// forgetful is a store to which the log cannot be written for a while; the last of those
// writes is done and only its answer lost.
type forgetful struct {
	*store.Store
	left atomic.Int32
}

func (f *forgetful) AppendBuildLog(ctx context.Context, id template.BuildID, entries []template.Entry) error {
	switch n := f.left.Add(-1); {
	case n == 0:
		return errors.Join(errAway, f.Store.AppendBuildLog(ctx, id, entries))
	case n > 0:
		return errAway
	}
	return f.Store.AppendBuildLog(ctx, id, entries)
}

func TestLogSurvivesADatabaseThatWasAway(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.stop()
	b := f.start(who, "mine", queue.Recipe{Image: "debian"})
	away := &forgetful{Store: f.store}
	away.left.Store(3)
	f.records = away
	f.restart(queue.Config{})
	<-f.exec.began
	f.exec.end <- &template.StepError{Step: 1, Err: errors.New("the step failed")}
	if got := f.ended(b.ID); got.Status != template.Failed {
		t.Errorf("build = %+v", got)
	}
	if diff := cmp.Diff([]string{"base begin debian\uFFFD", "1 the step failed"}, f.log(b.ID)); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// unanswered is a store that does what it is told, and whose answer is lost.
type unanswered struct{ *store.Store }

func (u unanswered) FinishBuild(ctx context.Context, b template.Build, actor string) error {
	return errors.Join(errAway, u.Store.FinishBuild(ctx, b, actor))
}

func (u unanswered) BeginBuild(ctx context.Context, team identity.TeamID, b template.Build, sealed string, l queue.Limits, actor string) error {
	return errors.Join(errAway, u.Store.BeginBuild(ctx, team, b, sealed, l, actor))
}

// What was written is there, although the caller has gone and the answer of the
// database was lost.
func TestImportIsSettled(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.stop()
	f.records = unanswered{f.store}
	f.restart(queue.Config{})
	ctx, leave := context.WithCancel(t.Context())
	i := imported("memory")
	i.Start, i.Artifact = "serve", &snapshot.Artifact{ID: "a", Kind: snapshot.Memory}
	i.Settle = func(context.Context, template.BuildID) error { leave(); return nil }
	_, b, err := f.Import(ctx, who, i)
	if err != nil || b.Status != template.Ready || b.Artifact == nil {
		t.Errorf("Import() = %+v, %v, want it ready", b, err)
	}
	i = imported("command")
	i.Start = "serve"
	if _, b, err = f.Import(t.Context(), who, i); err != nil || b.Status != template.Building {
		t.Errorf("Import() = %+v, %v, want it building", b, err)
	}
	<-f.exec.began
}
