package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/telemetry"
)

var key = "e2b_" + strings.Repeat("0123456789", 4)

func TestRedaction(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			log := telemetry.NewLogger(config.Log{Level: "debug", Format: format}, &out)
			log = log.With("agent_token", "t0ps3cret", "X-API-Key", "t0ps3cret")
			log.WithGroup("g").Info("key "+key, "err", fmt.Errorf("dial: %w", errors.New("postgres://u:t0ps3cret@h/db")),
				"header", "Bearer t0ps3cretXYZ", "v", secret.New("t0ps3cret"), "url", "http://a:t0ps3cret@host/x", "sandbox", "i1")
			got := out.String()
			for _, leak := range []string{"t0ps3cret", key} {
				if strings.Contains(got, leak) {
					t.Errorf("log leaks %q: %s", leak, got)
				}
			}
			for _, kept := range []string{"i1", "sandbox", "host"} {
				if !strings.Contains(got, kept) {
					t.Errorf("log lost %q: %s", kept, got)
				}
			}
		})
	}
}

func TestLevelAndRequestID(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := telemetry.NewLogger(config.Log{Level: "warn", Format: "auto"}, &out)
	ctx := telemetry.WithRequestID(t.Context(), "r1")
	log.InfoContext(ctx, "quiet")
	log.With("a", 1).WarnContext(ctx, "loud", slog.Duration("took", time.Second))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("not one JSON line: %v: %s", err, out.String())
	}
	if line["msg"] != "loud" || line["request"] != "r1" || line["a"] != 1.0 {
		t.Errorf("line = %v", line)
	}
	if id := telemetry.NewRequestID(); len(id) != 16 || id == telemetry.NewRequestID() {
		t.Errorf("NewRequestID = %q", id)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics("v1")
	m.SetSandboxes(map[string]int{"running": 3})
	m.Created("ok", 100*time.Millisecond)
	m.Created("weird", time.Second)
	m.Ended("oom")
	m.Ended("i1234 said hello")
	m.Proxied("agent", 200, time.Millisecond)
	m.Request(404, time.Millisecond)
	m.Flow("tcp", "deny", 10, -1)
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	body, _ := io.ReadAll(rec.Body)
	for _, want := range []string{
		`caisson_sandboxes{state="running"} 3`, `caisson_sandboxes{state="killed"} 0`,
		`caisson_sandbox_creates_total{result="ok"} 1`, `caisson_sandbox_creates_total{result="other"} 1`,
		`caisson_sandbox_create_seconds_count 1`, `caisson_sandboxes_ended_total{reason="oom"} 1`,
		`caisson_sandboxes_ended_total{reason="other"} 1`, `caisson_proxied_requests_total{code="2xx",target="agent"} 1`,
		`caisson_api_requests_total{code="4xx"} 1`, `caisson_egress_flows_total{kind="tcp",verdict="deny"} 1`,
		`caisson_egress_bytes_total{direction="out"} 10`, `caisson_build_info{version="v1"} 1`, "go_goroutines", "process_open_fds",
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	var none *telemetry.Metrics
	none.Created("ok", 0)
	none.Ended("oom")
	none.Flow("tcp", "allow", 1, 1)
	none.Proxied("agent", 200, 0)
	none.Request(200, 0)
	none.SetSandboxes(nil)
}
