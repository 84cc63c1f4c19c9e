package api_test

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/template"
)

type nativeBox struct {
	ID, Name, State, Reason, TemplateName, AgentToken, TrafficToken, Domain string
	Resources                                                               struct{ MemoryMiB, CPUs int64 }
	Egress                                                                  struct {
		Default string
		Rules   []struct {
			Hosts         []string
			Verdict, Note string
		}
	}
	Metadata           map[string]string
	CreatedAt, EndsAt  time.Time
	StartedAt, EndedAt *time.Time
}

func (s *stack) nativeCreate(t *testing.T, body map[string]any) nativeBox {
	t.Helper()
	r := s.call(t, "POST", "/native/v1/sandboxes", body)
	r.wants(t, "native create", 201, "")
	var b nativeBox
	r.into(t, &b)
	return b
}

func TestNativeLifecycle(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b := s.nativeCreate(t, map[string]any{
		"name": "worker", "timeoutSeconds": 120, "metadata": map[string]string{"a": "b"}, "env": map[string]string{"A": "1"},
		"network": map[string]any{"allowOut": []string{"example.com"}, "privateTraffic": true},
		"egress":  map[string]any{"presets": []string{"pypi"}}, "resources": map[string]any{"memoryMiB": 256, "cpus": 2},
	})
	if b.State != "running" || b.Name != "worker" || b.TemplateName != "base" || len(b.AgentToken) != 64 || len(b.TrafficToken) != 64 || b.Domain != "box.example:3000" {
		t.Errorf("created = %+v", b)
	}
	if b.Resources.MemoryMiB != 256 || b.Resources.CPUs != 2 || b.EndsAt.Sub(*b.StartedAt).Round(time.Second) != 2*time.Minute {
		t.Errorf("created = %+v", b)
	}
	if len(b.Egress.Rules) != 1 || b.Egress.Default != "deny" || !strings.Contains(strings.Join(b.Egress.Rules[0].Hosts, " "), "pypi.org") {
		t.Errorf("effective policy = %+v", b.Egress)
	}
	path := "/native/v1/sandboxes/" + b.ID
	r := s.call(t, "POST", path+"/timeout", map[string]any{"timeoutSeconds": 60, "extendOnly": true})
	var got nativeBox
	if r.into(t, &got); !got.EndsAt.Equal(b.EndsAt) {
		t.Errorf("extendOnly moved the end to %v", got.EndsAt)
	}
	r = s.call(t, "POST", path+"/timeout", map[string]any{"timeoutSeconds": 30})
	if r.into(t, &got); !got.EndsAt.Before(b.EndsAt) {
		t.Errorf("timeout did not shorten: %v", got.EndsAt)
	}
	r = s.call(t, "PUT", path+"/network", map[string]any{"network": map[string]any{"allowInternet": false}})
	r.wants(t, "network", 200, "")
	for name, body := range map[string]any{
		"timeoutSeconds": map[string]any{"timeoutSeconds": 100000}, "least": map[string]any{"timeoutSeconds": -1},
	} {
		s.call(t, "POST", path+"/timeout", body).wants(t, name, 400, "timeoutSeconds")
	}
	s.call(t, "PUT", path+"/network", map[string]any{"network": map[string]any{"privateTraffic": true}}).wants(t, "create-only member", 400, "creation")

	list := s.call(t, "GET", "/native/v1/sandboxes?name=worker", nil)
	if !strings.Contains(list.text, b.ID) || strings.Contains(list.text, "agentToken") {
		t.Errorf("list = %s", list.text)
	}
	if r := s.call(t, "GET", "/native/v1/sandboxes?name=other", nil); r.text != "[]\n" {
		t.Errorf("list by another name = %s", r.text)
	}
	s.call(t, "GET", "/native/v1/sandboxes?state=asleep", nil).wants(t, "state", 400, "state")

	s.call(t, "DELETE", path, nil).wants(t, "kill", 204, "")
	s.call(t, "DELETE", path, nil).wants(t, "kill again", 404, b.ID)
	r = s.call(t, "GET", path, nil)
	r.wants(t, "an ended sandbox", 200, "")
	got = nativeBox{}
	if r.into(t, &got); got.State != "killed" || got.Reason != "killed" || got.EndedAt == nil || got.AgentToken != "" {
		t.Errorf("ended = %+v", got)
	}
	if r := s.call(t, "GET", "/native/v1/sandboxes?state=killed,failed", nil); !strings.Contains(r.text, b.ID) {
		t.Errorf("list of ended = %s", r.text)
	}
}

func TestNativeRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	for _, tc := range []struct {
		path   string
		body   any
		status int
		text   string
	}{
		{"/sandboxes", `{"name":`, 400, "validation error"},
		{"/sandboxes", map[string]any{"timeoutSeconds": 0}, 400, "timeoutSeconds"},
		{"/sandboxes", map[string]any{"template": "nosuch"}, 404, "nosuch"},
		{"/sandboxes", map[string]any{"egress": map[string]any{"presets": []string{"nosuch"}}}, 400, "pypi"},
		{"/sandboxes", map[string]any{"network": map[string]any{"denyOut": []string{"x.example"}}}, 400, "denyOut"},
		{"/sandboxes", map[string]any{"name": "a\x1bb"}, 400, "name"},
		{"/sandboxes", map[string]any{"resources": map[string]any{"memoryMiB": -1}}, 400, "memoryMiB"},
		{"/sandboxes", map[string]any{"template": "a b"}, 400, `template: "a b" is not [namespace/]name[:tag]`},
		{"/sandboxes", map[string]any{"network": map[string]any{"maskRequestHost": "a b"}}, 400, "network.maskRequestHost"},
		{"/sandboxes", map[string]any{"metadata": map[string]string{"big": strings.Repeat("x", 17<<20)}}, 413, "larger than 16 MiB"},
		{"/sandboxes", []int{1}, 400, "body: must be an object, is an array"},
		{"/keys", map[string]any{"name": strings.Repeat("x", 200)}, 400, "name: must be printable text of at most 128 bytes"},
		{"/keys", map[string]any{}, 400, "name"},
		{"/keys", map[string]any{"name": "x", "team": "other"}, 403, "team"},
		{"/egress/check", map[string]any{"host": "x.example", "port": 0}, 400, "port"},
		{"/egress/check", map[string]any{"host": "x y", "port": 1}, 400, "host"},
	} {
		r := s.call(t, "POST", "/native/v1"+tc.path, tc.body)
		r.wants(t, fmt.Sprintf("%s %.100v", tc.path, tc.body), tc.status, tc.text)
		if !strings.Contains(r.text, "requestID") {
			t.Errorf("%s: no request id in %s", tc.path, r.text)
		}
	}
	for _, name := range []string{"nosuch", "a%20b"} {
		s.call(t, "DELETE", "/native/v1/templates/"+name, nil).wants(t, "delete template", 404, "doesn't exist")
	}
	// A timeout that is left out must not end the sandbox.
	c := s.create(t, nil)
	s.call(t, "POST", "/native/v1"+c.path("/timeout"), map[string]any{}).wants(t, "no timeout", 400, "timeoutSeconds: must be given")
	s.call(t, "GET", c.path(""), nil).wants(t, "after it", 200, "")
}

// TestTemplateLock tells the team what its template is made of, where that is
// known, and other teams nothing.
func TestTemplateLock(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	r := s.call(t, "GET", "/native/v1/templates/base/lock", nil)
	r.wants(t, "lock", 200, `{"arch":"amd64","name":"bash","version":"5.2"}`)
	r.wants(t, "lock", 200, `"npm":"10.9.4"`)
	now := time.Now()
	private := template.Template{ID: "made0000000000000000", Team: identity.DefaultTeam, Names: []string{"made"}, CreatedAt: now, UpdatedAt: now}
	build := template.Build{ID: "00000000-0000-4000-8000-00000000abcd", Template: private.ID, Status: template.Ready, CreatedAt: now, FinishedAt: now}
	if err := s.store.PutTemplate(t.Context(), private, build); err != nil {
		t.Fatal(err)
	}
	s.call(t, "GET", "/native/v1/templates/made/lock", nil).wants(t, "lock of a recipe's", 404, "was not recorded")
	s.callAs(t, s.other, "GET", "/native/v1/templates/made/lock", nil).wants(t, "lock of another team's", 404, "doesn't exist")
	for _, name := range []string{"nosuch", "a%20b"} {
		s.call(t, "GET", "/native/v1/templates/"+name+"/lock", nil).wants(t, "lock of "+name, 404, "doesn't exist")
	}
}

func TestStatusSpecAndCheck(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	var st struct {
		Version, EgressDefault, PublicDomain, Team string
		Health                                     struct {
			OK     bool
			Reason string
		}
		Limits    struct{ MaxTimeoutSeconds int64 }
		Providers []struct {
			Name    string
			Default bool
		}
	}
	s.call(t, "GET", "/native/v1/status", nil).into(t, &st)
	if st.Version != "test" || !st.Health.OK || st.EgressDefault != "deny" || st.Team != "default" || st.Limits.MaxTimeoutSeconds != 3600 || len(st.Providers) != 1 {
		t.Errorf("status = %+v", st)
	}
	s.mu.Lock()
	s.healthy = errors.New("no engine")
	s.mu.Unlock()
	if s.call(t, "GET", "/native/v1/status", nil).into(t, &st); st.Health.OK || st.Health.Reason != "no engine" {
		t.Errorf("status when sick = %+v", st)
	}
	if r := s.callAs(t, "", "GET", "/native/v1/openapi.yaml", nil); r.status != 200 || !strings.HasPrefix(r.text, "openapi: 3") {
		t.Errorf("spec = %d %.40s", r.status, r.text)
	}
	b := s.nativeCreate(t, map[string]any{"network": map[string]any{"allowOut": []string{"*.example.com"}}})
	for host, want := range map[string]string{"a.example.com": "allow", "b.example": "deny", "169.254.169.254": "deny"} {
		var d struct {
			Verdict, Reason, Suggestion string
			Rule                        *struct{ Note string }
		}
		s.call(t, "POST", "/native/v1/egress/check", map[string]any{"host": host, "port": 443, "sandboxID": b.ID}).into(t, &d)
		if d.Verdict != want || d.Reason == "" || (want == "allow") != (d.Rule != nil) {
			t.Errorf("check %s = %+v", host, d)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	var made struct{ ID, Key, Team string }
	r := s.call(t, "POST", "/native/v1/keys", map[string]string{"name": "ci"})
	r.wants(t, "create key", 201, "")
	r.into(t, &made)
	s.callAs(t, made.Key, "GET", "/teams", nil).wants(t, "the new key", 200, "")
	list := s.call(t, "GET", "/native/v1/keys", nil)
	if !strings.Contains(list.text, made.ID) || strings.Contains(list.text, made.Key) || strings.Contains(list.text, `"key"`) {
		t.Errorf("keys = %s", list.text)
	}
	s.callAs(t, s.other, "DELETE", "/native/v1/keys/"+made.ID, nil).wants(t, "another team revokes", 404, made.ID)
	s.call(t, "DELETE", "/native/v1/keys/"+made.ID, nil).wants(t, "revoke", 204, "")
	s.callAs(t, made.Key, "GET", "/teams", nil).wants(t, "a revoked key", 401, "")
	s.call(t, "DELETE", "/native/v1/keys/"+made.ID, nil).wants(t, "revoke again", 404, "")
}

func TestLogs(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b := s.nativeCreate(t, nil)
	path := "/native/v1/sandboxes/" + b.ID
	const rows = 250
	for i := range rows {
		s.flows.Add(egress.Record{SandboxID: b.ID, At: time.Now(), Kind: "tcp", Host: fmt.Sprintf("h%d.example", i), Port: 443, Verdict: egress.Deny, Addr: netip.MustParseAddr("192.0.2.1"), Hint: "--allow h"})
	}
	type row struct {
		Seq                                int64
		Host, Kind, Verdict, Address, Hint string
		Type                               string
	}
	read := func(query string) []row {
		t.Helper()
		r := s.call(t, "GET", path+query, nil)
		r.wants(t, query, 200, "")
		var out []row
		r.into(t, &out)
		return out
	}
	if err := s.flows.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := read("/egress?limit=1000")
	if len(all) != rows || all[0].Host != "h0.example" || all[0].Address != "192.0.2.1" || all[0].Hint == "" {
		t.Fatalf("%d rows, first %+v", len(all), all[0])
	}
	for _, n := range []int{1, 7, 100, 249, 250} {
		got := read(fmt.Sprintf("/egress?limit=%d", n))
		if d := cmp.Diff(all[rows-n:], got); d != "" {
			t.Errorf("latest %d:\n%s", n, d)
		}
	}
	if got := read(fmt.Sprintf("/egress?after=%d&limit=2", all[9].Seq)); len(got) != 2 || got[0].Host != "h10.example" {
		t.Errorf("after = %+v", got)
	}
	events := read("/events")
	if len(events) < 2 || !strings.HasPrefix(events[0].Type, "sandbox.") {
		t.Errorf("events = %+v", events)
	}
	for _, q := range []string{"/egress?limit=0", "/egress?limit=1001", "/events?after=-1"} {
		s.call(t, "GET", path+q, nil).wants(t, q, 400, "")
	}
	r := s.callAs(t, s.other, "GET", "/native/v1/audit", nil)
	if strings.Contains(r.text, b.ID) {
		t.Error("another team reads this team's audit log")
	}
	if r := s.call(t, "GET", "/native/v1/audit", nil); !strings.Contains(r.text, b.ID) {
		t.Errorf("audit = %s", r.text)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	b := s.nativeCreate(t, nil)
	for _, log := range []string{"events", "egress"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/native/v1/sandboxes/"+b.ID+"/"+log+"?follow=true", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", s.key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("content type = %q", resp.Header.Get("Content-Type"))
		}
		lines := bufio.NewScanner(resp.Body)
		until := func(want string) {
			t.Helper()
			for lines.Scan() {
				if strings.Contains(lines.Text(), want) {
					return
				}
			}
			t.Fatalf("%s: the stream ended without %q: %v", log, want, lines.Err())
		}
		if log == "events" {
			until("sandbox.created")
			s.call(t, "PUT", "/sandboxes/"+b.ID+"/network", map[string]any{"allow_internet_access": false}).wants(t, "network", 204, "")
			until("sandbox.network_set")
			s.call(t, "DELETE", "/sandboxes/"+b.ID, nil).wants(t, "kill", 204, "")
			until("sandbox.killed")
		}
		until("event: end")
		if lines.Scan(); lines.Text() != "data: {}" {
			t.Errorf("last line = %q", lines.Text())
		}
	}
}
