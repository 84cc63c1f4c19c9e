package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/internal/testenv"
)

func goClient(t *testing.T, s *testenv.Server) *client.Client {
	t.Helper()
	c, err := client.New(s.URL, client.WithAPIKey(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// marked are the ids of the sandboxes with a label that have not ended.
func marked(t *testing.T, s *testenv.Server, label string, states ...string) (ids []string) {
	t.Helper()
	var all []struct {
		ID       string
		State    string
		Metadata map[string]string
	}
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/sandboxes", nil, &all); err != nil {
		t.Fatal(err)
	}
	for _, sb := range all {
		if sb.Metadata["batch"] == label && (len(states) == 0 || slices.Contains(states, sb.State)) {
			ids = append(ids, sb.ID)
		}
	}
	return ids
}

// Forty commands, eight at a time: each has a sandbox of its own, the one that
// fails and the one that does not end are nobody else's matter, and nothing
// remains.
func TestBatch(t *testing.T) {
	t.Parallel()
	o := client.BatchOptions{Concurrency: 8, Timeout: 10 * time.Second, Metadata: map[string]string{"batch": t.Name()}}
	for i := range 40 {
		line := fmt.Sprintf("test ! -e ~/mark && touch ~/mark && echo $((%d * 7))", i)
		switch i {
		case 13:
			line = "echo unlucky >&2; exit 3"
		case 20:
			line = "echo begun; exec sleep 1000"
		}
		o.Items = append(o.Items, client.BatchItem{Cmd: "sh", Args: []string{"-c", line}})
	}
	seen, running := map[string]bool{}, map[int]bool{}
	var sum client.BatchSummary
	for ev, err := range goClient(t, shared).Batch(t.Context(), o) {
		switch {
		case err != nil:
			t.Fatal(err)
		case ev.Started != nil:
			seen[ev.Started.Sandbox] = true
			if running[ev.Started.Index] = true; len(running) > 8 {
				t.Errorf("%d items at a time", len(running))
			}
		case ev.Summary != nil:
			sum = *ev.Summary
		default:
			r := ev.Result
			delete(running, r.Index)
			switch r.Index {
			case 13:
				if r.Exit.Code != 3 || r.Stderr != "unlucky\n" || r.Err != nil {
					t.Errorf("the one that fails: %+v", r)
				}
			case 20:
				if ce, ok := r.Err.(*client.Error); !ok || ce.Code != "timeout" || r.Stdout != "begun\n" || r.Took < 10*time.Second {
					t.Errorf("the one that does not end: %+v", r)
				}
			default:
				if want := fmt.Sprintf("%d\n", r.Index*7); !r.OK() || r.Stdout != want {
					t.Errorf("item %d: %+v, want %q", r.Index, r, want)
				}
			}
		}
	}
	if sum.Succeeded != 38 || sum.Failed != 2 || sum.Skipped != 0 || len(seen) != 40 {
		t.Errorf("summary %+v of %d sandboxes", sum, len(seen))
	}
	if left := marked(t, shared, t.Name()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	t.Logf("40 items, 8 at a time, one of them 10 s: %d ms", sum.DurationMS)
}

// kill -9 of the command line in the middle leaves nothing.
func TestBatchClientKilled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := shared.Command(ctx, "run", "--parallel", "4", "--metadata", "batch="+t.Name(), "--",
		"sh", "-c", "exec sleep 1000", ":::", "1", "2", "3", "4", "5", "6", "7", "8")
	cmd.Env = append(cmd.Env, "CAISSON_API_URL="+shared.URL, "CAISSON_API_KEY="+shared.Key)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 30*time.Second, "four sandboxes", func() bool { return len(marked(t, shared, t.Name(), "running")) == 4 })
	ids := marked(t, shared, t.Name())
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for _, id := range ids {
		if n := ended(t, shared, id, 20*time.Second); n.State != "killed" {
			t.Errorf("sandbox %s is %s (%s)", id, n.State, n.Reason)
		}
	}
	waitFor(t, 20*time.Second, "the batch to end", func() bool { return len(marked(t, shared, t.Name())) == 0 })
	if out.Len() > 0 {
		t.Logf("the command said %q", out.String())
	}
}

// A server that is killed does not leave the sandboxes of a batch for long: they
// have a lease.
func TestBatchLease(t *testing.T) {
	t.Parallel()
	s := own(t)
	o := client.BatchOptions{Metadata: map[string]string{"batch": t.Name()}, Items: []client.BatchItem{{Cmd: "sleep", Args: []string{"1000"}}}}
	for ev, err := range goClient(t, s).Batch(t.Context(), o) {
		if err != nil {
			break // the server is dead
		}
		if ev.Started == nil {
			t.Fatalf("event %+v", ev)
		}
		var sb struct{ EndsAt time.Time }
		if err := s.API(t.Context(), http.MethodGet, "/native/v1/sandboxes/"+ev.Started.Sandbox, nil, &sb); err != nil {
			t.Fatal(err)
		}
		if life := time.Until(sb.EndsAt); life < time.Minute || life > 90*time.Second {
			t.Errorf("it lives %s from now, want at most 90 s", life)
		}
		s.Kill9()
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ids := marked(t, s, t.Name())
	if len(ids) != 1 {
		t.Fatalf("the restarted server knows of %v", ids)
	}
	var sb struct{ EndsAt time.Time }
	if err := s.API(t.Context(), http.MethodGet, "/native/v1/sandboxes/"+ids[0], nil, &sb); err != nil {
		t.Fatal(err)
	}
	if life := time.Until(sb.EndsAt); life > 90*time.Second {
		t.Errorf("it lives %s from now: who renews it?", life)
	}
}

// Commands of a shared sandbox run in it, at a time; it goes on when the client
// leaves, and they do not.
func TestBatchShared(t *testing.T) {
	t.Parallel()
	b := create(t, shared, nil)
	c := goClient(t, shared)
	o := client.BatchOptions{Sandbox: b.ID, Concurrency: 4}
	for i := range 4 {
		o.Items = append(o.Items, client.BatchItem{Cmd: "sh", Args: []string{"-c", fmt.Sprintf("touch /tmp/at-%d; until [ $(ls /tmp/at-* | wc -l) -ge 4 ]; do sleep 0.05; done", i)}})
	}
	for ev, err := range c.Batch(t.Context(), o) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Result != nil && !ev.Result.OK() {
			t.Errorf("result %+v", ev.Result)
		}
	}
	o.Items = []client.BatchItem{{Cmd: "sh", Args: []string{"-c", "sleep 4321 & sleep 4321"}}}
	for ev, err := range c.Batch(t.Context(), o) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Started != nil {
			waitFor(t, 10*time.Second, "its processes", func() bool { return sleepers(t, b) == 2 })
			break
		}
	}
	waitFor(t, 10*time.Second, "its processes to be gone", func() bool { return sleepers(t, b) == 0 })
}

// sleepers counts the processes that TestBatchShared left.
func sleepers(t *testing.T, b testenv.Box) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(sh(t, shared, b, "ps -eo args").Stdout) {
		if line == "sleep 4321\n" {
			n++
		}
	}
	return n
}
