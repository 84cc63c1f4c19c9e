package agent

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// closeLimit bounds the wait for connections to be let go of.
const closeLimit = time.Second

// connections knows which connections no request is being served on. What was
// read from one, with the token in it, stays in its buffers until it is closed.
type connections struct {
	mu  sync.Mutex // guards what follows
	all map[net.Conn]*connection
	// quiet, while close waits, is closed when every connection that is left
	// serves a request.
	quiet chan struct{}
}

// connection is one that has had a request.
type connection struct {
	serving int // requests that a handler works on
	idle    bool
}

// loose connections have had their answer, or all but its last bytes.
func (c *connection) loose() bool { return c.serving == 0 }

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
		k.settle()
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
		k.settle()
	}
}

// settle ends the wait of close when there is nothing to wait for any more. The
// caller holds mu.
func (k *connections) settle() {
	if k.quiet == nil {
		return
	}
	for _, c := range k.all {
		if c.loose() {
			return
		}
	}
	close(k.quiet)
	k.quiet = nil
}

// close closes all connections that wait for a next request, also those whose
// answer is just leaving, and waits until the server has let go of them and of
// what it read from them. One call at a time.
func (k *connections) close() {
	quiet := make(chan struct{})
	k.mu.Lock()
	k.quiet = quiet
	for conn, c := range k.all {
		if c.idle {
			_ = conn.Close()
		}
	}
	k.settle()
	k.mu.Unlock()
	select {
	case <-quiet:
	case <-time.After(closeLimit):
		k.mu.Lock()
		k.quiet = nil
		k.mu.Unlock()
	}
}
