package client_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caisson-dev/caisson/client"
)

// breaker is a server that breaks the connection of the first requests.
type breaker struct {
	mu     sync.Mutex
	broken int
	keys   []string
	bodies []string
}

func (b *breaker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	b.mu.Lock()
	b.keys, b.bodies = append(b.keys, r.Header.Get("Idempotency-Key")), append(b.bodies, string(body))
	n := len(b.keys)
	b.mu.Unlock()
	if n <= b.broken {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]string{"id": "i1", "state": "running"})
}

func TestCreateIsRepeatedOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		broken, requests int
		ok               bool
		key              string
	}{
		"no loss":   {0, 1, true, ""},
		"one loss":  {1, 2, true, ""},
		"own key":   {1, 2, true, "mine"},
		"two lost":  {2, 2, false, ""},
		"all broke": {9, 2, false, "mine"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &breaker{broken: tc.broken}
			srv := httptest.NewServer(b)
			defer srv.Close()
			c, err := client.New(srv.URL, client.WithAPIKey("k"))
			if err != nil {
				t.Fatal(err)
			}
			sb, err := c.Create(t.Context(), client.CreateOptions{Name: "x", IdempotencyKey: tc.key})
			if (err == nil) != tc.ok || (tc.ok && sb.ID != "i1") {
				t.Errorf("Create() = %+v, %v", sb, err)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.keys) != tc.requests {
				t.Fatalf("%d requests, want %d", len(b.keys), tc.requests)
			}
			for i, key := range b.keys {
				if key == "" || key != b.keys[0] || b.bodies[i] != b.bodies[0] || (tc.key != "" && key != tc.key) {
					t.Errorf("request %d has key %q and body %s, the first %q and %s", i, key, b.bodies[i], b.keys[0], b.bodies[0])
				}
			}
		})
	}
}

// Where nobody listens, nothing was sent, and asking again would only take time.
func TestCreateWithoutServerFailsAtOnce(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	var dials atomic.Int64
	counted := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	c, err := client.New(srv.URL, client.WithHTTPClient(&http.Client{Transport: counted}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), client.CreateOptions{}); err == nil || dials.Load() != 1 {
		t.Errorf("Create() = %v after %d attempts, want one", err, dials.Load())
	}
}
