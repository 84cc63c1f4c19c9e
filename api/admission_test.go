package api_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
)

// post is call with Idempotency-Key headers.
func (s *stack) post(t *testing.T, path, body string, keys ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"X-Api-Key": {s.key}, "Content-Type": {"application/json"}, "Idempotency-Key": keys}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(text)}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := start(t, settings{maxPerTeam: 10})
	for _, tc := range []struct{ name, path, body, same, other string }{
		{
			"v1", "/sandboxes", `{"templateID":"base","metadata":{"a":"1","b":"2"}}`,
			`{"metadata": {"b":"2", "a":"1"}, "templateID":"base", "timeout": 15, "unknown": 1}`, `{"templateID":"base"}`,
		},
		{
			"v2", "/v2/sandboxes", `{"templateID":"base"}`,
			`{"templateID":"base","timeout":300}`, `{"templateID":"base","timeout":301}`,
		},
		{
			"native", "/native/v1/sandboxes", `{"template":"base"}`,
			`{"timeoutSeconds":300}`, `{"template":"base","name":"x"}`,
		},
	} {
		key := "key of " + tc.name
		first := s.post(t, tc.path, tc.body, key)
		first.wants(t, tc.name, 201, "")
		for _, body := range []string{tc.body, tc.same} {
			again := s.post(t, tc.path, body, key)
			if again.status != 201 || again.text != first.text {
				t.Errorf("%s again = %d %s, want %s", tc.name, again.status, again.text, first.text)
			}
		}
		r := s.post(t, tc.path, tc.other, key)
		r.wants(t, tc.name+" with another body", 422, "was used for another request")
		if !strings.Contains(r.text, `"idempotency_key_reused"`) {
			t.Errorf("%s: %s has no code", tc.name, r.text)
		}
		for name, keys := range map[string][]string{
			"empty": {""}, "long": {strings.Repeat("k", 256)}, "umlaut": {"\xc3\xa4"}, "latin 1": {"\xe4"}, "tab": {"a\tb"}, "two": {"a", "b"},
		} {
			r := s.post(t, tc.path, tc.body, keys...)
			r.wants(t, tc.name+" with a key that is "+name, 400, "Idempotency-Key")
		}
	}
	// The first ones are what runs; killing one does not free its key.
	var c created
	s.post(t, "/v2/sandboxes", `{"templateID":"base"}`, "key of v2").into(t, &c)
	s.call(t, "DELETE", c.path(""), nil).wants(t, "kill", 204, "")
	r := s.post(t, "/v2/sandboxes", `{"templateID":"base"}`, "key of v2")
	r.wants(t, "create with the key of an ended one", 409, c.SandboxID)
	if !strings.Contains(r.text, `"idempotency_key_ended"`) {
		t.Errorf("%s has no code", r.text)
	}
	list, _, running, err := s.manager.List(t.Context(), identity.Principal{Team: identity.DefaultTeam, KeyID: "k"}, sandbox.Filter{States: []sandbox.State{sandbox.Running}})
	if err != nil || running != 2 || len(list) != 2 {
		t.Errorf("%d run (%v), want 2", running, err)
	}
}

// What the host has no memory for is answered 503 with the figures, and when to
// come back.
func TestNoMemoryAnswer(t *testing.T) {
	t.Parallel()
	s := start(t, settings{memory: func() (int64, error) { return 5 << 20, nil }})
	for _, path := range []string{"/v2/sandboxes", "/native/v1/sandboxes"} {
		r := s.call(t, "POST", path, `{"templateID":"base"}`)
		r.wants(t, path, 503, "5 MiB")
		if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 1 || !strings.Contains(r.text, `"no_memory"`) {
			t.Errorf("%s: Retry-After %q, body %s", path, r.header.Get("Retry-After"), r.text)
		}
	}
}

// The queue's refusal reaches the caller as 429.
func TestQueueAnswer(t *testing.T) {
	t.Parallel()
	entered, proceed := make(chan struct{}), make(chan struct{})
	s := start(t, settings{
		slots: 1, queue: -1,
		memory: func() (int64, error) { entered <- struct{}{}; <-proceed; return 1 << 40, nil }, // holds the slot
	})
	done := make(chan reply)
	go func() { done <- s.call(t, "POST", "/v2/sandboxes", `{"templateID":"base"}`) }()
	<-entered
	for _, path := range []string{"/v2/sandboxes", "/native/v1/sandboxes"} {
		r := s.call(t, "POST", path, `{"templateID":"base"}`)
		r.wants(t, path, 429, "limits.create_queue")
		if n, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || n < 1 || !strings.Contains(r.text, `"create_queue_full"`) {
			t.Errorf("%s: Retry-After %q, body %s", path, r.header.Get("Retry-After"), r.text)
		}
	}
	close(proceed)
	if r := <-done; r.status != 201 {
		t.Errorf("the first create = %d %s", r.status, r.text)
	}
}

func TestForkWithKey(t *testing.T) {
	t.Parallel()
	s := start(t, settings{})
	c := s.create(t, nil)
	for _, path := range []string{c.path("/fork"), "/native/v1" + c.path("/fork")} {
		first := s.post(t, path, `{"count":2}`, path)
		first.wants(t, path, 201, "")
		if again := s.post(t, path, `{"count":2}`, path); again.status != 201 || again.text != first.text {
			t.Errorf("%s again = %d %s, want %s", path, again.status, again.text, first.text)
		}
		s.post(t, path, `{"count":3}`, path).wants(t, path+" with another count", 422, "was used for another request")
		s.post(t, path, `{"count":2}`, "").wants(t, path+" with an empty key", 400, "Idempotency-Key")
	}
}
