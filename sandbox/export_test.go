package sandbox

import "github.com/caisson-dev/caisson/identity"

// Followers is how many callers wait for the create with a key.
func (m *Manager) Followers(team identity.TeamID, key string) int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if a := m.attempts[attemptKey{team, key}]; a != nil {
		return a.callers
	}
	return 0
}
