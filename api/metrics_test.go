package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/sandbox"
)

type metric struct {
	Timestamp                                        time.Time
	TimestampUnix                                    int64
	CPUCount                                         int
	CPUUsedPct                                       float64
	MemUsed, MemTotal, MemCache, DiskUsed, DiskTotal int64
}

// used records samples of a sandbox: one a second, each with 10 % of its CPU.
func (s *stack) used(t *testing.T, id string, seconds int) {
	t.Helper()
	run, err := s.store.OpenRun(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	m := meter.Measured{SandboxID: id, RunAt: run.StartedAt, Figures: meter.Figures{
		SampledAt: run.StartedAt, CPU: time.Duration(seconds) * 100 * time.Millisecond, MemoryMiBMillis: 2000, EgressIn: 3, EgressOut: 4,
	}}
	for i := 1; i <= seconds; i++ {
		m.Samples = append(m.Samples, meter.Sample{
			At: run.StartedAt.Add(time.Duration(i) * time.Millisecond), RunAt: run.StartedAt, Tier: meter.Coarse,
			CPU: time.Duration(i) * 100 * time.Microsecond, MemoryBytes: 1 << 20, CacheBytes: 5, DiskBytes: 6,
		})
	}
	if err := s.store.WriteMeasures(t.Context(), []meter.Measured{m}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(run.StartedAt.Add(time.Duration(seconds+1) * time.Millisecond))) // samples are of the past
}

func TestSandboxMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	s.used(t, c.SandboxID, 10)

	r := s.call(t, "GET", c.path("/metrics"), nil)
	var got []metric
	r.into(t, &got)
	if len(got) < 1 || got[0].CPUUsedPct < 9.9 || got[0].CPUUsedPct > 10.1 || got[0].CPUCount != 1 || got[0].MemUsed != 1<<20 ||
		got[0].MemTotal != 512<<20 || got[0].MemCache != 5 || got[0].DiskUsed != 6 || got[0].DiskTotal != 1024<<20 ||
		got[0].TimestampUnix != got[0].Timestamp.Unix() {
		t.Errorf("metrics are %s", r.text)
	}
	// The range: whole seconds, both ends included.
	now := time.Now().Unix()
	for query, want := range map[string]bool{
		fmt.Sprintf("?start=%d", now-60): true, fmt.Sprintf("?start=%d&end=%d", now-60, now+1): true,
		fmt.Sprintf("?end=%d", now-60): false, fmt.Sprintf("?start=%d", now+60): false, "?start=0&end=0": false,
	} {
		r := s.call(t, "GET", c.path("/metrics"+query), nil)
		if r.status != http.StatusOK || (r.text != "[]\n" && r.text != "[]") != want {
			t.Errorf("metrics%s = %d %s, want some: %t", query, r.status, r.text, want)
		}
	}
	// Who never had the sandbox gets an empty list, whatever the id.
	for _, path := range []string{"/sandboxes/inosuchsandbox000000/metrics", "/sandboxes/NO_ID/metrics"} {
		if r := s.call(t, "GET", path, nil); r.status != http.StatusOK || strings.TrimSpace(r.text) != "[]" {
			t.Errorf("%s = %d %s", path, r.status, r.text)
		}
	}
	if r := s.callAs(t, s.other, "GET", c.path("/metrics"), nil); r.status != http.StatusOK || strings.TrimSpace(r.text) != "[]" {
		t.Errorf("metrics for another team = %d %s", r.status, r.text)
	}
	for query, text := range map[string]string{
		"?start=2&end=1": "start", "?start=-1": "start", "?end=99999999999999": "end", "?start=x": "start",
	} {
		s.call(t, "GET", c.path("/metrics"+query), nil).wants(t, "metrics"+query, http.StatusBadRequest, text)
	}
	// They stay when it has ended.
	if err := s.manager.Kill(t.Context(), identity.System, sandbox.ID(c.SandboxID), ""); err != nil {
		t.Fatal(err)
	}
	var after []metric
	s.call(t, "GET", c.path("/metrics"), nil).into(t, &after)
	if len(after) == 0 {
		t.Error("no metrics after the end")
	}
}

func TestSandboxesMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	a, b := s.create(t, nil), s.create(t, nil)
	s.used(t, a.SandboxID, 3)
	s.used(t, b.SandboxID, 3)
	var got struct{ Sandboxes map[string]metric }
	path := "/sandboxes/metrics?sandbox_ids=" + a.SandboxID + "," + b.SandboxID + ",inosuchsandbox000000"
	s.call(t, "GET", path, nil).into(t, &got)
	if len(got.Sandboxes) != 2 || got.Sandboxes[b.SandboxID].MemUsed != 1<<20 {
		t.Errorf("latest metrics are %+v", got)
	}
	if r := s.callAs(t, s.other, "GET", path, nil); strings.TrimSpace(r.text) != `{"sandboxes":{}}` {
		t.Errorf("latest metrics for another team = %s", r.text)
	}
	var many []string
	for i := range 101 {
		many = append(many, fmt.Sprint("i", i))
	}
	for ids, text := range map[string]string{
		"":                      "sandbox_ids",
		"i1,i1":                 "twice",
		"i1,X":                  "not the id",
		strings.Join(many, ","): "1 to 100",
	} {
		s.call(t, "GET", "/sandboxes/metrics?sandbox_ids="+ids, nil).wants(t, "sandbox_ids="+ids[:min(len(ids), 9)], http.StatusBadRequest, text)
	}
	s.call(t, "GET", "/sandboxes/metrics", nil).wants(t, "no ids", http.StatusBadRequest, "sandbox_ids")
}

func TestTeamMetrics(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	s.create(t, nil)
	s.create(t, nil)
	time.Sleep(2 * time.Millisecond)
	var got []struct {
		Timestamp           time.Time
		TimestampUnix       int64
		ConcurrentSandboxes int
		SandboxStartRate    float64
	}
	s.call(t, "GET", fmt.Sprintf("/teams/default/metrics?start=%d", time.Now().Unix()-60), nil).into(t, &got)
	started, most := 0.0, 0
	for _, p := range got {
		started += p.SandboxStartRate * 5
		most = max(most, p.ConcurrentSandboxes)
	}
	if most != 2 || started < 1.99 || started > 2.01 {
		t.Errorf("team metrics are %+v", got)
	}
	var peak struct {
		TimestampUnix int64
		Value         float64
	}
	s.call(t, "GET", "/teams/default/metrics/max?metric=concurrent_sandboxes", nil).into(t, &peak)
	if peak.Value != 2 || peak.TimestampUnix == 0 {
		t.Errorf("most at once is %+v", peak)
	}
	s.call(t, "GET", "/teams/default/metrics/max?metric=sandbox_start_rate", nil).into(t, &peak)
	if peak.Value <= 0 {
		t.Errorf("greatest start rate is %+v", peak)
	}
	s.call(t, "GET", "/teams/default/metrics/max?metric=concurrent_sandboxes&end=5", nil).into(t, &peak)
	if peak.Value != 0 || peak.TimestampUnix != 5 {
		t.Errorf("most at once long ago is %+v", peak)
	}
	if r := s.callAs(t, s.other, "GET", "/teams/other/metrics", nil); strings.TrimSpace(r.text) != "[]" {
		t.Errorf("metrics of a team without sandboxes = %s", r.text)
	}
	s.call(t, "GET", "/teams/other/metrics", nil).wants(t, "another team's metrics", http.StatusForbidden, "default")
	s.call(t, "GET", "/teams/other/metrics/max?metric=concurrent_sandboxes", nil).wants(t, "another team's maximum", http.StatusForbidden, "default")
	s.call(t, "GET", "/teams/default/metrics/max?metric=x", nil).wants(t, "unknown metric", http.StatusBadRequest, "metric")
	s.call(t, "GET", "/teams/default/metrics/max", nil).wants(t, "no metric", http.StatusBadRequest, "metric")
	s.call(t, "GET", "/teams/default/metrics?start=2&end=1", nil).wants(t, "backwards", http.StatusBadRequest, "start")
}

type entry struct {
	Timestamp      time.Time
	Level, Message string
	Fields         map[string]string
}

func TestSandboxLogs(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	before := time.Now()
	s.flows.Add(egress.Record{SandboxID: c.SandboxID, At: before, Kind: "tcp", Host: "evil.example", Port: 443, Verdict: egress.Deny, Reason: "no rule", Hint: "allow it"})
	s.flows.Add(egress.Record{SandboxID: c.SandboxID, At: before, Kind: "tcp", Host: "good.example", Port: 443, Verdict: egress.Allow})
	if err := s.flows.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := s.store.Record(t.Context(), audit.Event{
		Type: "sandbox.limit_hit", Team: "default", Actor: "agent", SandboxID: c.SandboxID, Reason: "output", At: before.Add(time.Second),
		Fields: map[string]string{"cmd": "yes", "level": "debug"},
	})
	if err != nil {
		t.Fatal(err)
	}

	var v2 struct{ Logs []entry }
	s.call(t, "GET", "/v2"+c.path("/logs?direction=forward"), nil).into(t, &v2)
	if len(v2.Logs) < 3 || v2.Logs[0].Message != "sandbox created" {
		t.Fatalf("logs are %+v", v2)
	}
	n := len(v2.Logs)
	denied, limit := v2.Logs[n-2], v2.Logs[n-1]
	if denied.Message != "denied tcp to evil.example:443: no rule" || denied.Level != "warn" || denied.Fields["logger"] != "egress" || denied.Fields["hint"] != "allow it" {
		t.Errorf("a denied connection is %+v", denied)
	}
	if limit.Message != "sandbox limit hit: output" || limit.Level != "warn" || limit.Fields["source"] != "guest" || limit.Fields["cmd"] != "yes" {
		t.Errorf("a limit is %+v", limit)
	}
	count := func(query string) int {
		var got struct{ Logs []entry }
		s.call(t, "GET", "/v2"+c.path("/logs"+query), nil).into(t, &got)
		return len(got.Logs)
	}
	at := before.UnixMilli()
	for query, want := range map[string]int{
		"": n, "?limit=0": 0, "?limit=1": 1, "?level=warn": 2, "?level=error": 0, "?level=debug": n,
		"?search=EVIL": 1, "?search=nothing": 0, fmt.Sprintf("?direction=forward&cursor=%d", at+1): 1,
		fmt.Sprintf("?cursor=%d", at+500): n - 1, fmt.Sprintf("?direction=forward&cursor=%d", at+5000): 0,
	} {
		if got := count(query); got != want {
			t.Errorf("logs%s has %d entries, want %d", query, got, want)
		}
	}
	s.call(t, "GET", "/v2"+c.path("/logs?limit=1"), nil).into(t, &v2)
	if len(v2.Logs) != 1 || v2.Logs[0].Message != limit.Message {
		t.Errorf("newest first: %+v", v2)
	}

	var v1 struct {
		Logs []struct {
			Timestamp time.Time
			Line      string
		}
		LogEntries []entry
	}
	s.call(t, "GET", c.path("/logs"), nil).into(t, &v1)
	if len(v1.Logs) != n || len(v1.LogEntries) != n {
		t.Fatalf("v1 logs are %+v", v1)
	}
	var line map[string]string
	if err := json.Unmarshal([]byte(v1.Logs[n-1].Line), &line); err != nil || line["level"] != "warn" || line["logger"] != "sandbox" || line["message"] == "" {
		t.Errorf("v1 line %q: %v", v1.Logs[n-1].Line, err)
	}
	s.call(t, "GET", c.path(fmt.Sprintf("/logs?start=%d", at+1)), nil).into(t, &v1)
	if len(v1.Logs) != 1 {
		t.Errorf("v1 logs from a time on are %+v", v1)
	}

	for query, text := range map[string]string{
		"?limit=1001": "limit", "?limit=-1": "limit", "?cursor=-1": "cursor", "?direction=up": "direction", "?level=fatal": "level",
		"?search=" + strings.Repeat("x", 257): "search",
	} {
		s.call(t, "GET", "/v2"+c.path("/logs"+query), nil).wants(t, "logs"+query[:9], http.StatusBadRequest, text)
	}
	for _, path := range []string{c.path("/logs"), "/v2" + c.path("/logs")} {
		s.callAs(t, s.other, "GET", path, nil).wants(t, "logs for another team", http.StatusNotFound, "doesn't exist")
	}
	s.call(t, "GET", "/v2/sandboxes/inosuchsandbox000000/logs", nil).wants(t, "logs of none", http.StatusNotFound, "doesn't exist")
}

func TestUsage(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	a := s.create(t, map[string]any{"metadata": map[string]string{"job": "x"}})
	s.create(t, nil)
	s.used(t, a.SandboxID, 10)
	type line struct {
		Group, Note      string
		Runs, Sandboxes  int
		CPUSeconds       float64
		MemoryMiBSeconds float64
		EgressOutBytes   int64
	}
	get := func(key, query string) (out struct {
		From, To time.Time
		Lines    []line
		Total    line
	},
	) {
		t.Helper()
		s.callAs(t, key, "GET", "/native/v1/usage"+query, nil).into(t, &out)
		return out
	}
	got := get(s.key, "")
	if len(got.Lines) != 2 || got.Lines[0].Group != a.SandboxID || got.Lines[0].CPUSeconds != 1 || got.Lines[0].MemoryMiBSeconds != 2 ||
		got.Lines[0].EgressOutBytes != 4 || got.Total.Runs != 2 || got.To.Sub(got.From) != 30*24*time.Hour {
		t.Errorf("usage is %+v", got)
	}
	for group, want := range map[string]string{"team": "default", "template": "base", "label:job": "x"} {
		if got := get(s.key, "?group="+url.QueryEscape(group)); len(got.Lines) == 0 || got.Lines[0].Group != want {
			t.Errorf("usage by %s is %+v", group, got)
		}
	}
	if got := get(s.other, "?group=team"); len(got.Lines) != 0 || got.Total.Runs != 0 {
		t.Errorf("usage of another team is %+v", got)
	}
	past := url.QueryEscape(time.Now().Add(-time.Hour).Format(time.RFC3339))
	if got := get(s.key, "?to="+past); len(got.Lines) != 0 {
		t.Errorf("usage of the past is %+v", got)
	}
	future := url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339))
	for query, text := range map[string]string{
		"?group=agent": "group", "?group=label:": "group", "?from=yesterday": "from", "?from=" + future + "&to=" + past: "from",
		"?from=" + future: "from",
	} {
		s.call(t, "GET", "/native/v1/usage"+query, nil).wants(t, "usage"+query, http.StatusBadRequest, text)
	}
	if err := s.manager.Kill(context.WithoutCancel(t.Context()), identity.System, sandbox.ID(a.SandboxID), ""); err != nil {
		t.Fatal(err)
	}
	if after := get(s.key, ""); len(after.Lines) != 2 || after.Lines[0].CPUSeconds != 1 {
		t.Errorf("usage after the end is %+v", after)
	}
}

func TestBudgets(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	var made struct {
		ID     string
		Budget map[string]any
	}
	r := s.call(t, "POST", "/native/v1/sandboxes", map[string]any{"template": "base", "budget": map[string]any{"cpuSeconds": 60, "egressBytes": 1 << 40}})
	r.into(t, &made)
	t.Cleanup(func() {
		_ = s.manager.Kill(context.WithoutCancel(t.Context()), identity.System, sandbox.ID(made.ID), "")
	})
	if r.status != http.StatusCreated || fmt.Sprint(made.Budget) != "map[cpuSeconds:60 egressBytes:1.099511627776e+12]" {
		t.Fatalf("create with a budget = %d %s", r.status, r.text)
	}
	path := "/native/v1/sandboxes/" + made.ID + "/budget"
	made.Budget = nil
	s.call(t, "PUT", path, map[string]any{"wallSeconds": 5}).into(t, &made)
	if fmt.Sprint(made.Budget) != "map[wallSeconds:5]" {
		t.Errorf("budget is %v after the change", made.Budget)
	}
	if row, err := s.store.Get(t.Context(), sandbox.ID(made.ID)); err != nil || row.Lifecycle.Budget != (sandbox.Budget{Wall: 5 * time.Second}) {
		t.Errorf("record has %+v, %v", row.Lifecycle, err)
	}
	s.call(t, "PUT", path, map[string]any{"cpuSeconds": -1}).wants(t, "negative budget", http.StatusBadRequest, "budget.cpuSeconds")
	s.call(t, "PUT", path, map[string]any{"cpuSeconds": int64(1) << 62}).wants(t, "huge budget", http.StatusBadRequest, "budget.cpuSeconds")
	s.call(t, "POST", "/native/v1/sandboxes", map[string]any{"budget": map[string]any{"egressBytes": -1}}).wants(t, "create", http.StatusBadRequest, "budget.egressBytes: must be 0 to 9223372036854775807, is -1")
	s.callAs(t, s.other, "PUT", path, map[string]any{}).wants(t, "another team's budget", http.StatusNotFound, "doesn't exist")
	s.call(t, "PUT", path, map[string]any{}).into(t, &made)
	if row, err := s.store.Get(t.Context(), sandbox.ID(made.ID)); err != nil || row.Lifecycle.Budget != (sandbox.Budget{}) {
		t.Errorf("record has %+v, %v", row.Lifecycle, err)
	}
}
