package e2e_test

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// What a team has used up pauses its sandboxes, with all that is in them; an
// administrator's budget lets them go on without a restart.
func TestTeamBudget(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "limits.team_budget_wall=4s", "--set", "metrics.interval=1s", "--set", "pool.templates=base=0")
	b := create(t, s, map[string]any{"timeout": 600})
	pid := sh(t, s, b, "echo kept > /home/user/f; "+counting).Stdout
	var detail struct {
		State  string
		Events []struct{ Type string }
	}
	waitFor(t, 30*time.Second, "the sandbox to be paused", func() bool {
		err := s.API(t.Context(), http.MethodGet, "/native/v1/sandboxes/"+b.ID, nil, &detail)
		return err == nil && detail.State == "paused"
	})
	for what, call := range map[string]struct {
		path string
		body map[string]any
	}{
		"create": {"/v2/sandboxes", map[string]any{"templateID": "base", "timeout": 60}},
		"resume": {"/native/v1/sandboxes/" + b.ID + "/resume", map[string]any{"timeoutSeconds": 60}},
	} {
		err := s.API(t.Context(), http.MethodPost, call.path, call.body, nil)
		if status(err) != http.StatusTooManyRequests || !strings.Contains(err.Error(), "team_budget_spent") {
			t.Errorf("%s with a spent budget: %v, want 429 team_budget_spent", what, err)
		}
	}
	var budget struct {
		Spent string
		Own   bool
		Used  struct{ WallSeconds float64 }
	}
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/budget", nil, &budget); err != nil || budget.Spent != "wall" || budget.Own || budget.Used.WallSeconds < 4 || budget.Used.WallSeconds > 60 {
		t.Errorf("budget is %+v (%v)", budget, err)
	}
	out, err := s.Command(t.Context(), "budget", "set", "--team", "default", "--wall", "1h", "--period", "day", "--data", s.Data).CombinedOutput()
	if err != nil {
		t.Fatalf("budget set: %v: %s", err, out)
	}
	waitFor(t, 10*time.Second, "the new budget to hold", func() bool {
		return s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes/"+b.ID+"/resume", map[string]any{"timeoutSeconds": 600}, nil) == nil
	})
	if got := sh(t, s, b, "cat /home/user/f; "+grows(pid)); got.Stdout != "kept\ncounts\n" {
		t.Errorf("after the resume %+v", got)
	}
	budget.Spent = ""
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/budget", nil, &budget); err != nil || budget.Spent != "" || !budget.Own {
		t.Errorf("budget is %+v (%v)", budget, err)
	}
}
