package codeinterp

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// idle is a server that does not serve, on this machine's bash.
func idle(t *testing.T, agent string) *Server {
	t.Helper()
	if !slices.Contains(kernel.Supported(), "bash") {
		t.Skip("no bash on this machine")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	dir := t.TempDir()
	m, err := kernel.NewMaker(filepath.Join(dir, "kernels"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Listener: l, Kernels: m, Dir: dir, AgentURL: agent, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.closeContexts)
	return s
}

// A context whose client left has no one who knows its id.
func TestCreateForNobody(t *testing.T) {
	t.Parallel()
	s := idle(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 { // whether its kernel is started is a matter of chance
		if c, err := s.create(ctx, "bash", s.cfg.Dir); err == nil {
			t.Errorf("create() = %s", c.ID)
		}
	}
	if left := s.list(); len(left) > 0 {
		t.Errorf("%d contexts are left", len(left))
	}
}

// Creates at one time do not pass the limit together.
func TestContextsAtOnce(t *testing.T) {
	t.Parallel()
	s := idle(t, "")
	for range maxContexts - 1 {
		s.add("bash", s.cfg.Dir, "")
	}
	var made atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := s.create(t.Context(), "bash", s.cfg.Dir); err == nil {
				made.Add(1)
			}
		})
	}
	all.Wait()
	if n := made.Load(); n != 1 || len(s.list()) != maxContexts {
		t.Errorf("%d of 4 were made, %d contexts are there; the limit is %d", n, len(s.list()), maxContexts)
	}
}

// The memory of a sandbox goes into its snapshots and forks: nothing keeps the
// token with which a client came.
func TestTokenIsNotKept(t *testing.T) {
	t.Parallel()
	asked := 0
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = w.Write([]byte("{}"))
	}))
	defer agent.Close()
	s := idle(t, agent.URL)
	c := s.add("bash", s.cfg.Dir, "")
	const token = "token-of-the-agent"
	for range 2 {
		c.globals(t.Context(), token)
	}
	if asked != 1 {
		t.Errorf("variables were asked for %d times", asked)
	}
	if kept := fmt.Sprintf("%q %+v", c.token, c.known); strings.Contains(kept, token) {
		t.Errorf("it is kept: %s", kept)
	}
}
