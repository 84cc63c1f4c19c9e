package sandbox

import (
	"context"
	"time"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/identity"
)

// Manager owns every sandbox of this node. It is concrete; nobody mocks it.
type Manager struct{}

// Create makes a sandbox and returns when its agent answers.
func (m *Manager) Create(ctx context.Context, who identity.Principal, r CreateRequest) (Sandbox, error) {
	panic("not built")
}

// Get returns a record of the caller's team: also a Killed or Failed one.
// Another team's is errdefs.ErrNotFound.
func (m *Manager) Get(ctx context.Context, who identity.Principal, id ID) (Sandbox, error) {
	panic("not built")
}

// List returns one page of the caller's sandboxes.
func (m *Manager) List(ctx context.Context, who identity.Principal, f Filter) (page []Sandbox, next string, running int, err error) {
	panic("not built")
}

// SetTimeout sets the end to now + ttl; it may shorten; 0 ends it now.
func (m *Manager) SetTimeout(ctx context.Context, who identity.Principal, id ID, ttl time.Duration) error {
	panic("not built")
}

// Extend moves the end to now + ttl only if that is later (connect, refreshes).
func (m *Manager) Extend(ctx context.Context, who identity.Principal, id ID, ttl time.Duration) (Sandbox, error) {
	panic("not built")
}

// Kill ends a sandbox in the order of decisions.md 29. Killing an ended or
// unknown one is errdefs.ErrNotFound.
func (m *Manager) Kill(ctx context.Context, who identity.Principal, id ID, reason string) error {
	panic("not built")
}

// UpdateNetwork replaces the egress part of the network configuration.
func (m *Manager) UpdateNetwork(ctx context.Context, who identity.Principal, id ID, n Network) error {
	panic("not built")
}

// Live finds a running sandbox for the data plane, of any team, from memory.
func (m *Manager) Live(id ID) (*Live, bool) { panic("not built") }

// EachLive calls yield for every running sandbox until it returns false.
func (m *Manager) EachLive(yield func(*Live) bool) { panic("not built") }

// Agent returns a client of the sandbox's agent.
func (m *Manager) Agent(ctx context.Context, id ID) (*agentclient.Client, error) { panic("not built") }

// Run recovers, reaps and sweeps until ctx ends.
func (m *Manager) Run(ctx context.Context) error { panic("not built") }
