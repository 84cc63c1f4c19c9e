package queue_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// catalog is what template.Catalog does, without images.
type catalog struct{ *store.Store }

func (c catalog) Find(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Reference, error) {
	r, err := template.ParseReference(ref)
	if err != nil {
		return template.Template{}, r, err
	}
	t, err := c.GetTemplate(ctx, team, r.Name)
	return t, r, err
}

func (c catalog) Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error) {
	t, _, err := c.Find(ctx, team, ref)
	if err != nil {
		return t, template.Build{}, err
	}
	b, err := c.GetBuild(ctx, t.Current)
	return t, b, err
}

func (c catalog) Build(ctx context.Context, id template.BuildID) (template.Build, error) {
	return c.GetBuild(ctx, id)
}

type noFiles struct{}

func (noFiles) Has(identity.TeamID, string) (bool, error)           { return false, nil }
func (noFiles) Open(identity.TeamID, string) (io.ReadCloser, error) { return nil, errdefs.ErrNotFound }

// execution is a fake Executor: each plan is sent on began, and ends with what
// end gives it.
type execution struct {
	began chan template.Plan
	end   chan error
}

func (e *execution) Execute(ctx context.Context, p template.Plan, log func(template.LogLine)) (template.Artifacts, error) {
	log(template.LogLine{At: time.Now(), Level: "info", Text: "begin " + p.Image.Ref + "\x00\xff"})
	select {
	case e.began <- p:
	case <-ctx.Done(): // the test has ended
		return template.Artifacts{}, &template.StepError{Step: 1, Err: ctx.Err()}
	}
	select {
	case err := <-e.end:
		return template.Artifacts{Rootfs: image.Rootfs{Digest: "sha256:" + strings.Repeat("ef", 32)}}, err
	case <-ctx.Done():
		return template.Artifacts{}, &template.StepError{Step: 1, Err: ctx.Err()}
	}
}

type fixture struct {
	*queue.Queue
	t     *testing.T
	store *store.Store
	exec  *execution
	seed  identity.Seed
	stop  func()
	// records, when set, is the store that the queue uses.
	records interface {
		queue.Store
		queue.Records
	}
}

var who = identity.Principal{Team: identity.DefaultTeam, KeyID: "k"}

func begin(t *testing.T, c queue.Config) *fixture {
	t.Helper()
	f := &fixture{t: t, store: storetest.SQLite(t), seed: identity.NewSeed(), exec: &execution{began: make(chan template.Plan), end: make(chan error)}}
	f.restart(c)
	t.Cleanup(func() { f.stop() })
	return f
}

// restart runs a queue as the next server would.
func (f *fixture) restart(c queue.Config) {
	f.t.Helper()
	if f.stop != nil {
		f.stop()
	}
	c.Defaults = provider.Resources{CPUs: 2, MemoryMiB: 512, DiskMiB: 1024, Processes: 64}
	if f.records == nil {
		f.records = f.store
	}
	q, err := queue.New(c, queue.Deps{
		Store: f.records, Records: f.records, Catalog: catalog{f.store}, Files: noFiles{}, Executor: f.exec, Seed: f.seed, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.Queue = q
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	f.stop = func() { cancel(); wg.Wait() }
}

func (f *fixture) start(who identity.Principal, name string, r queue.Recipe) template.Build {
	f.t.Helper()
	t, b, err := f.Register(f.t.Context(), who, queue.Request{Name: name})
	if err != nil {
		f.t.Fatalf("Register() = %v", err)
	}
	if err := f.Start(f.t.Context(), who, string(t.ID), b.ID, r); err != nil {
		f.t.Fatalf("Start() = %v", err)
	}
	return b
}

func (f *fixture) ended(id template.BuildID) template.Build {
	f.t.Helper()
	for {
		b, err := f.store.GetBuild(f.t.Context(), id)
		if err != nil {
			f.t.Fatalf("GetBuild() = %v", err)
		}
		if b.Status == template.Ready || b.Status == template.Failed {
			return b
		}
		select {
		case <-f.t.Context().Done():
			f.t.Fatal("the build does not end")
		case <-time.After(time.Millisecond):
		}
	}
}

func (f *fixture) log(id template.BuildID) (out []string) {
	f.t.Helper()
	all, err := f.Log(f.t.Context(), id, template.LogFilter{Limit: 1000})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range all {
		out = append(out, e.Step+" "+e.Text)
	}
	return out
}

func TestRestartBeginsAgain(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{Parallel: 1})
	login := &queue.Registry{Username: "u", Password: secret.New("pass-word")}
	running := f.start(who, "a", queue.Recipe{Image: "one", Registry: login, Steps: []template.Step{{Type: "run", Args: []string{"x"}}}})
	<-f.exec.began
	waiting := f.start(who, "b", queue.Recipe{Image: "two"})
	f.restart(queue.Config{Parallel: 1})
	for _, id := range []template.BuildID{running.ID, waiting.ID} {
		if b, err := f.store.GetBuild(t.Context(), id); err != nil || b.Status != template.Building {
			t.Errorf("build after a restart = %+v, %v, want building", b, err)
		}
	}
	p := <-f.exec.began
	if p.Build != running.ID || p.Image.Password != "pass-word" || p.Image.Username != "u" || len(p.Steps) != 1 || p.Steps[0].Type != "RUN" {
		t.Errorf("plan after a restart = %+v", p)
	}
	f.exec.end <- nil
	<-f.exec.began
	f.exec.end <- nil
	if b := f.ended(running.ID); b.Status != template.Ready {
		t.Errorf("build = %+v", b)
	}
	if b := f.ended(waiting.ID); b.Status != template.Ready {
		t.Errorf("build = %+v", b)
	}
	got := strings.Join(f.log(running.ID), "\n")
	for _, want := range []string{"base begin one\uFFFD", "the server stops; the build begins again", "the server was restarted; the build begins again"} {
		if !strings.Contains(got, want) {
			t.Errorf("log has no %q:\n%s", want, got)
		}
	}
	if left, err := f.store.PendingBuilds(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("PendingBuilds() = %v, %v, want none", left, err)
	}
}

// TestRestartsEnd sees that a build that brings servers down does so three times
// at most, and that it is not blamed for servers that stop in order.
func TestRestartsEnd(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	b := f.start(who, "a", queue.Recipe{Image: "one"})
	for range 4 {
		<-f.exec.began
		f.restart(queue.Config{})
	}
	<-f.exec.began
	f.stop()
	for range 3 { // as servers leave it that are killed
		if err := f.store.AttemptBuild(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
	}
	f.restart(queue.Config{})
	if got := f.ended(b.ID); got.Status != template.Failed || !strings.Contains(got.Reason, "the server ended 3 times") {
		t.Errorf("build = %+v", got)
	}
}

func TestAnotherSeed(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	b := f.start(who, "a", queue.Recipe{Image: "one"})
	<-f.exec.began
	f.seed = identity.NewSeed()
	f.restart(queue.Config{})
	if got := f.ended(b.ID); got.Status != template.Failed || !strings.Contains(got.Reason, "internal error (reference "+string(b.ID)) {
		t.Errorf("build = %+v", got)
	}
}

func TestSealed(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.start(who, "a", queue.Recipe{Image: "one", Registry: &queue.Registry{Username: "somebody", Password: secret.New("pass-word")}})
	<-f.exec.began
	pending, err := f.store.PendingBuilds(t.Context())
	if err != nil || len(pending) != 1 || pending[0].Sealed == "" {
		t.Fatalf("PendingBuilds() = %v, %v", pending, err)
	}
	for _, word := range []string{"pass-word", "somebody", "one"} {
		if strings.Contains(pending[0].Sealed, word) {
			t.Errorf("the recipe is kept with %q in it", word)
		}
	}
	f.exec.end <- nil
}

func TestCancel(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{Parallel: 1})
	running := f.start(who, "a", queue.Recipe{Image: "one"})
	<-f.exec.began
	waiting := f.start(who, "b", queue.Recipe{Image: "two"})
	_, registered, err := f.Register(t.Context(), who, queue.Request{Name: "c"})
	if err != nil {
		t.Fatal(err)
	}
	stranger := identity.Principal{Team: "other", KeyID: "x"}
	if err := f.Cancel(t.Context(), stranger, "a", running.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Cancel() of another team's build = %v, want not found", err)
	}
	for ref, id := range map[string]template.BuildID{"b": waiting.ID, "c": registered.ID, "a": running.ID} {
		if err := f.Cancel(t.Context(), who, ref, id); err != nil {
			t.Errorf("Cancel(%s) = %v", ref, err)
		}
		if got := f.ended(id); got.Status != template.Failed || !strings.HasPrefix(got.Reason, "the build was cancelled") {
			t.Errorf("build %s = %+v", ref, got)
		}
		if err := f.Cancel(t.Context(), who, ref, id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Cancel(%s) again = %v, want failed precondition", ref, err)
		}
	}
}

// slow is an Executor that takes its time to stop.
type slow struct {
	began   chan struct{}
	release chan struct{}
}

func (s slow) Execute(ctx context.Context, _ template.Plan, _ func(template.LogLine)) (template.Artifacts, error) {
	s.began <- struct{}{}
	<-s.release
	return template.Artifacts{}, &template.StepError{Step: 1, Err: ctx.Err()}
}

// What was cancelled does not begin again because the server stopped before the
// build did.
func TestCancelledWhileStopping(t *testing.T) {
	t.Parallel()
	s := storetest.SQLite(t)
	exec := slow{make(chan struct{}), make(chan struct{})}
	q, err := queue.New(queue.Config{}, queue.Deps{
		Store: s, Records: s, Catalog: catalog{s}, Files: noFiles{}, Executor: exec, Seed: identity.NewSeed(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	f := &fixture{Queue: q, t: t, store: s}
	b := f.start(who, "mine", queue.Recipe{Image: "debian"})
	<-exec.began
	if err := q.Cancel(t.Context(), who, "mine", b.ID); err != nil {
		t.Errorf("Cancel() = %v", err)
	}
	stop()
	close(exec.release)
	wg.Wait()
	if got, err := s.GetBuild(t.Context(), b.ID); err != nil || got.Status != template.Failed || !strings.Contains(got.Reason, "cancelled") {
		t.Errorf("build = %+v, %v, want it to have failed as cancelled", got, err)
	}
}

// late is a store in which builds are cancelled by another process: right before
// they are begun, or right before they are ready.
type late struct {
	*store.Store
	cancel func(template.Build)
	begun  bool
}

func (l *late) AttemptBuild(ctx context.Context, id template.BuildID) error {
	if l.begun {
		l.cancel(template.Build{ID: id})
	}
	return l.Store.AttemptBuild(ctx, id)
}

func (l *late) FinishBuild(ctx context.Context, b template.Build, actor string) error {
	if b.Status == template.Ready {
		l.cancel(b)
	}
	return l.Store.FinishBuild(ctx, b, actor)
}

// A cancel that was acknowledged holds whenever it comes.
func TestCancelledLate(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]bool{"before it is begun": true, "after all was done": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := begin(t, queue.Config{})
			f.stop()
			b := f.start(who, "mine", queue.Recipe{Image: "debian"})
			f.records = &late{Store: f.store, begun: before, cancel: func(b template.Build) {
				if err := f.store.CancelBuild(t.Context(), who.Team, b, "k"); err != nil {
					t.Errorf("CancelBuild() = %v", err)
				}
			}}
			f.restart(queue.Config{})
			if !before {
				<-f.exec.began
				f.exec.end <- nil
			}
			got := f.ended(b.ID)
			if got.Status != template.Failed || !strings.HasPrefix(got.Reason, "the build was cancelled") || got.Rootfs.Digest != "" {
				t.Errorf("build = %+v, want it to have failed as cancelled", got)
			}
			if lines := f.log(b.ID); len(lines) == 0 || !strings.Contains(lines[len(lines)-1], "cancelled") {
				t.Errorf("log = %q", lines)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{Timeout: time.Second})
	b := f.start(who, "a", queue.Recipe{Image: "one", Steps: []template.Step{{Type: "RUN", Args: []string{"x"}}}})
	<-f.exec.began
	got := f.ended(b.ID)
	if got.Status != template.Failed || got.Step != "1" || !strings.Contains(got.Reason, "longer than 1s") {
		t.Errorf("build = %+v", got)
	}
}

func TestReasons(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	for name, c := range map[string]struct {
		err        error
		step, text string
	}{
		"of a step":            {&template.StepError{Step: 2, Err: errors.New("failed to run command 'x': exit status 1")}, "2", "failed to run command 'x': exit status 1"},
		"of a step, its class": {&template.StepError{Err: fmt.Errorf("image x: %w", errdefs.ErrNotFound)}, "base", "image x"},
		"of the end":           {&template.StepError{Step: -1, Err: errors.New("ready command did not pass within 10m")}, "finalize", "ready command did not pass within 10m"},
		"of the server":        {errors.New("mount /secret/path: no such device"), "", "internal error (reference "},
		"of a step, internal":  {&template.StepError{Step: 1, Err: fmt.Errorf("engine socket: %w", errdefs.ErrInternal)}, "1", "internal error (reference "},
		"known":                {fmt.Errorf("no memory for builds: %w", errdefs.ErrUnavailable), "", "no memory for builds"},
	} {
		b := f.start(who, "a", queue.Recipe{Image: "i"})
		<-f.exec.began
		f.exec.end <- c.err
		got := f.ended(b.ID)
		if got.Status != template.Failed || got.Step != c.step || !strings.HasPrefix(got.Reason, c.text) || strings.Contains(got.Reason, "/secret") {
			t.Errorf("%s: step %q, reason %q, want %q, %q", name, got.Step, got.Reason, c.step, c.text)
		}
	}
}

// TestTurns sees that a team with many builds does not keep another's waiting.
func TestTurns(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{Parallel: 2})
	other := identity.Principal{Team: "other", KeyID: "x"}
	for range 2 {
		f.start(who, "mine", queue.Recipe{Image: "many"})
		<-f.exec.began
	}
	f.start(who, "mine", queue.Recipe{Image: "many"})
	f.start(other, "theirs", queue.Recipe{Image: "single"})
	f.exec.end <- nil
	if p := <-f.exec.began; p.Team != "other" {
		t.Errorf("next is a build of team %q, want the one that has none running", p.Team)
	}
	f.exec.end <- nil
	if p := <-f.exec.began; p.Team != identity.DefaultTeam {
		t.Errorf("last is a build of team %q", p.Team)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{Parallel: 1, Limits: queue.Limits{PerTeam: 2, Total: 3}})
	other := identity.Principal{Team: "other", KeyID: "x"}
	try := func(who identity.Principal) error {
		_, b, err := f.Register(t.Context(), who, queue.Request{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return f.Start(t.Context(), who, "x", b.ID, queue.Recipe{Image: "i"})
	}
	for i, c := range []struct {
		who     identity.Principal
		refused string
	}{{who, ""}, {who, ""}, {who, "team default has 2 builds"}, {other, ""}, {other, "3 builds are under way"}} {
		err := try(c.who)
		if (c.refused == "") != (err == nil) || err != nil && (!errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), c.refused)) {
			t.Errorf("Start() %d = %v, want %q", i, err, c.refused)
		}
	}
	<-f.exec.began
}

func TestWaitingBuildsAreBounded(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	for i := range 101 {
		_, _, err := f.Register(t.Context(), who, queue.Request{Name: "x"})
		if i < 100 && err != nil || i == 100 && !errdefs.IsResourceExhausted(err) {
			t.Fatalf("Register() %d = %v", i, err)
		}
	}
	if _, _, err := f.Register(t.Context(), identity.Principal{Team: "other"}, queue.Request{Name: "x"}); err != nil {
		t.Errorf("Register() of another team = %v", err)
	}
	n, err := f.store.ExpireBuilds(t.Context(), time.Now().Add(time.Minute), "too old")
	if n != 101 || err != nil {
		t.Errorf("ExpireBuilds() = %d, %v, want 101", n, err)
	}
	if _, _, err := f.Register(t.Context(), who, queue.Request{Name: "x"}); err != nil {
		t.Errorf("Register() after they expired = %v", err)
	}
}

// flood is a fake Executor that logs without end and keeps a secret badly.
type flood struct{ lines int }

func (e flood) Execute(_ context.Context, p template.Plan, log func(template.LogLine)) (template.Artifacts, error) {
	for i := range e.lines {
		log(template.LogLine{Level: "info", Step: 1, Text: strings.Repeat("x", 64<<10) + p.Image.Password})
		if i == e.lines-1 {
			log(template.LogLine{Level: "info", Step: 1, Done: true, Text: "end of the step"})
		}
	}
	return template.Artifacts{Rootfs: image.Rootfs{Digest: "sha256:" + strings.Repeat("ef", 32)}}, nil
}

// flaky is a store whose database is away when a build begins and when it ends.
type flaky struct {
	*store.Store
	reads, ends atomic.Int32
}

var errAway = errors.New("the database is away")

func (f *flaky) GetBuild(ctx context.Context, id template.BuildID) (template.Build, error) {
	if f.reads.Add(-1) >= 0 {
		return template.Build{}, errAway
	}
	return f.Store.GetBuild(ctx, id)
}

func (f *flaky) FinishBuild(ctx context.Context, b template.Build, actor string) error {
	if f.ends.Add(-1) >= 0 {
		return errAway
	}
	return f.Store.FinishBuild(ctx, b, actor)
}

func TestDatabaseIsAway(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.stop()
	b := f.start(who, "mine", queue.Recipe{Image: "debian"})
	away := &flaky{Store: f.store}
	away.reads.Store(1)
	away.ends.Store(2)
	f.records = away
	f.restart(queue.Config{})
	<-f.exec.began
	f.exec.end <- nil
	if got := f.ended(b.ID); got.Status != template.Ready {
		t.Errorf("build = %+v, want it ready", got)
	}
}

func TestLogIsBounded(t *testing.T) {
	t.Parallel()
	f := begin(t, queue.Config{})
	f.stop()
	q, err := queue.New(queue.Config{}, queue.Deps{
		Store: f.store, Records: f.store, Catalog: catalog{f.store}, Files: noFiles{}, Executor: flood{1300}, Seed: f.seed, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Queue = q
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.Run(ctx) })
	f.stop = func() { cancel(); wg.Wait() }
	b := f.start(who, "a", queue.Recipe{Image: "i", Steps: []template.Step{{Type: "RUN", Args: []string{"x"}}}})
	if got := f.ended(b.ID); got.Status != template.Ready {
		t.Fatalf("build = %+v", got)
	}
	var bytes, lines int
	var text []string
	for {
		page, err := f.Log(t.Context(), b.ID, template.LogFilter{Skip: int64(lines), Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			lines++
			bytes += len(e.Text)
			if e.Seq != int64(lines) {
				t.Fatalf("line %d has the number %d", lines, e.Seq)
			}
			text = append(text, e.Text[:min(len(e.Text), 40)])
		}
	}
	if bytes > 17<<20 || bytes < 15<<20 {
		t.Errorf("the log has %d bytes, want about 16 MiB", bytes)
	}
	if !slices.ContainsFunc(text, func(s string) bool { return strings.HasPrefix(s, "the log is longer than 16 MiB") }) || text[len(text)-1] != "end of the step" {
		t.Errorf("the log ends with %q", text[len(text)-3:])
	}
}
