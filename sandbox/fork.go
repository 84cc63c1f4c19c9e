package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// MaxFork is how many children one Fork makes at most.
const MaxFork = 100

// Forked is one child of a Fork, or why there is none.
type Forked struct {
	Sandbox Sandbox
	Err     error
}

// Fork copies a running sandbox count times, from one checkpoint: the children
// go on where it stood, with ids, host names and tokens of their own and
// everything else as it has it; each lives ttl. The source stands still for the
// time of the checkpoint. Each child succeeds or fails by itself. An error of
// Fork means that there are none: errdefs.ErrInvalidArgument for a count
// outside 1..MaxFork or above the team's limit, otherwise Snapshot's.
func (m *Manager) Fork(ctx context.Context, who identity.Principal, id ID, count int, ttl time.Duration) ([]Forked, error) {
	if count < 1 || count > MaxFork {
		return nil, apierr.Field("count", "must be 1 to %d, is %d", MaxFork, count)
	}
	if ttl <= 0 {
		return nil, apierr.Field("timeout", "must be more than 0")
	}
	if err := checkTimeout(ttl, m.cfg.MaxTimeout); err != nil {
		return nil, err
	}
	if err := m.canCopy(); err != nil {
		return nil, err
	}
	if m.tasks.ended() {
		return nil, fmt.Errorf("server is shutting down: %w", errdefs.ErrUnavailable)
	}
	e, err := m.beginCopy(ctx, who, id)
	if err != nil {
		return nil, err
	}
	c, err := m.forkPoint(ctx, e, count)
	m.endCopy(e)
	if err != nil {
		return nil, err
	}
	// One that is left over by a crash is collected by the sweep.
	defer func() { m.deleteArtifact(ctx, c.artifact.ID); c.release() }()
	g, err := m.unseal(c.sb)
	if err != nil {
		return nil, err
	}
	build, err := m.deps.Templates.Build(ctx, c.sb.Build)
	if err != nil {
		return nil, fmt.Errorf("template of sandbox %q: %w", id, err)
	}
	out := make([]Forked, count)
	var group errgroup.Group
	group.SetLimit(m.cfg.ConcurrentCreates)
	for i := range out {
		group.Go(func() error {
			child, err := m.planChild(who, c, g, build, ttl)
			if err == nil {
				if child.sb.Name != "" {
					child.sb.Name = clip(child.sb.Name, maxName-4) + "-" + strconv.Itoa(i+1)
				}
				out[i].Sandbox, err = m.launch(ctx, child)
			}
			out[i].Err = err
			return nil
		})
	}
	_ = group.Wait() // each keeps its own
	m.log.InfoContext(ctx, "sandbox forked", slog.String("sandbox", string(id)), slog.Int("children", count), slog.Duration("frozen", c.frozen))
	return out, nil
}

// forkPoint checks the team's limit and saves the source.
func (m *Manager) forkPoint(ctx context.Context, e *entry, count int) (*copied, error) {
	limit, source := m.cfg.MaxPerTeam, "limits.sandboxes_per_team"
	team, err := m.deps.Snapshots.GetTeam(ctx, e.team)
	if err != nil {
		return nil, err
	}
	if team.MaxSandboxes > 0 {
		limit, source = team.MaxSandboxes, "the team's own"
	}
	if limit > 0 && count > limit {
		return nil, apierr.Exceeds("count", source, "%d children are more than the %d sandboxes that the team may have", count, limit)
	}
	ctx, cancel := m.saveContext(ctx)
	defer cancel()
	c, err := m.checkpoint(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("fork sandbox %q: %w", e.id, err)
	}
	return c, nil
}

// planChild is plan for a fork: everything is the source's but the identity.
func (m *Manager) planChild(who identity.Principal, c *copied, g guest, build template.Build, ttl time.Duration) (*creation, error) {
	now := clock()
	src := c.sb
	sb := Sandbox{
		ID: newID(), Team: src.Team, Template: src.Template, Alias: src.Alias, Name: src.Name, Build: src.Build,
		State: Pending, Node: m.cfg.Node, Network: src.Network, Egress: src.Egress, Resources: src.Resources,
		Metadata: maps.Clone(src.Metadata), CreatedAt: now, EndsAt: now.Add(ttl),
		OnTimeout: src.OnTimeout, Lifecycle: src.Lifecycle, Origin: Origin{Sandbox: src.ID}, Version: 1,
	}
	sb.Lifecycle.Timeout = ttl
	var err error
	if sb.Sealed, err = m.seal(sb.ID, g); err != nil {
		return nil, err
	}
	build.Artifact = nil // the child is made of the fork point
	return &creation{
		who: who, req: CreateRequest{Timeout: ttl}, build: build, sb: sb, from: &c.artifact, names: string(src.ID),
		created: audit.Event{
			Type: "sandbox.forked", At: now, Actor: who.KeyID,
			Fields: map[string]string{"source": string(src.ID), "template": string(src.Template), "build": string(src.Build)},
		},
	}, nil
}
