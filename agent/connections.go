package agent

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// closeLimit bounds the wait for connections to be let go of by themselves, and
// breakLimit the wait after they were broken.
const (
	closeLimit = time.Second
	breakLimit = 100 * time.Millisecond
)

// connections knows which connections no request is being served on. What was
// read from one, with the token in it, stays in its buffers until it is closed.
type connections struct {
	mu  sync.Mutex // guards what follows
	all map[net.Conn]*connection
	// loose, while close waits, are those that it waits for, until quiet is
	// closed.
	loose map[net.Conn]struct{}
	quiet chan struct{}
}

// connection is one that has had a request.
type connection struct {
	serving int // requests that a handler works on
	idle    bool
}

// observe is http.Server.ConnState.
func (k *connections) observe(conn net.Conn, s http.ConnState) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch s {
	case http.StateActive:
		c := k.all[conn]
		if c == nil {
			if k.all == nil {
				k.all = make(map[net.Conn]*connection)
			}
			c = &connection{}
			k.all[conn] = c
		}
		c.idle = false
	case http.StateIdle:
		if c := k.all[conn]; c != nil {
			c.idle = true
			if k.quiet != nil {
				_ = conn.Close()
			}
		}
	case http.StateClosed, http.StateHijacked:
		delete(k.all, conn)
		k.settle(conn)
	}
}

type connKey struct{}

// context is http.Server.ConnContext.
func (k *connections) context(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// serve tells a connection with a request at work from one that is done.
func (k *connections) serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _ := r.Context().Value(connKey{}).(net.Conn)
		k.count(conn, 1)
		defer k.count(conn, -1)
		next.ServeHTTP(w, r)
	})
}

func (k *connections) count(conn net.Conn, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.all[conn]; c != nil {
		c.serving += n
		if n > 0 { // it was about to serve a request, not done with one
			k.settle(conn)
		}
	}
}

// settle ends the wait of close when conn was the last to wait for. The caller
// holds mu.
func (k *connections) settle(conn net.Conn) {
	if k.quiet == nil {
		return
	}
	delete(k.loose, conn)
	if len(k.loose) == 0 {
		close(k.quiet)
		k.quiet = nil
	}
}

// close closes all connections that no request is being served on, also those
// whose answer is just leaving, and waits until the server has let go of them and
// of what it read from them. Who does not take the end of its answer loses it.
// One call at a time.
func (k *connections) close() {
	quiet := make(chan struct{})
	k.mu.Lock()
	k.loose, k.quiet = make(map[net.Conn]struct{}), quiet
	for conn, c := range k.all {
		if c.serving > 0 {
			continue
		}
		k.loose[conn] = struct{}{}
		if c.idle {
			_ = conn.Close()
		}
	}
	k.settle(nil)
	k.mu.Unlock()
	select {
	case <-quiet:
		return
	case <-time.After(closeLimit):
	}
	k.mu.Lock()
	for conn := range k.loose {
		_ = conn.Close()
	}
	k.mu.Unlock()
	select {
	case <-quiet:
	case <-time.After(breakLimit):
		k.mu.Lock()
		k.quiet = nil
		k.mu.Unlock()
	}
}
