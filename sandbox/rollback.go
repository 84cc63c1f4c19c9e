package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
)

// ReasonPromoted ends a sandbox whose state its source has taken over.
const ReasonPromoted = "promoted"

// replacement is a state that a sandbox takes in place of its own.
type replacement struct {
	artifact snapshot.Artifact
	// names is the id under which egress keeps the names that this state knows.
	names string
	// what and fields are those of the event that tells of it.
	what   string
	fields map[string]string
}

func (r *replacement) event(who identity.Principal, now time.Time) audit.Event {
	return audit.Event{Type: r.what, At: now, Actor: who.KeyID, Fields: r.fields}
}

// Rollback gives a sandbox the files, memory and processes of a snapshot of its
// team, in place of its own. It keeps id, tokens, name, environment, network,
// limits and end; one that is paused runs afterwards, with the timeout of its
// create. Streams break. The snapshot must lie on the same image and have the
// same resources, which those that were made of the sandbox or of its relatives
// do; otherwise it is errdefs.ErrFailedPrecondition.
//
// On an error the sandbox goes on with its own state: it was saved before
// anything else was done. Should that not be possible it is paused with it.
func (m *Manager) Rollback(ctx context.Context, who identity.Principal, id ID, ref string) (Sandbox, error) {
	if err := m.canCopy(); err != nil {
		return Sandbox{}, err
	}
	sb, err := m.Get(ctx, who, id)
	if err != nil {
		return Sandbox{}, err
	}
	tmpl, build, err := m.deps.Templates.Resolve(ctx, sb.Team, ref)
	if err != nil {
		return Sandbox{}, err
	}
	if build.Artifact == nil || tmpl.Team != sb.Team {
		return Sandbox{}, apierr.Field("snapshot", "%.200q is a template; a sandbox is rolled back to a snapshot", ref)
	}
	own, err := m.deps.Templates.Build(ctx, sb.Build)
	if err != nil {
		return Sandbox{}, fmt.Errorf("template of sandbox %q: %w", id, err)
	}
	if own.Rootfs.Digest != build.Rootfs.Digest || sb.Resources != build.Resources {
		return Sandbox{}, apierr.New(errdefs.ErrFailedPrecondition,
			"snapshot %.200q lies on another image, or has other limits, than sandbox %q: create a new sandbox from it instead", ref, id).
			WithCode("snapshot_mismatch")
	}
	// What a deletion or a tag that moves lets go of meanwhile must stay.
	m.hold(build.Artifact.ID)
	defer m.unhold(build.Artifact.ID)
	return m.replace(ctx, who, id, &replacement{
		artifact: *build.Artifact, names: string(build.ID), what: "sandbox.rolled_back",
		fields: map[string]string{"snapshot": ref, "build": string(build.ID)},
	})
}

// Promote puts a copy in the place of the sandbox that it was forked from, or
// that the snapshot it was made of was saved from: that one keeps what it keeps
// in a Rollback and goes on where the copy stands, and the copy ends, with the
// reason "promoted". On an error both go on as they were.
func (m *Manager) Promote(ctx context.Context, who identity.Principal, id ID) (Sandbox, error) {
	if err := m.canCopy(); err != nil {
		return Sandbox{}, err
	}
	child, err := m.Get(ctx, who, id)
	if err != nil {
		return Sandbox{}, err
	}
	if child.Origin.Sandbox == "" {
		return Sandbox{}, apierr.New(errdefs.ErrFailedPrecondition, "sandbox %q is no copy of another", id).WithCode("no_source")
	}
	source, err := m.Get(ctx, who, child.Origin.Sandbox)
	if errdefs.IsNotFound(err) || err == nil && (source.State.Ended() || source.State == Killing) {
		return Sandbox{}, apierr.New(errdefs.ErrFailedPrecondition,
			"sandbox %q, of which %q is a copy, has ended", child.Origin.Sandbox, id).WithCode("no_source")
	}
	if err != nil {
		return Sandbox{}, err
	}
	if err := m.sameGround(ctx, child, source); err != nil {
		return Sandbox{}, err
	}
	e, err := m.beginCopy(ctx, who, id)
	if err != nil {
		return Sandbox{}, err
	}
	c, err := func() (*copied, error) {
		defer m.endCopy(e)
		ctx, cancel := m.saveContext(ctx)
		defer cancel()
		return m.checkpoint(ctx, e, snapshot.Scratch{Vault: m.deps.Vault})
	}()
	if err != nil {
		return Sandbox{}, fmt.Errorf("promote sandbox %q: %w", id, err)
	}
	defer func() { m.deleteArtifact(ctx, c.artifact.ID); c.release() }()
	sb, err := m.replace(ctx, who, source.ID, &replacement{
		artifact: c.artifact, names: string(id), what: "sandbox.replaced", fields: map[string]string{"by": string(id)},
	})
	if err != nil {
		return Sandbox{}, err
	}
	if err := m.Kill(context.WithoutCancel(ctx), who, id, ReasonPromoted); err != nil && !errdefs.IsNotFound(err) {
		m.log.WarnContext(ctx, "copy that was promoted could not be ended", slog.String("sandbox", string(id)), slog.Any("error", err))
	}
	return sb, nil
}

// sameGround refuses a copy whose state its source cannot take, because one of
// them was made of something else.
func (m *Manager) sameGround(ctx context.Context, a, b Sandbox) error {
	of, err := m.deps.Templates.Build(ctx, a.Build)
	if err != nil {
		return fmt.Errorf("template of sandbox %q: %w", a.ID, err)
	}
	other, err := m.deps.Templates.Build(ctx, b.Build)
	if err != nil {
		return fmt.Errorf("template of sandbox %q: %w", b.ID, err)
	}
	if of.Rootfs.Digest != other.Rootfs.Digest || a.Resources != b.Resources {
		return apierr.New(errdefs.ErrFailedPrecondition, "sandboxes %q and %q lie on different images, or have different limits", a.ID, b.ID).
			WithCode("snapshot_mismatch")
	}
	return nil
}

// replace gives a sandbox another state; see Rollback.
func (m *Manager) replace(ctx context.Context, who identity.Principal, id ID, to *replacement) (Sandbox, error) {
	if m.tasks.ended() {
		return Sandbox{}, fmt.Errorf("server is shutting down: %w", errdefs.ErrUnavailable)
	}
	if f, ok := m.deps.Provider.(provider.Fitter); ok {
		// What cannot work is refused before anything is touched.
		if err := f.Fits(to.artifact); errors.Is(err, snapshot.ErrOtherEngine) {
			return Sandbox{}, errEngine(err)
		} else if err != nil {
			return Sandbox{}, err
		}
	}
	began := time.Now()
	e, err := m.find(ctx, who, id)
	sleeping := errors.As(err, new(pausedError))
	if err != nil && !sleeping {
		return Sandbox{}, err
	}
	sb, err := m.deps.Store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	if sleeping {
		if err := m.mayUse(ctx, sb.Team); err != nil {
			return Sandbox{}, err
		}
	}
	// Its turn comes first: a queue that is full must not cost it its box.
	leave, err := m.admission.enter(ctx, sb.Team, nil)
	if err != nil {
		return Sandbox{}, err
	}
	defer leave()
	ctx, abort := context.WithCancelCause(context.WithoutCancel(ctx)) // half-done is not left behind
	defer abort(nil)
	r := &revival{who: who, from: to, entry: newEntry(id, sb.Team, abort)}
	if sleeping {
		r.ttl = min(max(sb.Lifecycle.Timeout, MinResume), m.cfg.MaxTimeout)
		if sb.State == Paused && sb.Saved != nil {
			r.artifact = *sb.Saved
		}
		m.mu.Lock()
		taken := m.entries[id] != nil
		if !taken {
			m.entries[id] = r.entry
		}
		m.mu.Unlock()
		if taken {
			return Sandbox{}, fmt.Errorf("sandbox %q is being resumed: %w", id, errdefs.ErrConflict)
		}
	} else if err := m.vacate(ctx, e, r); err != nil {
		return Sandbox{}, err
	}
	if sb, err = m.swapState(ctx, r); err != nil {
		return Sandbox{}, fmt.Errorf("replace state of sandbox %q: %w", id, err)
	}
	m.log.InfoContext(ctx, "state of sandbox replaced", slog.String("sandbox", string(id)), slog.String("event", to.what),
		slog.Duration("took", time.Since(began)))
	return sb, nil
}

// vacate saves a running sandbox with its memory and puts the entry of a
// revival in the place of its own, so that nobody else resumes it in between.
func (m *Manager) vacate(ctx context.Context, e *entry, r *revival) error {
	m.mu.Lock()
	was, copying := e.phase, e.copying
	r.endsAt = e.endsAt
	if was == live && !copying {
		m.beginSave(e)
	}
	m.mu.Unlock()
	switch {
	case was == live && copying:
		return errCopying(e.id)
	case was == starting || was == pausing:
		return fmt.Errorf("sandbox %q is being started or saved: %w", e.id, errdefs.ErrConflict)
	case was != live:
		return notFound(e.id)
	}
	saving, cancel := m.saveContext(ctx)
	defer cancel()
	a, err := m.putAway(saving, e, snapshot.Memory, r.who.KeyID, r.from.what)
	if err != nil {
		return err
	}
	r.artifact, r.ttl = a, max(time.Until(r.endsAt), 0)
	m.mu.Lock()
	killed, why, by := e.why != "", e.why, e.by
	m.entries[e.id] = r.entry
	r.entry.why, r.entry.by = why, by
	m.mu.Unlock()
	m.forget(e)
	if killed {
		r.admitted = true
		return m.unrevive(ctx, r, notFound(e.id))
	}
	return nil
}

// swapState revives a sandbox with another state, or else with its own.
func (m *Manager) swapState(ctx context.Context, r *revival) (Sandbox, error) {
	box, err := m.revive(ctx, r)
	if err == nil {
		if err = m.revived(ctx, r, box); err == nil {
			if err := m.deps.Snapshots.SettleNames(ctx, r.entry.id, r.artifact.ID, false); err != nil {
				m.log.WarnContext(ctx, "names of the former state could not be deleted", slog.String("sandbox", string(r.entry.id)), slog.Any("error", err))
			}
			return r.sb, nil
		}
	}
	if r.endsAt.IsZero() || m.askedToEnd(r.entry) {
		return Sandbox{}, m.unrevive(ctx, r, err) // it was paused before, too
	}
	first := err
	m.log.WarnContext(ctx, "sandbox did not take another state; it goes on with its own", slog.String("sandbox", string(r.entry.id)), slog.Any("error", first))
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
	defer cancel()
	if err := r.undo.Run(clean); err != nil {
		return Sandbox{}, errors.Join(first, m.unrevive(ctx, r, err))
	}
	if r.admitted {
		if err := m.recordPaused(clean, r.entry.id, reasonText(r.entry.id, "resume", first)); err != nil {
			return Sandbox{}, errors.Join(first, m.unrevive(ctx, r, err))
		}
	}
	back := &revival{who: r.who, ttl: r.ttl, entry: r.entry, artifact: r.artifact, endsAt: r.endsAt}
	box, err = m.revive(ctx, back)
	if err == nil {
		if err = m.revived(ctx, back, box); err == nil {
			return Sandbox{}, first
		}
	}
	return Sandbox{}, errors.Join(first, m.unrevive(ctx, back, err))
}

func (m *Manager) askedToEnd(e *entry) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return e.why != ""
}

// exchangeNames gives a sandbox the names that its new state knows; undoing the
// revival gives it back its own.
func (m *Manager) exchangeNames(ctx context.Context, r *revival) error {
	id, own := r.entry.id, r.artifact.ID
	r.undo.Add(func(ctx context.Context) error { return m.ownNames(ctx, id, own) })
	if err := m.deps.Snapshots.SwapNames(ctx, id, r.from.names, own); err != nil {
		return because(ctx, fmt.Errorf("exchange egress names: %w", err))
	}
	return nil
}

// ownNames gives a sandbox its own names back, if it has others.
func (m *Manager) ownNames(ctx context.Context, id ID, saved snapshot.ID) error {
	if m.deps.Snapshots == nil {
		return nil
	}
	if err := m.deps.Snapshots.SettleNames(ctx, id, saved, true); err != nil {
		return fmt.Errorf("restore egress names: %w", err)
	}
	return nil
}
