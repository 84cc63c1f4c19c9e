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
	// gone is closed when the entry is marked ending, done when it has left the
	// Manager.
	gone, done chan struct{}
	// abort ends a create or take-over in progress.
	abort context.CancelCauseFunc

	// Guarded by Manager.mu:
	phase  phase
	box    provider.Box
	live   *Live
	client *agentclient.Client // made on first use
	endsAt time.Time
	// place is the index in Manager.deadlines, -1 outside of it.
	place int
	// why and by say how it ends, from when it is asked to.
	why, by string
	// stuck says that an end was begun and not finished, and that nobody is at
	// it; the sweep will try again.
	stuck bool
	// missed counts sweeps in a row in which the provider did not list the box.
	missed int
}

func newEntry(id ID, team identity.TeamID, abort context.CancelCauseFunc) *entry {
	return &entry{
		id: id, team: team, abort: abort, place: -1,
		op: make(chan struct{}, 1), gone: make(chan struct{}), done: make(chan struct{}),
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
	if err := m.adopt(context.WithoutCancel(ctx), sb); err != nil {
		return nil, fmt.Errorf("take over sandbox %q: %w", id, err)
	}
	if e := m.entry(id); e != nil {
		return e, nil
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
}

// markGone makes e unreachable at once. Manager.mu is held. It reports whether
// e was reachable or on its way there.
func (m *Manager) markGone(e *entry) bool {
	if e.phase == ending {
		return false
	}
	if e.phase == live {
		m.running--
		m.tellLive()
	}
	e.phase = ending
	if e.place >= 0 {
		heap.Remove(&m.deadlines, e.place)
	}
	close(e.gone)
	return true
}

// publish makes e reachable with its box; false when it was asked to end
// meanwhile.
func (m *Manager) publish(e *entry, box provider.Box, sb Sandbox) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.box = box
	if e.phase != starting || e.why != "" {
		return false
	}
	e.phase = live
	e.endsAt = sb.EndsAt
	e.live = &Live{
		ID:              e.id,
		Team:            e.team,
		AgentToken:      m.deps.Seed.AgentToken(string(e.id)),
		TrafficToken:    m.deps.Seed.TrafficToken(string(e.id)),
		PrivateTraffic:  sb.Network.PrivateTraffic,
		MaskRequestHost: sb.Network.MaskRequestHost,
		Gone:            e.gone,
		Route:           box.Route,
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
