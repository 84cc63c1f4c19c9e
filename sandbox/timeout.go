package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
)

// SetTimeout sets the end to now + ttl; it may shorten; 0 ends the sandbox
// before the call returns. Ended and unknown ones are errdefs.ErrNotFound, one
// that is being started ErrConflict.
func (m *Manager) SetTimeout(ctx context.Context, who identity.Principal, id ID, ttl time.Duration) error {
	if err := checkTimeout(ttl, m.cfg.MaxTimeout); err != nil {
		return err
	}
	e, err := m.findLive(ctx, who, id)
	if err != nil {
		return err
	}
	if ttl == 0 {
		if e.atEnd.pause {
			return m.Pause(ctx, who, id, e.atEnd.kind())
		}
		return m.Kill(ctx, who, id, ReasonTimeout)
	}
	_, err = m.setEnd(ctx, who, e, ttl, false)
	return err
}

// Extend moves the end to now + ttl only if that is later (connect, refreshes),
// and returns the record. Errors are SetTimeout's; ttl must be more than 0 to
// have an effect.
func (m *Manager) Extend(ctx context.Context, who identity.Principal, id ID, ttl time.Duration) (Sandbox, error) {
	if err := checkTimeout(ttl, m.cfg.MaxTimeout); err != nil {
		return Sandbox{}, err
	}
	e, err := m.findLive(ctx, who, id)
	if err != nil {
		return Sandbox{}, err
	}
	return m.setEnd(ctx, who, e, ttl, true)
}

// setEnd changes the end in memory, on the box and in the record. Memory goes
// first: once it holds the new end the reaper cannot end the sandbox by the old
// one while the rest is being written.
func (m *Manager) setEnd(ctx context.Context, who identity.Principal, e *entry, ttl time.Duration, onlyLater bool) (Sandbox, error) {
	if err := e.lock(ctx); err != nil {
		return Sandbox{}, err
	}
	defer e.unlock()
	to := clock().Add(ttl)
	old, ok := m.moveDeadline(e, to, onlyLater)
	if !ok {
		return Sandbox{}, notFound(e.id)
	}
	if onlyLater && !to.After(old) {
		return m.deps.Store.Get(ctx, e.id)
	}
	if to.After(old) {
		// The box must not die by its old hard end after the caller was told of
		// the new one.
		if err := m.setDeadline(ctx, e.box, to, e.atEnd); err != nil {
			m.moveDeadline(e, old, false)
			return Sandbox{}, fmt.Errorf("extend sandbox %q: %w", e.id, err)
		}
	}
	sb, err := m.deps.Store.Mutate(ctx, e.id, func(s *Sandbox) (audit.Event, error) {
		if s.State != Running {
			return audit.Event{}, notFound(e.id)
		}
		s.EndsAt = to
		return audit.Event{
			Type: "sandbox.timeout_set", Actor: who.KeyID,
			Fields: map[string]string{"endsAt": to.Format(time.RFC3339)},
		}, nil
	})
	if err != nil {
		m.moveDeadline(e, old, false)
		return Sandbox{}, err
	}
	if to.Before(old) {
		// The reaper has the new end; the hard one only matters without it.
		if err := m.setDeadline(ctx, e.box, to, e.atEnd); err != nil {
			m.log.WarnContext(ctx, "hard deadline could not be moved", slog.String("sandbox", string(e.id)), slog.Any("error", err))
		}
	}
	return sb, nil
}
