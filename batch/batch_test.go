package batch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/caisson-dev/caisson/batch"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	alice   = identity.Principal{Team: identity.DefaultTeam, KeyID: "kalice"}
	mallory = identity.Principal{Team: "other", KeyID: "kmallory"}
)

// world is a Runner over the real Manager, with the agents in this process.
type world struct {
	*batch.Runner
	*counted
}

// counted counts the sandboxes that there are.
type counted struct {
	*sandbox.Manager
	mu         sync.Mutex
	live, most int
	made       int
}

func (c *counted) Create(ctx context.Context, who identity.Principal, r sandbox.CreateRequest) (sandbox.Sandbox, error) {
	sb, err := c.Manager.Create(ctx, who, r)
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.live++
		c.made++
		c.most = max(c.most, c.live)
	}
	return sb, err
}

func (c *counted) Kill(ctx context.Context, who identity.Principal, id sandbox.ID, reason string) error {
	c.mu.Lock()
	c.live--
	c.mu.Unlock()
	return c.Manager.Kill(ctx, who, id, reason)
}

type templates struct{ *store.Store }

func (t templates) Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error) {
	found, err := t.GetTemplate(ctx, team, ref)
	if err != nil {
		return found, template.Build{}, err
	}
	b, err := t.GetBuild(ctx, found.Current)
	b.User, b.Workdir = "", "" // the agent has this host's accounts
	return found, b, err
}

func (t templates) Build(ctx context.Context, id template.BuildID) (template.Build, error) {
	return t.GetBuild(ctx, id)
}

type gate struct{ egress.Attachment }

func (gate) Attach(context.Context, string, egress.Policy) (egress.Attachment, error) {
	return gate{}, nil
}
func (gate) Update(context.Context, string, egress.Policy) error { return nil }
func (gate) Detach(context.Context, string) error                { return nil }

func newWorld(t *testing.T, maxPerTeam int, change ...func(*batch.Config)) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	db := storetest.SQLite(t)
	limits := []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk, sandbox.UnenforcedEgress}
	boxes, err := fake.New(fake.Config{Unenforced: limits, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	m, err := sandbox.New(sandbox.Config{MaxTimeout: time.Hour, MaxPerTeam: maxPerTeam, Unenforced: limits, DefaultUser: me.Username}, sandbox.Deps{
		Store: db, Templates: templates{db}, Provider: boxes, Guard: gate{}, Seed: identity.NewSeed(), Log: log,
		Policy: func(sandbox.Network) (egress.Policy, error) {
			return egress.Policy{Version: 1, Default: egress.Deny}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var work sync.WaitGroup
	work.Go(func() { _ = m.Run(ctx) })
	<-m.Recovered()
	t.Cleanup(func() { cancel(); work.Wait(); _ = boxes.Close() })
	c := &counted{Manager: m}
	cfg := batch.Config{Sandboxes: c, MaxConcurrency: 16, MaxTimeout: time.Hour, Log: log}
	for _, f := range change {
		f(&cfg)
	}
	r, err := batch.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &world{r, c}
}

// left are the sandboxes that have not ended.
func (w *world) left(t *testing.T) int {
	t.Helper()
	page, _, _, err := w.List(t.Context(), identity.System, sandbox.Filter{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	return len(page)
}

func request(items ...batch.Item) batch.Request {
	return batch.Request{Create: sandbox.CreateRequest{Template: "base"}, Timeout: 30 * time.Second, Items: items}
}

func sh(line string) batch.Item { return batch.Item{Cmd: "/bin/sh", Args: []string{"-c", line}} }

// outcome is what a batch told.
type outcome struct {
	events  []batch.Event
	results map[string]batch.Result
	summary batch.Summary
}

func (w *world) run(t *testing.T, ctx context.Context, r batch.Request, hook func(batch.Event) error) outcome {
	t.Helper()
	if err := w.Runner.Check(ctx, alice, &r); err != nil {
		t.Fatalf("Check() = %v", err)
	}
	out := outcome{results: map[string]batch.Result{}}
	out.summary = w.Runner.Run(ctx, alice, r, func(ev batch.Event) error {
		out.events = append(out.events, ev)
		if ev.Result != nil {
			out.results[ev.Result.ID] = *ev.Result
		}
		if hook != nil {
			return hook(ev)
		}
		return nil
	})
	return out
}

func TestItems(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	dir := t.TempDir()
	long := "x = 1\n" + strings.Repeat("# filler\n", 10_000) + "import sys\nprint('long', sys.argv[1:])\n"
	tests := []struct {
		item   batch.Item
		code   int
		stdout string
		stderr string
		status string
	}{
		{item: batch.Item{ID: "echo", Cmd: "echo", Args: []string{"a", "b"}}, stdout: "a b\n", status: "exit status 0"},
		{item: batch.Item{ID: "fails", Cmd: "sh", Args: []string{"-c", "echo bad >&2; exit 3"}}, code: 3, stderr: "bad\n", status: "exit status 3"},
		{item: batch.Item{ID: "missing", Cmd: "no-such-program"}, code: 127, stderr: "no-such-program: not found\n", status: "exit status 127"},
		{item: batch.Item{ID: "signal", Cmd: "sh", Args: []string{"-c", "kill -9 $$"}}, code: -1, status: "signal: killed"},
		{item: batch.Item{ID: "stdin", Cmd: "cat", Stdin: []byte("in")}, stdout: "in", status: "exit status 0"},
		{item: batch.Item{ID: "no stdin", Cmd: "cat"}, status: "exit status 0"},
		{item: batch.Item{ID: "env", Cmd: "sh", Args: []string{"-c", "echo $A $B"}, Env: map[string]string{"B": "item"}}, stdout: "all item\n", status: "exit status 0"},
		{item: batch.Item{ID: "cwd", Cmd: "pwd", Dir: "/usr"}, stdout: "/usr\n", status: "exit status 0"},
		{item: batch.Item{ID: "python", Code: "import sys; print(sys.argv[1:])", Args: []string{"x"}}, stdout: "['x']\n", status: "exit status 0"},
		{item: batch.Item{ID: "bash", Code: "echo $1-$#", Language: "bash", Args: []string{"x"}}, stdout: "x-1\n", status: "exit status 0"},
		{item: batch.Item{ID: "long code", Code: long, Args: []string{"y"}}, stdout: "long ['y']\n", status: "exit status 0"},
	}
	r := request()
	r.Concurrency, r.Env, r.Dir = 3, map[string]string{"A": "all", "B": "all"}, dir
	for _, tt := range tests {
		r.Items = append(r.Items, tt.item)
	}
	got := w.run(t, t.Context(), r, nil)
	for i, tt := range tests {
		want := batch.Result{
			ID: tt.item.ID, Index: i, ExitCode: tt.code, Status: tt.status,
			Stdout: batch.Output{Text: tt.stdout, Bytes: int64(len(tt.stdout))}, Stderr: batch.Output{Text: tt.stderr, Bytes: int64(len(tt.stderr))},
		}
		if d := cmp.Diff(want, got.results[tt.item.ID], cmpopts.IgnoreFields(batch.Result{}, "Sandbox", "Waited", "Took")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.item.ID, d)
		}
	}
	if s := got.summary; s.Items != len(tests) || s.Failed != 3 || s.Succeeded != len(tests)-3 || s.Skipped != 0 {
		t.Errorf("summary %+v", s)
	}
	if last := got.events[len(got.events)-1]; last.Summary == nil || *last.Summary != got.summary {
		t.Errorf("last event %+v, want the summary", last)
	}
	if w.most > 3 || w.live != 0 || w.made != len(tests) || w.left(t) != 0 {
		t.Errorf("%d sandboxes at once of %d, %d left; want at most 3 of %d and none", w.most, w.made, w.left(t), len(tests))
	}
}

// As many items run at a time as were asked for, and never more.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	dir := t.TempDir()
	r := request()
	r.Concurrency = 4
	for i := range 12 {
		r.Items = append(r.Items, sh(fmt.Sprintf("touch %s/%d; until [ $(ls %s | wc -l) -ge 4 ]; do sleep 0.02; done", dir, i, dir)))
	}
	if s := w.run(t, t.Context(), r, nil).summary; s.Succeeded != 12 || w.most != 4 {
		t.Errorf("summary %+v with %d sandboxes at once, want 4", s, w.most)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	in, out := filepath.Join(t.TempDir(), "deep", "in"), filepath.Join(t.TempDir(), "out")
	it := sh(fmt.Sprintf("tr a-z A-Z < %s > %s; head -c 5000000 /dev/zero > %s.big", in, out, out))
	it.Files, it.Collect = []batch.File{{Path: in, Content: []byte("hello\x00")}}, []string{out, out + ".big", out + ".none"}
	res := w.run(t, t.Context(), request(it), nil).results["0"]
	if !res.OK() || len(res.Files) != 3 || string(res.Files[0].Content) != "HELLO\x00" || res.Files[0].Err != nil {
		t.Fatalf("result %+v", res)
	}
	if err := res.Files[1].Err; !errdefs.IsResourceExhausted(err) || len(res.Files[1].Content) != 0 {
		t.Errorf("a file that is too large = %v", err)
	}
	if err := res.Files[2].Err; !errdefs.IsNotFound(err) || !strings.Contains(apierr.Text(err), out+".none") {
		t.Errorf("a file that is not there = %v", err)
	}
}

// Items are started in their order, and events of one come in theirs.
func TestOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	r := request(sh("true"), sh("true"), sh("true"))
	r.Concurrency = 1
	var got []string
	for _, ev := range w.run(t, t.Context(), r, nil).events {
		switch {
		case ev.Started != nil:
			got = append(got, "start "+ev.Started.ID)
		case ev.Result != nil:
			got = append(got, "end "+ev.Result.ID)
		default:
			got = append(got, "summary")
		}
	}
	if d := cmp.Diff([]string{"start 0", "end 0", "start 1", "end 1", "start 2", "end 2", "summary"}, got); d != "" {
		t.Error(d)
	}
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	res := w.run(t, t.Context(), request(sh("echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo last; seq 100000 >&2")), nil).results["0"]
	const half = 256 << 10
	o := res.Stdout
	if !res.OK() || !o.Truncated || o.Bytes != 3000011 || len(o.Text) < 2*half || len(o.Text) > 2*half+100 {
		t.Fatalf("%d bytes kept of %d, truncated %v: %v", len(o.Text), o.Bytes, o.Truncated, res.Err)
	}
	missing := fmt.Sprintf("\n[... %d bytes left out ...]\n", o.Bytes-2*half)
	if !strings.HasPrefix(o.Text, "first\nxxx") || !strings.HasSuffix(o.Text, "xlast\n") || !strings.Contains(o.Text, missing) {
		t.Errorf("kept %q ... %q", o.Text[:20], o.Text[len(o.Text)-20:])
	}
	if !res.Stderr.Truncated || !strings.HasSuffix(res.Stderr.Text, "99999\n100000\n") {
		t.Errorf("stderr ends with %q", res.Stderr.Text[len(res.Stderr.Text)-20:])
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	r := request(sh("echo begun; exec sleep 1000"), sh("echo fine"))
	r.Timeout = 4 * time.Second // which the sandbox may take, too
	got := w.run(t, t.Context(), r, nil)
	late := got.results["0"]
	if e, ok := errors.AsType[*apierr.Error](late.Err); !ok || e.Code != "timeout" || late.ExitCode != -1 || late.Stdout.Text != "begun\n" {
		t.Errorf("result %+v", late)
	}
	if late.Took < r.Timeout || late.Took > time.Minute || !got.results["1"].OK() || w.left(t) != 0 {
		t.Errorf("took %s; the other %+v; %d left", late.Took, got.results["1"], w.left(t))
	}
}

// Whether the caller leaves or cannot be told: what runs is killed, nothing more
// is started and no sandbox is left.
func TestCancel(t *testing.T) {
	t.Parallel()
	errLeft := errors.New("left")
	for _, how := range []string{"context", "emit"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 0)
			r := request()
			r.Concurrency = 3
			for range 10 {
				r.Items = append(r.Items, sh("exec sleep 1000"))
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			started := 0
			got := w.run(t, ctx, r, func(ev batch.Event) error {
				if ev.Started == nil {
					return nil
				}
				if started++; started == 3 {
					if how == "emit" {
						return errLeft
					}
					cancel()
				}
				return nil
			})
			if w.made != 3 || w.left(t) != 0 || got.summary.Failed != 3 || got.summary.Skipped != 7 {
				t.Errorf("made %d, left %d, summary %+v", w.made, w.left(t), got.summary)
			}
			for id, res := range got.results {
				if e, ok := errors.AsType[*apierr.Error](res.Err); !ok || e.Code != "cancelled" {
					t.Errorf("item %s: %v", id, res.Err)
				}
			}
		})
	}
}

// An item waits while the team has as many sandboxes as it may, up to its
// timeout.
func TestTeamLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	r := request()
	r.Concurrency = 6
	for range 8 {
		r.Items = append(r.Items, sh("sleep 0.1"))
	}
	if got := w.run(t, t.Context(), r, nil); got.summary.Succeeded != 8 || w.most != 2 {
		t.Errorf("summary %+v with %d sandboxes at once; want 8 succeeded with 2", got.summary, w.most)
	}
	for range 2 {
		if _, err := w.Create(t.Context(), alice, sandbox.CreateRequest{Template: "base", Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	r = request(sh("true"))
	r.Timeout = time.Second
	got := w.run(t, t.Context(), r, nil)
	res := got.results["0"]
	if !errdefs.IsResourceExhausted(res.Err) || !strings.Contains(res.Err.Error(), "limits.sandboxes_per_team") || res.Waited < time.Second || len(got.events) != 2 {
		t.Errorf("result %+v of events %+v", res, got.events)
	}
}

// Creates of a batch count against the team's rate like any others.
func TestRate(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	w := newWorld(t, 0, func(c *batch.Config) {
		c.Allow = func(identity.TeamID) (time.Duration, bool) { return time.Millisecond, asked.Add(1)%2 == 0 }
	})
	got := w.run(t, t.Context(), request(sh("true"), sh("true"), sh("true")), nil)
	if got.summary.Succeeded != 3 || asked.Load() != 6 || w.made != 3 {
		t.Errorf("summary %+v, asked %d times, made %d", got.summary, asked.Load(), w.made)
	}
}

func TestStopOnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	r := request(sh("true"), sh("exit 4"), sh("true"), sh("true"))
	r.Concurrency, r.StopOnError = 1, true
	if s := w.run(t, t.Context(), r, nil).summary; s.Succeeded != 1 || s.Failed != 1 || s.Skipped != 2 {
		t.Errorf("summary %+v", s)
	}
}

// A sandbox that ends under its command is the item's error and nobody else's.
func TestSandboxEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	r := request(sh("exec sleep 1000"), sh("echo fine"))
	got := w.run(t, t.Context(), r, func(ev batch.Event) error {
		if ev.Started != nil && ev.Started.ID == "0" {
			return w.Manager.Kill(context.WithoutCancel(t.Context()), alice, ev.Started.Sandbox, "oom")
		}
		return nil
	})
	res := got.results["0"]
	if e, ok := errors.AsType[*apierr.Error](res.Err); !ok || e.Code != "sandbox_ended" || !strings.Contains(e.Message, "oom") || !got.results["1"].OK() {
		t.Errorf("results %+v", got.results)
	}
}

// The life of an item's sandbox is a short lease, which is renewed while its
// command runs.
func TestLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0, func(c *batch.Config) { c.MaxTimeout = 1500 * time.Millisecond })
	r := request(sh("sleep 3; echo alive"))
	got := w.run(t, t.Context(), r, func(ev batch.Event) error {
		if ev.Started == nil {
			return nil
		}
		sb, err := w.Get(t.Context(), alice, ev.Started.Sandbox)
		if life := time.Until(sb.EndsAt); err != nil || life > 1500*time.Millisecond {
			t.Errorf("it lives %s, %v", life, err)
		}
		return nil
	})
	if res := got.results["0"]; !res.OK() || res.Stdout.Text != "alive\n" {
		t.Errorf("result %+v", res)
	}
}

func TestShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	sb, err := w.Create(t.Context(), alice, sandbox.CreateRequest{Template: "base", Timeout: time.Minute, Env: map[string]string{"OWN": "own"}})
	if err != nil {
		t.Fatal(err)
	}
	r := batch.Request{Shared: sb.ID, Timeout: 10 * time.Second, Env: map[string]string{"ALL": "all"}}
	for i := range 6 {
		it := sh("echo $OWN $ALL $ITEM")
		it.Env = map[string]string{"ITEM": strconv.Itoa(i)}
		r.Items = append(r.Items, it)
	}
	got := w.run(t, t.Context(), r, nil)
	for id, res := range got.results {
		if want := "own all " + id + "\n"; res.Stdout.Text != want || res.Sandbox != sb.ID {
			t.Errorf("item %s in %s = %q, want %q", id, res.Sandbox, res.Stdout.Text, want)
		}
	}
	if got.summary.Succeeded != 6 || w.made != 1 || w.left(t) != 1 {
		t.Errorf("summary %+v, made %d, left %d", got.summary, w.made, w.left(t))
	}

	// When the caller leaves, commands end with all that they started.
	pid := filepath.Join(t.TempDir(), "pid")
	r.Items = []batch.Item{sh("sleep 1000 & echo $! > " + pid + "; echo up; wait")}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.run(t, ctx, r, func(ev batch.Event) error {
		if ev.Started != nil {
			go func() {
				for !exists(pid) {
					time.Sleep(10 * time.Millisecond) // another process writes it
				}
				cancel()
			}()
		}
		return nil
	})
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	n := strings.TrimSpace(string(text))
	for deadline := time.Now().Add(5 * time.Second); runs(n); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) { // the kernel takes a moment
			t.Fatalf("process %s of a cancelled item runs on", n)
		}
	}
	if w.left(t) != 1 {
		t.Error("the shared sandbox has ended")
	}
}

// runs reports whether there is a process that is not dead already.
func runs(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func exists(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Size() > 0
}

func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	many := make([]batch.Item, batch.MaxItems+1)
	for name, tt := range map[string]struct {
		change func(*batch.Request)
		field  string
	}{
		"no items":        {func(r *batch.Request) { r.Items = nil }, "items"},
		"too many":        {func(r *batch.Request) { r.Items = many }, "items"},
		"concurrency":     {func(r *batch.Request) { r.Concurrency = 17 }, "concurrency"},
		"negative":        {func(r *batch.Request) { r.Concurrency = -1 }, "concurrency"},
		"timeout":         {func(r *batch.Request) { r.Timeout = 0 }, "timeoutSeconds"},
		"env":             {func(r *batch.Request) { r.Env = map[string]string{"A=B": ""} }, "env"},
		"user":            {func(r *batch.Request) { r.User = "a\x00" }, "user"},
		"cwd":             {func(r *batch.Request) { r.Dir = "a\x00" }, "cwd"},
		"resources":       {func(r *batch.Request) { r.Create.Resources.CPUs = -1 }, "resources.cpus"},
		"metadata":        {func(r *batch.Request) { r.Create.Metadata = map[string]string{"a": "\xff"} }, "metadata"},
		"nothing to run":  {func(r *batch.Request) { r.Items[0].Cmd = "" }, "items[0].cmd"},
		"both":            {func(r *batch.Request) { r.Items[0].Code = "1" }, "items[0].code"},
		"language of cmd": {func(r *batch.Request) { r.Items[0].Language = "bash" }, "items[0].language"},
		"language":        {func(r *batch.Request) { r.Items[1] = batch.Item{Code: "1", Language: "cobol"} }, "items[1].language"},
		"same id":         {func(r *batch.Request) { r.Items[1].ID = "0" }, "items[1].id"},
		"id":              {func(r *batch.Request) { r.Items[1].ID = "\n" }, "items[1].id"},
		"cmd":             {func(r *batch.Request) { r.Items[1].Cmd = "a\x00" }, "items[1].cmd"},
		"arg":             {func(r *batch.Request) { r.Items[0].Args = []string{"", "\x00"} }, "items[0].args[1]"},
		"item env":        {func(r *batch.Request) { r.Items[0].Env = map[string]string{"": ""} }, "items[0].env"},
		"item cwd":        {func(r *batch.Request) { r.Items[0].Dir = "\x00" }, "items[0].cwd"},
		"file":            {func(r *batch.Request) { r.Items[0].Files = []batch.File{{Path: "a"}, {}} }, "items[0].files[1].path"},
		"files":           {func(r *batch.Request) { r.Items[0].Files = make([]batch.File, 65) }, "items[0].files"},
		"collect":         {func(r *batch.Request) { r.Items[0].Collect = []string{"\x00"} }, "items[0].collect[0]"},
		"collect much":    {func(r *batch.Request) { r.Items[0].Collect = make([]string, 17) }, "items[0].collect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request(sh("true"), sh("true"))
			tt.change(&r)
			err := w.Runner.Check(t.Context(), alice, &r)
			if e, ok := errors.AsType[*apierr.Error](err); !ok || e.Field != tt.field || !errdefs.IsInvalidArgument(err) {
				t.Errorf("Check() = %v, want one of field %s", err, tt.field)
			}
		})
	}
	if w.made != 0 {
		t.Error("a check made a sandbox")
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	var releases []func()
	for range batch.MaxBatches {
		release, err := w.Admit(alice.Team)
		if err != nil {
			t.Fatalf("Admit() = %v", err)
		}
		releases = append(releases, release)
	}
	if _, err := w.Admit(alice.Team); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Admit(one more) = %v, want resource exhausted", err)
	}
	if _, err := w.Admit(mallory.Team); err != nil {
		t.Errorf("Admit(another team) = %v", err)
	}
	releases[0]()
	if _, err := w.Admit(alice.Team); err != nil {
		t.Errorf("Admit() after one has ended = %v", err)
	}
}

func TestCheckSharedAndTemplate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	sb, err := w.Create(t.Context(), alice, sandbox.CreateRequest{Template: "base", Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	check := func(who identity.Principal, change func(*batch.Request)) error {
		r := request(sh("true"))
		change(&r)
		return w.Runner.Check(t.Context(), who, &r)
	}
	if err := check(alice, func(r *batch.Request) { r.Shared = sb.ID }); err != nil {
		t.Errorf("Check(own) = %v", err)
	}
	for name, err := range map[string]error{
		"another team's": check(mallory, func(r *batch.Request) { r.Shared = sb.ID }),
		"unknown":        check(alice, func(r *batch.Request) { r.Shared = "inothing" }),
		"template":       check(alice, func(r *batch.Request) { r.Create.Template = "nope" }),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("Check(%s) = %v, want not found", name, err)
		}
	}
	if err := w.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Fatal(err)
	}
	if err := check(alice, func(r *batch.Request) { r.Shared = sb.ID }); !errdefs.IsNotFound(err) {
		t.Errorf("Check(ended) = %v, want not found", err)
	}
	if _, err := batch.New(batch.Config{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("New() = %v", err)
	}
}

// A server that is killed in the middle leaves sandboxes that end soon.
func TestSandboxesAreLeased(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 0)
	var life time.Duration
	w.run(t, t.Context(), request(sh("true")), func(ev batch.Event) error {
		if ev.Started == nil {
			return nil
		}
		sb, err := w.Get(t.Context(), alice, ev.Started.Sandbox)
		life = sb.EndsAt.Sub(sb.StartedAt)
		return err
	})
	if life <= 0 || life > 90*time.Second {
		t.Errorf("the sandbox of an item lives %s by itself, want 90 s at most", life)
	}
}
