package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/containerd/errdefs"
)

// Reasons for the end of a sandbox, beside the provider's.
const (
	ReasonKilled  = "killed"
	ReasonTimeout = provider.ReasonDeadline
)

// killTries bounds how often a kill looks again at a sandbox that did not end
// with what was starting or saving it.
const killTries = 3

// Kill ends a sandbox in the order of decisions.md 29 and returns when nothing
// of it is left. Killing an ended or unknown one, or one that is being killed,
// is errdefs.ErrNotFound. It goes on when the caller goes away.
func (m *Manager) Kill(ctx context.Context, who identity.Principal, id ID, reason string) error {
	if reason == "" {
		reason = ReasonKilled
	}
	for range killTries {
		e, err := m.find(ctx, who, id)
		if errors.As(err, new(pausedError)) {
			return m.killPaused(ctx, who, id, reason)
		}
		if err != nil {
			return err
		}
		was, asked := m.askEnd(e, reason, who.KeyID)
		switch {
		case !asked:
			return notFound(id)
		case was == live:
			return m.finishEnd(ctx, e, audit.Event{}, true)
		}
		// The goroutine that starts or saves it cleans up.
		e.abort(errAborted)
		select {
		case <-e.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		// It may not have seen that it should, or not have been able to.
		sb, err := m.deps.Store.Get(ctx, id)
		if errdefs.IsNotFound(err) || err == nil && sb.State.Ended() {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("sandbox %q could not be ended, try again: %w", id, errdefs.ErrUnavailable)
}

// askEnd marks e to end, unless somebody has already, and says in which phase
// it was. From here on a live e is unreachable and the caller must finishEnd.
func (m *Manager) askEnd(e *entry, reason, actor string) (was phase, asked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was = e.phase
	if e.why != "" || was == ending {
		return was, false
	}
	e.why, e.by = reason, actor
	if was == live {
		m.markGone(e)
	}
	return was, true
}

// finishEnd ends the box of an entry that askEnd marked, and its record. extra
// may give the event fields. When first is set the record passes through
// Killing; a box that has already exited needs no such step.
func (m *Manager) finishEnd(ctx context.Context, e *entry, extra audit.Event, first bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
	defer cancel()
	m.mu.RLock()
	box, why, by := e.box, e.why, e.by
	m.mu.RUnlock()
	log := m.log.With(slog.String("sandbox", string(e.id)), slog.String("reason", why))

	var look sync.WaitGroup // while the record is written, it costs no time
	look.Go(func() { m.closing(ctx, e, box) })
	if first {
		// Killing survives a crash of the server between here and the end; if it
		// cannot be written the box dies all the same.
		_, err := m.deps.Store.Mutate(ctx, e.id, func(s *Sandbox) (audit.Event, error) {
			s.State, s.Reason = Killing, why
			return audit.Event{Type: "sandbox.killing", Actor: by, Reason: why}, nil
		})
		if err != nil {
			log.WarnContext(ctx, "killing could not be recorded", slog.Any("error", err))
		}
	}
	var destroyErr error
	look.Wait()
	if box != nil {
		destroyErr = box.Destroy(ctx)
	}
	err := errors.Join(destroyErr, m.deps.Guard.Detach(ctx, string(e.id)))
	if err == nil {
		err = m.recordKilled(ctx, e.id, why, by, extra)
	}
	if err != nil {
		log.ErrorContext(ctx, "sandbox could not be ended; will retry", slog.Any("error", err))
		m.mu.Lock()
		e.stuck = true
		m.mu.Unlock()
		return fmt.Errorf("end sandbox %q: %w", e.id, err)
	}
	log.InfoContext(ctx, "sandbox ended")
	if f := m.deps.Metrics.Ended; f != nil {
		f(why)
	}
	m.forget(e)
	return nil
}

// closing gives Deps.Closing its last look at a box.
func (m *Manager) closing(ctx context.Context, e *entry, box provider.Box) {
	m.mu.RLock()
	l := e.live
	m.mu.RUnlock()
	if f := m.deps.Closing; f != nil && l != nil && box != nil {
		f(ctx, l, box)
	}
}

// recordKilled writes the end; a record that has ended already, or is gone,
// stays as it is.
func (m *Manager) recordKilled(ctx context.Context, id ID, why, by string, ev audit.Event) error {
	now := clock()
	ev.Type, ev.At, ev.Actor, ev.Reason = "sandbox.killed", now, by, why
	_, err := m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		if s.State.Ended() {
			return audit.Event{}, errEnded
		}
		s.State, s.Reason, s.EndedAt = Killed, why, now
		return ev, nil
	})
	if errors.Is(err, errEnded) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

var errEnded = errors.New("record has ended")

// retryEnds finishes what could not be finished before.
func (m *Manager) retryEnds(ctx context.Context) {
	m.mu.Lock()
	var again []*entry
	for _, e := range m.entries {
		if e.stuck {
			e.stuck = false
			again = append(again, e)
		}
	}
	m.mu.Unlock()
	for _, e := range again {
		if ctx.Err() != nil {
			return
		}
		_ = m.finishEnd(ctx, e, audit.Event{}, false) // logged there, and stuck again
	}
}

// syncDeadlines sets the hard ends that could not be set before. That of a box
// that was warm is near: it would die long before its sandbox's time is over.
func (m *Manager) syncDeadlines(ctx context.Context) {
	m.mu.RLock()
	late := map[*entry]provider.Box{}
	for _, e := range m.entries {
		if e.unsynced {
			late[e] = e.box
		}
	}
	m.mu.RUnlock()
	for e, box := range late {
		if m.syncDeadline(ctx, e, box) != nil {
			return // the others are left to the next sweep
		}
	}
}

// syncDeadline moves the box's own hard end, where it has one, to a little after
// the sandbox's.
func (m *Manager) syncDeadline(ctx context.Context, e *entry, box provider.Box) error {
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	m.mu.RLock()
	endsAt, at, running := e.endsAt, e.atEnd, e.phase == live
	m.mu.RUnlock()
	if !running {
		return nil
	}
	err := m.setDeadline(ctx, box, endsAt, at)
	m.mu.Lock()
	e.unsynced = err != nil
	m.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "hard deadline could not be set; will retry", slog.String("sandbox", string(e.id)), slog.Any("error", err))
	}
	return err
}

// graceAt is how long a box outlives its end when no server ends it.
func (m *Manager) graceAt(at atEnd) time.Duration {
	if at.pause {
		return m.cfg.PauseGrace
	}
	return m.cfg.DeadlineGrace
}

func (m *Manager) setDeadline(ctx context.Context, box provider.Box, endsAt time.Time, at atEnd) error {
	d, ok := box.(provider.Deadliner)
	if !ok {
		return nil
	}
	ctx, cancel := m.patient(ctx, quickCall)
	defer cancel()
	return explain(ctx, d.SetDeadline(ctx, endsAt.Add(m.graceAt(at))))
}
