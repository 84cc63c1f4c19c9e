// Package codeinterp is the code interpreter: the server on port 49999 of a
// sandbox that E2B's code-interpreter SDKs speak to. It keeps contexts, each
// with the state of a kernel (package kernel), runs cells in them and streams
// what comes of them.
//
// It runs in the guest, beside the agent and in the same program. It guards
// nothing against the sandbox's own code; who may speak to it from outside is
// decided by the data plane.
package codeinterp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// Port is where SDKs expect the interpreter.
const Port = 49999

const (
	// DefaultDir is where contexts begin.
	DefaultDir = "/home/user"
	// maxContexts bounds the contexts of a sandbox.
	maxContexts = 100
	// idleTimeout is how long a connection without a request is kept.
	idleTimeout = 640 * time.Second
)

// Config says what a Server serves with.
type Config struct {
	// Listener is the port; Run closes it.
	Listener net.Listener
	// Kernels starts kernels.
	Kernels *kernel.Maker
	// Dir is where contexts begin; default DefaultDir.
	Dir string
	// AgentURL is where the agent answers, for the sandbox's variables; empty
	// for none.
	AgentURL string
	Log      *slog.Logger
}

// Server is a code interpreter.
type Server struct {
	cfg   Config
	http  *http.Server
	agent *http.Client

	mu       sync.Mutex // guards what follows
	contexts []*Context // in the order they were made
	making   int        // contexts that are to be there soon
	closed   bool
}

// New returns a server that does nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.Listener == nil || cfg.Kernels == nil || cfg.Log == nil {
		return nil, errors.New("the code interpreter needs a listener, kernels and a logger")
	}
	if cfg.Dir == "" {
		cfg.Dir = DefaultDir
	}
	s := &Server{cfg: cfg, agent: &http.Client{Timeout: agentTimeout, Transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: time.Second}}}
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Run makes the contexts that are there from the beginning, with the Python
// kernel started, and serves until ctx ends. No kernel runs when it returns.
func (s *Server) Run(ctx context.Context) error {
	defer s.closeContexts()
	here := kernel.Supported()
	// Others than Python's kernel begin when they are used.
	for _, language := range []string{"python", "javascript"} {
		if !slices.Contains(here, language) {
			continue
		}
		c := s.add(language, s.cfg.Dir, language)
		if language != "python" {
			continue
		}
		c.warm = true
		if err := c.start(ctx); err != nil {
			return fmt.Errorf("first kernel: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	if err := s.http.Serve(s.cfg.Listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve the code interpreter: %w", err)
	}
	return nil
}
