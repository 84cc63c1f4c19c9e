package sandbox_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	r := request()
	r.Name, r.Env, r.Metadata = "n", map[string]string{"LANG": "de", "A": "1"}, map[string]string{"k": "v"}
	r.Network = sandbox.Network{AllowOut: []string{"pypi.org"}, PrivateTraffic: true, MaskRequestHost: "x:${PORT}"}
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	if got := sb.EndsAt.Sub(sb.StartedAt); sb.State != sandbox.Running || got != time.Minute || sb.Alias != "base" {
		t.Errorf("Create() = %+v", sb)
	}
	got, err := p.Get(t.Context(), alice, sb.ID)
	if diff := cmp.Diff(sb, got); diff != "" || err != nil {
		t.Errorf("Get() = %v (-created +got):\n%s", err, diff)
	}
	in := w.boxes.get(sb.ID).init
	l, ok := p.Live(sb.ID)
	if !ok || !l.AgentToken.Equal(in.AccessToken) || !l.PrivateTraffic || l.MaskRequestHost != "x:${PORT}" || l.TrafficToken.Equal(in.AccessToken) {
		t.Errorf("Live() = %+v, %v", l, ok)
	}
	wantInit := control.Init{
		SandboxID: string(sb.ID), TemplateID: string(sb.Template), BuildID: string(sb.Build), Hostname: string(sb.ID),
		AccessToken: in.AccessToken, EnvVars: map[string]string{"LANG": "de", "A": "1"}, DefaultUser: "user", DefaultWorkdir: "/home/user",
		Limits: control.Limits{WallTime: time.Hour, OutputBytes: 1 << 20, Processes: 64}, Now: in.Now,
	}
	if diff := cmp.Diff(wantInit, in); diff != "" {
		t.Errorf("agent init (-want +got):\n%s", diff)
	}
	page, _, running, err := p.List(t.Context(), alice, sandbox.Filter{Metadata: map[string]string{"k": "v"}})
	if err != nil || len(page) != 1 || running != 1 {
		t.Errorf("List() = %d of %d, %v", len(page), running, err)
	}
	n := 0
	p.EachLive(func(*sandbox.Live) bool { n++; return true })
	if st, err := p.Stats(t.Context(), alice, sb.ID); n != 1 || err != nil || st.MemoryBytes != 1 {
		t.Errorf("EachLive() saw %d; Stats() = %+v, %v", n, st, err)
	}
	if err := p.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Errorf("Kill() = %v", err)
	}
	select {
	case <-l.Gone:
	default:
		t.Error("Gone is open after Kill")
	}
	if err := p.Kill(t.Context(), alice, sb.ID, ""); !errdefs.IsNotFound(err) {
		t.Errorf("Kill(again) = %v, want not found", err)
	}
	checkGone(t, p, sb.ID, sandbox.Killed, "killed")
	events := eventTypes(t, w, sb.ID)
	want := []string{"sandbox.created", "sandbox.started", "sandbox.killing", "sandbox.killed"}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// checkGone checks that nothing of a sandbox is left but its record.
func checkGone(t *testing.T, p *process, id sandbox.ID, state sandbox.State, reason string) {
	t.Helper()
	sb, err := p.w.db.Get(t.Context(), id)
	if err != nil || sb.State != state || !strings.Contains(sb.Reason, reason) || sb.EndedAt.IsZero() {
		t.Errorf("record is %s %q ended %v (%v), want %s %q", sb.State, sb.Reason, sb.EndedAt, err, state, reason)
	}
	if p.w.boxes.get(id) != nil {
		t.Error("its box is left")
	}
	if _, ok := p.guard.policy(id); ok {
		t.Error("its egress attachment is left")
	}
	if _, ok := p.Live(id); ok {
		t.Error("it is still routable")
	}
}

func eventTypes(t *testing.T, w *world, id sandbox.ID) (types []string) {
	t.Helper()
	events, err := w.db.Events(t.Context(), audit.Filter{SandboxID: string(id)})
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range events {
		types = append(types, ev.Type)
	}
	return types
}

func TestOtherTeamSeesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := create(t, p)
	nobody := identity.Principal{}
	for _, who := range []identity.Principal{mallory, nobody} {
		_, getErr := p.Get(t.Context(), who, sb.ID)
		_, extendErr := p.Extend(t.Context(), who, sb.ID, time.Hour)
		_, statsErr := p.Stats(t.Context(), who, sb.ID)
		for name, err := range map[string]error{
			"Get": getErr, "Extend": extendErr, "Stats": statsErr,
			"Kill":          p.Kill(t.Context(), who, sb.ID, ""),
			"SetTimeout":    p.SetTimeout(t.Context(), who, sb.ID, time.Second),
			"SetTimeout 0":  p.SetTimeout(t.Context(), who, sb.ID, 0),
			"UpdateNetwork": p.UpdateNetwork(t.Context(), who, sb.ID, sandbox.Network{AllowOut: []string{"*"}}),
		} {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%s by %+v = %v, want not found", name, who, err)
			}
		}
	}
	if page, _, running, err := p.List(t.Context(), mallory, sandbox.Filter{Team: alice.Team}); err != nil || len(page) != 0 || running != 0 {
		t.Errorf("List() by mallory = %d of %d, %v, want none", len(page), running, err)
	}
	if _, _, _, err := p.List(t.Context(), nobody, sandbox.Filter{}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("List() by nobody = %v, want permission denied", err)
	}
	if page, _, _, err := p.List(t.Context(), identity.System, sandbox.Filter{}); err != nil || len(page) != 1 {
		t.Errorf("List() by the system = %d, %v, want 1", len(page), err)
	}
	if _, ok := p.Live(sb.ID); !ok {
		t.Error("the sandbox is gone")
	}
}

func TestCreateRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	many := map[string]string{}
	for i := range 65 {
		many[string(rune('a'+i))] = ""
	}
	long := strings.Repeat("x", 3000)
	for name, test := range map[string]struct {
		change func(*sandbox.CreateRequest)
		field  string
	}{
		"no template":      {func(r *sandbox.CreateRequest) { r.Template = "" }, "template"},
		"zero timeout":     {func(r *sandbox.CreateRequest) { r.Timeout = 0 }, "timeout"},
		"negative timeout": {func(r *sandbox.CreateRequest) { r.Timeout = -1 }, "timeout"},
		"long timeout":     {func(r *sandbox.CreateRequest) { r.Timeout = 3 * time.Hour }, "timeout"},
		"long name":        {func(r *sandbox.CreateRequest) { r.Name = long }, "name"},
		"escape in name":   {func(r *sandbox.CreateRequest) { r.Name = "\x1b[31m" }, "name"},
		"much metadata":    {func(r *sandbox.CreateRequest) { r.Metadata = many }, "metadata"},
		"long metadata":    {func(r *sandbox.CreateRequest) { r.Metadata = map[string]string{"k": long} }, "metadata"},
		"bad utf-8":        {func(r *sandbox.CreateRequest) { r.Metadata = map[string]string{"k": "\xff"} }, "metadata"},
		"env name":         {func(r *sandbox.CreateRequest) { r.Env = map[string]string{"A=B": "x"} }, "env"},
		"env empty name":   {func(r *sandbox.CreateRequest) { r.Env = map[string]string{"": "x"} }, "env"},
		"env nul":          {func(r *sandbox.CreateRequest) { r.Env = map[string]string{"A": "x\x00"} }, "env"},
		"env size":         {func(r *sandbox.CreateRequest) { r.Env = map[string]string{"A": strings.Repeat("x", 70<<10)} }, "env"},
		"memory":           {func(r *sandbox.CreateRequest) { r.Resources.MemoryMiB = 4096 }, "resources.memoryMiB"},
		"negative cpu":     {func(r *sandbox.CreateRequest) { r.Resources.CPUs = -1 }, "resources.cpus"},
		"network":          {func(r *sandbox.CreateRequest) { r.Network.AllowOut = []string{"bad"} }, "network.allowOut"},
	} {
		r := request()
		test.change(&r)
		_, err := p.Create(t.Context(), alice, r)
		e, ok := errors.AsType[*apierr.Error](err)
		if !errdefs.IsInvalidArgument(err) || !ok || e.Field != test.field {
			t.Errorf("%s: Create() = %v, want invalid argument of %s", name, err, test.field)
		}
	}
	r := request()
	r.Template = "nosuch"
	if _, err := p.Create(t.Context(), alice, r); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("Create(unknown template) = %v, want not found naming it", err)
	}
	if _, err := p.Create(t.Context(), identity.Principal{}, request()); !errdefs.IsPermissionDenied(err) {
		t.Errorf("Create() without a team = %v, want permission denied", err)
	}
	if rows, _, _, err := p.List(t.Context(), identity.System, sandbox.Filter{States: []sandbox.State{sandbox.Failed, sandbox.Pending}}); err != nil || len(rows) != 0 {
		t.Errorf("refused creates left %d records, %v", len(rows), err)
	}
}

func TestUnenforceableLimitRefusesCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.boxes.limits = []provider.Limit{provider.LimitDisk}
	cfg := testConfig()
	p := w.boot(t, cfg).run(t)
	_, err := p.Create(t.Context(), alice, request())
	if !errors.Is(err, provider.ErrUnenforceable) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "limits.unenforced: [memory]") {
		t.Errorf("Create() = %v, want the memory limit unenforceable", err)
	}
	cfg.Unenforced = []provider.Limit{provider.LimitMemory, provider.LimitCPU}
	if _, err := w.boot(t, cfg).run(t).Create(t.Context(), alice, request()); err != nil {
		t.Errorf("Create() with the limits accepted = %v", err)
	}
	w.boxes.noEgress = true
	_, err = sandbox.New(cfg, sandbox.Deps{
		Store: w.db, Templates: resolver{s: w.db}, Provider: faultyProvider{w.boxes, p}, Guard: faultyGuard{p.guard, p}, Policy: policy, Seed: w.seed, Log: quiet(),
	})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("New() over a provider without egress control = %v, want failed precondition", err)
	}
}

func TestTeamLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := testConfig()
	cfg.MaxPerTeam, cfg.ConcurrentCreates = 3, 2
	p := w.boot(t, cfg).run(t)
	var ok, refused atomic.Int64
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			_, err := p.Create(t.Context(), alice, request())
			switch {
			case err == nil:
				ok.Add(1)
			case errdefs.IsResourceExhausted(err) && strings.Contains(err.Error(), "limits.sandboxes_per_team"):
				refused.Add(1)
			default:
				t.Errorf("Create() = %v", err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 3 || refused.Load() != 7 || len(w.boxes.ids()) != 3 {
		t.Errorf("%d created, %d refused, %d boxes, want 3, 7, 3", ok.Load(), refused.Load(), len(w.boxes.ids()))
	}
	if w.boxes.most > 2 {
		t.Errorf("%d boxes were started at once, want at most 2", w.boxes.most)
	}
	if _, err := p.Create(t.Context(), mallory, request()); err != nil {
		t.Errorf("Create() of another team = %v", err)
	}
}

func TestKillDuringCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()) // kills work before Run
	ids := make(chan sandbox.ID)
	w.boxes.creating = func(ctx context.Context, spec provider.Spec) error {
		ids <- sandbox.ID(spec.SandboxID)
		<-ctx.Done()
		return ctx.Err()
	}
	created := make(chan error)
	go func() {
		_, err := p.Create(t.Context(), alice, request())
		created <- err
	}()
	id := <-ids
	if err := p.SetTimeout(t.Context(), alice, id, time.Minute); !errdefs.IsConflict(err) {
		t.Errorf("SetTimeout() during create = %v, want conflict", err)
	}
	killed := make(chan error)
	go func() { killed <- p.Kill(t.Context(), alice, id, "") }()
	if err := <-created; !errdefs.IsAborted(err) {
		t.Errorf("Create() = %v, want aborted", err)
	}
	if err := <-killed; err != nil {
		t.Errorf("Kill() = %v", err)
	}
	checkGone(t, p, id, sandbox.Killed, "killed")
	if err := p.Kill(t.Context(), alice, id, ""); !errdefs.IsNotFound(err) {
		t.Errorf("Kill(again) = %v, want not found", err)
	}
}

func TestCallerGoesAwayDuringCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	ctx, cancel := context.WithCancel(t.Context())
	var id sandbox.ID
	w.boxes.creating = func(_ context.Context, spec provider.Spec) error {
		id = sandbox.ID(spec.SandboxID)
		cancel()
		return nil // the box exists all the same
	}
	if _, err := p.Create(ctx, alice, request()); !errors.Is(err, context.Canceled) {
		t.Errorf("Create() = %v, want canceled", err)
	}
	checkGone(t, p, id, sandbox.Failed, "agent")
}

// Whichever call a create fails at, the first error is returned and nothing is
// left: at once, or after a sweep when the clean-up itself failed.
func TestFaultAtEveryStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	steps := w.boot(t, testConfig())
	create(t, steps)
	if diff := cmp.Diff([]string{"insert", "attach", "create", "mutate"}, steps.trace); diff != "" {
		t.Fatalf("calls of a create (-want +got):\n%s", diff)
	}
	for i, name := range steps.trace {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()) // no Run: what is left is left by Create
			p.failAt.Store(int64(i + 1))
			_, err := p.Create(t.Context(), alice, request())
			if !errors.Is(err, errInjected) {
				t.Errorf("Create() = %v, want the injected fault", err)
			}
			rows, _, _, err := p.List(t.Context(), alice, sandbox.Filter{States: []sandbox.State{sandbox.Pending, sandbox.Running, sandbox.Failed}})
			if name == "insert" {
				if err != nil || len(rows) != 0 {
					t.Errorf("%d records, %v, want none", len(rows), err)
				}
				return
			}
			if err != nil || len(rows) != 1 {
				t.Fatalf("%d records, %v, want one", len(rows), err)
			}
			checkGone(t, p, rows[0].ID, sandbox.Failed, "internal error (reference "+string(rows[0].ID)+")")
		})
	}
	t.Run("agent refuses", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		p := w.boot(t, testConfig())
		p.agentRefuses.Store(true)
		if _, err := p.Create(t.Context(), alice, request()); err == nil || !strings.Contains(err.Error(), "init agent") {
			t.Errorf("Create() = %v, want the agent's refusal", err)
		}
		if len(w.boxes.ids()) != 0 || len(p.guard.ids()) != 0 {
			t.Errorf("boxes %v and attachments %v are left", w.boxes.ids(), p.guard.ids())
		}
	})
}

func TestBoxEndsByItself(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{provider.ReasonOOM, provider.ReasonCrashed, provider.ReasonEngineLost, provider.ReasonExited} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, testConfig()).run(t)
			sb := create(t, p)
			l, _ := p.Live(sb.ID)
			w.boxes.die(sb.ID, reason)
			<-l.Gone
			if _, ok := p.Live(sb.ID); ok {
				t.Error("it is routable after Gone")
			}
			p.halt() // waits for what follows
			checkGone(t, p, sb.ID, sandbox.Killed, reason)
		})
	}
}

func TestUpdateNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	r := request()
	r.Network = sandbox.Network{AllowOut: []string{"old.example"}, PrivateTraffic: true, MaskRequestHost: "h"}
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what, host string) {
		t.Helper()
		want, err := policy(sandbox.Network{AllowOut: []string{host}})
		if err != nil {
			t.Fatal(err)
		}
		live, _ := p.guard.policy(sb.ID)
		row, err := w.db.Get(t.Context(), sb.ID)
		if diff := cmp.Diff([]egress.Policy{want, want}, []egress.Policy{live, row.Egress}); diff != "" || err != nil {
			t.Errorf("%s: policies of gateway and record (%v):\n%s", what, err, diff)
		}
		if !row.Network.PrivateTraffic || row.Network.MaskRequestHost != "h" || row.Network.AllowOut[0] != host {
			t.Errorf("%s: network is %+v", what, row.Network)
		}
	}
	check("created", "old.example")
	update := func(host string) error {
		return p.UpdateNetwork(t.Context(), alice, sb.ID, sandbox.Network{AllowOut: []string{host}})
	}
	if err := update("new.example"); err != nil {
		t.Errorf("UpdateNetwork() = %v", err)
	}
	check("updated", "new.example")
	if err := update("bad"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("UpdateNetwork(bad) = %v, want invalid argument", err)
	}
	check("after a bad one", "new.example")
	for _, name := range []string{"mutate", "update"} {
		p.failNext(name)
		if err := update("third.example"); !errors.Is(err, errInjected) {
			t.Errorf("UpdateNetwork() with a failing %s = %v", name, err)
		}
		check("after a failing "+name, "new.example")
	}
}

func TestLimitHitIsRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	sb := create(t, p)
	srv := w.boxes.get(sb.ID).servers[0]
	// A flood of forged events must not become a flood of records.
	for range 200 {
		srv.Emit(control.Event{Type: "limit", Limit: "output\x1b", PID: 7, Cmd: strings.Repeat("c", 300), At: time.Now()})
	}
	deadline := time.After(10 * time.Second)
	for {
		events, err := w.db.Events(t.Context(), audit.Filter{SandboxID: string(sb.ID)})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(events); n > 2 {
			ev := events[n-1]
			if ev.Type != "sandbox.limit_hit" || ev.Reason != "unknown" || len(ev.Fields["cmd"]) != 256 || ev.Team != string(alice.Team) {
				t.Errorf("event = %+v", ev)
			}
			if n > 2+25 {
				t.Errorf("%d events from one guest", n-2)
			}
			return
		}
		select {
		case <-deadline:
			t.Fatal("no event")
		case <-time.After(time.Millisecond):
		}
	}
}

// Whoever saw a stream break sees no running sandbox any more, however long it
// takes to end it.
func TestWhatEndsIsNotRunning(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ending, release := make(chan struct{}), make(chan struct{})
	w.boxes.destroying = sync.OnceFunc(func() { close(ending); <-release })
	p := w.boot(t, testConfig()).run(t)
	sb, other := create(t, p), create(t, p)
	live, _ := p.Live(sb.ID)
	p.failNext("mutate") // the step to Killing is not recorded
	killed := make(chan error, 1)
	go func() { killed <- p.Kill(t.Context(), alice, sb.ID, "") }()
	<-live.Gone
	<-ending
	if got, err := p.Get(t.Context(), alice, sb.ID); err != nil || got.State != sandbox.Killing || got.Reason != "killed" {
		t.Errorf("Get() = %s %q, %v, want killing", got.State, got.Reason, err)
	}
	page, _, running, err := p.List(t.Context(), alice, sandbox.Filter{States: []sandbox.State{sandbox.Running}, Limit: 10})
	if err != nil || len(page) != 1 || page[0].ID != other.ID || running != 1 {
		t.Errorf("List(running) = %d records, %d running, %v, want the other alone", len(page), running, err)
	}
	close(release)
	if err := <-killed; err != nil {
		t.Errorf("Kill() = %v", err)
	}
}
