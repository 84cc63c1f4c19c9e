package api_test

import (
	"net/url"
	"testing"
)

// The provider of these tests saves and restores; it exports no files.
func TestTreeRoutes(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	at := "/native/v1/sandboxes/" + c.SandboxID
	s.call(t, "POST", at+"/snapshots", map[string]any{"name": "point"}).wants(t, "snapshot", 201, "")

	for name, bad := range map[string]struct {
		body any
		want int
	}{
		"no body": {nil, 400}, "no snapshot": {map[string]any{}, 400}, "a list": {[]int{}, 400},
		"no such snapshot": {map[string]any{"snapshot": "none"}, 404},
		"a template":       {map[string]any{"snapshot": "base"}, 400},
	} {
		s.call(t, "POST", at+"/rollback", bad.body).wants(t, "rollback with "+name, bad.want, "")
	}
	s.call(t, "POST", "/native/v1/sandboxes/inone/rollback", map[string]any{"snapshot": "point"}).wants(t, "rollback of none", 404, "")
	s.callAs(t, s.other, "POST", at+"/rollback", map[string]any{"snapshot": "point"}).wants(t, "rollback by another team", 404, "")
	r := s.call(t, "POST", at+"/rollback", map[string]any{"snapshot": "point"})
	r.wants(t, "rollback", 200, "")
	var now nativeLife
	r.into(t, &now)
	if now.ID != c.SandboxID || now.State != "running" || now.AgentToken == "" {
		t.Errorf("after the rollback %+v", now)
	}

	var forks []struct{ Sandbox nativeLife }
	r = s.call(t, "POST", at+"/fork", map[string]any{"count": 1})
	r.wants(t, "fork", 201, "")
	r.into(t, &forks)
	child := "/native/v1/sandboxes/" + forks[0].Sandbox.ID
	s.call(t, "POST", at+"/promote", nil).wants(t, "promote of no copy", 409, "")
	s.callAs(t, s.other, "POST", child+"/promote", nil).wants(t, "promote by another team", 404, "")
	r = s.call(t, "POST", child+"/promote", nil)
	r.wants(t, "promote", 200, "")
	r.into(t, &now)
	if now.ID != c.SandboxID || now.State != "running" {
		t.Errorf("promote answers with %+v", now)
	}
	s.call(t, "POST", child+"/promote", nil).wants(t, "promote of one that ended", 404, "")

	s.call(t, "GET", "/native/v1/diff?to="+c.SandboxID, nil).wants(t, "diff", 501, "")
	s.call(t, "GET", "/native/v1/diff", nil).wants(t, "diff of nothing", 400, "")
	s.call(t, "GET", "/native/v1/diff?to="+url.QueryEscape(string(make([]byte, 300))), nil).wants(t, "diff of a long name", 400, "")
}

func TestTeamBudgetAndMetricsRoutes(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	r := s.call(t, "GET", "/native/v1/budget", nil)
	r.wants(t, "budget", 200, "")
	var b struct {
		Team, Period, Spent     string
		CPUSeconds, WallSeconds int64
		Own                     bool
	}
	r.into(t, &b)
	if b.Team == "" || b.Period != "month" || b.Own || b.CPUSeconds != 0 || b.Spent != "" {
		t.Errorf("a team without a budget has %+v", b)
	}
	at := "/native/v1/sandboxes/" + c.SandboxID + "/metrics"
	r = s.call(t, "GET", at, nil)
	r.wants(t, "metrics", 200, "")
	var out struct{ Points []map[string]any }
	r.into(t, &out)
	if out.Points == nil {
		t.Error("points are null, want a list")
	}
	s.callAs(t, s.other, "GET", at, nil).wants(t, "metrics of another team", 404, "")
	for _, query := range []string{"from=x", "from=1800-01-01T00:00:00Z", "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z"} {
		s.call(t, "GET", at+"?"+query, nil).wants(t, query, 400, "")
	}
}
