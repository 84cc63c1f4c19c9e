package sandbox

import (
	"context"
	"time"

	"github.com/caisson-dev/caisson/identity"
)

// Followers is how many callers wait for the create with a key.
func (m *Manager) Followers(team identity.TeamID, key string) int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if a := m.attempts[attemptKey{team, key}]; a != nil {
		return a.callers
	}
	return 0
}

// ClockJumps makes everything in memory look as it does after the host's clock
// was set forward by d: all that has a time lies d earlier. Nothing is told of
// it, as nothing is when a clock is set.
func (m *Manager) ClockJumps(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.phase == live {
			e.endsAt = e.endsAt.Add(-d)
		}
	}
	for id, s := range m.paused {
		m.paused[id] = sleeper{s.team, s.since.Add(-d)}
	}
}

// Sweep is one round of what Run does once a minute.
func (m *Manager) Sweep(ctx context.Context) { m.sweep(ctx) }
