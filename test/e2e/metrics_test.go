package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

type metric struct {
	TimestampUnix                                    int64
	CPUCount                                         int `json:"cpuCount"`
	CPUUsedPct                                       float64
	MemUsed, MemTotal, MemCache, DiskUsed, DiskTotal int64
}

type usage struct {
	Group                                    string
	Runs                                     int
	WallSeconds, CPUSeconds, CPULimitSeconds float64
	MemoryMiBSeconds, MemoryLimitMiBSeconds  float64
	EgressInBytes, EgressOutBytes            int64
	SavedMiBHours                            float64
}

func metricsOf(t *testing.T, s *testenv.Server, id string) []metric {
	t.Helper()
	var out []metric
	if err := s.API(t.Context(), http.MethodGet, "/sandboxes/"+id+"/metrics", nil, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// usageOf is the line of one sandbox; zero when there is none.
func usageOf(t *testing.T, s *testenv.Server, id string) usage {
	t.Helper()
	var out struct{ Lines []usage }
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/usage?group=sandbox", nil, &out); err != nil {
		t.Fatal(err)
	}
	for _, l := range out.Lines {
		if l.Group == id {
			return l
		}
	}
	return usage{}
}

// What a sandbox does is seen from outside, while it runs and after its end.
func TestMetrics(t *testing.T) {
	t.Parallel()
	const mebibyte = 1 << 20
	b := createNative(t, shared, map[string]any{"cpus": 1, "memoryMiB": 1024, "diskMiB": 512})
	began := time.Now()
	sh(t, shared, b, `(while :; do :; done) >/dev/null 2>&1 &
python3 -c "
import time
x = bytearray(b'x') * (200 << 20)
time.sleep(600)" >/dev/null 2>&1 &
head -c 100M /dev/urandom > /home/user/f`)
	var last metric
	waitFor(t, 90*time.Second, "metrics of what it does", func() bool {
		all := metricsOf(t, shared, b.ID)
		if len(all) == 0 {
			return false
		}
		last = all[len(all)-1]
		return last.CPUUsedPct > 10 && last.MemUsed > 200*mebibyte && last.DiskUsed > 100*mebibyte
	})
	t.Logf("after %s: %+v", time.Since(began), last)
	if last.CPUCount != 1 || last.MemTotal != 1024*mebibyte || last.DiskTotal != 512*mebibyte || last.CPUUsedPct > 100 ||
		last.MemUsed > last.MemTotal || last.DiskUsed > 250*mebibyte || time.Since(time.Unix(last.TimestampUnix, 0)) > 20*time.Second {
		t.Errorf("metrics are %+v", last)
	}
	var latest struct{ Sandboxes map[string]metric }
	path := "/sandboxes/metrics?sandbox_ids=" + b.ID + ",inosuchsandbox000000"
	if err := shared.API(t.Context(), http.MethodGet, path, nil, &latest); err != nil {
		t.Fatal(err)
	}
	if m := latest.Sandboxes[b.ID]; len(latest.Sandboxes) != 1 || m.CPUUsedPct < 30 {
		t.Errorf("latest metrics are %+v", latest)
	}
	stranger := secondKey(t, shared, "other")
	var theirs []metric
	if err := shared.APIAs(t.Context(), stranger, http.MethodGet, "/sandboxes/"+b.ID+"/metrics", nil, &theirs); err != nil || len(theirs) != 0 {
		t.Errorf("another team got %d metrics, %v", len(theirs), err)
	}
	if err := shared.APIAs(t.Context(), stranger, http.MethodGet, "/sandboxes/"+b.ID+"/logs", nil, nil); status(err) != http.StatusNotFound {
		t.Errorf("logs for another team: %v, want 404", err)
	}

	if r := sh(t, shared, b, "rm /home/user/f; sync; sleep 1"); r.ExitCode != 0 {
		t.Errorf("rm: %+v", r)
	}
	waitFor(t, 15*time.Second, "the disk to shrink", func() bool {
		all := metricsOf(t, shared, b.ID)
		last = all[len(all)-1]
		return last.DiskUsed < 50*mebibyte
	})

	before := len(metricsOf(t, shared, b.ID))
	ran := time.Since(began).Seconds()
	if err := shared.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if after := metricsOf(t, shared, b.ID); len(after) < before {
		t.Errorf("%d metrics after the end, %d before", len(after), before)
	}
	u := usageOf(t, shared, b.ID)
	t.Logf("usage %+v", u)
	if u.Runs != 1 || u.WallSeconds < ran-1 || u.WallSeconds > ran+10 || u.CPUSeconds < 0.2*ran || u.CPUSeconds > 1.3*u.WallSeconds ||
		u.CPULimitSeconds != u.WallSeconds || u.MemoryMiBSeconds < 150*ran || u.MemoryMiBSeconds > u.MemoryLimitMiBSeconds {
		t.Errorf("usage after %.1fs is %+v", ran, u)
	}
	var logs struct {
		Logs []struct{ Level, Message string }
	}
	if err := shared.API(t.Context(), http.MethodGet, "/v2/sandboxes/"+b.ID+"/logs?direction=forward", nil, &logs); err != nil {
		t.Fatal(err)
	}
	if n := len(logs.Logs); n < 2 || !strings.HasPrefix(logs.Logs[0].Message, "sandbox created") || logs.Logs[n-1].Message != "sandbox killed: killed" {
		t.Errorf("logs are %+v", logs)
	}
}

// A sandbox that lived for less than an interval is billed, and so is what
// passed the gateway.
func TestUsageOfAShortRun(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", net.JoinHostPort(upstreamIP, "0"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 300_000))
	})}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(l) }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	b := create(t, shared, map[string]any{"metadata": map[string]string{"job": "short run"}, "network": map[string]any{"allowOut": []string{"allowed.test"}}})
	if r := sh(t, shared, b, fmt.Sprintf("curl -sS -m 10 http://allowed.test:%s/ | wc -c; timeout 1 sh -c 'while :; do :; done'", port)); r.Stdout != "300000\n" {
		t.Fatalf("download: %+v", r)
	}
	if err := shared.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	u := usageOf(t, shared, b.ID)
	if u.Runs != 1 || u.CPUSeconds < 0.2 || u.EgressInBytes < 300_000 || u.EgressInBytes > 310_000 || u.EgressOutBytes < 50 || u.EgressOutBytes > 5000 {
		t.Errorf("usage is %+v", u)
	}
	if len(metricsOf(t, shared, b.ID)) == 0 {
		t.Error("a short run has no metrics")
	}
	var byLabel struct{ Lines []usage }
	if err := shared.API(t.Context(), http.MethodGet, "/native/v1/usage?group="+url.QueryEscape("label:job"), nil, &byLabel); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range byLabel.Lines {
		found = found || (l.Group == "short run" && l.Runs == 1)
	}
	if !found {
		t.Errorf("by label: %+v", byLabel)
	}
}

// Neither a pause nor a server that is killed loses what was used.
func TestUsageSurvives(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "metrics.interval=1s")
	b := create(t, s, nil)
	sh(t, s, b, "timeout 2 sh -c 'while :; do :; done'; head -c 20M /dev/urandom > /home/user/f")
	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+b.ID+"/pause", nil, nil); err != nil {
		t.Fatal(err)
	}
	first := usageOf(t, s, b.ID)
	if first.Runs != 1 || first.CPUSeconds < 0.4 {
		t.Errorf("usage after the pause is %+v", first)
	}
	time.Sleep(2 * time.Second) // paused: nothing but the disk is used
	paused := usageOf(t, s, b.ID)
	if paused.CPUSeconds != first.CPUSeconds || paused.WallSeconds != first.WallSeconds || paused.SavedMiBHours <= first.SavedMiBHours {
		t.Errorf("usage grew from %+v to %+v while it was paused", first, paused)
	}
	connect(t, s, b.ID)
	sh(t, s, b, "timeout 3 sh -c 'while :; do :; done'")
	var before usage
	waitFor(t, 5*time.Second, "the second run to be measured", func() bool {
		before = usageOf(t, s, b.ID)
		return before.CPUSeconds > first.CPUSeconds+0.6
	})
	time.Sleep(1500 * time.Millisecond) // more than an interval: what was seen is written
	s.Kill9()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := usageOf(t, s, b.ID)
	if after.Runs != 2 || after.CPUSeconds < before.CPUSeconds-0.01 {
		t.Errorf("usage after kill -9 is %+v, was %+v", after, before)
	}
	if n := len(metricsOf(t, s, b.ID)); n == 0 {
		t.Error("no metrics after kill -9")
	}
	if err := s.Kill(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	end := usageOf(t, s, b.ID)
	if end.Runs != 2 || end.CPUSeconds < after.CPUSeconds || end.WallSeconds < 5 || end.WallSeconds > 60 {
		t.Errorf("usage after the end is %+v", end)
	}
	if again := usageOf(t, s, b.ID); again != end {
		t.Errorf("usage of an ended sandbox changed from %+v to %+v", end, again)
	}
}

// A sandbox that has used up its budget is paused, not killed, and goes on with
// another.
func TestBudget(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "metrics.interval=1s")
	var b testenv.Box
	var made struct{ ID string }
	err := s.API(t.Context(), http.MethodPost, "/native/v1/sandboxes",
		map[string]any{"template": "base", "timeoutSeconds": 600, "budget": map[string]any{"cpuSeconds": 1}}, &made)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.API(t.Context(), http.MethodPost, "/v2/sandboxes/"+made.ID+"/connect", map[string]any{}, &b); err != nil {
		t.Fatal(err)
	}
	pid := sh(t, s, b, "(while :; do :; done) >/dev/null 2>&1 & "+counting).Stdout
	var detail struct{ State string }
	waitFor(t, 30*time.Second, "the sandbox to be paused", func() bool {
		err := s.API(t.Context(), http.MethodGet, "/sandboxes/"+b.ID, nil, &detail)
		return err == nil && detail.State == "paused"
	})
	if err := s.API(t.Context(), http.MethodPost, "/v2/sandboxes/"+b.ID+"/connect", map[string]any{}, nil); status(err) != http.StatusConflict {
		t.Errorf("connect with a spent budget: %v, want 409", err)
	}
	var logs struct {
		Logs []struct{ Level, Message string }
	}
	if err := s.API(t.Context(), http.MethodGet, "/v2/sandboxes/"+b.ID+"/logs?level=warn", nil, &logs); err != nil || len(logs.Logs) == 0 || logs.Logs[0].Message != "sandbox budget spent: cpu" {
		t.Errorf("warnings are %+v, %v", logs, err)
	}
	if err := s.API(t.Context(), http.MethodPut, "/native/v1/sandboxes/"+b.ID+"/budget", map[string]any{"cpuSeconds": 1000}, nil); err != nil {
		t.Fatal(err)
	}
	connect(t, s, b.ID)
	if r := sh(t, s, b, grows(pid)); r.Stdout != "counts\n" {
		t.Errorf("after the resume: %+v", r)
	}
}
