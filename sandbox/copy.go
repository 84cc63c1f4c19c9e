package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/containerd/errdefs"
)

// drainLimit is how long a checkpoint waits for requests to be answered that
// are under way.
const drainLimit = 250 * time.Millisecond

// copied is a checkpoint of a sandbox that runs on. Until release the sweep
// leaves the artifact alone.
type copied struct {
	sb       Sandbox
	artifact snapshot.Artifact
	// frozen is how long the sandbox stood still.
	frozen  time.Duration
	release func()
}

func (m *Manager) canCopy() error {
	if m.deps.Snapshots == nil {
		return fmt.Errorf("snapshots: %w", errdefs.ErrNotImplemented)
	}
	return m.canSave(snapshot.Memory)
}

func (m *Manager) saveContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(context.WithoutCancel(ctx), m.cfg.SaveTimeout,
		fmt.Errorf("sandbox was not saved within %s: %w", m.cfg.SaveTimeout, errdefs.ErrUnavailable))
}

// beginCopy marks a running sandbox as being copied, which endCopy ends; only
// one can at a time.
func (m *Manager) beginCopy(ctx context.Context, who identity.Principal, id ID) (*entry, error) {
	e, err := m.findLive(ctx, who, id)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case e.phase == pausing:
		return nil, fmt.Errorf("sandbox %q is being paused: %w", id, errdefs.ErrConflict)
	case e.phase != live:
		return nil, notFound(id)
	case e.copying:
		return nil, errCopying(id)
	}
	e.copying = true
	return e, nil
}

func errCopying(id ID) error {
	return fmt.Errorf("a snapshot of sandbox %q is being made: %w", id, errdefs.ErrConflict)
}

func (m *Manager) endCopy(e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.copying = false
}

// checkpoint saves a sandbox that beginCopy marked in v and lets it run on. Before
// its memory is saved its agent forgets who it is (decisions.md 24), and is told
// again at once. On an error there is no artifact, and the sandbox runs on too,
// unless its agent cannot be reached any more.
func (m *Manager) checkpoint(ctx context.Context, e *entry, v snapshot.Vault) (*copied, error) {
	if err := e.lock(ctx); err != nil {
		return nil, err
	}
	defer e.unlock()
	sb, err := m.deps.Store.Get(ctx, e.id)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	box, running := e.box, e.phase == live
	m.mu.RUnlock()
	if !running {
		return nil, notFound(e.id)
	}
	saver, ok := box.(provider.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("box cannot be saved: %w", errdefs.ErrNotImplemented)
	}
	m.listLeftovers(ctx)
	defer e.gate.open()
	select {
	case <-e.gate.close():
	case <-time.After(drainLimit): // what takes that long has long arrived
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	began := time.Now()
	a, err := saver.Snapshot(ctx, snapshot.Memory, v)
	if err != nil {
		err = because(ctx, fmt.Errorf("save box: %w", err))
	} else {
		m.hold(a.ID)
	}
	ierr := m.reidentify(ctx, sb, box)
	c := &copied{sb: sb, artifact: a, frozen: time.Since(began), release: func() { m.unhold(a.ID) }}
	if ierr == nil || m.phaseOf(e) != live {
		// One that is being paused or killed needs no identity here.
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	m.log.ErrorContext(ctx, "sandbox does not run on after its checkpoint", slog.String("sandbox", string(e.id)), slog.Any("error", ierr))
	if err == nil {
		m.deleteArtifact(ctx, a.ID)
		c.release()
	}
	if _, asked := m.askEnd(e, provider.ReasonCrashed, "system"); asked {
		_ = m.finishEnd(ctx, e, audit.Event{}, false) // logged there; the sweep retries
	}
	return nil, errors.Join(err, ierr)
}

// reidentify tells an agent again who it is, also when ctx has ended.
func (m *Manager) reidentify(ctx context.Context, sb Sandbox, box provider.Box) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.CreateTimeout)
	defer cancel()
	return m.initAgent(ctx, sb, box)
}

// listLeftovers notes, once and before this process saves anything, which
// artifacts an earlier one left: of those the sweep deletes at once what no
// record refers to. If they cannot be listed they are only deleted later.
func (m *Manager) listLeftovers(ctx context.Context) {
	m.mu.RLock()
	known := m.leftovers != nil
	m.mu.RUnlock()
	if known || m.deps.Vault == nil {
		return
	}
	stored, err := m.deps.Vault.List(ctx)
	if err != nil {
		m.log.WarnContext(ctx, "artifacts cannot be listed", slog.Any("error", err))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leftovers != nil {
		return
	}
	m.leftovers = map[snapshot.ID]bool{}
	for _, s := range stored {
		m.leftovers[s.ID] = true
	}
}

// mayCollect says whether an artifact that no record refers to is not one that
// is being made or used.
func (m *Manager) mayCollect(s snapshot.Stored) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if slices.Contains(m.held, s.ID) {
		return false
	}
	return m.leftovers[s.ID] || time.Since(s.ChangedAt) > artifactAge
}

// hold keeps the sweep from an artifact that no record refers to yet.
func (m *Manager) hold(id snapshot.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = append(m.held, id)
}

func (m *Manager) unhold(id snapshot.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.held, id); i >= 0 {
		m.held = slices.Delete(m.held, i, i+1)
	}
}
