package client_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/caisson-dev/caisson/client"
)

// canned is a client of a server that always answers so; the request's body goes
// to body.
func canned(t *testing.T, status int, contentType, answer string, body *string) *client.Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		if body != nil {
			*body = string(data)
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	}))
	t.Cleanup(s.Close)
	c, err := client.New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const batchAnswer = `: keepalive

event: started
data: {"id":"a","index":0,"sandbox":"i1","waitMs":3}

event: later
data: {"what":"this client does not know"}

event: result
data: {"id":"a","index":0,"sandbox":"i1","exitCode":3,"status":"exit status 3","stdout":"o","stderr":"e","stdoutBytes":1,"stderrBytes":1,"files":[{"path":"p","content":"aGk="},{"path":"q","error":{"code":404,"message":"there is no file"}}],"waitMs":3,"durationMs":1500}

event: result
data: {"id":"b","index":1,"exitCode":-1,"stdout":"","stderr":"","error":{"code":429,"message":"too many","errorCode":"timeout","limit":"limits.sandboxes_per_team","requestID":"r"}}

event: result
data: {"id":"c","index":2,"exitCode":-1,"status":"killed: wall time limit of 5s reached","stdout":"x","stderr":"","truncated":true}

`

func TestBatch(t *testing.T) {
	t.Parallel()
	const summary = `event: summary` + "\n" + `data: {"items":4,"succeeded":0,"failed":3,"skipped":1,"durationMs":9}` + "\n\n"
	var sent string
	c := canned(t, 200, "text/event-stream", batchAnswer+summary, &sent)
	var results []client.BatchResult
	var last client.BatchEvent
	for ev, err := range c.Batch(t.Context(), client.BatchOptions{
		Template: "base", Concurrency: 2, Timeout: 1500 * time.Millisecond, Presets: []string{"pypi"}, StopOnError: true,
		Items: []client.BatchItem{{Cmd: "true", Stdin: new(""), Files: []client.BatchFile{{Path: "p", Content: []byte("hi")}}}},
	}) {
		if err != nil {
			t.Fatal(err)
		}
		if last = ev; ev.Result != nil {
			results = append(results, *ev.Result)
		}
	}
	if want := `{"template":"base","egress":{"presets":["pypi"]},"concurrency":2,"timeoutSeconds":2,"stopOnError":true,"items":[{"cmd":"true","stdin":"","files":[{"path":"p","content":"aGk="}]}]}`; sent != want {
		t.Errorf("sent %s, want %s", sent, want)
	}
	want := []client.BatchResult{
		{
			ID: "a", Sandbox: "i1", Exit: client.Exit{Code: 3, Status: "exit status 3"}, Stdout: "o", Stderr: "e", StdoutBytes: 1, StderrBytes: 1,
			Files:  []client.CollectedFile{{BatchFile: client.BatchFile{Path: "p", Content: []byte("hi")}}, {BatchFile: client.BatchFile{Path: "q"}, Err: errdefs.ErrNotFound}},
			Waited: 3 * time.Millisecond, Took: 1500 * time.Millisecond,
		},
		{ID: "b", Index: 1, Exit: client.Exit{Code: -1}, Err: errdefs.ErrResourceExhausted},
		{ID: "c", Index: 2, Exit: client.Exit{Code: -1, Status: "killed: wall time limit of 5s reached", Reason: "killed: wall time limit of 5s reached"}, Stdout: "x", Truncated: true},
	}
	if d := cmp.Diff(want, results, cmpopts.EquateErrors()); d != "" {
		t.Errorf("results (-want +got):\n%s", d)
	}
	if ce, ok := results[1].Err.(*client.Error); !ok || ce.Code != "timeout" || ce.RequestID != "r" {
		t.Errorf("error of b: %+v", results[1].Err)
	}
	if s := last.Summary; s == nil || s.Skipped != 1 || s.Items != 4 {
		t.Errorf("last event %+v", last)
	}
}

// A stream that is cut off, or is none, is an error and never a short batch.
func TestBatchBroken(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		status       int
		answer, text string
	}{
		"cut":     {200, batchAnswer, "the stream ended before its time"},
		"garbage": {200, "event: result\ndata: {\n\n", "unreadable event"},
		"large":   {200, "data: " + strings.Repeat("x", 17<<20), "the stream broke"},
		"refused": {400, `{"code":400,"message":"items: must be 1 to 1000, are 0","field":"items"}`, "items: must be"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var last error
			for _, err := range canned(t, tt.status, "text/event-stream", tt.answer, nil).Batch(t.Context(), client.BatchOptions{}) {
				last = err
			}
			if _, ok := errors.AsType[*client.Error](last); !ok || !strings.Contains(last.Error(), tt.text) {
				t.Errorf("Batch() = %v, want %q", last, tt.text)
			}
		})
	}
}

func TestCreateProgress(t *testing.T) {
	t.Parallel()
	const stage = "event: stage\ndata: {\"stage\":\"queued\",\"at\":\"2026-01-02T03:04:05Z\",\"ms\":7}\n\n"
	for name, tt := range map[string]struct {
		contentType, answer string
		stages              int
		err                 error
	}{
		"events":     {"text/event-stream", stage + "event: sandbox\ndata: {\"id\":\"i1\"}\n\n", 1, nil},
		"failed":     {"text/event-stream", stage + "event: error\ndata: {\"code\":429,\"message\":\"full\"}\n\n", 1, errdefs.ErrResourceExhausted},
		"cut":        {"text/event-stream", stage, 1, errdefs.ErrUnavailable},
		"old server": {"application/json", `{"id":"i1"}`, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stages []client.Stage
			sb, err := canned(t, 200, tt.contentType, tt.answer, nil).Create(t.Context(), client.CreateOptions{Progress: func(s client.Stage) { stages = append(stages, s) }})
			if !errors.Is(err, tt.err) || len(stages) != tt.stages || (err == nil && sb.ID != "i1") {
				t.Errorf("Create() = %+v, %v after %v", sb, err, stages)
			}
		})
	}
}
