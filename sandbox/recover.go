package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/provider"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

const (
	adoptAtOnce = 8
	// missedLimit is after how many sweeps a box that the provider does not
	// list any more is taken for lost.
	missedLimit   = 2
	pruneInterval = time.Hour
)

// Run takes over what an earlier process left, then ends sandboxes by their
// timeout and compares records with boxes, until ctx ends. Sandboxes live on
// after it.
func (m *Manager) Run(ctx context.Context) error {
	return m.tasks.run(ctx, func(ctx context.Context) error {
		m.tasks.add(m.reap)
		m.listLeftovers(ctx)
		if err := m.adoptAll(ctx); err != nil {
			return fmt.Errorf("recover sandboxes: %w", err)
		}
		close(m.recovered)
		m.destroyOrphans(ctx)
		m.collectArtifacts(ctx)
		m.tasks.add(m.runPool)
		m.tasks.add(m.watchTeams)
		tick := time.NewTicker(m.cfg.SweepInterval)
		defer tick.Stop()
		var pruned time.Time
		for {
			if time.Since(pruned) >= pruneInterval {
				pruned = time.Now()
				m.prune(ctx)
			}
			select {
			case <-tick.C:
				m.sweep(ctx)
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// sweep mends what went wrong since the last one: ends that were not finished,
// records without a box, boxes without a record.
func (m *Manager) sweep(ctx context.Context) {
	m.retryEnds(ctx)
	m.syncDeadlines(ctx)
	if err := m.adoptAll(ctx); err != nil && ctx.Err() == nil {
		m.log.ErrorContext(ctx, "unfinished sandboxes cannot be read", slog.Any("error", err))
	}
	m.destroyOrphans(ctx)
	m.expirePaused(ctx)
	m.collectArtifacts(ctx)
}

func (m *Manager) prune(ctx context.Context) {
	n, err := m.deps.Store.Prune(ctx, time.Now().Add(-m.cfg.Retention))
	if err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "old records cannot be deleted", slog.Any("error", err))
		return
	}
	m.log.DebugContext(ctx, "old records deleted", slog.Int("records", n))
}

// adoptAll takes over every unfinished record of this node that has no entry.
// Its error is the store's; a sandbox that cannot be taken over now is logged
// and tried again by the next sweep. When the provider has answered nothing for
// as long as CreateTimeout the rest is left to the next sweep too: one that
// hangs must not cost that time for every few sandboxes.
func (m *Manager) adoptAll(ctx context.Context) error {
	rows, err := m.deps.Store.Unfinished(ctx)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(adoptAtOnce)
	begun := time.Now()
	var answered, left atomic.Int64 // when, after begun; sandboxes not tried
	for _, sb := range rows {
		if sb.Node != m.cfg.Node || m.entry(sb.ID) != nil {
			continue
		}
		if sb.State == Paused {
			m.noteDormant(sb)
			continue
		}
		g.Go(func() error {
			if time.Since(begun)-time.Duration(answered.Load()) >= m.cfg.CreateTimeout {
				left.Add(1)
				return nil
			}
			err := m.adopt(ctx, sb)
			if !errors.Is(err, errSilent) {
				answered.Store(int64(time.Since(begun)))
			}
			if err != nil && ctx.Err() == nil {
				m.log.ErrorContext(ctx, "sandbox cannot be taken over; will retry",
					slog.String("sandbox", string(sb.ID)), slog.Any("error", err))
			}
			return nil
		})
	}
	err = g.Wait()
	if n := left.Load(); n > 0 && ctx.Err() == nil {
		m.log.ErrorContext(ctx, "more sandboxes wait to be taken over; will retry",
			slog.Int64("sandboxes", n), slog.Any("error", m.silence(m.cfg.CreateTimeout)))
	}
	return err
}

// adopt takes over one unfinished record without an entry: a running box is
// opened behind its egress policy, anything else is ended. On an error the
// record is as it was.
func (m *Manager) adopt(ctx context.Context, sb Sandbox) error {
	ctx, cancel := m.patient(ctx, m.cfg.CreateTimeout)
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	e := newEntry(sb.ID, sb.Team, abort)
	m.mu.Lock()
	if m.entries[sb.ID] != nil {
		m.mu.Unlock()
		return nil
	}
	m.entries[sb.ID] = e
	m.mu.Unlock()

	// Between reading the record and making the entry it may have ended.
	now, err := m.deps.Store.Get(ctx, sb.ID)
	if err == nil && !now.State.Ended() {
		sb = now
		if err = m.takeOver(ctx, e, sb); err == nil {
			return nil
		}
	}
	m.mu.RLock()
	killed, why, by, box := e.why != "", e.why, e.by, e.box
	m.mu.RUnlock()
	if killed && err != nil {
		err = m.endTaken(context.WithoutCancel(ctx), sb, box, why, by)
	}
	m.forget(e)
	return explain(ctx, err)
}

// takeOver brings e to live, or ends it and forgets it.
func (m *Manager) takeOver(ctx context.Context, e *entry, sb Sandbox) error {
	end := func(why string) error {
		if err := m.endTaken(ctx, sb, nil, why, "system"); err != nil {
			return err
		}
		m.forget(e)
		return nil
	}
	switch sb.State {
	case Pending:
		if err := m.destroyByID(ctx, string(sb.ID)); err != nil {
			return err
		}
		if err := m.recordInterrupted(ctx, sb.ID); err != nil {
			return err
		}
		m.forget(e)
		return nil
	case Killing:
		return end(sb.Reason)
	case Running:
		if !sb.EndsAt.After(time.Now()) && sb.OnTimeout != OnTimeoutPause {
			return end(ReasonTimeout)
		}
	case Pausing:
		// Opened below and made Running again; a half-made artifact is collected.
	case Resuming:
		if err := m.destroyByID(ctx, string(sb.ID)); err != nil {
			return err
		}
		if sb.Saved != nil {
			if err := m.ownNames(ctx, sb.ID, sb.Saved.ID); err != nil {
				return err
			}
		}
		if err := m.recordPaused(ctx, sb.ID, "server stopped while the sandbox was being resumed"); err != nil {
			return err
		}
		m.forget(e)
		return nil
	case Paused:
		m.forget(e)
		return nil
	default:
		return fmt.Errorf("state %s cannot be taken over: %w", sb.State, errdefs.ErrNotImplemented)
	}
	// The policy stands before the box's network is served again.
	att, err := m.deps.Guard.Attach(ctx, string(sb.ID), sb.Egress)
	if err != nil {
		return fmt.Errorf("attach egress: %w", err)
	}
	box, err := m.deps.Provider.Open(ctx, sb.Handle, att)
	if errdefs.IsNotFound(err) {
		return end(goneReason(err))
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("open box: %w", err), m.deps.Guard.Detach(clean, string(sb.ID)))
	}
	if sb.State == Pausing {
		if sb, err = m.unpause(ctx, sb, box); err != nil {
			return errors.Join(err, m.deps.Guard.Detach(context.WithoutCancel(ctx), string(sb.ID)))
		}
	}
	if err := m.initUnbound(ctx, sb, box); err != nil {
		return errors.Join(err, m.deps.Guard.Detach(context.WithoutCancel(ctx), string(sb.ID)))
	}
	if !m.publish(e, box, sb) {
		return errAborted // adopt ends it with the reason of the kill
	}
	m.watch(e, box)
	m.tasks.add(func(ctx context.Context) { _ = m.syncDeadline(ctx, e, box) }) // logged there; the sweep retries
	m.log.InfoContext(ctx, "sandbox taken over", slog.String("sandbox", string(sb.ID)))
	return nil
}

// initUnbound gives an agent its identity that has none: its server died between
// recording the sandbox and telling it, or while its memory was being saved.
func (m *Manager) initUnbound(ctx context.Context, sb Sandbox, box provider.Box) error {
	ctl := box.Control()
	if ctl == nil {
		return nil
	}
	h, err := ctl.Health(ctx)
	if err != nil {
		return because(ctx, fmt.Errorf("ask agent: %w", err))
	}
	if h.Ready {
		return nil
	}
	return m.initAgent(ctx, sb, box)
}

// goneReason is why a box ended while nobody watched. A provider that knows says
// so by an Exit method of its error.
func goneReason(err error) string {
	type ended interface {
		error
		Exit() provider.Exit
	}
	if e, ok := errors.AsType[ended](err); ok {
		return exitReason(e.Exit())
	}
	return provider.ReasonEngineLost
}

// endTaken ends a sandbox that was being taken over; box is nil unless it has
// been opened.
func (m *Manager) endTaken(ctx context.Context, sb Sandbox, box provider.Box, why, by string) error {
	ctx, cancel := m.patient(ctx, m.cfg.DestroyTimeout)
	defer cancel()
	var err error
	switch {
	case box != nil:
		err = box.Destroy(ctx)
	case sb.Handle.ID != "":
		_, err = m.destroy(ctx, sb.Handle)
	default:
		err = m.destroyByID(ctx, string(sb.ID))
	}
	if err = errors.Join(err, m.deps.Guard.Detach(ctx, string(sb.ID))); err != nil {
		return explain(ctx, err)
	}
	if err := m.recordKilled(ctx, sb.ID, why, by, audit.Event{}); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "sandbox ended", slog.String("sandbox", string(sb.ID)), slog.String("reason", why))
	if f := m.deps.Metrics.Ended; f != nil {
		f(why)
	}
	return nil
}

// recordInterrupted fails a record whose create did not outlive its process.
func (m *Manager) recordInterrupted(ctx context.Context, id ID) error {
	now := clock()
	_, err := m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		if s.State != Pending {
			return audit.Event{}, errEnded
		}
		s.Idempotency.Key = ""
		s.State, s.Reason, s.EndedAt = Failed, "server stopped while the sandbox was being created", now
		return audit.Event{Type: "sandbox.failed", At: now, Actor: "system", Reason: "interrupted"}, nil
	})
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// destroyByID destroys the provider's box of that name, if there is one.
func (m *Manager) destroyByID(ctx context.Context, id string) error {
	handles, err := m.boxes(ctx)
	if err != nil {
		return fmt.Errorf("list boxes: %w", err)
	}
	for _, h := range handles {
		if h.ID == id {
			_, err := m.destroy(ctx, h)
			return err
		}
	}
	return nil
}

// destroy removes a box that is not open, or what is left of it, and reports
// whether there was one. With a provider that cannot do so by its handle the box
// is opened, behind a network that leads nowhere.
func (m *Manager) destroy(ctx context.Context, h provider.Handle) (bool, error) {
	if d, ok := m.deps.Provider.(provider.Destroyer); ok {
		err := d.Destroy(ctx, h)
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("destroy box: %w", err)
		}
		return true, nil
	}
	box, err := m.deps.Provider.Open(ctx, h, nowhere{})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open box: %w", err)
	}
	if err := box.Destroy(ctx); err != nil {
		return true, fmt.Errorf("destroy box: %w", err)
	}
	return true, nil
}

// destroyOrphans destroys boxes that no unfinished record stands for, and ends
// sandboxes whose box the provider does not know any more.
func (m *Manager) destroyOrphans(ctx context.Context) {
	m.mu.RLock()
	before := make(map[string]*entry, len(m.entries))
	for id, e := range m.entries {
		if e.phase == live {
			before[string(id)] = e
		}
	}
	m.mu.RUnlock()
	handles, err := m.boxes(ctx)
	if err != nil {
		if ctx.Err() == nil {
			m.log.ErrorContext(ctx, "boxes cannot be listed", slog.Any("error", err))
		}
		return
	}
	for _, h := range handles {
		if e := before[h.ID]; e != nil {
			m.mu.Lock()
			e.missed = 0
			m.mu.Unlock()
			delete(before, h.ID)
			continue
		}
		if err := m.destroyOrphan(ctx, h); err != nil && ctx.Err() == nil {
			m.log.ErrorContext(ctx, "orphaned box cannot be destroyed; will retry", slog.String("box", h.ID), slog.Any("error", err))
		}
	}
	for _, e := range before {
		m.mu.Lock()
		e.missed++
		lost := e.missed >= missedLimit
		m.mu.Unlock()
		if !lost {
			continue
		}
		if _, asked := m.askEnd(e, provider.ReasonEngineLost, "system"); asked {
			_ = m.finishEnd(ctx, e, audit.Event{}, false) // logged there; the next sweep retries
		}
	}
}

// boxes lists what the provider has.
func (m *Manager) boxes(ctx context.Context) ([]provider.Handle, error) {
	ctx, cancel := m.patient(ctx, quickCall)
	defer cancel()
	handles, err := m.deps.Provider.List(ctx)
	return handles, explain(ctx, err)
}

func (m *Manager) destroyOrphan(ctx context.Context, h provider.Handle) error {
	ctx, cancel := m.patient(ctx, m.cfg.DestroyTimeout)
	defer cancel()
	select {
	case m.clearing <- struct{}{}:
		defer func() { <-m.clearing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// An entry exists from before a box is created until after it is destroyed;
	// a warm box is the pool's until its record exists.
	m.mu.RLock()
	_, leaving := m.leaving[ID(h.ID)]
	m.mu.RUnlock()
	if leaving || m.entry(ID(h.ID)) != nil || m.pool != nil && m.pool.Owns(h.ID) || m.deps.Owned != nil && m.deps.Owned(h.ID) {
		return nil
	}
	sb, err := m.deps.Store.Get(ctx, ID(h.ID))
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	leftover := err == nil && sb.State == Paused && sb.Node == m.cfg.Node
	if err == nil && !sb.State.Ended() && !leftover {
		return nil // another node's, or the next sweep takes it over
	}
	was, err := m.destroy(ctx, h)
	if err != nil || !was {
		return explain(ctx, err)
	}
	m.log.WarnContext(ctx, "orphaned box destroyed", slog.String("box", h.ID))
	return m.deps.Store.Record(ctx, audit.Event{
		Type: "sandbox.orphan_destroyed", Team: string(sb.Team), Actor: "system", SandboxID: h.ID, Reason: "orphaned",
	})
}

// nowhere is the network of a box that is opened only to be destroyed.
type nowhere struct{}

var _ egress.Attachment = nowhere{}

// TCP implements egress.Attachment.
func (nowhere) TCP(_ context.Context, f egress.Flow) { f.Reject() }

// DNS implements egress.Attachment.
func (nowhere) DNS(context.Context, []byte) []byte { return nil }

// DroppedUDP implements egress.Attachment.
func (nowhere) DroppedUDP(netip.AddrPort) {}
