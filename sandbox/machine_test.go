package sandbox_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
	"pgregory.net/rapid"
)

// expectation is what the model knows of one sandbox.
type expectation struct {
	endsAt time.Time
	live   bool
	paused bool
	atEnd  string // OnTimeoutKill or OnTimeoutPause
	reason string // once it has ended; "" for "gone while the server was down"
	build  template.BuildID
}

// machine drives random lives of a server against a model. Time is synctest's,
// the database is real, kill -9 may come between any two operations.
type machine struct {
	t     *testing.T
	w     *world
	p     *process
	model map[sandbox.ID]*expectation
	// snaps are the snapshots by name; a build of an old tag stays while it has
	// live sandboxes.
	snaps map[string]template.Snapshot
	old   []template.Snapshot
}

func (m *machine) pick(t *rapid.T) (sandbox.ID, *expectation) {
	if len(m.model) == 0 {
		t.Skip("no sandbox yet")
	}
	ids := make([]sandbox.ID, 0, len(m.model))
	for id := range m.model {
		ids = append(ids, id)
	}
	// Ids are random: order by end, which the draws decide, to be repeatable.
	slices.SortFunc(ids, func(a, b sandbox.ID) int { return m.model[a].endsAt.Compare(m.model[b].endsAt) })
	id := rapid.SampledFrom(ids).Draw(t, "which")
	return id, m.model[id]
}

// expire moves the model to now: timeouts that have passed have happened.
func (m *machine) expire() {
	now := time.Now()
	for _, e := range m.model {
		if e.live && !e.endsAt.After(now) {
			e.live = false
			if e.paused = e.atEnd == sandbox.OnTimeoutPause; !e.paused {
				e.reason = "timeout"
			}
		}
	}
}

func (m *machine) create(t *rapid.T) {
	r := request()
	r.Timeout = time.Duration(rapid.IntRange(1, 300).Draw(t, "timeout")) * time.Second
	r.OnTimeout = rapid.SampledFrom([]string{sandbox.OnTimeoutKill, sandbox.OnTimeoutPause}).Draw(t, "on timeout")
	fail := rapid.IntRange(0, 12).Draw(t, "failing call")
	if fail > 0 && fail <= 4 {
		m.p.failAt.Store(m.p.calls.Load() + int64(fail))
	}
	sb, err := m.p.Create(m.t.Context(), alice, r)
	if failed := fail > 0 && fail <= 4; failed != (err != nil) {
		t.Fatalf("Create() with failing call %d = %v", fail, err)
	}
	if err == nil {
		m.model[sb.ID] = &expectation{endsAt: sb.EndsAt, live: true, atEnd: r.OnTimeout, build: sb.Build}
	}
}

func (m *machine) snapshot(t *rapid.T) {
	id, e := m.pick(t)
	name := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "name")
	call := rapid.SampledFrom([]string{"", "", "snapshot", "sync", "put snapshot"}).Draw(t, "failing call")
	if call != "" && e.live {
		m.p.failNext(call)
	}
	snap, err := m.p.Snapshot(m.t.Context(), alice, id, name)
	if want := e.live && call == ""; want != (err == nil) || (e.paused && !errdefs.IsConflict(err)) {
		t.Fatalf("Snapshot(live %v, paused %v, failing %q) = %v", e.live, e.paused, call, err)
	}
	if err != nil {
		return
	}
	if last, ok := m.snaps[name]; ok {
		m.old = append(m.old, last)
	}
	m.snaps[name] = snap
}

func (m *machine) createFrom(t *rapid.T) {
	name := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "name")
	r := request()
	r.Template = name
	sb, err := m.p.Create(m.t.Context(), alice, r)
	snap, ok := m.snaps[name]
	if ok != (err == nil) || (!ok && !errdefs.IsNotFound(err)) {
		t.Fatalf("Create(snapshot, exists %v) = %v", ok, err)
	}
	if err != nil {
		return
	}
	if sb.Build != snap.Build.ID {
		t.Fatalf("Create() = build %s, want the newest, %s", sb.Build, snap.Build.ID)
	}
	m.model[sb.ID] = &expectation{endsAt: sb.EndsAt, live: true, atEnd: sandbox.OnTimeoutKill, build: sb.Build}
}

// used says whether a build has live or paused sandboxes.
func (m *machine) used(builds ...template.BuildID) bool {
	for _, e := range m.model {
		if (e.live || e.paused) && slices.Contains(builds, e.build) {
			return true
		}
	}
	return false
}

func (m *machine) deleteSnapshot(t *rapid.T) {
	name := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "name")
	snap, ok := m.snaps[name]
	if !ok {
		t.Skip("no such snapshot")
	}
	builds := []template.BuildID{snap.Build.ID}
	for _, old := range m.old {
		if old.Template == snap.Template {
			builds = append(builds, old.Build.ID)
		}
	}
	used := m.used(builds...)
	err := remove(m.t, m.p, snap, "")
	if used == (err == nil) || (used && !errdefs.IsFailedPrecondition(err)) {
		t.Fatalf("DeleteSnapshot(in use %v) = %v", used, err)
	}
	if err == nil {
		delete(m.snaps, name)
		m.old = slices.DeleteFunc(m.old, func(old template.Snapshot) bool { return old.Template == snap.Template })
	}
}

func (m *machine) rollback(t *rapid.T) {
	id, e := m.pick(t)
	name := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "name")
	_, there := m.snaps[name]
	call := rapid.SampledFrom([]string{"", "", "snapshot", "sync", "swap names", "restore"}).Draw(t, "failing call")
	saving := call == "snapshot" || call == "sync"
	fails := call != "" && there && (e.live || e.paused && !saving)
	if fails {
		m.p.failNext(call)
	}
	sb, err := m.p.Rollback(m.t.Context(), alice, id, name)
	if want := there && (e.live || e.paused) && !fails; want != (err == nil) {
		t.Fatalf("Rollback(live %v, paused %v, snapshot there %v, failing %q) = %v", e.live, e.paused, there, call, err)
	}
	switch soonest := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond); {
	case err == nil && e.paused:
		e.live, e.paused, e.endsAt = true, false, sb.EndsAt
	case err == nil && !sb.EndsAt.Equal(e.endsAt):
		t.Fatalf("Rollback() moved the end from %v to %v", e.endsAt, sb.EndsAt)
	case fails && saving && e.endsAt.Before(soonest):
		e.endsAt = soonest // as after a pause that failed
	}
}

func (m *machine) fork(t *rapid.T) {
	id, e := m.pick(t)
	count := rapid.IntRange(1, 3).Draw(t, "count")
	call := rapid.SampledFrom([]string{"", "", "snapshot", "restore", "insert"}).Draw(t, "failing call")
	if call != "" && e.live {
		m.p.failNext(call)
	}
	out, err := m.p.Fork(m.t.Context(), alice, id, count, time.Minute)
	if want := e.live && call != "snapshot"; want != (err == nil) || (e.paused && !errdefs.IsConflict(err)) {
		t.Fatalf("Fork(live %v, paused %v, failing %q) = %v", e.live, e.paused, call, err)
	}
	failed := 0
	for _, f := range out {
		if f.Err != nil {
			failed++
			continue
		}
		m.model[f.Sandbox.ID] = &expectation{endsAt: f.Sandbox.EndsAt, live: true, atEnd: e.atEnd, build: e.build}
	}
	if want := min(1, len(call)); err == nil && failed != want {
		t.Fatalf("%d children failed, want %d", failed, want)
	}
}

func (m *machine) kill(t *rapid.T) {
	id, e := m.pick(t)
	err := m.p.Kill(m.t.Context(), alice, id, "")
	if (e.live || e.paused) != (err == nil) || (err != nil && !errdefs.IsNotFound(err)) {
		t.Fatalf("Kill(live %v, paused %v) = %v", e.live, e.paused, err)
	}
	if e.live || e.paused {
		e.live, e.paused, e.reason = false, false, "killed"
	}
}

func (m *machine) pause(t *rapid.T) {
	id, e := m.pick(t)
	fail := e.live && rapid.IntRange(0, 3).Draw(t, "pause fails") == 0
	if fail {
		m.p.failNext("snapshot")
	}
	err := m.p.Pause(m.t.Context(), alice, id, snapshot.Memory)
	if want := e.live && !fail; want != (err == nil) || (e.paused && !errdefs.IsConflict(err)) {
		t.Fatalf("Pause(live %v, paused %v, failing %v) = %v", e.live, e.paused, fail, err)
	}
	if fail {
		if soonest := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond); e.endsAt.Before(soonest) {
			e.endsAt = soonest
		}
		return
	}
	if e.live {
		e.live, e.paused = false, true
	}
}

func (m *machine) connect(t *rapid.T) {
	id, e := m.pick(t)
	ttl := time.Duration(rapid.IntRange(1, 300).Draw(t, "ttl")) * time.Second
	sb, resumed, err := m.p.Connect(m.t.Context(), alice, id, ttl)
	if (e.live || e.paused) != (err == nil) || (err == nil && resumed != e.paused) {
		t.Fatalf("Connect(live %v, paused %v) = %v, %v", e.live, e.paused, resumed, err)
	}
	if err != nil {
		return
	}
	if to := time.Now().Add(ttl); e.paused || to.After(e.endsAt) {
		e.endsAt = to
	}
	e.live, e.paused = true, false
	if !sb.EndsAt.Equal(e.endsAt) {
		t.Fatalf("Connect() = %v, want %v", sb.EndsAt, e.endsAt)
	}
}

func (m *machine) setTimeout(t *rapid.T) {
	id, e := m.pick(t)
	ttl := time.Duration(rapid.IntRange(0, 300).Draw(t, "ttl")) * time.Second
	err := m.p.SetTimeout(m.t.Context(), alice, id, ttl)
	if e.live != (err == nil) || (err != nil && e.paused != errdefs.IsConflict(err)) {
		t.Fatalf("SetTimeout(live %v, paused %v) = %v", e.live, e.paused, err)
	}
	if e.live {
		e.endsAt = time.Now().Add(ttl)
	}
}

func (m *machine) extend(t *rapid.T) {
	id, e := m.pick(t)
	ttl := time.Duration(rapid.IntRange(1, 300).Draw(t, "ttl")) * time.Second
	sb, err := m.p.Extend(m.t.Context(), alice, id, ttl)
	if e.live != (err == nil) || (err != nil && e.paused != errdefs.IsConflict(err)) {
		t.Fatalf("Extend(live %v, paused %v) = %v", e.live, e.paused, err)
	}
	if to := time.Now().Add(ttl); e.live && to.After(e.endsAt) {
		e.endsAt = to
	}
	if e.live && !sb.EndsAt.Equal(e.endsAt) {
		t.Fatalf("Extend() = %v, want %v", sb.EndsAt, e.endsAt)
	}
}

func (m *machine) boxDies(t *rapid.T) {
	id, e := m.pick(t)
	m.w.boxes.die(id, provider.ReasonOOM)
	if e.live {
		e.live, e.reason = false, "oom"
	}
}

func (m *machine) sleep(t *rapid.T) {
	time.Sleep(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
}

// restart kills the server, lets some time pass in which boxes may die, and
// starts another.
func (m *machine) restart(t *rapid.T) {
	m.p.kill9()
	if rapid.Bool().Draw(t, "box dies meanwhile") && len(m.model) > 0 {
		id, e := m.pick(t)
		m.w.boxes.die(id, provider.ReasonCrashed)
		if e.live {
			e.live = false
		}
	}
	time.Sleep(time.Duration(rapid.IntRange(0, 60).Draw(t, "downtime")) * time.Second)
	m.p = m.w.boot(m.t, testConfig()).run(m.t)
}

// check compares model, records, boxes, attachments and routes.
func (m *machine) check(t *rapid.T) {
	synctest.Wait()
	m.expire()
	var live []string
	var saved []snapshot.ID
	for id, e := range m.model {
		if _, ok := m.p.Live(id); ok != e.live {
			t.Fatalf("Live(%s) = %v, want %v", id, ok, e.live)
		}
		sb, err := m.w.db.Get(m.t.Context(), id)
		if err != nil {
			t.Fatalf("Get() = %v", err)
		}
		if e.live {
			live = append(live, string(id))
			if sb.State != sandbox.Running || !sb.EndsAt.Equal(e.endsAt) {
				t.Fatalf("record is %s until %v, want running until %v", sb.State, sb.EndsAt, e.endsAt)
			}
			grace := 10 * time.Second
			if e.atEnd == sandbox.OnTimeoutPause {
				grace = 24 * time.Hour
			}
			if d := m.w.boxes.get(id).deadline; !d.Equal(e.endsAt.Add(grace)) {
				t.Fatalf("hard deadline is %v, want %v after %v", d, grace, e.endsAt)
			}
			continue
		}
		if e.paused {
			if sb.State != sandbox.Paused || sb.Saved == nil {
				t.Fatalf("record is %s, want paused", sb.State)
			}
			saved = append(saved, sb.Saved.ID)
			continue
		}
		if sb.State != sandbox.Killed || (e.reason != "" && sb.Reason != e.reason) {
			t.Fatalf("record is %s %q, want killed %q", sb.State, sb.Reason, e.reason)
		}
		events, err := m.w.db.Events(m.t.Context(), audit.Filter{SandboxID: string(id)})
		if err != nil || events[len(events)-1].Type != "sandbox.killed" {
			t.Fatalf("last event is %+v (%v)", events[len(events)-1], err)
		}
	}
	for _, snap := range m.snaps {
		saved = append(saved, snap.Build.Artifact.ID)
	}
	slices.Sort(live)
	slices.Sort(saved)
	got := m.w.vault.ids()
	for _, id := range saved {
		if !slices.Contains(got, id) {
			t.Fatalf("artifacts %v, want %v", got, saved)
		}
	}
	for _, id := range got {
		// What lost its tag while it was in use goes with a later sweep.
		left := slices.ContainsFunc(m.old, func(old template.Snapshot) bool { return old.Build.Artifact.ID == id })
		if !left && !slices.Contains(saved, id) {
			t.Fatalf("artifacts %v, want %v", got, saved)
		}
	}
	if got := m.w.boxes.ids(); !slices.Equal(got, live) {
		t.Fatalf("boxes %v, want %v", got, live)
	}
	if got := m.p.guard.ids(); !slices.Equal(got, live) {
		t.Fatalf("attachments %v, want %v", got, live)
	}
}

func TestStateMachine(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		// rapid reports a failure by panicking, which must leave the bubble on
		// the goroutine it came from.
		var failure any
		synctest.Test(t, func(t *testing.T) {
			defer func() { failure = recover() }()
			w := newWorld(t)
			m := &machine{t: t, w: w, p: w.boot(t, testConfig()).run(t), model: map[sandbox.ID]*expectation{}, snaps: map[string]template.Snapshot{}}
			rt.Repeat(map[string]func(*rapid.T){
				"create": m.create, "create more": m.create, "kill": m.kill, "set timeout": m.setTimeout, "extend": m.extend,
				"box dies": m.boxDies, "sleep": m.sleep, "restart": m.restart, "pause": m.pause, "connect": m.connect,
				"snapshot": m.snapshot, "create from": m.createFrom, "delete snapshot": m.deleteSnapshot, "rollback": m.rollback, "fork": m.fork, "": m.check,
			})
		})
		if failure != nil {
			panic(failure)
		}
	})
}
