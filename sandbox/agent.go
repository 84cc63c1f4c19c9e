package sandbox

import (
	"context"
	"fmt"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/containerd/errdefs"
)

// Agent returns a client of a running sandbox's agent.
func (m *Manager) Agent(ctx context.Context, id ID) (*agentclient.Client, error) {
	l, ok := m.Live(id)
	if !ok {
		return nil, notFound(id)
	}
	if _, err := l.Route(ctx, AgentPort); err != nil {
		return nil, fmt.Errorf("route to agent: %w", err)
	}
	return nil, errdefs.ErrNotImplemented
}
