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
	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

// Dormant is what the data plane needs of a paused sandbox that traffic may
// wake, to judge that traffic.
type Dormant struct {
	Team           identity.TeamID
	AgentToken     secret.Value
	TrafficToken   secret.Value
	PrivateTraffic bool
	PrivatePorts   []uint16
}

// endingLimit is how long Connect waits for a sandbox to have ended.
const endingLimit = 5 * time.Second

// Connect makes sure that a sandbox runs and lives at least ttl from now: a
// running one is extended, never shortened; a paused one is resumed, which
// resumed tells. Calls at the same time share one resume.
func (m *Manager) Connect(ctx context.Context, who identity.Principal, id ID, ttl time.Duration) (_ Sandbox, resumed bool, err error) {
	if err := checkTimeout(ttl, m.cfg.MaxTimeout); err != nil {
		return Sandbox{}, false, err
	}
	for {
		e, err := m.find(ctx, who, id)
		if errors.As(err, new(pausedError)) {
			sb, err := m.resume(ctx, who, id, ttl)
			if errors.Is(err, errOvertaken) {
				resumed = true
				continue
			}
			return sb, err == nil, err
		}
		if err != nil {
			return Sandbox{}, false, err
		}
		m.mu.RLock()
		was := e.phase
		m.mu.RUnlock()
		wait := e.ready
		var patience <-chan time.Time // for ever
		switch was {
		case live:
			sb, err := m.setEnd(ctx, who, e, ttl, true)
			if errdefs.IsNotFound(err) && ctx.Err() == nil && m.phaseOf(e) == pausing {
				continue
			}
			return sb, resumed, err
		case starting:
		case pausing:
			wait = e.done
		default: // on its way out: "not found" is a better answer than "wait"
			wait, patience = e.done, time.After(endingLimit)
		}
		select {
		case <-wait:
		case <-patience:
			return Sandbox{}, false, fmt.Errorf("sandbox %q is being killed: %w", id, errdefs.ErrConflict)
		case <-ctx.Done():
			return Sandbox{}, false, context.Cause(ctx)
		}
	}
}

func (m *Manager) phaseOf(e *entry) phase {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return e.phase
}

// errOvertaken says that somebody else resumes, or has resumed, the sandbox.
var errOvertaken = errors.New("overtaken")

// resume brings a paused sandbox back. On an error it is paused still.
func (m *Manager) resume(ctx context.Context, who identity.Principal, id ID, ttl time.Duration) (Sandbox, error) {
	if m.tasks.ended() {
		return Sandbox{}, fmt.Errorf("server is shutting down: %w", errdefs.ErrUnavailable)
	}
	if ttl <= 0 {
		return Sandbox{}, apierr.Field("timeout", "must be more than 0 to resume a paused sandbox")
	}
	began := time.Now()
	// Once it is admitted it goes on when this caller goes away: others may wait.
	caller := ctx
	ctx, abort := context.WithCancelCause(context.WithoutCancel(caller))
	defer abort(nil)
	sb, err := m.deps.Store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	if err := m.mayUse(ctx, sb.Team); err != nil {
		return Sandbox{}, err
	}
	e := newEntry(id, sb.Team, abort)
	m.mu.Lock()
	if m.entries[id] != nil {
		m.mu.Unlock()
		return Sandbox{}, errOvertaken
	}
	m.entries[id] = e
	m.mu.Unlock()

	r := &revival{who: who, ttl: ttl, entry: e}
	if sb.State == Paused && sb.Saved != nil {
		r.artifact = *sb.Saved
	}
	leave, err := m.admitResume(ctx, caller, sb.Team)
	if err != nil {
		return Sandbox{}, m.unrevive(ctx, r, err)
	}
	box, err := m.revive(ctx, r)
	leave()
	if err == nil {
		if err = m.revived(ctx, r, box); err == nil {
			took := time.Since(began)
			m.log.InfoContext(ctx, "sandbox resumed", slog.String("sandbox", string(id)), slog.Duration("took", took))
			if f := m.deps.Metrics.Resumed; f != nil {
				f(took)
			}
			return r.sb, nil
		}
	}
	return Sandbox{}, m.unrevive(ctx, r, err)
}

// admitResume waits for its turn until ctx ends or the caller goes away: others
// who wait for the same sandbox then resume it themselves.
func (m *Manager) admitResume(ctx, caller context.Context, team identity.TeamID) (leave func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(caller, func() { cancel(context.Cause(caller)) })()
	return m.admission.enter(ctx, team, nil)
}

// revived publishes a sandbox that runs again, and lets go of what it was saved
// as. It is errAborted when the sandbox was asked to end meanwhile.
func (m *Manager) revived(ctx context.Context, r *revival, box provider.Box) error {
	e := r.entry
	if !m.publish(e, box, r.sb) {
		return errAborted
	}
	m.watch(e, box)
	m.tasks.add(func(ctx context.Context) { _ = m.syncDeadline(ctx, e, box) }) // logged there; the sweep retries
	r.undo.Done()
	m.mu.Lock()
	m.wakes(e.id)
	m.mu.Unlock()
	m.dropArtifact(ctx, r.artifact.ID)
	return nil
}

// revival is one resume under way.
type revival struct {
	who      identity.Principal
	ttl      time.Duration
	entry    *entry
	sb       Sandbox
	artifact snapshot.Artifact
	undo     undo.Stack
	admitted bool
	// from, when set, is what it becomes instead of what it was saved as.
	from *replacement
	// endsAt, when set, is its end in place of ttl: it ran just now, and its
	// place among the team's sandboxes is its own.
	endsAt time.Time
}

func (m *Manager) revive(ctx context.Context, r *revival) (provider.Box, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.cfg.CreateTimeout,
		fmt.Errorf("sandbox did not resume within %s: %w", m.cfg.CreateTimeout, errdefs.ErrUnavailable))
	defer cancel()
	id := r.entry.id
	if _, ok := m.deps.Provider.(provider.Restorer); !ok || m.deps.Vault == nil {
		return nil, fmt.Errorf("provider %s cannot resume: %w", m.deps.Provider.Name(), errdefs.ErrNotImplemented)
	}
	sb, err := m.readmit(ctx, r, func(s *Sandbox) (audit.Event, error) {
		if s.State != Paused || s.Saved == nil {
			return audit.Event{}, errOvertaken
		}
		if s.Lifecycle.Spent != "" {
			return audit.Event{}, errSpent(id, s.Lifecycle.Spent)
		}
		s.State = Resuming
		return audit.Event{Type: "sandbox.resuming", Actor: r.who.KeyID}, nil
	})
	if err != nil {
		return nil, err
	}
	r.sb, r.artifact, r.admitted = sb, *sb.Saved, true
	build, err := m.deps.Templates.Build(ctx, sb.Build)
	if err != nil {
		return nil, because(ctx, fmt.Errorf("template of the paused sandbox: %w", err))
	}
	// Its entry is there, so that no sweep that begins now takes its box.
	select {
	case m.clearing <- struct{}{}:
		<-m.clearing
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := m.hasLeft(ctx, id); err != nil {
		return nil, err
	}

	box, err := m.restoreSaved(ctx, r, build)
	if err != nil {
		return nil, err
	}
	if err := m.initAgent(ctx, sb, box); err != nil {
		return nil, err
	}
	now := clock()
	r.sb, err = m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		s.State, s.Handle, s.Saved = Running, box.Handle(), nil
		s.StartedAt, s.EndsAt = now, now.Add(r.ttl)
		if !r.endsAt.IsZero() {
			s.EndsAt = r.endsAt
		}
		if r.from != nil {
			return r.from.event(r.who, now), nil
		}
		return audit.Event{Type: "sandbox.resumed", At: now, Actor: r.who.KeyID, Fields: map[string]string{
			"kind": string(r.artifact.Kind),
		}}, nil
	})
	if err != nil {
		// The commit may have gone through and its answer been lost: to take it back
		// would leave neither a box nor what it was saved as.
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickCall)
		defer cancel()
		now, gerr := m.deps.Store.Get(after, id)
		if gerr != nil || now.State != Running {
			return nil, because(ctx, fmt.Errorf("record sandbox: %w", err))
		}
		r.sb = now
	}
	return box, nil
}

// readmit is Store.Admit for a revival, and Mutate for one that has its place.
func (m *Manager) readmit(ctx context.Context, r *revival, fn func(*Sandbox) (audit.Event, error)) (Sandbox, error) {
	if !r.endsAt.IsZero() {
		return m.deps.Store.Mutate(ctx, r.entry.id, fn)
	}
	return m.deps.Store.Admit(ctx, r.entry.id, m.cfg.MaxPerTeam, fn)
}

// restoreSaved starts the box of a revival behind its policy.
func (m *Manager) restoreSaved(ctx context.Context, r *revival, build template.Build) (provider.Box, error) {
	id, sb, saved := r.entry.id, r.sb, r.artifact
	if r.from != nil {
		saved = r.from.artifact
		if err := m.exchangeNames(ctx, r); err != nil {
			return nil, err
		}
	}
	r.undo.Add(func(ctx context.Context) error { return m.deps.Guard.Detach(ctx, string(id)) })
	att, err := m.deps.Guard.Attach(ctx, string(id), sb.Egress)
	if err != nil {
		return nil, because(ctx, fmt.Errorf("attach egress: %w", err))
	}
	spec := m.spec(sb, build, att)
	spec.Deadline = clock().Add(r.ttl + m.cfg.CreateTimeout + m.graceAt(endOf(sb)))
	box, err := m.startBox(ctx, sb, spec, &saved)
	if errdefs.IsAlreadyExists(err) {
		// The box that was saved: a server died, or could not destroy it, after
		// the record was Paused. What counts is the artifact.
		if err = m.destroyByID(ctx, string(id)); err == nil {
			box, err = m.startBox(ctx, sb, spec, &saved)
		}
	}
	if errors.Is(err, snapshot.ErrOtherEngine) {
		if r.from != nil {
			return nil, errEngine(err)
		}
		return nil, apierr.New(errdefs.ErrFailedPrecondition,
			"sandbox %q was paused by another version of the engine, whose memory this one cannot take up; it stays paused: resume it with that version", id).
			WithCode("engine_mismatch").WithCause(err)
	}
	if err != nil {
		return nil, because(ctx, fmt.Errorf("restore box: %w", err))
	}
	r.undo.Add(box.Destroy)
	return box, nil
}

// unrevive takes a failed resume back and returns the error to show. Unless it
// was killed meanwhile, the sandbox is Paused again.
func (m *Manager) unrevive(ctx context.Context, r *revival, first error) error {
	e := r.entry
	m.mu.Lock()
	killed, why, by := e.why != "", e.why, e.by
	m.markGone(e)
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
	defer cancel()
	if err := r.undo.Run(ctx); err != nil {
		m.log.ErrorContext(ctx, "failed resume could not be undone; will retry", slog.String("sandbox", string(e.id)), slog.Any("error", err))
	}
	var err error
	switch {
	case killed:
		m.mu.Lock()
		m.wakes(e.id)
		m.mu.Unlock()
		if err = m.recordKilled(ctx, e.id, why, by, audit.Event{}); err == nil && r.artifact.ID != "" {
			m.deleteArtifact(ctx, r.artifact.ID)
		}
		first = notFound(e.id)
	case r.admitted:
		err = m.recordPaused(ctx, e.id, reasonText(e.id, "resume", first))
	}
	if err != nil {
		m.log.ErrorContext(ctx, "failed resume could not be recorded; will retry", slog.String("sandbox", string(e.id)), slog.Any("error", err))
	}
	if !errors.Is(first, errOvertaken) {
		m.log.WarnContext(ctx, "sandbox was not resumed", slog.String("sandbox", string(e.id)), slog.Any("error", first))
	}
	m.forget(e)
	return first
}

// recordPaused takes a Resuming record back to Paused, its artifact as it was.
func (m *Manager) recordPaused(ctx context.Context, id ID, why string) error {
	_, err := m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		if s.State != Resuming {
			return audit.Event{}, errEnded
		}
		s.State = Paused
		return audit.Event{Type: "sandbox.resume_failed", Actor: "system", Reason: why}, nil
	})
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// noteDormant remembers a Paused record, and apart one that traffic may wake: it
// must have been saved with its memory.
func (m *Manager) noteDormant(sb Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if sb.State == Paused {
		m.paused[sb.ID] = sleeper{sb.Team, sb.EndsAt}
	} else {
		delete(m.paused, sb.ID)
	}
	if sb.State != Paused || !sb.Lifecycle.AutoResume || sb.Lifecycle.Spent != "" || sb.Saved == nil || sb.Saved.Kind != snapshot.Memory {
		delete(m.dormant, sb.ID)
		return
	}
	m.dormant[sb.ID] = Dormant{
		Team:           sb.Team,
		AgentToken:     m.deps.Seed.AgentToken(string(sb.ID)),
		TrafficToken:   m.deps.Seed.TrafficToken(string(sb.ID)),
		PrivateTraffic: sb.Network.PrivateTraffic,
		PrivatePorts:   sb.Network.PrivatePorts,
	}
}

// Dormant finds, in memory, a sandbox that is paused and may be woken.
func (m *Manager) Dormant(id ID) (Dormant, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d, ok := m.dormant[id]
	return d, ok
}

// Transit returns a channel that is closed when a sandbox that is being paused,
// resumed or taken over is so no longer; nil when it is not.
func (m *Manager) Transit(id ID) <-chan struct{} {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e := m.entries[id]
	switch {
	case e == nil:
		return nil
	case e.phase == pausing:
		return e.done
	case e.phase == starting:
		return e.ready
	}
	return nil
}

// Wake resumes a dormant sandbox for traffic that was judged already, and
// returns when it runs. Its new life is the timeout of its create, at least
// MinResume.
func (m *Manager) Wake(ctx context.Context, id ID) (*Live, error) {
	sb, err := m.deps.Store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	ttl := min(max(sb.Lifecycle.Timeout, MinResume), m.cfg.MaxTimeout)
	if _, _, err := m.Connect(ctx, identity.System, id, ttl); err != nil {
		return nil, err
	}
	l, ok := m.Live(id)
	if !ok {
		return nil, notFound(id)
	}
	return l, nil
}
