package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/batch"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
)

// message is one server-sent event.
type message struct {
	name string
	data map[string]any
}

// stream sends a request that accepts events and returns the open answer.
func (s *stack) stream(t *testing.T, ctx context.Context, path, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", s.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func messages(t *testing.T, body io.Reader, each func(message)) {
	t.Helper()
	var m message
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			m.name = value
		case "data":
			m.data = nil
			if err := json.Unmarshal([]byte(value), &m.data); err != nil {
				t.Errorf("data %q: %v", value, err)
			}
			each(m)
		}
	}
}

func (s *stack) live(t *testing.T) int {
	t.Helper()
	page, _, _, err := s.manager.List(t.Context(), identity.System, sandbox.Filter{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	return len(page)
}

func TestCreateProgress(t *testing.T) {
	t.Parallel()
	s := start(t, settings{maxPerTeam: 1})
	resp := s.stream(t, t.Context(), "/native/v1/sandboxes", `{"name":"watched"}`)
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream" {
		t.Fatalf("create = %d %s", resp.StatusCode, ct)
	}
	var got []string
	var made map[string]any
	last := -1.0
	messages(t, resp.Body, func(m message) {
		if m.name == "stage" {
			got = append(got, m.data["stage"].(string))
			ms, _ := m.data["ms"].(float64)
			if at, _ := m.data["at"].(string); ms < last || at == "" {
				t.Errorf("stage %v after %v ms", m.data, last)
			}
			last = ms
			return
		}
		got = append(got, m.name)
		made = m.data
	})
	if d := cmp.Diff([]string{"starting", "preparing", "ready", "sandbox"}, got); d != "" {
		t.Fatalf("events (-want +got):\n%s", d)
	}
	var plain map[string]any
	s.call(t, "GET", "/native/v1/sandboxes/"+made["id"].(string), nil).into(t, &plain)
	if d := cmp.Diff(plain, made); d != "" {
		t.Errorf("the sandbox differs from that of a plain answer:\n%s", d)
	}
	// What is refused before the first stage has its own status.
	for _, tc := range []struct {
		body   string
		status int
	}{{`{}`, 429}, {`{"template":"nope"}`, 404}, {`{"timeoutSeconds":0}`, 400}, {`{`, 400}} {
		if resp := s.stream(t, t.Context(), "/native/v1/sandboxes", tc.body); resp.StatusCode != tc.status {
			t.Errorf("create %s = %d, want %d", tc.body, resp.StatusCode, tc.status)
		}
	}
}

// The Go client is told of the stages too.
func TestCreateProgressInClient(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c, err := client.New(s.url, client.WithAPIKey(s.key))
	if err != nil {
		t.Fatal(err)
	}
	var stages []string
	sb, err := c.Create(t.Context(), client.CreateOptions{Name: "x", Progress: func(st client.Stage) { stages = append(stages, st.Name) }})
	if err != nil || sb.State != client.Running || sb.AgentToken == "" || len(stages) != 3 {
		t.Errorf("Create() = %+v, %v after %v", sb, err, stages)
	}
}

func TestBatch(t *testing.T) {
	t.Parallel()
	s := start(t, settings{maxPerTeam: 3})
	body := strings.ReplaceAll(`{"concurrency":2,"timeoutSeconds":20,"env":{"A":"all"},"metadata":{"k":"v"},"items":[
		{"id":"one","cmd":"sh","args":["-c","echo $A $B; echo oops >&2; exit 3"],"env":{"B":"b"}},
		{"code":"print(input())","stdin":"hi\n"},
		{"cmd":"sh","args":["-c","cat FILE"],"files":[{"path":"FILE","content":"aGVsbG8="}],"collect":["FILE","/nowhere"]}]}`, "FILE", filepath.Join(t.TempDir(), "file"))
	results := map[string]map[string]any{}
	var names []string
	resp := s.stream(t, t.Context(), "/native/v1/batch", body)
	messages(t, resp.Body, func(m message) {
		names = append(names, m.name)
		if m.name == "result" {
			results[m.data["id"].(string)] = m.data
		}
		if m.name == "summary" {
			delete(m.data, "durationMs")
			if d := cmp.Diff(map[string]any{"items": 3.0, "succeeded": 2.0, "failed": 1.0, "skipped": 0.0}, m.data); d != "" {
				t.Error(d)
			}
		}
	})
	if len(names) != 7 || names[0] != "started" || names[6] != "summary" {
		t.Errorf("events %v", names)
	}
	one := results["one"]
	if one["exitCode"] != 3.0 || one["status"] != "exit status 3" || one["stdout"] != "all b\n" || one["stderr"] != "oops\n" || one["index"] != 0.0 || one["error"] != nil {
		t.Errorf("item one: %v", one)
	}
	if r := results["1"]; r["exitCode"] != 0.0 || r["stdout"] != "hi\n" {
		t.Errorf("item 1: %v", r)
	}
	files, _ := results["2"]["files"].([]any)
	if r := results["2"]; r["stdout"] != "hello" || len(files) != 2 || files[0].(map[string]any)["content"] != "aGVsbG8=" ||
		files[1].(map[string]any)["error"].(map[string]any)["code"] != 404.0 {
		t.Errorf("item 2: %v", r)
	}
	if n := s.live(t); n != 0 {
		t.Errorf("%d sandboxes are left", n)
	}
}

func TestBatchBadInput(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	sb := s.create(t, nil)
	const item = `"items":[{"cmd":"true"}]`
	for _, tc := range []struct {
		name, body string
		status     int
		text       string
	}{
		{"nothing", `{}`, 400, "items: must be 1 to 1000"},
		{"no JSON", `{"items":`, 400, "ends inside a JSON value"},
		{"items", `{"items":{}}`, 400, "items: must be a list"},
		{"too many items", `{"items":[` + strings.Repeat(`{},`, 1000) + `{}]}`, 400, "items: must be 1 to 1000, are 1001"},
		{"item", `{"items":[{}]}`, 400, "items[0].cmd: give cmd or code"},
		{"cmd", `{"items":[{"cmd":7}]}`, 400, "cmd: must be a string"},
		{"both", `{"items":[{"cmd":"a","code":"b"}]}`, 400, "items[0].code: "},
		{"language", `{"items":[{"code":"a","language":"cobol"}]}`, 400, "items[0].language: "},
		{"ids", `{"items":[{"id":"a","cmd":"a"},{"id":"a","cmd":"a"}]}`, 400, "items[1].id: "},
		{"base64", `{"items":[{"cmd":"a","files":[{"path":"x","content":"!"}]}]}`, 400, "items[0].files[0].content: is not base64"},
		{"path", `{"items":[{"cmd":"a","files":[{"path":"","content":""}]}]}`, 400, "items[0].files[0].path: "},
		{"collect", `{"items":[{"cmd":"a","collect":[""]}]}`, 400, "items[0].collect[0]: "},
		{"concurrency 0", `{"concurrency":0,` + item + `}`, 400, "concurrency: must be at least 1"},
		{"concurrency", `{"concurrency":17,` + item + `}`, 400, "concurrency: must be at most 16"},
		{"timeout 0", `{"timeoutSeconds":0,` + item + `}`, 400, "timeoutSeconds: "},
		{"timeout", `{"timeoutSeconds":3601,` + item + `}`, 400, "timeoutSeconds: "},
		{"isolation", `{"isolation":"none",` + item + `}`, 400, "isolation: "},
		{"sandbox", `{"sandbox":"` + sb.SandboxID + `",` + item + `}`, 400, "sandbox: "},
		{"no sandbox", `{"isolation":"shared",` + item + `}`, 400, "sandbox: must be given"},
		{"shared template", `{"isolation":"shared","sandbox":"` + sb.SandboxID + `","template":"base",` + item + `}`, 400, "template: "},
		{"shared network", `{"isolation":"shared","sandbox":"` + sb.SandboxID + `","network":{},` + item + `}`, 400, "network: "},
		{"unknown sandbox", `{"isolation":"shared","sandbox":"inone",` + item + `}`, 404, "inone"},
		{"bad sandbox", `{"isolation":"shared","sandbox":"../x",` + item + `}`, 404, "doesn't exist"},
		{"template", `{"template":"nope",` + item + `}`, 404, `template "nope" doesn't exist`},
		{"bad template", `{"template":"a b",` + item + `}`, 400, "template: "},
		{"preset", `{"egress":{"presets":["x"]},` + item + `}`, 400, "egress.presets: "},
		{"env", `{"env":{"A=":""},` + item + `}`, 400, "env: "},
		{"metadata", `{"metadata":{"` + strings.Repeat("k", 200) + `":""},` + item + `}`, 400, "metadata: "},
		{"resources", `{"resources":{"cpus":-1},` + item + `}`, 400, "resources.cpus: "},
	} {
		s.call(t, "POST", "/native/v1/batch", tc.body).wants(t, tc.name, tc.status, tc.text)
	}
	s.callAs(t, s.other, "POST", "/native/v1/batch", `{"isolation":"shared","sandbox":"`+sb.SandboxID+`",`+item+`}`).
		wants(t, "another team's sandbox", 404, sb.SandboxID)
	s.callAs(t, "e2b_no", "POST", "/native/v1/batch", `{`+item+`}`).wants(t, "no key", 401, "API key")
	if n := s.live(t); n != 1 {
		t.Errorf("%d sandboxes, want the one", n)
	}
}

// A team may have so many batches at a time; one that ends makes room.
func TestBatchesAtATime(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	sb := s.create(t, nil)
	body := `{"isolation":"shared","sandbox":"` + sb.SandboxID + `","items":[{"cmd":"sleep","args":["1000"]}]}`
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range batch.MaxBatches {
		if resp := s.stream(t, ctx, "/native/v1/batch", body); resp.StatusCode != 200 {
			t.Fatalf("batch = %d", resp.StatusCode)
		}
	}
	quick := strings.ReplaceAll(body, "1000", "0")
	s.call(t, "POST", "/native/v1/batch", quick).wants(t, "one more", 429, "no more at a time")
	cancel()
	for s.call(t, "POST", "/native/v1/batch", quick).status != 200 { // the test's own timeout ends it
		time.Sleep(10 * time.Millisecond)
	}
}

// The client leaves: what runs is killed, and no sandbox is left.
func TestBatchClientLeaves(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c, err := client.New(s.url, client.WithAPIKey(s.key))
	if err != nil {
		t.Fatal(err)
	}
	o := client.BatchOptions{Concurrency: 2}
	for range 6 {
		o.Items = append(o.Items, client.BatchItem{Cmd: "sleep", Args: []string{"1000"}})
	}
	var boxes []string
	for ev, err := range c.Batch(t.Context(), o) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Started != nil {
			boxes = append(boxes, ev.Started.Sandbox)
		}
		if len(boxes) == 2 {
			break
		}
	}
	for _, id := range boxes {
		if live, ok := s.manager.Live(sandbox.ID(id)); ok {
			<-live.Gone
		}
	}
	for s.live(t) > 0 { // the test's own timeout ends it
		time.Sleep(10 * time.Millisecond)
	}
}

// A server that stops says what became of the items.
func TestBatchServerStops(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c, err := client.New(s.url, client.WithAPIKey(s.key))
	if err != nil {
		t.Fatal(err)
	}
	o := client.BatchOptions{Concurrency: 1, Items: []client.BatchItem{{Cmd: "sleep", Args: []string{"1000"}}, {Cmd: "true"}}}
	for ev, err := range c.Batch(t.Context(), o) {
		switch {
		case err != nil:
			t.Fatal(err)
		case ev.Started != nil:
			close(s.stop)
		case ev.Result != nil:
			if ce, ok := ev.Result.Err.(*client.Error); !ok || ce.Code != "cancelled" {
				t.Errorf("result %+v", ev.Result)
			}
		case ev.Summary.Failed != 1 || ev.Summary.Skipped != 1:
			t.Errorf("summary %+v", ev.Summary)
		}
	}
	if n := s.live(t); n != 0 {
		t.Errorf("%d sandboxes are left", n)
	}
}
