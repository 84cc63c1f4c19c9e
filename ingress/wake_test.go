package ingress_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/secret"
)

// asleep starts a server whose sandbox is paused and wakes by wake; nil brings
// it back.
func asleep(t *testing.T, o options, wake func() error) (w *world, wakes *atomic.Int64) {
	t.Helper()
	w, wakes = start(t, o), new(atomic.Int64)
	w.kill(boxID)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dormant = map[sandbox.ID]sandbox.Dormant{boxID: {
		AgentToken: secret.New(agentToken), TrafficToken: secret.New(traffic), PrivateTraffic: o.private, PrivatePorts: o.doors,
	}}
	var once sync.Once
	w.wake = func(context.Context, sandbox.ID) (*sandbox.Live, error) {
		wakes.Add(1)
		if wake != nil {
			if err := wake(); err != nil {
				return nil, err
			}
		}
		once.Do(func() { w.add(boxID, agentToken, o) })
		live, _ := w.Live(boxID)
		return live, nil
	}
	return w, wakes
}

func TestTrafficWakes(t *testing.T) {
	t.Parallel()
	agent := append(byHeader("49983"), "X-Access-Token", agentToken)
	for _, tc := range []struct {
		name    string
		private bool
		path    string
		pairs   []string
		status  int
		text    string
	}{
		{"a port", false, "/", byHeader("3000"), 200, "app"},
		{"the agent with its token", false, "/process.Process/List", agent, 200, "agent"},
		{"the agent's health with its token", false, "/health", agent, 200, "agent"},
		{"the agent's health without a token", false, "/health", byHeader("49983"), 403, "X-Access-Token"},
		{"the agent's files without a token", false, "/files?path=/etc/passwd", byHeader("49983"), 403, "X-Access-Token"},
		{"the agent with a wrong token", false, "/process.Process/List", append(byHeader("49983"), "X-Access-Token", "wrong"), 403, "X-Access-Token"},
		{"the agent with two tokens", false, "/", append(agent, "X-Access-Token", "wrong"), 403, "X-Access-Token"},
		{"a private port without a token", true, "/", byHeader("3000"), 403, "e2b-traffic-access-token"},
		{"a private port with a wrong token", true, "/", append(byHeader("3000"), "E2b-Traffic-Access-Token", agentToken), 403, "invalid"},
		{"a private port with its token", true, "/", append(byHeader("3000"), "E2b-Traffic-Access-Token", traffic), 200, "app"},
		{"a template's private port without a token", false, "/", byHeader("9222"), 403, "e2b-traffic-access-token"},
		{"a template's private port with its token", false, "/", append(byHeader("9222"), "E2b-Traffic-Access-Token", traffic), 200, "browser"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w, wakes := asleep(t, options{private: tc.private, doors: []uint16{9222}, ports: map[uint16]http.Handler{
				49983: says("agent"), 3000: says("app"), 9222: says("browser"),
			}}, nil)
			resp, body := w.get(t, tc.path, tc.pairs...)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.text) {
				t.Errorf("answer %d %s, want %d with %q", resp.StatusCode, body, tc.status, tc.text)
			}
			want := int64(0)
			if tc.status == 200 {
				want = 1
			}
			if n := wakes.Load(); n != want {
				t.Errorf("woken %d times, want %d", n, want)
			}
		})
	}
}

func TestWakeFails(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		err    error
		status int
		text   string
	}{
		{"killed meanwhile", fmt.Errorf("wake: %w", errdefs.ErrNotFound), 502, "The sandbox was not found"},
		{"no room", fmt.Errorf("wake: %w", errdefs.ErrResourceExhausted), 429, "as many running sandboxes as it may"},
		{"broken", fmt.Errorf("wake: secret detail: %w", errdefs.ErrInternal), 409, "could not be resumed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w, _ := asleep(t, options{ports: map[uint16]http.Handler{3000: says("app")}}, func() error { return tc.err })
			resp, body := w.get(t, "/", byHeader("3000")...)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.text) || strings.Contains(body, "secret detail") {
				t.Errorf("answer %d %s, want %d with %q", resp.StatusCode, body, tc.status, tc.text)
			}
		})
	}
}

// A paused sandbox that was not to be woken by traffic looks like any other that
// is not there.
func TestTrafficDoesNotWakeOthers(t *testing.T) {
	t.Parallel()
	w, wakes := asleep(t, options{ports: map[uint16]http.Handler{3000: says("app")}}, nil)
	w.dormant = nil
	resp, body := w.get(t, "/", byHeader("3000")...)
	if resp.StatusCode != 502 || !strings.Contains(body, "The sandbox was not found") || wakes.Load() != 0 {
		t.Errorf("answer %d %s, %d wakes", resp.StatusCode, body, wakes.Load())
	}
}

// Traffic that meets a sandbox on its way in or out waits for the end of that.
func TestTrafficWaitsForTransition(t *testing.T) {
	t.Parallel()
	w, wakes := asleep(t, options{ports: map[uint16]http.Handler{3000: says("app")}}, nil)
	settled, asked := make(chan struct{}), make(chan struct{})
	dormant := w.dormant
	w.dormant = nil // until it is paused
	w.transit = map[sandbox.ID]chan struct{}{boxID: settled}
	w.onTransit = sync.OnceFunc(func() { close(asked) })
	go func() {
		<-asked
		w.mu.Lock()
		w.dormant, w.transit = dormant, nil
		w.mu.Unlock()
		close(settled)
	}()
	if _, body := w.get(t, "/", byHeader("3000")...); body != "app" || wakes.Load() != 1 {
		t.Errorf("answered %s after %d wakes", body, wakes.Load())
	}
}
