package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// createKeyed creates over the native API with an Idempotency-Key and returns
// the status, and the id on 201.
func createKeyed(ctx context.Context, s *testenv.Server, key, body string) (status int, id string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/native/v1/sandboxes", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("X-API-Key", s.Key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	// A connection of its own: the transport must not repeat the request itself.
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, "", err
	}
	var made struct{ ID string }
	if resp.StatusCode == http.StatusCreated {
		err = json.Unmarshal(text, &made)
	} else {
		err = fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return resp.StatusCode, made.ID, err
}

// A server is killed in the middle of a create; whoever repeats the create with
// its key at the next server gets one sandbox, and there is one.
func TestKeySurvivesServerKill(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "pool.templates=base=1")
	for kind, body := range map[string]string{
		"warm": `{"template":"base"}`,
		"cold": `{"template":"base","resources":{"memoryMiB":640}}`,
	} {
		for i, pause := range []time.Duration{2, 10, 25, 50, 90, 160} {
			if kind == "warm" {
				waitFor(t, 20*time.Second, "a warm sandbox", func() bool {
					n, err := s.Metric(t.Context(), "caisson_pool_sandboxes")
					return err == nil && n > 0
				})
			}
			key := fmt.Sprintf("%s %d", kind, i)
			type answer struct {
				id  string
				err error
			}
			first := make(chan answer, 1)
			go func() {
				_, id, err := createKeyed(context.WithoutCancel(t.Context()), s, key, body)
				first <- answer{id, err}
			}()
			time.Sleep(pause * time.Millisecond) // the moment of the crash is the point here
			s.Kill9()
			was := <-first
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, id, err := createKeyed(t.Context(), s, key, body)
			if err != nil {
				t.Fatalf("%s, killed after %d ms: repeated create: %v", kind, pause, err)
			}
			if was.err == nil && was.id != id {
				t.Errorf("%s, killed after %d ms: %s was answered, and then %s", kind, pause, was.id, id)
			}
			if _, again, err := createKeyed(t.Context(), s, key, body); again != id || err != nil {
				t.Errorf("%s, killed after %d ms: %s, then %s (%v)", kind, pause, id, again, err)
			}
			if n := listed(t, s); n != 1 {
				t.Errorf("%s, killed after %d ms: %d sandboxes run, want one", kind, pause, n)
			}
			var b testenv.Box
			if err := s.API(t.Context(), http.MethodPost, "/v2/sandboxes/"+id+"/connect", map[string]any{}, &b); err != nil {
				t.Fatal(err)
			}
			quick(t, s, b)
			if err := s.Kill(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if status, _, err := createKeyed(t.Context(), s, key, body); status != http.StatusConflict {
				t.Errorf("create with the key of an ended sandbox = %v, want 409", err)
			}
		}
	}
}

// A burst above the queue is told to come back, and what was let in works.
func TestBurstIsRefusedNotDropped(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "limits.create_queue=4")
	const burst = 40
	type answer struct {
		status int
		id     string
		err    error
	}
	answers := make(chan answer, burst)
	for i := range burst {
		go func() {
			// Resources of their own, so that no warm sandbox serves them.
			status, id, err := createKeyed(t.Context(), s, fmt.Sprint(i), fmt.Sprintf(`{"resources":{"memoryMiB":%d}}`, 600+i))
			answers <- answer{status, id, err}
		}()
	}
	made, refused := 0, 0
	for range burst {
		switch a := <-answers; a.status {
		case http.StatusCreated:
			made++
		case http.StatusTooManyRequests:
			refused++
			wantContains(t, "refusal", a.err.Error(), "create_queue_full", "limits.create_queue")
		default:
			t.Errorf("create = %d, %v", a.status, a.err)
		}
	}
	if made < 8 || refused == 0 {
		t.Errorf("%d created and %d refused, want both", made, refused)
	}
	if n := listed(t, s); n != made {
		t.Errorf("%d run, want %d", n, made)
	}
	if n, err := s.Metric(t.Context(), `caisson_create_refused_total{reason="queue_full"}`); err != nil || int(n) != refused {
		t.Errorf("metric says %v refused (%v), want %d", n, err, refused)
	}
}
