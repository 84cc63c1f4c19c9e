package agent

import (
	"net"
	"net/http"
	"sync"
)

// idleConns knows the connections that wait for a next request.
type idleConns struct {
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

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
}

// close closes all idle connections.
func (i *idleConns) close() {
	i.mu.Lock()
	idle := i.conns
	i.conns = nil
	i.mu.Unlock()
	for c := range idle {
		_ = c.Close()
	}
}
