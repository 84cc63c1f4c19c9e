package sandbox

import (
	"context"
	"fmt"

	"github.com/caisson-dev/caisson/agent/agentclient"
)

// Agent returns a client of a running sandbox's agent. It is shared: callers
// must not close it. Calls on it fail when the sandbox ends.
func (m *Manager) Agent(ctx context.Context, id ID) (*agentclient.Client, error) {
	m.mu.RLock()
	e := m.entries[id]
	if e == nil || e.phase != live {
		m.mu.RUnlock()
		return nil, notFound(id)
	}
	client, l := e.client, e.live
	m.mu.RUnlock()
	if client != nil {
		return client, nil
	}
	route, err := l.Route(ctx, AgentPort)
	if err != nil {
		return nil, fmt.Errorf("route to agent of sandbox %q: %w", id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.phase != live {
		return nil, notFound(id)
	}
	if e.client == nil {
		e.client = agentclient.New(route, l.AgentToken)
	}
	return e.client, nil
}
