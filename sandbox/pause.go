package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
)

const (
	// retryPause is how long a sandbox lives on whose pause on timeout failed;
	// then it is tried again.
	retryPause = time.Minute
	// artifactAge is how old an artifact that no record refers to must be
	// before it is collected: one that is being made is younger.
	artifactAge = 10 * time.Minute
)

// pausedError says that a sandbox has no box because it is paused.
type pausedError struct{ id ID }

func (e pausedError) Error() string { return fmt.Sprintf("sandbox %q is paused", e.id) }

// Unwrap makes it an errdefs.ErrConflict.
func (pausedError) Unwrap() error { return errdefs.ErrConflict }

func errPaused(id ID) error { return pausedError{id} }

func (a atEnd) kind() snapshot.Kind {
	if a.filesOnly {
		return snapshot.Filesystem
	}
	return snapshot.Memory
}

// Pause saves a running sandbox and ends its box; the artifact is complete when
// it returns. Streams break at once. Pausing what is being paused waits for that
// and succeeds; what is paused already is errdefs.ErrConflict. On an error the
// sandbox runs on.
func (m *Manager) Pause(ctx context.Context, who identity.Principal, id ID, k snapshot.Kind) error {
	if err := m.canSave(k); err != nil {
		return err
	}
	e, err := m.find(ctx, who, id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	was, copying := e.phase, e.copying
	if was == live && !copying {
		if err := m.mayPause(e.team); err != nil {
			m.mu.Unlock()
			return err
		}
		m.beginSave(e)
	}
	m.mu.Unlock()
	if was == live && copying {
		return errCopying(id)
	}
	switch was {
	case live:
		return m.save(ctx, e, k, who.KeyID, "")
	case starting:
		return fmt.Errorf("sandbox %q is being started: %w", id, errdefs.ErrConflict)
	case pausing:
		return m.awaitPause(ctx, e)
	default:
		return notFound(id)
	}
}

// awaitPause waits for another's pause and tells how it went.
func (m *Manager) awaitPause(ctx context.Context, e *entry) error {
	select {
	case <-e.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	sb, err := m.deps.Store.Get(ctx, e.id)
	switch {
	case err != nil:
		return err
	case sb.State.Ended() || sb.State == Killing:
		return notFound(e.id)
	case sb.State == Running:
		return fmt.Errorf("sandbox %q could not be paused: %w", e.id, errdefs.ErrUnavailable)
	}
	return nil
}

func (m *Manager) canSave(k snapshot.Kind) error {
	c := m.deps.Provider.Capabilities()
	if m.deps.Vault == nil || !c.Restore || !slices.Contains(c.Snapshots, k) {
		return fmt.Errorf("provider %s cannot pause with %s: %w", m.deps.Provider.Name(), k, errdefs.ErrNotImplemented)
	}
	return nil
}

// beginSave makes a live entry unreachable. What happens to it from here on is
// save's business alone. Manager.mu is held.
func (m *Manager) beginSave(e *entry) {
	m.hide(e)
	e.phase = pausing
}

// save pauses an entry that beginSave marked; why is "" for a pause that was
// asked for. It goes on when the caller goes away.
func (m *Manager) save(ctx context.Context, e *entry, k snapshot.Kind, by, why string) error {
	began := time.Now()
	ctx, cancel := m.saveContext(ctx)
	defer cancel()
	a, err := m.putAway(ctx, e, k, by, why)
	if err != nil {
		return err
	}
	if sb, err := m.deps.Store.Get(ctx, e.id); err == nil {
		m.noteDormant(sb)
		m.expectResume(ctx, sb)
	}
	m.forget(e)
	took := time.Since(began)
	m.log.InfoContext(ctx, "sandbox paused", slog.String("sandbox", string(e.id)), slog.String("kind", string(k)),
		slog.Int64("bytes", a.SizeBytes), slog.Duration("took", took))
	if f := m.deps.Metrics.Paused; f != nil {
		f(took)
	}
	return nil
}

// putAway takes an entry that beginSave marked to Paused, without a box; its
// entry stays. On an error it is gone: the sandbox was killed, or runs on as
// another entry.
func (m *Manager) putAway(ctx context.Context, e *entry, k snapshot.Kind, by, why string) (snapshot.Artifact, error) {
	log := m.log.With(slog.String("sandbox", string(e.id)))
	a, err := m.saveBox(ctx, e, k, by, why)
	m.mu.RLock()
	killed := e.why != ""
	m.mu.RUnlock()
	switch {
	case err == nil && !killed:
	case killed:
		if err == nil {
			// It has become Paused meanwhile, which Killing does not follow.
			m.deleteArtifact(ctx, a.ID)
		}
		return a, errors.Join(notFound(e.id), m.finishEnd(ctx, e, audit.Event{}, false))
	default:
		log.WarnContext(ctx, "sandbox was not paused; it runs on", slog.Any("error", err))
		m.runOn(context.WithoutCancel(ctx), e)
		return a, fmt.Errorf("pause sandbox %q: %w", e.id, err)
	}
	m.endBox(ctx, e)
	return a, nil
}

// endBox ends the box of a sandbox that is Paused by now. Giving its memory back
// takes the kernel as long as saving it, so nobody waits for that but a resume.
func (m *Manager) endBox(ctx context.Context, e *entry) {
	gone := make(chan struct{})
	m.mu.Lock()
	m.leaving[e.id] = gone
	m.mu.Unlock()
	end := func(context.Context) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
		defer cancel()
		if err := errors.Join(e.box.Destroy(ctx), m.deps.Guard.Detach(ctx, string(e.id))); err != nil {
			// The record is Paused: the sweep destroys what is left.
			m.log.ErrorContext(ctx, "box of a paused sandbox could not be destroyed; will retry",
				slog.String("sandbox", string(e.id)), slog.Any("error", err))
		}
		m.mu.Lock()
		delete(m.leaving, e.id)
		m.mu.Unlock()
		close(gone)
	}
	if !m.tasks.try(end) {
		end(ctx)
	}
}

// hasLeft waits until the box that a sandbox had before its pause is gone.
func (m *Manager) hasLeft(ctx context.Context, id ID) error {
	m.mu.RLock()
	gone := m.leaving[id]
	m.mu.RUnlock()
	if gone == nil {
		return nil
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// saveBox takes the record from Running to Paused, with the artifact that it
// then has. On an error there is no artifact, and the record may be Pausing.
func (m *Manager) saveBox(ctx context.Context, e *entry, k snapshot.Kind, by, why string) (snapshot.Artifact, error) {
	var a snapshot.Artifact
	if err := m.canSave(k); err != nil {
		return a, err
	}
	box, ok := e.box.(provider.Snapshotter)
	if !ok {
		return a, fmt.Errorf("box cannot be saved: %w", errdefs.ErrNotImplemented)
	}
	if err := e.lock(ctx); err != nil { // changes of timeout and network end first
		return a, err
	}
	defer e.unlock()
	_, err := m.deps.Store.Mutate(ctx, e.id, func(s *Sandbox) (audit.Event, error) {
		s.State = Pausing
		return audit.Event{Type: "sandbox.pausing", Actor: by, Reason: why, Fields: map[string]string{"kind": string(k)}}, nil
	})
	if err != nil {
		return a, err
	}
	m.closing(ctx, e, e.box)
	m.listLeftovers(ctx)
	if a, err = box.Snapshot(ctx, k, m.deps.Vault); err != nil {
		return a, because(ctx, fmt.Errorf("save box: %w", err))
	}
	if err = m.deps.Vault.Sync(ctx, a.ID); err == nil {
		now := clock()
		_, err = m.deps.Store.Mutate(ctx, e.id, func(s *Sandbox) (audit.Event, error) {
			s.State, s.Saved, s.EndsAt = Paused, &a, now
			return audit.Event{Type: "sandbox.paused", At: now, Actor: by, Reason: why, Fields: map[string]string{
				"kind": string(k), "bytes": strconv.FormatInt(a.SizeBytes, 10),
			}}, nil
		})
		if err != nil {
			// The commit may have gone through and its answer been lost.
			if sb, gerr := m.deps.Store.Get(context.WithoutCancel(ctx), e.id); gerr == nil && sb.Saved != nil && sb.Saved.ID == a.ID {
				err = nil
			}
		}
	}
	if err != nil {
		m.deleteArtifact(context.WithoutCancel(ctx), a.ID)
		return a, because(ctx, err)
	}
	return a, nil
}

// runOn brings an entry that could not be saved back to life, as a new entry:
// who watched the old one has let go of it.
func (m *Manager) runOn(ctx context.Context, old *entry) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.CreateTimeout)
	defer cancel()
	sb, err := m.deps.Store.Get(ctx, old.id)
	if err == nil {
		sb, err = m.unpause(ctx, sb, old.box)
	}
	if err == nil {
		e := newEntry(old.id, old.team, func(error) {})
		m.mu.Lock()
		asked := old.why != ""
		if !asked {
			// In one step: nobody ends a new entry that is not live.
			m.entries[e.id] = e
			m.present(e, old.box, sb)
		}
		m.mu.Unlock()
		if !asked {
			m.forget(old)
			m.watch(e, old.box)
			m.tasks.add(func(ctx context.Context) { _ = m.syncDeadline(ctx, e, old.box) }) // logged there; the sweep retries
			return
		}
	}
	m.log.ErrorContext(ctx, "sandbox that could not be paused does not run on", slog.String("sandbox", string(old.id)), slog.Any("error", err))
	m.askEnd(old, provider.ReasonCrashed, "system")
	_ = m.finishEnd(ctx, old, audit.Event{}, true) // logged there; the sweep retries
}

// unpause makes a box whose pause was not finished a running sandbox again: the
// agent may have been told to forget who it is. A sandbox whose time is over
// gets a little more.
func (m *Manager) unpause(ctx context.Context, sb Sandbox, box provider.Box) (Sandbox, error) {
	if err := m.initAgent(ctx, sb, box); err != nil {
		return sb, err
	}
	soonest := clock().Add(retryPause)
	return m.deps.Store.Mutate(ctx, sb.ID, func(s *Sandbox) (audit.Event, error) {
		s.State, s.Saved = Running, nil
		if s.EndsAt.Before(soonest) {
			s.EndsAt = soonest
		}
		return audit.Event{Type: "sandbox.pause_failed", Actor: "system"}, nil
	})
}

// killPaused ends a sandbox that has no box.
func (m *Manager) killPaused(ctx context.Context, who identity.Principal, id ID, why string) error {
	if err := m.hasLeft(ctx, id); err != nil {
		return err
	}
	now := clock()
	var a *snapshot.Artifact
	_, err := m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		if s.State != Paused {
			return audit.Event{}, fmt.Errorf("sandbox %q is in transition: %w", id, errdefs.ErrConflict)
		}
		a = s.Saved
		s.State, s.Reason, s.EndedAt, s.Saved = Killed, why, now, nil
		return audit.Event{Type: "sandbox.killed", At: now, Actor: who.KeyID, Reason: why}, nil
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.wakes(id)
	m.mu.Unlock()
	if a != nil {
		m.deleteArtifact(ctx, a.ID)
	}
	m.log.InfoContext(ctx, "sandbox ended", slog.String("sandbox", string(id)), slog.String("reason", why))
	if f := m.deps.Metrics.Ended; f != nil {
		f(why)
	}
	return nil
}

// deleteArtifact removes what no record refers to; what cannot be removed now is
// collected later.
func (m *Manager) deleteArtifact(ctx context.Context, id snapshot.ID) {
	if err := m.deps.Vault.Delete(context.WithoutCancel(ctx), id); err != nil {
		m.log.WarnContext(ctx, "artifact could not be deleted; will retry", slog.String("artifact", string(id)), slog.Any("error", err))
	}
}

// dropArtifact is deleteArtifact, while the caller goes on: large files take
// their time.
func (m *Manager) dropArtifact(ctx context.Context, id snapshot.ID) {
	if !m.tasks.try(func(context.Context) { m.deleteArtifact(ctx, id) }) {
		m.deleteArtifact(ctx, id)
	}
}

// collectArtifacts deletes artifacts that no record refers to.
func (m *Manager) collectArtifacts(ctx context.Context) {
	if m.deps.Vault == nil {
		return
	}
	// The listing comes first: what is made after it is not in it.
	stored, err := m.deps.Vault.List(ctx)
	if err != nil {
		m.log.WarnContext(ctx, "artifacts cannot be listed", slog.Any("error", err))
		return
	}
	rows, err := m.deps.Store.Unfinished(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.log.ErrorContext(ctx, "unfinished sandboxes cannot be read", slog.Any("error", err))
		}
		return
	}
	used := map[snapshot.ID]bool{}
	for _, sb := range rows {
		if sb.Saved != nil {
			used[sb.Saved.ID] = true
		}
	}
	if m.deps.Snapshots != nil {
		of, err := m.deps.Snapshots.Artifacts(ctx)
		if err != nil {
			if ctx.Err() == nil {
				m.log.ErrorContext(ctx, "artifacts of snapshots cannot be read", slog.Any("error", err))
			}
			return
		}
		for _, a := range of {
			used[a.ID] = true
		}
	}
	for _, s := range stored {
		if !used[s.ID] && m.mayCollect(s) {
			m.deleteArtifact(ctx, s.ID)
		}
	}
}
