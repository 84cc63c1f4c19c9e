package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// interpreter makes a sandbox of code-interpreter-v1 whose interpreter answers.
func interpreter(t *testing.T) testenv.Box {
	t.Helper()
	b, err := shared.Create(t.Context(), map[string]any{"templateID": "code-interpreter-v1", "timeout": 600})
	if status(err) == http.StatusNotFound {
		t.Skip("the template code-interpreter-v1 is not built: caisson template build code-interpreter-v1")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shared.Kill(context.WithoutCancel(t.Context()), b) })
	// It runs already: the server has saved the template's memory.
	if r := sh(t, shared, b, `curl -fsS -m 10 -o /dev/null http://localhost:49999/health`); r.ExitCode != 0 {
		t.Fatalf("the interpreter does not answer: %s", r.Stderr)
	}
	return b
}

// ask sends a request to the interpreter and returns status and body.
func ask(t *testing.T, b testenv.Box, method, path, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, shared.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", b.ID)
	req.Header.Set("E2b-Sandbox-Port", "49999")
	req.Header.Set("X-Access-Token", b.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(all)
}

// TestInterpreterWire checks what SDKs do not show: spellings, order, refusals.
func TestInterpreterWire(t *testing.T) {
	t.Parallel()
	b := interpreter(t)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"health", "GET", "/health", "", 200, "\"OK\"\n"},
		{"both", "POST", "/execute", `{"code":"1","context_id":"x","language":"python"}`, 400, "Only one of context_id or language can be provided"},
		{"no such context", "POST", "/execute", `{"code":"1","context_id":"nope"}`, 404, "Context nope not found"},
		{"no code", "POST", "/execute", `{}`, 422, ""},
		{"code is no text", "POST", "/execute", `{"code":1}`, 422, ""},
		{"variable with a strange name", "POST", "/execute", `{"code":"1","env_vars":{"a b":"c"}}`, 422, ""},
		{"language", "POST", "/contexts", `{"language":"cobol"}`, 500, ""},
		{"directory", "POST", "/contexts", `{"cwd":"/nothing"}`, 500, ""},
		{"restart", "POST", "/contexts/nope/restart", ``, 404, "Context nope not found"},
		{"remove", "DELETE", "/contexts/nope", ``, 404, "Context nope not found"},
		{"too large", "POST", "/execute", `{"code":"` + strings.Repeat("x", 33<<20) + `"}`, 413, ""},
	} {
		code, body := ask(t, b, tt.method, tt.path, tt.body)
		if code != tt.status || tt.want != "" && body != tt.want {
			t.Errorf("%s: %s %s = %d %.200q, want %d %q", tt.name, tt.method, tt.path, code, body, tt.status, tt.want)
		}
	}
	_, body := ask(t, b, "POST", "/execute", `{"code":"print(1)\n'a'","context_id":null,"language":null,"env_vars":null}`)
	var got []string
	for line := range strings.Lines(body) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if at, ok := m["timestamp"].(string); ok {
			if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
				t.Errorf("timestamp %q: %v", at, err)
			}
			m["timestamp"] = "T"
		}
		b, _ := json.Marshal(m)
		got = append(got, string(b))
	}
	want := []string{
		`{"execution_count":1,"type":"number_of_executions"}`,
		`{"text":"1\n","timestamp":"T","type":"stdout"}`,
		`{"extra":{},"is_main_result":true,"text":"a","type":"result"}`,
		`{"type":"end_of_execution"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("execute: %s", diff)
	}
	_, body = ask(t, b, "POST", "/execute", `{"code":"import time; time.sleep(6)"}`)
	if n := strings.Count(body, `{"type":"keepalive"}`+"\n"); n != 1 {
		t.Errorf("six quiet seconds have %d keepalives: %q", n, body)
	}
}

// TestNotebooks runs the cells of each notebook in testdata in one context and
// compares what comes with what the notebook says.
func TestNotebooks(t *testing.T) {
	t.Parallel()
	b := interpreter(t)
	files, err := filepath.Glob("testdata/notebooks/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("notebooks: %v, %v", files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var book struct {
			Language string
			Cells    []struct {
				Code []string
				Want []string
			}
		}
		if err := json.Unmarshal(raw, &book); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var c struct{ ID string }
		_, body := ask(t, b, "POST", "/contexts", fmt.Sprintf(`{"language":%q}`, book.Language))
		if err := json.Unmarshal([]byte(body), &c); err != nil {
			t.Fatalf("%s: context: %s", file, body)
		}
		for i, cell := range book.Cells {
			in, err := json.Marshal(map[string]any{"code": strings.Join(cell.Code, "\n"), "context_id": c.ID})
			if err != nil {
				t.Fatal(err)
			}
			_, body := ask(t, b, "POST", "/execute", string(in))
			if diff := cmp.Diff(cell.Want, summary(t, body)); diff != "" {
				t.Errorf("%s, cell %d: %s", filepath.Base(file), i+1, diff)
			}
		}
	}
}

// summary makes one short line of each event that a notebook tells.
func summary(t *testing.T, body string) []string {
	t.Helper()
	var all []string
	sc := bufio.NewScanner(bytes.NewReader([]byte(body)))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e struct {
			Type, Text, Name, Value, PNG string
			Main                         bool            `json:"is_main_result"`
			Data, JSON, Chart            json.RawMessage `json:",omitempty"`
		}
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			t.Fatalf("line %.200q: %v", sc.Text(), err)
		}
		switch e.Type {
		case "stdout", "stderr":
			all = append(all, e.Type+": "+e.Text)
		case "error":
			all = append(all, "error: "+e.Name+": "+e.Value)
		case "result":
			line := "display:"
			if e.Main {
				line = "value:"
			}
			if !strings.HasPrefix(e.Text, "<") {
				line += " " + e.Text
			}
			if e.PNG != "" {
				line += " png"
			}
			if e.Data != nil {
				line += " data=" + string(e.Data)
			}
			if e.Chart != nil {
				var chart struct {
					Type     string
					Elements []any
				}
				if err := json.Unmarshal(e.Chart, &chart); err != nil {
					t.Fatalf("chart: %v", err)
				}
				line += fmt.Sprintf(" chart=%s/%d", chart.Type, len(chart.Elements))
			}
			all = append(all, line)
		}
	}
	return all
}

// The kernels' own tests where their programs are: in the template. On a machine
// that lacks some of them they skip; here they must not.
func TestKernelsInTheTemplate(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "kernel.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, "./codeinterp/kernel")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	b := interpreter(t)
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	resp, err := shared.Agent(t.Context(), b, http.MethodPost, "/files?path=/home/user/kernel.test&username=root", "application/octet-stream", f)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r, err := shared.ExecAs(t.Context(), b, "root", "/bin/sh", "-c", "cd /home/user && chmod +x kernel.test && ./kernel.test -test.v -test.timeout 4m")
	if err != nil || r.ExitCode != 0 || strings.Contains(r.Stdout, "--- SKIP") || strings.Count(r.Stdout, "--- PASS") < 8 {
		t.Errorf("tests of the kernels: exit %d, %v\n%s%s", r.ExitCode, err, r.Stdout, r.Stderr)
	}
}
