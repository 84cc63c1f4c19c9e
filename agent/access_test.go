package agent_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/signature"
)

func TestBeforeInit(t *testing.T) {
	t.Parallel()
	b := startBare(t)
	code, _, h := b.request(t, "GET", "/health", "")
	if code != 204 || h.Get("Cache-Control") != "no-store" {
		t.Errorf("GET /health = %d, %v", code, h)
	}
	for _, path := range []string{"/envs", "/metrics", "/files?path=/etc/hostname", "/process.Process/List", "/nothing"} {
		if code, body, _ := b.request(t, "GET", path, "", "X-Access-Token", ""); code != 503 {
			t.Errorf("GET %s before init = %d %s, want 503", path, code, body)
		}
	}
	health, err := b.control.Health(t.Context())
	if err != nil || health.Ready {
		t.Errorf("Health() = %+v, %v, want not ready", health, err)
	}
}

func TestAccess(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	if err := os.WriteFile(filepath.Join(b.home, "f"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := "/files?path=" + url.QueryEscape(filepath.Join(b.home, "f"))
	const rpc = "/process.Process/List"
	json := []string{"Content-Type", "application/json"}
	tests := []struct {
		name, method, path, body string
		header                   []string
		want                     int
		text                     string
	}{
		{"health needs nothing", "GET", "/health", "", nil, 204, ""},
		{"rpc without token", "POST", rpc, "{}", json, 401, `"code":401`},
		{"rpc with wrong token", "POST", rpc, "{}", append(json, "X-Access-Token", token+"x"), 401, `"code":401`},
		{"rpc with token", "POST", rpc, "{}", append(json, "X-Access-Token", token), 200, ""},
		{"signature is no right to an rpc", "POST", rpc + "?signature=" + url.QueryEscape(signature.Sign("", signature.Write, "", token, "")), "{}", json, 401, ""},
		{"envs without token", "GET", "/envs", "", nil, 401, ""},
		{"metrics without token", "GET", "/metrics", "", nil, 401, ""},
		{"compose without token", "POST", "/files/compose", "{}", nil, 401, ""},
		{"file without token", "GET", file, "", nil, 401, `"code":401`},
		{"file with wrong token", "GET", file, "", []string{"X-Access-Token", "x"}, 401, ""},
		{"file with empty token", "GET", file, "", []string{"X-Access-Token", ""}, 401, ""},
		{"file with token", "GET", file, "", []string{"X-Access-Token", token}, 200, "content"},
		{"put is no method of files", "PUT", file, "", []string{"X-Access-Token", token}, 405, ""},
		{"put without token", "PUT", file, "", nil, 401, ""},
	}
	for _, name := range []string{"init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade"} {
		for _, method := range []string{"GET", "POST", "PUT"} {
			tests = append(tests,
				struct {
					name, method, path, body string
					header                   []string
					want                     int
					text                     string
				}{method + " " + name + " does not exist", method, "/" + name, "", []string{"X-Access-Token", token}, 404, ""},
				struct {
					name, method, path, body string
					header                   []string
					want                     int
					text                     string
				}{method + " " + name + " does not exist without token", method, "/" + name, "", nil, 404, ""})
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, body, _ := b.request(t, tt.method, tt.path, tt.body, tt.header...)
			if code != tt.want || !strings.Contains(body, tt.text) {
				t.Errorf("%s %s = %d %s, want %d %s", tt.method, tt.path, code, body, tt.want, tt.text)
			}
		})
	}
}

func TestSignedLinks(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	path := filepath.Join(b.home, "f")
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	future := fmt.Sprint(time.Now().Add(time.Hour).Unix())
	past := fmt.Sprint(time.Now().Add(-time.Hour).Unix())
	link := func(p, user, sig, expiry string) string {
		q := url.Values{"path": {p}, "signature": {sig}}
		if user != "" {
			q.Set("username", user)
		}
		if expiry != "" {
			q.Set("signature_expiration", expiry)
		}
		return "/files?" + q.Encode()
	}
	sign := func(p, user, expiry string) string { return signature.Sign(p, signature.Read, user, token, expiry) }
	tests := []struct {
		name, link string
		header     []string
		want       int
		body       string
	}{
		{"good", link(path, "", sign(path, "", ""), ""), nil, 200, "content"},
		{"good with user", link(path, "root", sign(path, "root", ""), ""), nil, 200, "content"},
		{"good until later", link(path, "", sign(path, "", future), future), nil, 200, "content"},
		{"expired", link(path, "", sign(path, "", past), past), nil, 401, `{"code":401,"message":"signature is already expired"}`},
		{"extended by the bearer", link(path, "", sign(path, "", past), future), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"expiry dropped", link(path, "", sign(path, "", past), ""), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"expiry no number", link(path, "", sign(path, "", ""), "never"), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"other path", link("/etc/passwd", "", sign(path, "", ""), ""), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"other user", link(path, "daemon", sign(path, "", ""), ""), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"write signature", link(path, "", signature.Sign(path, signature.Write, "", token, ""), ""), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"other token", link(path, "", signature.Sign(path, signature.Read, "", "another", ""), ""), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"garbage", link(path, "", "v1_x", ""), nil, 401, `{"code":401,"message":"invalid signature"}`},
		{"wrong token beats a good signature", link(path, "", sign(path, "", ""), ""), []string{"X-Access-Token", "x"}, 401, ""},
		{"good token beats a bad signature", link(path, "", "v1_x", ""), []string{"X-Access-Token", token}, 200, "content"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, body, _ := b.request(t, "GET", tt.link, "", tt.header...)
			if code != tt.want || tt.body != "" && strings.TrimSpace(body) != tt.body {
				t.Errorf("got %d %s, want %d %s", code, body, tt.want, tt.body)
			}
		})
	}
}

func TestFreeze(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	with := []string{"X-Access-Token", token}
	if code, _, _ := b.request(t, "GET", "/envs", "", with...); code != 200 {
		t.Fatalf("GET /envs = %d", code)
	}
	if err := b.control.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := b.request(t, "GET", "/envs", "", with...); code != 503 {
		t.Errorf("GET /envs when frozen = %d, want 503", code)
	}
	if code, _, _ := b.request(t, "GET", "/health", ""); code != 204 {
		t.Errorf("GET /health when frozen = %d, want 204", code)
	}
	in := b.init
	in.AccessToken, in.EnvVars = "another", map[string]string{"GLOBAL": "two"}
	if err := b.control.Init(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := b.request(t, "GET", "/envs", "", with...); code != 401 {
		t.Errorf("GET /envs with the token from before = %d, want 401", code)
	}
	code, body, _ := b.request(t, "GET", "/envs", "", "X-Access-Token", "another")
	if code != 200 || !strings.Contains(body, `"GLOBAL":"two"`) || strings.Contains(body, "HOME_LESS") {
		t.Errorf("GET /envs = %d %s, want the new variables only", code, body)
	}
}

func TestInitWithoutToken(t *testing.T) {
	t.Parallel()
	b := startBare(t)
	if err := b.control.Init(t.Context(), control.Init{SandboxID: "i"}); err == nil {
		t.Error("Init without a token succeeded")
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	code, _, h := b.request(t, "OPTIONS", "/process.Process/Start", "",
		"Origin", "https://example.com", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-access-token")
	if code != 204 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Max-Age") != "7200" ||
		h.Get("Access-Control-Allow-Headers") != "authorization,x-access-token" || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "PATCH") {
		t.Errorf("preflight = %d %v", code, h)
	}
	_, _, h = b.request(t, "GET", "/health", "", "Origin", "https://example.com")
	if !strings.Contains(h.Get("Access-Control-Expose-Headers"), "Grpc-Status") {
		t.Errorf("exposed headers = %q", h.Get("Access-Control-Expose-Headers"))
	}
}

func TestMetricsAndEnvs(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	code, body, _ := b.request(t, "GET", "/metrics", "", "X-Access-Token", token)
	for _, key := range []string{"ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "mem_total_mib", "mem_used_mib", "disk_used", "disk_total"} {
		if code != http.StatusOK || !strings.Contains(body, `"`+key+`":`) {
			t.Errorf("GET /metrics = %d %s, want %q", code, body, key)
		}
	}
	_, body, _ = b.request(t, "GET", "/envs", "", "X-Access-Token", token)
	for _, pair := range []string{`"E2B_SANDBOX":"true"`, `"E2B_SANDBOX_ID":"i0"`, `"E2B_TEMPLATE_ID":"base"`, `"E2B_EVENTS_ADDRESS":"http://192.0.2.1"`, `"GLOBAL":"one"`} {
		if !strings.Contains(body, pair) {
			t.Errorf("GET /envs = %s, want %s", body, pair)
		}
	}
}
