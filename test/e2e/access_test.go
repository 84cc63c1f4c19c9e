package e2e_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// secondKey makes a key of another team on the server's data directory.
func secondKey(t *testing.T, s *testenv.Server, team string) string {
	t.Helper()
	var made struct{ Key string }
	if err := s.API(t.Context(), http.MethodPost, "/native/v1/keys", map[string]any{"name": "second", "team": team}, &made); err == nil && made.Key != "" {
		return made.Key
	}
	out, err := s.Command(t.Context(), "key", "create", "second", "--team", team, "--data", s.Data).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestOtherTeam(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	key := secondKey(t, shared, "other")
	for _, c := range []struct {
		method, path string
		body         any
		want         int
	}{
		{http.MethodGet, "/sandboxes/" + b.ID, nil, 404},
		{http.MethodDelete, "/sandboxes/" + b.ID, nil, 404},
		{http.MethodPost, "/sandboxes/" + b.ID + "/timeout", map[string]any{"timeout": 1}, 404},
		{http.MethodPost, "/sandboxes/" + b.ID + "/connect", map[string]any{"timeout": 1}, 404},
		{http.MethodPost, "/v2/sandboxes/" + b.ID + "/connect", map[string]any{}, 404},
		{http.MethodPut, "/sandboxes/" + b.ID + "/network", map[string]any{}, 404},
		{http.MethodGet, "/native/v1/sandboxes/" + b.ID, nil, 404},
		{http.MethodGet, "/native/v1/sandboxes/" + b.ID + "/egress", nil, 404},
		{http.MethodGet, "/native/v1/sandboxes/" + b.ID + "/events", nil, 404},
		{http.MethodDelete, "/native/v1/sandboxes/" + b.ID, nil, 404},
	} {
		if got := status(shared.APIAs(t.Context(), key, c.method, c.path, c.body, nil)); got != c.want {
			t.Errorf("%s %s as another team = %d, want %d", c.method, c.path, got, c.want)
		}
	}
	var list []map[string]any
	if err := shared.APIAs(t.Context(), key, http.MethodGet, "/v2/sandboxes", nil, &list); err != nil || len(list) != 0 {
		t.Errorf("another team lists %v, %v", list, err)
	}
	if r, err := shared.Exec(t.Context(), b, "/bin/echo", "alive"); err != nil || r.Stdout != "alive\n" {
		t.Errorf("owner's exec = %+v, %v", r, err)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	b, other := create(t, shared, nil), create(t, shared, nil)
	for name, token := range map[string]string{
		"none": "", "forged": strings.Repeat("0", 64), "another sandbox's": other.Token, "truncated": b.Token[:63], "the API key": shared.Key,
	} {
		_, err := shared.Exec(t.Context(), testenv.Box{ID: b.ID, Token: token}, "/bin/true")
		if got := status(err); got != http.StatusUnauthorized {
			t.Errorf("exec with token %s = %v, want 401", name, err)
		}
	}
	for _, path := range []string{"/init", "/freeze", "/upgrade"} {
		resp, err := shared.Agent(t.Context(), b, http.MethodPost, path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("POST %s = %d, want 404", path, resp.StatusCode)
		}
	}
	if err := shared.APIAs(t.Context(), "e2b_"+strings.Repeat("0", 40), http.MethodGet, "/v2/sandboxes", nil, nil); status(err) != http.StatusUnauthorized {
		t.Errorf("unknown key = %v, want 401", err)
	}
}

func TestTokenDiesWithItsSandbox(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	if err := shared.Kill(context.WithoutCancel(t.Context()), b); err != nil {
		t.Fatal(err)
	}
	_, err := shared.Exec(t.Context(), b, "/bin/true")
	if status(err) != http.StatusBadGateway {
		t.Errorf("exec in a killed sandbox = %v, want 502", err)
	}
	if got := status(shared.Kill(t.Context(), b)); got != http.StatusNotFound {
		t.Errorf("second kill = %d, want 404", got)
	}
}
