package api_test

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/template"
)

type detail struct {
	created

	State               string
	StartedAt, EndAt    time.Time
	CPUCount            int32
	MemoryMB            int64
	DiskSizeMB          int64
	Metadata            map[string]string
	AllowInternetAccess *bool
	Network             struct {
		AllowPublicTraffic bool
		AllowOut, DenyOut  []string
		MaskRequestHost    string
	}
	Lifecycle struct {
		AutoResume bool
		OnTimeout  string
	}
}

func (s *stack) detail(t *testing.T, c created) detail {
	t.Helper()
	r := s.call(t, "GET", c.path(""), nil)
	r.wants(t, "GET sandbox", 200, "")
	var d detail
	r.into(t, &d)
	return d
}

func (d detail) life() time.Duration { return d.EndAt.Sub(d.StartedAt).Round(time.Second) }

func TestCreateGetKill(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, map[string]any{
		"metadata": map[string]string{"a": "b"}, "allow_internet_access": false, "secure": false,
		"mcp": map[string]any{"x": 1}, "somethingNew": []int{1}, "autoPause": false, "autoResume": map[string]bool{"enabled": false},
		"network": map[string]any{"rules": map[string]any{}, "egressProxy": nil}, "volumeMounts": []any{},
		"envVars": map[string]string{"K": "V"},
	})
	if len(c.EnvdAccessToken) != 64 || c.EnvdVersion != "0.6.13" || c.ClientID != "local" || c.Alias != "base" {
		t.Errorf("create answered %+v", c)
	}
	if c.Domain == nil || *c.Domain != "box.example:3000" || c.TrafficAccessToken != nil {
		t.Errorf("domain %v, traffic token %v", c.Domain, c.TrafficAccessToken)
	}
	d := s.detail(t, c)
	if d.State != "running" || d.EnvdAccessToken != c.EnvdAccessToken || d.life() != 300*time.Second || d.Lifecycle.OnTimeout != "kill" {
		t.Errorf("details = %+v", d)
	}
	if d.AllowInternetAccess == nil || *d.AllowInternetAccess || !d.Network.AllowPublicTraffic {
		t.Errorf("network in details = %+v", d)
	}
	if diff := cmp.Diff(map[string]string{"a": "b"}, d.Metadata); diff != "" {
		t.Error(diff)
	}
	if d.CPUCount != 1 || d.MemoryMB != 512 || d.DiskSizeMB != 1024 {
		t.Errorf("resources = %d %d %d", d.CPUCount, d.MemoryMB, d.DiskSizeMB)
	}
	s.call(t, "GET", "/sandboxes/"+c.SandboxID+"-"+c.ClientID, nil).wants(t, "GET id-client", 200, "")

	// The agent really answers, behind its token.
	req, _ := http.NewRequestWithContext(t.Context(), "GET", s.url+"/envs", nil)
	req.Header.Set("E2b-Sandbox-Id", c.SandboxID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("X-Access-Token", c.EnvdAccessToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("agent through the data plane = %d", resp.StatusCode)
	}

	r := s.call(t, "DELETE", c.path(""), nil)
	if r.status != 204 || r.text != "" {
		t.Errorf("kill = %d %q", r.status, r.text)
	}
	s.call(t, "DELETE", c.path(""), nil).wants(t, "second kill", 404, c.SandboxID)
	s.call(t, "GET", c.path(""), nil).wants(t, "GET after kill", 404, c.SandboxID)
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	r := s.call(t, "POST", "/sandboxes", map[string]any{"templateID": "base"})
	r.wants(t, "v1 create", 201, "")
	var v1 created
	r.into(t, &v1)
	if got := s.detail(t, v1).life(); got != 15*time.Second {
		t.Errorf("v1 default = %v, want 15s", got)
	}
	c := s.create(t, map[string]any{"timeout": 100})
	left := func() time.Duration { return time.Until(s.detail(t, c).EndAt).Round(time.Minute) }
	for _, step := range []struct {
		name, path string
		body       any
		status     int
		left       time.Duration
	}{
		{"connect extends", "/v2" + c.path("/connect"), map[string]any{"timeout": 600}, 200, 10 * time.Minute},
		{"connect never shortens", "/v2" + c.path("/connect"), map[string]any{"timeout": 10}, 200, 10 * time.Minute},
		{"connect v2 without a body", "/v2" + c.path("/connect"), nil, 200, 10 * time.Minute},
		{"connect v1", c.path("/connect"), map[string]any{"timeout": 1200}, 200, 20 * time.Minute},
		{"connect v1 without timeout", c.path("/connect"), map[string]any{}, 400, 20 * time.Minute},
		{"connect v1 without a body", c.path("/connect"), nil, 400, 20 * time.Minute},
		{"connect too long", c.path("/connect"), map[string]any{"timeout": 3601}, 400, 20 * time.Minute},
		{"refresh extends", c.path("/refreshes"), map[string]any{"duration": 1800}, 204, 30 * time.Minute},
		{"refresh never shortens", c.path("/refreshes"), map[string]any{"duration": 0}, 204, 30 * time.Minute},
		{"refresh without a body", c.path("/refreshes"), nil, 204, 30 * time.Minute},
		{"refresh too long", c.path("/refreshes"), map[string]any{"duration": 3601}, 400, 30 * time.Minute},
		{"refresh negative", c.path("/refreshes"), map[string]any{"duration": -1}, 400, 30 * time.Minute},
		{"timeout shortens", c.path("/timeout"), map[string]any{"timeout": 120}, 204, 2 * time.Minute},
		{"timeout missing", c.path("/timeout"), map[string]any{}, 400, 2 * time.Minute},
		{"timeout negative", c.path("/timeout"), map[string]any{"timeout": -1}, 400, 2 * time.Minute},
		{"timeout above the maximum", c.path("/timeout"), map[string]any{"timeout": 2147483647}, 400, 2 * time.Minute},
	} {
		s.call(t, "POST", step.path, step.body).wants(t, step.name, step.status, "")
		if got := left(); got != step.left {
			t.Errorf("after %s: %v left, want %v", step.name, got, step.left)
		}
	}
}

func TestRefusedCreates(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	base := func(field string, v any) map[string]any { return map[string]any{"templateID": "base", field: v} }
	network := func(field string, v any) map[string]any { return base("network", map[string]any{field: v}) }
	for _, tc := range []struct {
		name   string
		body   any
		status int
		text   string
	}{
		{"empty", "", 400, "validation error"},
		{"cut off", `{"templateID": `, 400, "validation error"},
		{"malformed", `{"templateID": base}`, 400, "at byte"},
		{"a list", `[]`, 400, "validation error: body"},
		{"no template", map[string]any{}, 400, "validation error: templateID"},
		{"template of a wrong type", base("templateID", 7), 400, "validation error: templateID"},
		{"template that is no name", base("templateID", "a b/c"), 400, "templateID"},
		{"unknown template", base("templateID", "nosuch"), 404, "nosuch"},
		{"unknown tag", base("templateID", "nosuch:v1"), 404, "nosuch:v1"},
		{"timeout of a wrong type", base("timeout", "soon"), 400, "timeout"},
		{"timeout not whole", base("timeout", 1.5), 400, "timeout: must be a whole number of at most 2147483647, is 1.5"},
		{"no JSON", "nonsense", 400, "not valid JSON: it goes wrong at byte 2"},
		{"autoPause of a wrong type", base("autoPause", "x"), 400, "autoPause: must be true or false, is a string"},
		{"timeout zero", base("timeout", 0), 400, "timeout"},
		{"timeout negative", base("timeout", -5), 400, "timeout"},
		{"timeout above the maximum", base("timeout", 3601), 400, "3600"},
		{"timeout too big for its type", base("timeout", 1<<40), 400, "timeout"},
		{"metadata of a wrong type", base("metadata", map[string]any{"a": 1}), 400, "metadata"},
		{"env of a wrong type", base("envVars", []string{"A=1"}), 400, "envVars"},
		{"env name", base("envVars", map[string]string{"A=B": "1"}), 400, "envVars"},
		{"env with NUL", base("envVars", map[string]string{"A": "x\x00y"}), 400, "envVars"},
		{"autoResume without memory", map[string]any{"templateID": "base", "autoPause": true, "autoPauseMemory": false, "autoResume": map[string]bool{"enabled": true}}, 400, "autoResume"},
		{"volumeMounts", base("volumeMounts", []any{map[string]string{"name": "v", "path": "/d"}}), 400, "volumeMounts"},
		{"iam", base("iam", map[string]any{"tokens": map[string]any{"a": map[string]any{}}}), 400, "iam"},
		{"rules", network("rules", map[string]any{"example.com": []any{}}), 400, "network.rules"},
		{"egressProxy", network("egressProxy", map[string]string{"address": "p:1080"}), 400, "network.egressProxy"},
		{"httpsPorts", network("httpsPorts", []int{443}), 400, "network.httpsPorts"},
		{"mask", network("maskRequestHost", "a b/"), 400, "maskRequestHost"},
		{"deny a name", network("denyOut", []string{"example.com"}), 400, "example.com"},
		{"bad CIDR", network("denyOut", []string{"1.2.3.4/64"}), 400, "1.2.3.4/64"},
		{"bad domain", network("allowOut", []string{"exa mple"}), 400, "exa mple"},
		{"domain with NUL", network("allowOut", []string{"a\x00.example"}), 400, "allowOut"},
	} {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			s.call(t, "POST", path, tc.body).wants(t, path+" "+tc.name, tc.status, tc.text)
		}
	}
	r := s.call(t, "POST", "/v2/sandboxes", base("metadata", map[string]string{"big": strings.Repeat("x", 17<<20)}))
	r.wants(t, "oversize", 413, "larger than 16 MiB")
	if !strings.Contains(r.text, `"error_code":"body_too_large"`) {
		t.Errorf("oversize answered %s", r.text)
	}
	var list []any
	s.call(t, "GET", "/v2/sandboxes", nil).into(t, &list)
	if len(list) != 0 {
		t.Errorf("refused creates left %v", list)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	a := s.create(t, map[string]any{"metadata": map[string]string{"run": "1", "a b": "x&y=%+/ü"}})
	b := s.create(t, map[string]any{"metadata": map[string]string{"run": "1"}})
	since := s.detail(t, b).StartedAt.Truncate(time.Millisecond).Format("2006-01-02T15:04:05.000Z")
	twice := func(pairs ...string) string {
		var parts []string
		for i := 0; i < len(pairs); i += 2 {
			parts = append(parts, url.QueryEscape(pairs[i])+"="+url.QueryEscape(pairs[i+1]))
		}
		return "metadata=" + url.QueryEscape(strings.Join(parts, "&"))
	}
	for _, tc := range []struct {
		query string
		want  []string
	}{
		{"", []string{b.SandboxID, a.SandboxID}},
		{"order=asc", []string{a.SandboxID, b.SandboxID}},
		{"order=desc&state=running,paused", []string{b.SandboxID, a.SandboxID}},
		{"state=running%2Cpaused", []string{b.SandboxID, a.SandboxID}},
		{"state=paused", []string{}},
		{twice("run", "1"), []string{b.SandboxID, a.SandboxID}},
		{twice("run", "1", "a b", "x&y=%+/ü"), []string{a.SandboxID}},
		{"metadata=run%3D1%26a%2520b%3Dx%2526y%253D%2525%252B%252F%25C3%25BC", []string{a.SandboxID}},
		{twice("run", "2"), []string{}},
		{"template=base", []string{b.SandboxID, a.SandboxID}},
		{"template=" + a.TemplateID, []string{b.SandboxID, a.SandboxID}},
		{"template=nosuch", []string{}},
		{"startedAfter=" + since, []string{b.SandboxID}},
		{"startedAfter=2000-01-01T00:00:00+02:00", []string{b.SandboxID, a.SandboxID}},
	} {
		r := s.call(t, "GET", "/v2/sandboxes?"+tc.query, nil)
		r.wants(t, "list "+tc.query, 200, "")
		var list []detail
		r.into(t, &list)
		got := []string{}
		for _, l := range list {
			got = append(got, l.SandboxID)
			if l.EnvdAccessToken != "" {
				t.Error("a list shows tokens")
			}
		}
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("list %s (-want +got):\n%s", tc.query, d)
		}
	}
	first := s.call(t, "GET", "/v2/sandboxes?limit=1&order=asc", nil)
	token := first.header.Get("X-Next-Token")
	if token == "" || first.header.Get("X-Total-Running") != "2" || !strings.Contains(first.text, a.SandboxID) {
		t.Errorf("first page: %v %s", first.header, first.text)
	}
	second := s.call(t, "GET", "/v2/sandboxes?limit=1&order=asc&nextToken="+url.QueryEscape(token), nil)
	if second.header.Get("X-Next-Token") != "" || !strings.Contains(second.text, b.SandboxID) {
		t.Errorf("second page: %v %s", second.header, second.text)
	}
	if r := s.call(t, "GET", "/v2/sandboxes?state=paused", nil); r.header.Get("X-Total-Running") != "" {
		t.Error("X-Total-Running although running was not asked for")
	}
	for query, text := range map[string]string{
		"limit=0": "limit", "limit=101": "limit", "limit=many": "limit", "state=asleep": "state", "order=up": "order",
		"startedAfter=yesterday": "startedAfter", "template=base%3Av1": "template", "nextToken=%21%21": "",
		"metadata=novalue": "metadata", "metadata=a%3Db%3Dc": "metadata", "metadata=a%3D%25zz": "metadata",
	} {
		s.call(t, "GET", "/v2/sandboxes?"+query, nil).wants(t, "list "+query, 400, text)
	}
	var v1 []detail
	s.call(t, "GET", "/sandboxes?"+twice("run", "1"), nil).into(t, &v1)
	if len(v1) != 2 || v1[0].SandboxID != b.SandboxID {
		t.Errorf("v1 list = %+v", v1)
	}
}

func TestAnotherTeamSeesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	for _, call := range []struct {
		method, path string
		body         any
	}{
		{"GET", c.path(""), nil},
		{"DELETE", c.path(""), nil},
		{"POST", c.path("/timeout"), map[string]int{"timeout": 1}},
		{"POST", c.path("/refreshes"), nil},
		{"POST", c.path("/connect"), map[string]int{"timeout": 1}},
		{"POST", "/v2" + c.path("/connect"), nil},
		{"PUT", c.path("/network"), map[string]any{}},
		{"GET", "/native/v1" + c.path(""), nil},
		{"DELETE", "/native/v1" + c.path(""), nil},
		{"POST", "/native/v1" + c.path("/timeout"), map[string]int{"timeoutSeconds": 1}},
		{"PUT", "/native/v1" + c.path("/network"), map[string]any{}},
		{"GET", "/native/v1" + c.path("/egress"), nil},
		{"GET", "/native/v1" + c.path("/events"), nil},
		{"GET", "/native/v1" + c.path("/events?follow=true"), nil},
		{"POST", "/native/v1/egress/check", map[string]any{"host": "x.example", "port": 443, "sandboxID": c.SandboxID}},
	} {
		s.callAs(t, s.other, call.method, call.path, call.body).wants(t, call.method+" "+call.path, 404, c.SandboxID)
	}
	for _, path := range []string{"/v2/sandboxes", "/sandboxes", "/native/v1/sandboxes"} {
		if r := s.callAs(t, s.other, "GET", path, nil); strings.Contains(r.text, c.SandboxID) {
			t.Errorf("%s shows another team's sandbox", path)
		}
	}
	if d := s.detail(t, c); d.State != "running" {
		t.Errorf("after the other team's calls: %+v", d)
	}
}

// A sandbox whose template has private ports comes with the token for them.
func TestPrivatePorts(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	s.addBuild(t, template.Template{ID: "browser0000000000000", Team: identity.DefaultTeam, Public: true, Names: []string{template.BrowserName}},
		"00000000-0000-4000-8000-00000000b0b0")
	c := s.create(t, map[string]any{"templateID": template.BrowserName})
	if c.TrafficAccessToken == nil || len(*c.TrafficAccessToken) != 64 {
		t.Errorf("traffic token of the create = %v", c.TrafficAccessToken)
	}
	s.call(t, "POST", c.path("/connect"), map[string]any{"timeout": 60}).wants(t, "connect", 200, `"trafficAccessToken":"`)
	s.call(t, "GET", "/native/v1"+c.path(""), nil).wants(t, "native", 200, `"trafficToken":"`)
	if d := s.detail(t, c); !d.Network.AllowPublicTraffic {
		t.Errorf("its other ports are private: %+v", d.Network)
	}
}

func TestNetworkUpdate(t *testing.T) {
	t.Parallel()
	s := start(t, settings{egressDefault: egress.Allow})
	c := s.create(t, map[string]any{"network": map[string]any{"allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}", "denyOut": []string{"198.51.100.0/24"}}})
	if c.TrafficAccessToken == nil || len(*c.TrafficAccessToken) != 64 {
		t.Errorf("traffic token = %v", c.TrafficAccessToken)
	}
	put := func(body any) reply { return s.call(t, "PUT", c.path("/network"), body) }
	put(map[string]any{"allowOut": []string{"pypi.org"}}).wants(t, "a name without deny all", 400, "denyOut")
	put(map[string]any{"denyOut": []string{"example.com"}}).wants(t, "deny a name", 400, "example.com")
	put(map[string]any{"rules": map[string]any{"x.example": []any{}}}).wants(t, "rules", 400, "rules")
	put(`{"allowOut": "x"}`).wants(t, "wrong type", 400, "allowOut")
	if d := s.detail(t, c); !cmp.Equal(d.Network.DenyOut, []string{"198.51.100.0/24"}) {
		t.Errorf("refused updates changed the network: %+v", d.Network)
	}
	put(map[string]any{"allowOut": []string{"pypi.org"}, "denyOut": []string{"0.0.0.0/0"}}).wants(t, "update", 204, "")
	d := s.detail(t, c)
	if !cmp.Equal(d.Network.AllowOut, []string{"pypi.org"}) || d.Network.AllowPublicTraffic || d.Network.MaskRequestHost != "localhost:${PORT}" {
		t.Errorf("after the update: %+v", d.Network)
	}
	put(map[string]any{}).wants(t, "clear", 204, "")
	if d := s.detail(t, c); len(d.Network.AllowOut)+len(d.Network.DenyOut) != 0 {
		t.Errorf("after clearing: %+v", d.Network)
	}
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	for _, path := range []string{"/templates", "/v2/templates", "/templates?teamID=default"} {
		r := s.call(t, "GET", path, nil)
		r.wants(t, path, 200, "")
		var list []struct {
			TemplateID, BuildStatus string
			Names, Aliases          []string
		}
		r.into(t, &list)
		if len(list) != 1 || list[0].TemplateID != c.TemplateID || !cmp.Equal(list[0].Names, []string{"default/base"}) || list[0].BuildStatus != "ready" {
			t.Errorf("%s = %s", path, r.text)
		}
	}
	s.call(t, "GET", "/templates?teamID=other", nil).wants(t, "other team's templates", 400, "teamID")
	for _, ref := range []string{"base", c.TemplateID, "default%2Fbase", "base%3Adefault", "default%2Fbase%3Adefault", "BASE"} {
		r := s.call(t, "GET", "/templates/aliases/"+ref, nil)
		if r.status != 200 || !strings.Contains(r.text, c.TemplateID) {
			t.Errorf("alias %s = %d %s", ref, r.status, r.text)
		}
		s.call(t, "GET", "/templates/"+ref, nil).wants(t, "template "+ref, 200, "")
	}
	for _, ref := range []string{"nosuch", "other%2Fbase", "base%3Av1"} {
		s.call(t, "GET", "/templates/aliases/"+ref, nil).wants(t, "alias "+ref, 404, "")
	}
	s.call(t, "GET", "/templates/aliases/a%20b", nil).wants(t, "bad alias", 400, "alias")
	s.callAs(t, s.other, "DELETE", "/templates/base", nil).wants(t, "another team deletes", 403, "")
	s.call(t, "DELETE", "/templates/base", nil).wants(t, "delete in use", 400, "in use")
	s.call(t, "DELETE", c.path(""), nil).wants(t, "kill", 204, "")
	s.call(t, "DELETE", "/templates/base", nil).wants(t, "delete", 204, "")
	s.call(t, "DELETE", "/templates/base", nil).wants(t, "delete again", 404, "base")
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	for name, key := range map[string]string{"missing": "", "junk": "junk", "unknown": "e2b_" + strings.Repeat("0", 40)} {
		for _, path := range []string{"/v2/sandboxes", "/teams", "/no/such", "/native/v1/status", "/sandboxes/ix/pause"} {
			s.callAs(t, key, "GET", path, nil).wants(t, name+" key on "+path, 401, "API key")
		}
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", s.url+"/teams", nil)
	req.Header.Set("Authorization", "bearer "+s.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("Bearer = %d, want 200", resp.StatusCode)
	}
}

func TestHealthNeedsNoKey(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	s.callAs(t, "", "GET", "/health", nil).wants(t, "health", 200, "")
	s.mu.Lock()
	s.healthy = errors.New("the engine does not answer: run caisson doctor")
	s.mu.Unlock()
	s.callAs(t, "", "GET", "/health", nil).wants(t, "health when sick", 503, "run caisson doctor")
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	slow := func(burst int) *identity.Limiter { return identity.NewLimiter(0.001, burst) }
	s := start(t, settings{rate: slow(3), failures: slow(2)})
	for i, left := range []string{"2", "1", "0"} {
		if got := s.call(t, "GET", "/teams", nil).header.Get("RateLimit-Remaining"); got != left {
			t.Errorf("request %d: RateLimit-Remaining %q, want %q", i, got, left)
		}
	}
	r := s.call(t, "GET", "/teams", nil)
	r.wants(t, "fourth request", 429, "retry after")
	for _, h := range []string{"Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"} {
		if v := r.header.Get(h); v == "" || strings.Trim(v, "0123456789") != "" {
			t.Errorf("%s = %q, want an integer", h, v)
		}
	}
	s.callAs(t, s.other, "GET", "/teams", nil).wants(t, "another key", 200, "")
	for range 2 {
		s.callAs(t, "junk", "GET", "/teams", nil).wants(t, "wrong key", 401, "")
	}
	s.callAs(t, "junk", "GET", "/teams", nil).wants(t, "too many wrong keys", 429, "")
}

func TestCreateLimits(t *testing.T) {
	t.Parallel()
	s := start(t, settings{creates: identity.NewLimiter(0.001, 2), maxPerTeam: 1})
	made := s.create(t, nil)
	s.call(t, "POST", "/v2/sandboxes", map[string]string{"templateID": "base"}).wants(t, "second sandbox of the team", 429, "")
	r := s.call(t, "POST", "/v2/sandboxes", map[string]string{"templateID": "base"})
	r.wants(t, "third create", 429, "retry after")
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	// A fork is a create, too.
	s.call(t, "POST", made.path("/fork"), map[string]any{}).wants(t, "fork", 429, "retry after")
	s.call(t, "POST", "/native/v1/sandboxes/"+made.SandboxID+"/fork", map[string]any{}).wants(t, "native fork", 429, "retry after")
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	for _, call := range [][2]string{
		{"POST", "/templates"},
		{"GET", "/volumes"},
		{"POST", "/secrets"},
		{"POST", "/templates/x/builds/y"},
	} {
		s.call(t, call[0], call[1], nil).wants(t, call[0]+" "+call[1], 501, "not built yet")
	}
	s.call(t, "GET", "/no/such/route", nil).wants(t, "unknown route", 404, "/no/such/route")
	s.call(t, "PATCH", "/v2/sandboxes", nil).wants(t, "unknown method", 404, "PATCH")
	s.call(t, "GET", "/native/v1/nothing", nil).wants(t, "unknown native route", 404, "nothing")
	for _, id := range []string{"inope", "..%2f..", "I", "%00", "a%2Fb"} {
		s.call(t, "GET", "/sandboxes/"+id, nil).wants(t, "id "+id, 404, "")
		s.call(t, "GET", "/native/v1/sandboxes/"+id, nil).wants(t, "native id "+id, 404, "")
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	req, _ := http.NewRequestWithContext(t.Context(), "OPTIONS", s.url+"/v2/sandboxes", nil)
	req.Header.Set("Origin", "https://app.example")
	req.Header.Set("Access-Control-Request-Method", "POST")
	req.Header.Set("Access-Control-Request-Headers", "x-api-key,content-type")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(resp.Header.Get("Access-Control-Allow-Headers"), "X-API-Key") {
		t.Errorf("preflight = %d %v", resp.StatusCode, resp.Header)
	}
	r := s.call(t, "GET", "/v2/sandboxes", nil)
	if !strings.Contains(r.header.Get("Access-Control-Expose-Headers"), "X-Next-Token") || r.header.Get("X-Request-Id") == "" {
		t.Errorf("headers = %v", r.header)
	}
}

func TestRefusedParameters(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	egress := "/native/v1/sandboxes/" + c.SandboxID + "/egress"
	for path, text := range map[string]string{
		"/v2/sandboxes?limit=x":                    `limit: must be a whole number, is "x"`,
		"/v2/sandboxes?limit=99999999999":          "limit: is too large a number",
		"/v2/sandboxes?limit=99999999999999999999": "limit: is too large a number",
		"/v2/sandboxes?limit=1&limit=2":            "limit: is given 2 times",
		"/v2/sandboxes?nextToken=zz":               "nextToken: is not one that this listing gave",
		"/v2/templates?limit=abc":                  `limit: must be a whole number, is "abc"`,
		"/native/v1/sandboxes?limit=x":             `limit: must be a whole number, is "x"`,
		"/native/v1/sandboxes?nextToken=zz":        "nextToken: is not one that this listing gave",
		egress + "?after=x":                        `after: must be a whole number, is "x"`,
		egress + "?follow=maybe":                   `follow: must be true or false, is "maybe"`,
	} {
		s.call(t, "GET", path, nil).wants(t, path, 400, text)
	}
}
