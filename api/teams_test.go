package api_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/spec"
)

// routes lists method and path of every operation on one sandbox.
func routes(t *testing.T) (all [][2]string) {
	t.Helper()
	e2b, err := os.ReadFile("../spec/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^(?:  (/\S+):|    (get|post|put|patch|delete):)$`)
	for prefix, document := range map[string][]byte{"": e2b, api.NativePrefix: spec.Native} {
		path := ""
		for _, m := range line.FindAllSubmatch(document, -1) {
			if len(m[1]) > 0 {
				path = string(m[1])
			} else if strings.Contains(path, "/sandboxes/{id}") {
				all = append(all, [2]string{strings.ToUpper(string(m[2])), prefix + path})
			}
		}
	}
	if len(all) < 25 {
		t.Fatalf("%d operations found in the specifications: %v", len(all), all)
	}
	return all
}

// Whatever is asked about a sandbox of another team, the answer is that for one
// that does not exist.
func TestOtherTeamsSandboxes(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	running := s.create(t, nil).SandboxID
	paused := s.create(t, map[string]any{"autoResume": map[string]bool{"enabled": true}}).SandboxID
	s.call(t, "POST", "/sandboxes/"+paused+"/pause", nil).wants(t, "pause", 204, "")
	const nobody = "iaaaaaaaaaaaaaaaaaaaa"
	bodies := map[string]any{
		"timeout": map[string]int{"timeout": 10, "timeoutSeconds": 10}, "connect": map[string]int{"timeout": 10},
		"budget": map[string]int{"cpuSeconds": 5}, "rollback": map[string]string{"snapshot": "none"},
	}
	for _, r := range routes(t) {
		body, ok := bodies[r[1][strings.LastIndex(r[1], "/")+1:]]
		if !ok && r[0] != "GET" && r[0] != "DELETE" {
			body = map[string]any{}
		}
		ask := func(id string) (int, string) {
			got := s.callAs(t, s.other, r[0], strings.Replace(r[1], "{id}", id, 1), body)
			return got.status, requestID.ReplaceAllString(strings.ReplaceAll(got.text, id, "ID"), "")
		}
		wantStatus, want := ask(nobody)
		if wantStatus != 404 && !strings.HasSuffix(r[1], "/metrics") {
			t.Errorf("%s %s of no sandbox = %d %s", r[0], r[1], wantStatus, want)
		}
		for state, id := range map[string]string{"running": running, "paused": paused} {
			if status, text := ask(id); status != wantStatus || text != want {
				t.Errorf("%s %s of another team's %s sandbox = %d %s, of none %d %s", r[0], r[1], state, status, text, wantStatus, want)
			}
		}
	}
	if got := s.call(t, "GET", "/sandboxes/"+paused, nil); got.status != 200 || !strings.Contains(got.text, `"state":"paused"`) {
		t.Errorf("after all that the paused one is %d %s", got.status, got.text)
	}
	s.call(t, "GET", "/sandboxes/"+running, nil).wants(t, "the running one", 200, `"state":"running"`)
}

var requestID = regexp.MustCompile(`"requestID":"[^"]*"`)
