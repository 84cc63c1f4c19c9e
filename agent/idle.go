package agent

import (
	"maps"
	"net"
	"net/http"
	"sync"
	"time"
)

// idleConns knows the connections that wait for a next request.
type idleConns struct {
	mu    sync.Mutex // guards what follows
	conns map[net.Conn]struct{}
	// closing are those that close waits for, until gone is closed.
	closing map[net.Conn]struct{}
	gone    chan struct{}
}

// closeLimit bounds the wait for connections to be let go of.
const closeLimit = time.Second

// observe is http.Server.ConnState.
func (i *idleConns) observe(c net.Conn, s http.ConnState) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conns == nil {
		i.conns = make(map[net.Conn]struct{})
	}
	if s == http.StateIdle {
		i.conns[c] = struct{}{}
		return
	}
	delete(i.conns, c)
	if s != http.StateClosed || i.gone == nil {
		return
	}
	delete(i.closing, c)
	if len(i.closing) == 0 {
		close(i.gone)
		i.gone = nil
	}
}

// close closes all idle connections and waits until the server has let go of
// them and of what it read from them. One call at a time.
func (i *idleConns) close() {
	i.mu.Lock()
	idle := i.conns
	i.conns = nil
	gone := make(chan struct{})
	if len(idle) == 0 {
		close(gone)
	} else {
		i.closing, i.gone = maps.Clone(idle), gone
	}
	i.mu.Unlock()
	for c := range idle {
		_ = c.Close()
	}
	select {
	case <-gone:
	case <-time.After(closeLimit):
	}
}
