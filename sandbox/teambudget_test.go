package sandbox_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// purse keeps the budget of one team.
type purse struct {
	mu     sync.Mutex
	own    *sandbox.TeamBudget
	used   sandbox.Budget
	since  time.Time
	asked  int
	marks  map[string]bool
	events []string
}

func (p *purse) set(used sandbox.Budget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = used
}

func (p *purse) TeamBudget(context.Context, identity.TeamID) (sandbox.TeamBudget, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.own == nil {
		return sandbox.TeamBudget{}, false, nil
	}
	return *p.own, true, nil
}

func (p *purse) TeamUsed(_ context.Context, _ identity.TeamID, since, _ time.Time) (sandbox.Budget, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if since.After(p.since) && !p.since.IsZero() {
		p.used = sandbox.Budget{} // another period
	}
	p.since = since
	return p.used, nil
}

func (p *purse) WarnTeam(_ context.Context, _ identity.TeamID, mark string, ev audit.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.marks[mark] {
		p.marks[mark] = true
		p.events = append(p.events, ev.Type+" "+ev.Reason)
	}
	return nil
}

// What a team has used up pauses all its sandboxes and starts none, until the
// period is over or the budget is raised.
func TestTeamBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		money := &purse{marks: map[string]bool{}}
		w.teams = money
		cfg := testConfig()
		cfg.TeamBudget = sandbox.TeamBudget{Budget: sandbox.Budget{CPU: 100 * time.Second}, Period: sandbox.Daily}
		p := w.boot(t, cfg).run(t)
		long := func(r *sandbox.CreateRequest) { r.Timeout = 2 * time.Hour }
		one, two := pausable(t, p, long), pausable(t, p, func(r *sandbox.CreateRequest) {
			long(r)
			r.OnTimeout, r.FilesOnly = sandbox.OnTimeoutPause, true
		})
		tick := func(used sandbox.Budget) {
			money.set(used)
			time.Sleep(6 * time.Second)
			synctest.Wait()
		}
		tick(sandbox.Budget{CPU: 79 * time.Second, Wall: 1000 * time.Hour})
		tick(sandbox.Budget{CPU: 80 * time.Second})
		tick(sandbox.Budget{CPU: 90 * time.Second})
		if diff := cmp.Diff([]string{"team.budget_near cpu"}, money.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if _, ok := p.Live(one.ID); !ok {
			t.Fatal("a sandbox does not run with 90 % used")
		}
		tick(sandbox.Budget{CPU: 100 * time.Second})
		if row := checkPaused(t, p, one.ID); row.Saved.Kind != snapshot.Memory {
			t.Errorf("saved %s", row.Saved.Kind)
		}
		if row := checkPaused(t, p, two.ID); row.Saved.Kind != snapshot.Filesystem {
			t.Errorf("saved %s, want files only, as on its timeout", row.Saved.Kind)
		}
		refused := func(what string, err error) {
			t.Helper()
			e, ok := errors.AsType[*apierr.Error](err)
			if !ok || !errdefs.IsResourceExhausted(err) || e.Code != "team_budget_spent" || e.Limit != "team_budget.cpu" {
				t.Errorf("%s = %v, want team_budget_spent", what, err)
			}
		}
		_, err := p.Create(t.Context(), alice, request())
		refused("Create()", err)
		_, _, err = p.Connect(t.Context(), alice, one.ID, time.Hour)
		refused("Connect()", err)
		checkPaused(t, p, one.ID)
		st, err := p.TeamBudget(t.Context(), alice)
		if err != nil || st.Spent != "cpu" || st.Own || st.Until.Sub(st.Since) != 24*time.Hour || !st.Until.After(time.Now()) {
			t.Errorf("TeamBudget() = %+v, %v", st, err)
		}
		// An administrator raises it.
		money.mu.Lock()
		money.own = &sandbox.TeamBudget{Budget: sandbox.Budget{CPU: 1000 * time.Second}, Period: sandbox.Daily}
		money.mu.Unlock()
		time.Sleep(11 * time.Second)
		if _, _, err := p.Connect(t.Context(), alice, one.ID, 2*time.Hour); err != nil {
			t.Errorf("Connect() with a higher budget = %v", err)
		}
		tick(sandbox.Budget{CPU: 2000 * time.Second})
		checkPaused(t, p, one.ID)
		_, err = p.Fork(t.Context(), alice, two.ID, 1, time.Minute)
		if err == nil {
			t.Error("Fork() of a paused sandbox succeeds")
		}
		if want := []string{"team.budget_near cpu", "team.budget_spent cpu", "team.budget_spent cpu"}; !slices.Equal(money.events, want) {
			t.Errorf("events %v, want %v", money.events, want)
		}
		// The next day.
		time.Sleep(time.Until(st.Until) + time.Second)
		if _, err := p.Create(t.Context(), alice, request()); err != nil {
			t.Errorf("Create() in the next period = %v", err)
		}
	})
}

// A burst of creates asks for the budget once.
func TestTeamBudgetCostsNoQueries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		money := &purse{marks: map[string]bool{}}
		w.teams = money
		p := w.boot(t, testConfig()).run(t)
		for range 20 {
			pausable(t, p, nil)
		}
		money.mu.Lock()
		defer money.mu.Unlock()
		if money.asked > 1 {
			t.Errorf("20 creates at once asked %d times", money.asked)
		}
	})
}

func TestPeriods(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 12, 31, 23, 59, 0, 0, time.FixedZone("east", 3600))
	for p, want := range map[sandbox.Period][2]string{
		sandbox.Daily:   {"2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"},
		sandbox.Monthly: {"2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
	} {
		since, until := p.Bounds(at)
		if got := [2]string{since.Format(time.RFC3339), until.Format(time.RFC3339)}; got != want {
			t.Errorf("Bounds(%s) = %v, want %v", p, got, want)
		}
	}
	if err := (sandbox.TeamBudget{Period: "week"}).Check(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Check(week) = %v", err)
	}
	if err := (sandbox.TeamBudget{Period: sandbox.Daily, Budget: sandbox.Budget{CPU: -1}}).Check(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Check(negative) = %v", err)
	}
}

func TestSnapshotQuota(t *testing.T) {
	t.Parallel()
	for name, quota := range map[string]sandbox.SnapshotQuota{"count": {Count: 2}, "bytes": {Bytes: 2}} { // each is one byte long
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg := testConfig()
			cfg.Snapshots = quota
			p := w.boot(t, cfg).run(t)
			src := pausable(t, p, nil)
			before, _ := p.Live(src.ID)
			save(t, p, src.ID, "one")
			two := save(t, p, src.ID, "two")
			saves := len(w.vault.ids())
			_, err := p.Snapshot(t.Context(), alice, src.ID, "three")
			e, ok := errors.AsType[*apierr.Error](err)
			if !ok || !errdefs.IsResourceExhausted(err) || e.Code != "snapshot_limit" || e.Limit == "" {
				t.Errorf("Snapshot() = %v, want snapshot_limit", err)
			}
			runsOn(t, p, before)
			if got := len(w.vault.ids()); got != saves {
				t.Errorf("%d artifacts, want %d", got, saves)
			}
			save(t, p, src.ID, "two") // moves its tag
			if err := remove(t, p, two, ""); err != nil {
				t.Fatal(err)
			}
			save(t, p, src.ID, "three")
		})
	}
}
