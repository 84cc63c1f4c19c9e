package sandbox

import (
	"context"
	"log/slog"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/containerd/errdefs"
)

// ReasonRetention ends a sandbox that was paused for longer than paused ones are
// kept.
const ReasonRetention = "retention"

// sleeper is what is remembered of every paused sandbox of this node.
type sleeper struct {
	team  identity.TeamID
	since time.Time
}

// wakes forgets a sandbox that is paused no more. Manager.mu is held.
func (m *Manager) wakes(id ID) {
	delete(m.dormant, id)
	delete(m.paused, id)
}

// mayPause refuses what would be one paused sandbox too many for a team.
// Manager.mu is held; pauses under way are not counted, so that some may pass at
// once.
func (m *Manager) mayPause(team identity.TeamID) error {
	if m.cfg.MaxPaused <= 0 {
		return nil
	}
	n := 0
	for _, s := range m.paused {
		if s.team == team {
			n++
		}
	}
	if n < m.cfg.MaxPaused {
		return nil
	}
	e := apierr.New(errdefs.ErrResourceExhausted, "team %s has %d paused sandboxes and limits.paused_per_team is %d; the sandbox runs on: kill or resume another first", team, n, m.cfg.MaxPaused)
	e.Limit = "limits.paused_per_team"
	return e.WithCode("paused_limit")
}

// expirePaused ends what was paused for too long.
func (m *Manager) expirePaused(ctx context.Context) {
	if m.cfg.KeepPaused <= 0 {
		return
	}
	before := time.Now().Add(-m.cfg.KeepPaused)
	m.mu.RLock()
	var old []ID
	for id, s := range m.paused {
		if s.since.Before(before) {
			old = append(old, id)
		}
	}
	m.mu.RUnlock()
	for _, id := range old {
		err := m.killPaused(ctx, identity.System, id, ReasonRetention)
		if err != nil && !errdefs.IsConflict(err) && ctx.Err() == nil {
			m.log.WarnContext(ctx, "paused sandbox could not be ended", slog.String("sandbox", string(id)), slog.Any("error", err))
		}
	}
}
