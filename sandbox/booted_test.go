package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// prebooted is a box of the world without an agent.
type prebooted struct {
	*box
	p *process
}

// Preboot implements provider.Prebooter.
func (f faultyProvider) Preboot(_ context.Context, spec provider.PrebootSpec) (provider.Prebooted, error) {
	if err := f.p.step("preboot"); err != nil {
		return nil, err
	}
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	x := &box{host: f.b, ended: make(chan struct{}), spec: provider.Spec{SandboxID: spec.ID, Rootfs: spec.Rootfs, Resources: spec.Resources}}
	f.b.all[spec.ID] = x
	return &prebooted{x, f.p}, nil
}

// Takes implements provider.Prebooter.
func (f faultyProvider) Takes(a snapshot.Artifact) bool { return a.Kind == snapshot.Memory }

// use takes a prebooted box off the host, also when it then fails.
func (f faultyProvider) use(pre provider.Prebooted) (string, error) {
	if pre == nil {
		return "", nil
	}
	id := pre.Handle().ID
	there := f.b.get(sandbox.ID(id)) != nil
	f.b.vanish(sandbox.ID(id))
	if err := f.p.step("use"); err != nil {
		return "", err
	}
	if !there {
		return "", errors.New("the prebooted box has ended")
	}
	return id, nil
}

func (b *prebooted) open() *openBox                    { return &openBox{box: b.box, p: b.p} }
func (b *prebooted) Handle() provider.Handle           { return b.open().Handle() }
func (b *prebooted) Destroy(ctx context.Context) error { return b.open().Destroy(ctx) }

func (b *prebooted) Stats(ctx context.Context) (provider.Stats, error) { return b.open().Stats(ctx) }
func (b *prebooted) Wait(ctx context.Context) (provider.Exit, error)   { return b.open().Wait(ctx) }

// bootedConfig keeps n boxes booted and none hot. taken counts those that were
// found.
func bootedConfig(n int, taken *counter) sandbox.Config {
	cfg := testConfig()
	cfg.Pool = sandbox.Pool{Plans: map[string]pool.Plan{"base": {Windows: []pool.Window{never}}}, Booted: n}
	cfg.Pool.Metrics.Taken = func(t pool.Tier, hit bool) {
		if t == pool.Booted && hit {
			taken.add()
		}
	}
	return cfg
}

// never is a window of no day: a plan with it names a template, and keeps nothing
// hot.
var never = pool.Window{To: 1, Zone: time.UTC, Hot: 1}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add() { c.mu.Lock(); defer c.mu.Unlock(); c.n++ }
func (c *counter) get() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// booted waits until n boxes are prebooted and returns their ids.
func booted(t *testing.T, p *process, n int) []string {
	t.Helper()
	var now []pool.Status
	soon(func() bool {
		now = p.PoolStatus()
		return slices.ContainsFunc(now, func(s pool.Status) bool { return s.Tier == pool.Booted && s.Hot == n && s.Making == 0 })
	})
	var ids []string
	p.w.boxes.mu.Lock()
	defer p.w.boxes.mu.Unlock()
	for id, x := range p.w.boxes.all {
		if x.network == nil {
			ids = append(ids, id)
		}
	}
	if len(ids) != n {
		t.Fatalf("pool: %+v with boxes %v, want %d prebooted", now, ids, n)
	}
	return ids
}

// steps is how often an effect was asked for.
func (p *process) steps(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, s := range p.trace {
		if s == name {
			n++
		}
	}
	return n
}

// usedBy is the prebooted box that a sandbox was started in; "" for none.
func (w *world) usedBy(t *testing.T, id sandbox.ID) string {
	t.Helper()
	x := w.boxes.get(id)
	if x == nil {
		t.Fatalf("sandbox %s has no box", id)
	}
	return x.used
}

func TestPrebootedServesAllStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var taken counter
	p := w.boot(t, bootedConfig(2, &taken)).run(t)
	check := func(what string, id sandbox.ID, ready []string) {
		t.Helper()
		if used := w.usedBy(t, id); !slices.Contains(ready, used) || used == string(id) {
			t.Errorf("%s was started in %q, want one of %v under its own id", what, used, ready)
		}
	}
	ready := booted(t, p, 2)
	sb := create(t, p)
	check("a create", sb.ID, ready)

	ready = booted(t, p, 2)
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	if _, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil || !resumed {
		t.Fatalf("Connect() = %v, %v", resumed, err)
	}
	check("a resume", sb.ID, ready)

	ready = booted(t, p, 2)
	children, err := p.Fork(t.Context(), alice, sb.ID, 2, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range children {
		if c.Err != nil {
			t.Fatal(c.Err)
		}
		check("a child", c.Sandbox.ID, ready)
	}

	ready = booted(t, p, 2)
	snap, err := p.Snapshot(t.Context(), alice, sb.ID, "point")
	if err != nil {
		t.Fatal(err)
	}
	r := request()
	r.Template = string(snap.Template)
	again, err := p.Create(t.Context(), alice, r)
	if err != nil {
		t.Fatal(err)
	}
	check("a create from a snapshot", again.ID, ready)
	if got := taken.get(); got != 5 {
		t.Errorf("%d hits are counted, want 5", got)
	}

	// Saved files are given to a box when it boots.
	booted(t, p, 2)
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Filesystem); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	if used := w.usedBy(t, sb.ID); used != "" {
		t.Errorf("a resume of files was started in %s", used)
	}
}

// A box that fails is the pool's fault and nobody's error.
func TestPrebootedFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var taken counter
	p := w.boot(t, bootedConfig(1, &taken)).run(t)
	booted(t, p, 1)
	p.failNext("use")
	sb := create(t, p)
	if used := w.usedBy(t, sb.ID); used != "" || taken.get() != 1 {
		t.Errorf("the sandbox runs in %q after %d were taken, want in a fresh one after 1", used, taken.get())
	}
	booted(t, p, 1)
	if err := p.Pause(t.Context(), alice, sb.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	p.failNext("use")
	if _, resumed, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil || !resumed {
		t.Errorf("Connect() with a box that fails = %v, %v", resumed, err)
	}
	// One that has died is not handed out.
	for _, id := range booted(t, p, 1) {
		w.boxes.die(sandbox.ID(id), provider.ReasonCrashed)
	}
	if other := create(t, p); other.State != sandbox.Running {
		t.Errorf("sandbox is %s", other.State)
	}
}

// Of all that start at once no two get the same box.
func TestPrebootedIsNeverShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var taken counter
	p := w.boot(t, bootedConfig(3, &taken)).run(t)
	booted(t, p, 3)
	var mu sync.Mutex
	of := map[string]sandbox.ID{}
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			sb, err := p.Create(t.Context(), alice, request())
			if err != nil {
				t.Errorf("Create() = %v", err)
				return
			}
			used := w.usedBy(t, sb.ID)
			mu.Lock()
			defer mu.Unlock()
			if other, ok := of[used]; ok && used != "" {
				t.Errorf("%s and %s were started in the same box, %s", other, sb.ID, used)
			}
			of[used] = sb.ID
		})
	}
	wg.Wait()
	if taken.get() < 3 {
		t.Errorf("%d were taken, want at least the 3 there were", taken.get())
	}
}

// A sweep leaves boxes alone that wait, and the next server ends those of one
// that was killed.
func TestPrebootedOrphans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var taken counter
	cfg := bootedConfig(2, &taken)
	cfg.SweepInterval = 5 * time.Millisecond
	p := w.boot(t, cfg).run(t)
	before := booted(t, p, 2)
	from := p.steps("list")
	swept := func() bool { return p.steps("list") >= from+3 } // one that began after that has ended
	if soon(swept); !swept() {
		t.Fatal("there are no sweeps")
	}
	for _, id := range before {
		if w.boxes.get(sandbox.ID(id)) == nil {
			t.Errorf("a sweep has taken %s", id)
		}
	}
	p.kill9()
	w.boot(t, testConfig()).run(t)
	soon(func() bool { return len(w.boxes.ids()) == 0 })
	if left := w.boxes.ids(); len(left) != 0 {
		t.Errorf("%v are left of a killed server", left)
	}
}
