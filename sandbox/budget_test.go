package sandbox_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// A spent budget pauses, warns before, and keeps the sandbox paused until it
// has another.
func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		budget := sandbox.Budget{CPU: 10 * time.Second, EgressBytes: 1000}
		sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Budget, r.AutoResume = budget, true })
		free := pausable(t, p, nil)
		spend := func(b sandbox.Budget) {
			p.Spend(sb.ID, b)
			p.Spend(free.ID, b)
			synctest.Wait()
		}
		near := func() int {
			types := eventTypes(t, w, sb.ID)
			return len(slices.DeleteFunc(types, func(s string) bool { return s != "sandbox.budget_near" }))
		}
		spend(sandbox.Budget{CPU: 7 * time.Second, Wall: 24 * time.Hour})
		if near() != 0 {
			t.Error("7 of 10 seconds warn")
		}
		spend(sandbox.Budget{CPU: 8 * time.Second})
		spend(sandbox.Budget{CPU: 9 * time.Second, EgressBytes: 950})
		if n := near(); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		spend(sandbox.Budget{CPU: 9 * time.Second, EgressBytes: 1000})
		row := checkPaused(t, p, sb.ID)
		if row.Lifecycle.Spent != "egress" || row.Saved.Kind != snapshot.Memory {
			t.Errorf("paused by %q with %s", row.Lifecycle.Spent, row.Saved.Kind)
		}
		types := eventTypes(t, w, sb.ID)
		if diff := cmp.Diff([]string{"sandbox.budget_spent", "sandbox.pausing", "sandbox.paused"}, types[len(types)-3:]); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if _, ok := p.Live(free.ID); !ok {
			t.Error("a sandbox without a budget does not run")
		}

		if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Connect() = %v, want failed precondition", err)
		}
		if _, ok := p.Dormant(sb.ID); ok {
			t.Error("traffic wakes a sandbox whose budget is spent")
		}
		checkPaused(t, p, sb.ID)
		if _, err := p.SetBudget(t.Context(), mallory, sb.ID, sandbox.Budget{}); !errdefs.IsNotFound(err) {
			t.Errorf("SetBudget() by another team = %v, want not found", err)
		}
		if _, err := p.SetBudget(t.Context(), alice, sb.ID, sandbox.Budget{EgressBytes: 5000}); err != nil {
			t.Fatal(err)
		}
		if _, ok := p.Dormant(sb.ID); !ok {
			t.Error("traffic does not wake it")
		}
		if _, _, err := p.Connect(t.Context(), alice, sb.ID, time.Minute); err != nil {
			t.Fatalf("Connect() = %v", err)
		}
		spend(sandbox.Budget{CPU: time.Hour, EgressBytes: 1100})
		if _, ok := p.Live(sb.ID); !ok {
			t.Error("it does not run with its new budget")
		}
		// Of a running one it holds at once.
		if _, err := p.SetBudget(t.Context(), alice, sb.ID, sandbox.Budget{CPU: time.Minute}); err != nil {
			t.Fatal(err)
		}
		spend(sandbox.Budget{CPU: time.Hour})
		if row := checkPaused(t, p, sb.ID); row.Lifecycle.Spent != "cpu" {
			t.Errorf("paused by %q, want cpu", row.Lifecycle.Spent)
		}
	})
}

// A pause for a budget that fails is tried again, not at every sample.
func TestBudgetPauseFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Budget, r.Timeout = sandbox.Budget{Wall: time.Second}, time.Hour })
		p.failNext("snapshot")
		for range 3 {
			p.Spend(sb.ID, sandbox.Budget{Wall: time.Minute})
			synctest.Wait()
			if _, ok := p.Live(sb.ID); !ok {
				t.Fatal("a sandbox that could not be paused does not run on")
			}
			time.Sleep(5 * time.Second)
		}
		time.Sleep(time.Minute)
		p.Spend(sb.ID, sandbox.Budget{Wall: time.Minute})
		synctest.Wait()
		checkPaused(t, p, sb.ID)
	})
}

// The server's budget is the default and the most.
func TestBudgetOfServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := testConfig()
	cfg.Budget = sandbox.Budget{CPU: time.Minute}
	p := w.boot(t, cfg).run(t)
	if sb := pausable(t, p, nil); sb.Lifecycle.Budget != cfg.Budget {
		t.Errorf("budget is %+v, want the server's", sb.Lifecycle.Budget)
	}
	less := sandbox.Budget{CPU: time.Second, Wall: time.Hour}
	sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Budget = less })
	if sb.Lifecycle.Budget != less {
		t.Errorf("budget is %+v, want %+v", sb.Lifecycle.Budget, less)
	}
	for _, b := range []sandbox.Budget{{CPU: time.Hour}, {Wall: -1}} {
		r := request()
		r.Budget = b
		if _, err := p.Create(t.Context(), alice, r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Create(budget %+v) = %v, want invalid argument", b, err)
		}
		if _, err := p.SetBudget(t.Context(), alice, sb.ID, b); !errdefs.IsInvalidArgument(err) {
			t.Errorf("SetBudget(%+v) = %v, want invalid argument", b, err)
		}
	}
}

// Whoever measures gets a last look at a box before it is saved or destroyed.
func TestClosing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		killed, paused, died, expired := pausable(t, p, nil), pausable(t, p, nil), pausable(t, p, nil), pausable(t, p, nil)
		if err := p.Kill(t.Context(), alice, killed.ID, ""); err != nil {
			t.Fatal(err)
		}
		if err := p.Pause(t.Context(), alice, paused.ID, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		w.boxes.die(died.ID, provider.ReasonOOM)
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		want := []string{string(killed.ID) + " box", string(paused.ID) + " box", string(died.ID) + " no box", string(expired.ID) + " box"}
		if diff := cmp.Diff(want, p.closed); diff != "" {
			t.Errorf("last looks (-want +got):\n%s", diff)
		}
	})
}

// A fork of a sandbox whose pause for its budget failed has spent nothing.
func TestForkOfSpent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.boot(t, testConfig()).run(t)
		sb := pausable(t, p, func(r *sandbox.CreateRequest) { r.Budget = sandbox.Budget{CPU: time.Second} })
		p.failNext("snapshot")
		p.Spend(sb.ID, sandbox.Budget{CPU: time.Second})
		synctest.Wait()
		if row, err := w.db.Get(t.Context(), sb.ID); err != nil || row.State != sandbox.Running || row.Lifecycle.Spent != "cpu" {
			t.Fatalf("source is %s, spent %q (%v); this tests nothing", row.State, row.Lifecycle.Spent, err)
		}
		out, err := p.Fork(t.Context(), alice, sb.ID, 1, time.Minute)
		if err != nil || out[0].Err != nil {
			t.Fatalf("Fork() = %v, %v", out, err)
		}
		child := out[0].Sandbox.ID
		if err := p.Pause(t.Context(), alice, child, snapshot.Memory); err != nil {
			t.Fatal(err)
		}
		if _, _, err := p.Connect(t.Context(), alice, child, time.Minute); err != nil {
			t.Errorf("Connect() of the child = %v", err)
		}
	})
}
