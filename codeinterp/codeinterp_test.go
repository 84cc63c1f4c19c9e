package codeinterp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/codeinterp"
	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// serve runs an interpreter on this machine's bash: the rest of its languages
// is tested in sandboxes.
func serve(t *testing.T, agent string) string {
	t.Helper()
	if !slices.Contains(kernel.Supported(), "bash") {
		t.Skip("no bash on this machine")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m, err := kernel.NewMaker(filepath.Join(dir, "kernels"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := codeinterp.New(codeinterp.Config{
		Listener: listener, Kernels: m, Dir: dir, AgentURL: agent, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return "http://" + listener.Addr().String()
}

func call(t *testing.T, method, url, body, token string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("X-Access-Token", token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// output runs bash code and returns what it printed, and the name of its error.
func output(t *testing.T, url, members, token string) (out, failed string) {
	t.Helper()
	code, body := call(t, "POST", url+"/execute", "{"+members+"}", token)
	if code != http.StatusOK {
		t.Fatalf("execute %s = %d %s", members, code, body)
	}
	ended := false
	for line := range strings.Lines(body) {
		var e struct{ Type, Text, Name string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || ended {
			t.Fatalf("line %q: %v", line, err)
		}
		switch e.Type {
		case "stdout":
			out += e.Text
		case "error":
			failed = e.Name
		case "end_of_execution":
			ended = true
		}
	}
	if !ended {
		t.Errorf("execute %s has no end: %q", members, body)
	}
	return out, failed
}

func TestContexts(t *testing.T) {
	t.Parallel()
	url := serve(t, "")
	made := func() (c struct{ ID, Language, Cwd string }) {
		code, body := call(t, "POST", url+"/contexts", `{"language":" BASH ","cwd":"/"}`, "")
		if err := json.Unmarshal([]byte(body), &c); code != http.StatusOK || err != nil {
			t.Fatalf("create = %d %s", code, body)
		}
		return c
	}
	a, b := made(), made()
	if a.Language != "bash" || a.Cwd != "/" || a.ID == b.ID {
		t.Errorf("contexts = %+v, %+v", a, b)
	}
	in := func(id, code string) string {
		out, _ := output(t, url, `"context_id":"`+id+`","code":"`+code+`"`, "")
		return out
	}
	in(a.ID, "v=1")
	if got := in(a.ID, "pwd; echo $v"); got != "/\n1\n" {
		t.Errorf("first context = %q", got)
	}
	if got := in(b.ID, "echo [$v]"); got != "[]\n" {
		t.Errorf("second context = %q: it has the state of the first", got)
	}
	if code, body := call(t, "POST", url+"/contexts/"+a.ID+"/restart", "", ""); code != http.StatusOK || body != "null\n" {
		t.Errorf("restart = %d %q", code, body)
	}
	if got := in(a.ID, "echo [$v]"); got != "[]\n" {
		t.Errorf("restarted context = %q", got)
	}
	if code, body := call(t, "DELETE", url+"/contexts/"+a.ID, "", ""); code != http.StatusOK || body != "null\n" {
		t.Errorf("remove = %d %q", code, body)
	}
	if code, _ := call(t, "POST", url+"/execute", `{"context_id":"`+a.ID+`","code":"true"}`, ""); code != http.StatusNotFound {
		t.Errorf("execute in a removed context = %d, want 404", code)
	}
}

func TestKernelIsReplaced(t *testing.T) {
	t.Parallel()
	url := serve(t, "")
	if _, failed := output(t, url, `"language":"bash","code":"kill -9 $$"`, ""); failed != "ContextRestarting" {
		t.Errorf("error of a killed kernel = %q, want ContextRestarting", failed)
	}
	if out, failed := output(t, url, `"language":"bash","code":"echo alive"`, ""); out != "alive\n" || failed != "" {
		t.Errorf("after it = %q, %q", out, failed)
	}
}

func TestClientLeaves(t *testing.T) {
	t.Parallel()
	url := serve(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/execute", strings.NewReader(`{"language":"bash","code":"kept=5; echo on; while :; do sleep 1; done"}`))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAtLeast(res.Body, make([]byte, 1024), len(`{"type":"number_of_executions","execution_count":1}`)+10); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = res.Body.Close()
	// It waits for the one that was left, which would go on for ever.
	if out, _ := output(t, url, `"language":"bash","code":"echo $kept"`, ""); out != "5\n" {
		t.Errorf("the state after an interrupt = %q, want 5", out)
	}
}

// TestVariables fails if variables of the sandbox are asked for with another
// token than the caller's, or again and again.
func TestVariables(t *testing.T) {
	t.Parallel()
	var asked []string
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("X-Access-Token")
		asked = append(asked, token)
		if token == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"WHO": token + "'s"})
	}))
	defer agent.Close()
	url := serve(t, agent.URL)
	var got []string
	for _, token := range []string{"", "", "one", "one", "two"} {
		out, _ := output(t, url, `"language":"bash","code":"echo $WHO"`, token)
		got = append(got, strings.TrimSpace(out))
	}
	if diff := cmp.Diff([]string{"", "", "one's", "one's", "two's"}, got); diff != "" {
		t.Errorf("variables: %s", diff)
	}
	if diff := cmp.Diff([]string{"", "one", "two"}, asked); diff != "" {
		t.Errorf("asked: %s", diff)
	}
	out, _ := output(t, url, `"language":"bash","code":"echo $WHO $HERE","env_vars":{"WHO":"me","HERE":"yes"}`, "two")
	if out != "me yes\n" {
		t.Errorf("variables of a run = %q", out)
	}
	if out, _ := output(t, url, `"language":"bash","code":"echo $WHO [$HERE]"`, "two"); out != "two's []\n" {
		t.Errorf("variables after that run = %q", out)
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	url := serve(t, "")
	req, err := http.NewRequestWithContext(t.Context(), "OPTIONS", url+"/execute", bytes.NewReader(nil))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://page.test")
	req.Header.Set("Access-Control-Request-Method", "POST")
	req.Header.Set("Access-Control-Request-Headers", "content-type")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.Header.Get("Access-Control-Allow-Origin"); got != "*" || res.StatusCode != http.StatusNoContent {
		t.Errorf("preflight = %d, origin %q", res.StatusCode, got)
	}
}
