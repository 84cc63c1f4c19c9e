package sandbox

import (
	"container/heap"
	"context"
	"fmt"
	"time"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/containerd/errdefs"
)

// phase is where an entry stands in memory; the record's State follows it.
type phase int

const (
	starting phase = iota // being created or taken over after a restart
	live                  // running and routable
	pausing               // being saved: unreachable, and live again if that fails
	ending                // marked gone; nothing brings it back
)

// entry is a sandbox that this process knows to be unfinished. It is in
// Manager.entries from before its record exists until after its box is gone, so
// that the orphan sweep never takes a box that is being started or ended.
type entry struct {
	id   ID
	team identity.TeamID
	// op is a lock that may be held over I/O: it serialises changes of timeout
	// and network.
	op chan struct{}
	// gone is closed when the entry is marked ending or pausing, done when it has
	// left the Manager, ready when it is live or has left.
	gone, done, ready chan struct{}
	// abort ends a create or take-over in progress.
	abort context.CancelCauseFunc

	// gate is what new traffic passes.
	gate gate

	// Guarded by Manager.mu:
	phase  phase
	box    provider.Box
	live   *Live
	client *agentclient.Client // made on first use
	endsAt time.Time
	// atEnd says whether its end kills or pauses it.
	atEnd atEnd
	// place is the index in Manager.deadlines, -1 outside of it.
	place int
	// why and by say how it ends, from when it is asked to.
	why, by string
	// stuck says that an end was begun and not finished, and that nobody is at
	// it; the sweep will try again.
	stuck bool
	// copying says that a snapshot or a fork is being made of it.
	copying bool
	// unsynced says that the box's own hard end could not be set; the sweep will
	// try again.
	unsynced bool
	// missed counts sweeps in a row in which the provider did not list the box.
	missed int
	// budget is the sandbox's; warned that its near end was told; retryBudget
	// when it is looked at again after a pause for it failed.
	budget      Budget
	warned      bool
	retryBudget time.Time
}

// atEnd is what happens at the end of an entry's time.
type atEnd struct{ pause, filesOnly bool }

func endOf(sb Sandbox) atEnd {
	return atEnd{sb.OnTimeout == OnTimeoutPause, sb.Lifecycle.FilesOnly}
}

func newEntry(id ID, team identity.TeamID, abort context.CancelCauseFunc) *entry {
	return &entry{
		id: id, team: team, abort: abort, place: -1,
		op: make(chan struct{}, 1), gone: make(chan struct{}), done: make(chan struct{}), ready: make(chan struct{}),
	}
}

// lock takes the op lock or gives up with ctx.
func (e *entry) lock(ctx context.Context) error {
	select {
	case e.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *entry) unlock() { <-e.op }

// find returns the entry of an unfinished sandbox that the caller may see,
// taking it over first if an earlier process left it.
func (m *Manager) find(ctx context.Context, who identity.Principal, id ID) (*entry, error) {
	if e := m.entry(id); e != nil {
		if !maySee(who, e.team) {
			return nil, notFound(id)
		}
		return e, nil
	}
	sb, err := m.deps.Store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if !maySee(who, sb.Team) || sb.State.Ended() || sb.Node != m.cfg.Node {
		return nil, notFound(id)
	}
	if sb.State == Paused {
		return nil, errPaused(id)
	}
	if err := m.adopt(context.WithoutCancel(ctx), sb); err != nil {
		return nil, fmt.Errorf("take over sandbox %q: %w", id, err)
	}
	if e := m.entry(id); e != nil {
		return e, nil
	}
	// What was left half resumed is paused again.
	if sb, err = m.deps.Store.Get(ctx, id); err == nil && sb.State == Paused {
		return nil, errPaused(id)
	}
	return nil, notFound(id)
}

func (m *Manager) entry(id ID) *entry {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.entries[id]
}

// findLive is find for calls that need a running sandbox.
func (m *Manager) findLive(ctx context.Context, who identity.Principal, id ID) (*entry, error) {
	e, err := m.find(ctx, who, id)
	if err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	switch e.phase {
	case starting:
		return nil, fmt.Errorf("sandbox %q is being started: %w", id, errdefs.ErrConflict)
	case pausing:
		return nil, fmt.Errorf("sandbox %q is being paused: %w", id, errdefs.ErrConflict)
	case live:
		return e, nil
	default:
		return nil, notFound(id)
	}
}

// forget takes an entry out of the Manager and tells those who wait for it.
func (m *Manager) forget(e *entry) {
	m.mu.Lock()
	if m.entries[e.id] == e {
		delete(m.entries, e.id)
	}
	m.markGone(e)
	client := e.client
	m.mu.Unlock()
	if client != nil {
		client.Close()
	}
	close(e.done)
	m.markReady(e)
}

// markReady tells those who wait for e to be live, or gone.
func (m *Manager) markReady(e *entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-e.ready:
	default:
		close(e.ready)
	}
}

// markGone makes e unreachable at once. Manager.mu is held. It reports whether
// e was reachable or on its way there.
func (m *Manager) markGone(e *entry) bool {
	if e.phase == ending {
		return false
	}
	was := e.phase
	m.hide(e)
	e.phase = ending
	return was != pausing
}

// hide makes e unreachable at once, if it is not. Manager.mu is held.
func (m *Manager) hide(e *entry) {
	if e.phase == live {
		m.running--
		m.tellLive()
	}
	if e.place >= 0 {
		heap.Remove(&m.deadlines, e.place)
	}
	if e.phase == starting || e.phase == live {
		close(e.gone)
	}
}

// publish makes e reachable with its box; false when it was asked to end
// meanwhile.
func (m *Manager) publish(e *entry, box provider.Box, sb Sandbox) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.present(e, box, sb)
}

// present is publish for callers that hold Manager.mu.
func (m *Manager) present(e *entry, box provider.Box, sb Sandbox) bool {
	e.box = box
	if e.phase != starting || e.why != "" {
		return false
	}
	e.phase = live
	e.endsAt, e.atEnd, e.budget = sb.EndsAt, endOf(sb), sb.Lifecycle.Budget
	e.live = &Live{
		ID:              e.id,
		Team:            e.team,
		AgentToken:      m.deps.Seed.AgentToken(string(e.id)),
		TrafficToken:    m.deps.Seed.TrafficToken(string(e.id)),
		PrivateTraffic:  sb.Network.PrivateTraffic,
		PrivatePorts:    sb.Network.PrivatePorts,
		MaskRequestHost: sb.Network.MaskRequestHost,
		Gone:            e.gone,
		Route:           box.Route,
		Enter:           func(ctx context.Context) func() { return e.gate.enter(ctx, e.gone) },
	}
	select {
	case <-e.ready:
	default:
		close(e.ready)
	}
	heap.Push(&m.deadlines, e)
	m.running++
	m.tellLive()
	m.poke()
	return true
}

// tellLive reports the number of running sandboxes. Manager.mu is held.
func (m *Manager) tellLive() {
	if f := m.deps.Metrics.Live; f != nil {
		f(m.running)
	}
}
