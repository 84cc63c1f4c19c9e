package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/snapshot"
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
	return m.forkOnce(ctx, who, forking{Source: id, Count: count, TTL: ttl}, "")
}

// ForkOnce is Fork with an idempotency key, as Create has it: the children that
// the team's same fork made with the key are returned, each as Create returns
// one. Those that failed, or that a crash left out, are made anew, from a new
// checkpoint.
func (m *Manager) ForkOnce(ctx context.Context, who identity.Principal, id ID, count int, ttl time.Duration, key string) ([]Forked, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if who.Team == "" {
		return nil, fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
	}
	return m.forkOnce(ctx, who, forking{Source: id, Count: count, TTL: ttl}, key)
}

// forking is what a fork asks for; its JSON is what the fingerprint is made of.
type forking struct {
	Source ID            `json:"fork"`
	Count  int           `json:"count"`
	TTL    time.Duration `json:"timeout"`
}

func (m *Manager) forkOnce(ctx context.Context, who identity.Principal, f forking, key string) ([]Forked, error) {
	if f.Count < 1 || f.Count > MaxFork {
		return nil, apierr.Field("count", "must be 1 to %d, is %d", MaxFork, f.Count)
	}
	if f.TTL <= 0 {
		return nil, apierr.Field("timeout", "must be more than 0")
	}
	if err := checkTimeout(f.TTL, m.cfg.MaxTimeout); err != nil {
		return nil, err
	}
	if err := m.canCopy(); err != nil {
		return nil, err
	}
	if m.tasks.ended() {
		return nil, fmt.Errorf("server is shutting down: %w", errdefs.ErrUnavailable)
	}
	out := make([]Forked, f.Count)
	if key == "" {
		every := make([]int, f.Count)
		for i := range every {
			every[i] = i
		}
		if err := m.makeChildren(ctx, who, f, Idempotency{}, out, every); err != nil {
			return nil, err
		}
		return out, nil
	}
	mark, err := m.fingerprint(f)
	if err != nil {
		return nil, err
	}
	return m.once(ctx, attemptKey{who.Team, key}, mark, func(ctx context.Context) ([]Forked, error) {
		missing, err := m.findChildren(ctx, who, key, mark, out)
		if err != nil || len(missing) == 0 {
			return out, err
		}
		err = m.makeChildren(ctx, who, f, Idempotency{Key: key, Fingerprint: mark}, out, missing)
		if err == nil || len(missing) == len(out) {
			return out, err
		}
		for _, i := range missing { // the others are there
			out[i].Err = err
		}
		return out, nil
	})
}

// childKey is the key of the i-th child of a fork: the first one has the fork's,
// so that it clashes with a create's, the others have what no caller can send.
func childKey(key string, i int) string {
	if key == "" || i == 0 {
		return key
	}
	return key + "\n" + strconv.Itoa(i)
}

// findChildren puts those that a fork with the key has made into out, and
// returns which are missing.
func (m *Manager) findChildren(ctx context.Context, who identity.Principal, key, mark string, out []Forked) (missing []int, err error) {
	for i := range out {
		sb, found, err := m.keyed(ctx, who, childKey(key, i), mark)
		switch {
		case errors.Is(err, apierr.ErrUnprocessable) || ctx.Err() != nil:
			return nil, err
		case !found && err == nil:
			missing = append(missing, i)
		default:
			out[i] = Forked{Sandbox: sb, Err: err}
		}
	}
	return missing, nil
}

// makeChildren forks f.Source into the members of out that which names. Its
// error means that there are none.
func (m *Manager) makeChildren(ctx context.Context, who identity.Principal, f forking, idem Idempotency, out []Forked, which []int) error {
	e, err := m.beginCopy(ctx, who, f.Source)
	if err != nil {
		return err
	}
	if err := m.mayUse(ctx, e.team); err != nil {
		m.endCopy(e)
		return err
	}
	m.expectChildren(ctx, f.Source, len(which))
	c, err := m.forkPoint(ctx, e, f.Count)
	m.endCopy(e)
	if err != nil {
		return err
	}
	// One that is left over by a crash is collected by the sweep.
	defer func() { m.dropArtifact(ctx, c.artifact.ID); c.release() }()
	g, err := m.unseal(c.sb)
	if err != nil {
		return err
	}
	build, err := m.deps.Templates.Build(ctx, c.sb.Build)
	if err != nil {
		return fmt.Errorf("template of sandbox %q: %w", f.Source, err)
	}
	var group errgroup.Group
	group.SetLimit(m.cfg.ConcurrentCreates)
	for _, i := range which {
		group.Go(func() error {
			child, err := m.planChild(who, c, g, build, f.TTL)
			if err == nil {
				if child.sb.Name != "" {
					child.sb.Name = clip(child.sb.Name, maxName-4) + "-" + strconv.Itoa(i+1)
				}
				child.sb.Idempotency = Idempotency{Key: childKey(idem.Key, i), Fingerprint: idem.Fingerprint}
				out[i].Sandbox, err = m.launch(ctx, child)
			}
			out[i].Err = err
			return nil
		})
	}
	_ = group.Wait() // each keeps its own
	m.log.InfoContext(ctx, "sandbox forked", slog.String("sandbox", string(f.Source)), slog.Int("children", len(which)), slog.Duration("frozen", c.frozen))
	return nil
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
	c, err := m.checkpoint(ctx, e, snapshot.Scratch{Vault: m.deps.Vault})
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
	sb.Lifecycle.Timeout, sb.Lifecycle.Spent = ttl, "" // it has used nothing yet
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
