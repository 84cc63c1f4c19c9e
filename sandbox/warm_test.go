package sandbox_test

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/template"
)

// warmConfig keeps n boxes of the base template warm.
func warmConfig(n int) sandbox.Config {
	cfg := testConfig()
	cfg.Pool = sandbox.Pool{Plans: map[string]pool.Plan{"base": {Hot: n}}}
	return cfg
}

// warmed waits until n boxes are warm and returns their ids.
func warmed(t *testing.T, p *process, n int) []string {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if all := p.PoolStatus(); len(all) > 0 && all[0].Hot == n && all[0].Making == 0 {
			return p.w.boxes.ids()
		}
		if time.Now().After(deadline) {
			t.Fatalf("pool: %+v, want %d warm boxes", p.PoolStatus(), n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestWarmCreate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, warmConfig(2)).run(t)
	warm := warmed(t, p, 2)
	for _, id := range warm {
		x := w.boxes.get(sandbox.ID(id))
		w.boxes.mu.Lock()
		if x.prepared.SandboxID != id || x.prepared.AccessToken != "" || x.init.SandboxID != "" {
			t.Errorf("warm box %s was told %+v ahead and %+v", id, x.prepared, x.init)
		}
		if left := time.Until(x.deadline); left < 5*time.Minute || left > 15*time.Minute {
			t.Errorf("warm box %s ends in %s without a server", id, left)
		}
		w.boxes.mu.Unlock()
	}
	r := request()
	r.Env = map[string]string{"A": "1"}
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(warm, string(sb.ID)) || sb.State != sandbox.Running {
		t.Errorf("sandbox %s is %s, want one of %v running", sb.ID, sb.State, warm)
	}
	x := w.boxes.get(sb.ID)
	w.boxes.mu.Lock()
	in, network := x.init, x.network
	w.boxes.mu.Unlock()
	if in.AccessToken != w.seed.AgentToken(string(sb.ID)).Reveal() || in.EnvVars["A"] != "1" || in.SandboxID != string(sb.ID) ||
		in.TemplateID != x.prepared.TemplateID || in.BuildID != x.prepared.BuildID || in.Hostname != x.prepared.Hostname || in.CABundle != x.prepared.CABundle {
		t.Errorf("agent was told %+v, and ahead %+v", in, x.prepared)
	}
	if got, ok := network.(attachment); !ok || got.id != string(sb.ID) {
		t.Errorf("the sandbox's network is %+v, want its own", network)
	}
	if got := eventTypes(t, w, sb.ID); !slices.Equal(got, []string{"sandbox.created", "sandbox.started"}) {
		t.Errorf("events %v", got)
	}
	record, err := p.Get(t.Context(), alice, sb.ID)
	if err != nil || record.Handle.ID != string(sb.ID) || record.StartedAt.IsZero() || record.EndsAt.Sub(record.StartedAt) != r.Timeout {
		t.Errorf("record %+v, %v", record, err)
	}
	if live, ok := p.Live(sb.ID); !ok || live.Team != alice.Team {
		t.Errorf("Live() = %v, %t", live, ok)
	}
	warmed(t, p, 2) // refilled
	p.halt()
	if got := w.boxes.ids(); !slices.Equal(got, []string{string(sb.ID)}) {
		t.Errorf("boxes after a stop %v, want only the sandbox's", got)
	}
}

// A template's saved memory, with its start command running, is kept warm; a
// snapshot, which is somebody's sandbox, is not.
func TestWarmMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	snap := save(t, p, create(t, p).ID, "point")
	b := snap.Build
	b.ID, b.Template, b.Sealed, b.Sandbox = "served-build", "served", "", ""
	served := template.Template{ID: "served", Team: alice.Team, Names: []string{"served"}, Current: b.ID}
	if err := w.db.PutTemplate(t.Context(), served, b); err != nil {
		t.Fatal(err)
	}
	p.halt()
	before := w.boxes.ids()

	cfg := testConfig()
	cfg.Pool = sandbox.Pool{Plans: map[string]pool.Plan{"served": {Hot: 1}, "point": {Hot: 1}}, MaxDemand: 4}
	p = w.boot(t, cfg).run(t)
	warmed(t, p, 1)
	if all := p.PoolStatus(); len(all) != 1 || all[0].Key.Build != "served-build" {
		t.Errorf("pool: %+v, want the template alone", all)
	}
	warm := slices.DeleteFunc(w.boxes.ids(), func(id string) bool { return slices.Contains(before, id) })
	r := request()
	r.Template = "point"
	if sb, err := p.Create(t.Context(), alice, r); err != nil || slices.Contains(warm, string(sb.ID)) {
		t.Errorf("create of the snapshot = %s, %v; warm were %v", sb.ID, err, warm)
	}
	r.Template = "served"
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil || !slices.Contains(warm, string(sb.ID)) {
		t.Fatalf("create of the template = %s, %v; want one of %v", sb.ID, err, warm)
	}
	x := w.boxes.get(sb.ID)
	w.boxes.mu.Lock()
	defer w.boxes.mu.Unlock()
	if x.from != b.Artifact.ID || x.prepared.AccessToken != "" || x.init.AccessToken != w.seed.AgentToken(string(sb.ID)).Reveal() {
		t.Errorf("it runs from %s, was told %+v ahead and %+v", x.from, x.prepared, x.init)
	}
	for _, s := range p.PoolStatus() {
		if s.Key.Build == string(snap.Build.ID) && s.Hot+s.Making+s.Target > 0 {
			t.Errorf("a snapshot is kept warm: %+v", s)
		}
	}
}

// A start command uses CPU that no sandbox is charged for while its box waits: only
// the default team's, which are the operator's, and those that he planned do so.
func TestWarmMemoryOfAnotherTeam(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	snap := save(t, p, create(t, p).ID, "point")
	p.halt()
	for _, name := range []string{"theirs", "planned"} {
		b := snap.Build
		b.ID, b.Template, b.Sealed, b.Sandbox = template.BuildID(name+"-build"), template.ID(name), "", ""
		tmpl := template.Template{ID: b.Template, Team: mallory.Team, Names: []string{name}, Public: true, Current: b.ID}
		if err := w.db.PutTemplate(t.Context(), tmpl, b); err != nil {
			t.Fatal(err)
		}
	}
	before := w.boxes.ids()
	cfg := testConfig()
	cfg.Pool = sandbox.Pool{Plans: map[string]pool.Plan{"planned": {Hot: 1}}, MaxDemand: 4}
	p = w.boot(t, cfg).run(t)
	warmed(t, p, 1)
	warm := slices.DeleteFunc(w.boxes.ids(), func(id string) bool { return slices.Contains(before, id) })
	for _, name := range []string{"theirs", "planned"} {
		r := request()
		r.Template = name
		sb, err := p.Create(t.Context(), mallory, r)
		if err != nil || slices.Contains(warm, string(sb.ID)) != (name == "planned") {
			t.Errorf("create of %s = %s, %v; warm were %v", name, sb.ID, err, warm)
		}
	}
	for _, s := range p.PoolStatus() {
		if s.Key.Build == "theirs-build" {
			t.Errorf("another team's start command is kept running: %+v", s)
		}
	}
}

// A build whose start command has not been run makes no sandbox, and no warm one.
func TestUnsavedTemplate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	b := save(t, p, create(t, p).ID, "point").Build
	b.ID, b.Template, b.Sealed, b.Sandbox, b.Artifact, b.Start = "files-only", "served", "", "", nil, "serve"
	served := template.Template{ID: "served", Team: alice.Team, Names: []string{"served"}, Current: b.ID}
	if err := w.db.PutTemplate(t.Context(), served, b); err != nil {
		t.Fatal(err)
	}
	p.halt()
	before := w.boxes.ids()

	cfg := testConfig()
	cfg.Pool = sandbox.Pool{Plans: map[string]pool.Plan{"served": {Hot: 1}, "base": {Hot: 1}}}
	p = w.boot(t, cfg).run(t)
	warmed(t, p, 1)
	if all := p.PoolStatus(); len(all) != 1 || all[0].Key.Build == "files-only" {
		t.Errorf("pool: %+v, want base alone", all)
	}
	r := request()
	r.Template = "served"
	_, err := p.Create(t.Context(), alice, r)
	e, ok := errors.AsType[*apierr.Error](err)
	if !ok || e.Code != "template_preparing" || !errdefs.IsUnavailable(e) {
		t.Errorf("Create() = %v, want template_preparing", e)
	}
	if n := len(w.boxes.ids()); n != len(before)+1 {
		t.Errorf("%d boxes, want one more than %d, the warm one", n, len(before))
	}
}

// A create that asks for other resources gets a box with them.
func TestWarmFitsOrNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, warmConfig(1)).run(t)
	warm := warmed(t, p, 1)
	r := request()
	r.Resources.MemoryMiB = 1024
	sb, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(warm, string(sb.ID)) {
		t.Error("it got a box of the wrong size")
	}
	if x := w.boxes.get(sb.ID); x.spec.Resources.MemoryMiB != 1024 {
		t.Errorf("box has %+v", x.spec.Resources)
	}
}

func TestRefusedCreateKeepsWarmBox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := warmConfig(1)
	cfg.MaxPerTeam = 1
	p := w.boot(t, cfg).run(t)
	warmed(t, p, 1)
	create(t, p)
	warm := warmed(t, p, 1)
	for range 3 {
		if _, err := p.Create(t.Context(), alice, request()); !errdefs.IsResourceExhausted(err) {
			t.Fatalf("Create() over the limit = %v", err)
		}
	}
	if got := w.boxes.ids(); !slices.Equal(got, warm) {
		t.Errorf("boxes %v, want %v: a refused create used one up", got, warm)
	}
	if s := p.PoolStatus()[0]; s.Hot != 1 || s.Made != 2 {
		t.Errorf("pool %+v", s)
	}
}

// A warm box that turns out to be broken is thrown away, and the create goes on.
func TestBrokenWarmBox(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(*process, *box){
		"agent refuses": func(_ *process, x *box) { x.refuse = true },
		"claim fails":   func(p *process, _ *box) { p.failNext("claim") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := w.boot(t, warmConfig(1)).run(t)
			warm := warmed(t, p, 1)
			x := w.boxes.get(sandbox.ID(warm[0]))
			w.boxes.mu.Lock()
			broken(p, x)
			w.boxes.mu.Unlock()
			sb, err := p.Create(t.Context(), alice, request())
			if err != nil {
				t.Fatalf("Create() = %v", err)
			}
			if string(sb.ID) == warm[0] {
				t.Error("the broken box was used")
			}
			checkGone(t, p, sandbox.ID(warm[0]), sandbox.Killed, "")
			if got := w.boxes.ids(); slices.Contains(got, warm[0]) || !slices.Contains(got, string(sb.ID)) {
				t.Errorf("boxes %v", got)
			}
		})
	}
}

// Whenever the server dies during a warm create and kill, the next one finds
// everything: a sandbox that runs has its identity, and warm boxes are gone.
func TestWarmCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for at := int64(1); ; at++ {
		w := newWorld(t)
		p := w.boot(t, warmConfig(1)).run(t)
		warmed(t, p, 1)
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
		ids := map[string]bool{}
		for _, row := range rows {
			ids[string(row.ID)] = true
			if _, ok := next.Live(row.ID); !ok || row.State != sandbox.Running {
				t.Errorf("died at call %d: %s record is not routable", at, row.State)
			}
			x := w.boxes.get(row.ID)
			w.boxes.mu.Lock()
			if x == nil || x.init.AccessToken == "" || x.network == nil {
				t.Errorf("died at call %d: the sandbox has no identity", at)
			}
			w.boxes.mu.Unlock()
		}
		want := slices.Sorted(maps.Keys(ids))
		deadline := time.Now().Add(5 * time.Second)
		for !slices.Equal(w.boxes.ids(), want) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond) // warm boxes are orphans now, which go after the take-over
		}
		if got := w.boxes.ids(); !slices.Equal(got, want) || !slices.Equal(next.guard.ids(), want) {
			t.Errorf("died at call %d: running %v, boxes %v, attachments %v", at, want, got, next.guard.ids())
		}
		if survived {
			if err != nil || at < 6 {
				t.Errorf("%d calls and %v, want every step of create and kill tried", at, err)
			}
			return
		}
	}
}

// The lease of a warm box is not the end of the sandbox that it becomes, also
// when the engine does not take the new one at first.
func TestLeaseIsNotTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, warmConfig(1)).run(t)
		time.Sleep(time.Second)
		r := request()
		r.Timeout = time.Hour
		p.failNext("deadline")
		sb, err := p.Create(t.Context(), alice, r)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		end := func() time.Duration {
			x := w.boxes.get(sb.ID)
			w.boxes.mu.Lock()
			defer w.boxes.mu.Unlock()
			return x.deadline.Sub(sb.EndsAt)
		}
		if end() > 0 {
			t.Fatalf("the box ends %s after its sandbox; this tests nothing", end())
		}
		time.Sleep(2 * time.Minute) // for the sweep
		if end() < 0 {
			t.Errorf("the box ends %s before its sandbox", -end())
		}
	})
}

// Warm boxes have no record, and no sweep takes them for orphans.
func TestSweepLeavesWarmBoxes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot(t, warmConfig(2)).run(t)
		time.Sleep(10 * time.Second)
		before := w.boxes.ids()
		time.Sleep(10 * time.Minute)
		if after := w.boxes.ids(); len(before) != 2 || !slices.Equal(before, after) {
			t.Errorf("warm boxes %v became %v", before, after)
		}
	})
}
