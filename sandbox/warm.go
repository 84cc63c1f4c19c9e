package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

// planInterval is how often planned templates are looked up again: a new build
// of one replaces the boxes of the old.
const planInterval = 30 * time.Second

// Pool configures warm boxes. The zero value keeps none.
type Pool struct {
	// Plans are by template reference, as the default team sees it.
	Plans map[string]pool.Plan
	// MaxDemand is the most boxes of one kind kept for recent demand alone.
	MaxDemand int
	// Booted is how many prebooted boxes are kept of each kind that is planned or
	// was used lately; 0 keeps none.
	Booted int
	// MaxBytes bounds the memory of all warm boxes; 0 means no limit.
	MaxBytes int64
	// Parallel is how many boxes are made at a time.
	Parallel int
	// Spawners is how many can be made at a time, when somebody waits for them.
	Spawners int
	Metrics  pool.Metrics
}

// errStale says that a warm box failed after it had been taken: the create goes
// on with a fresh one.
var errStale = errors.New("warm box failed")

// newPool returns nil when no boxes are kept warm, or the provider's cannot be.
func (m *Manager) newPool() (*pool.Pool, error) {
	can := m.deps.Provider.Capabilities()
	if !can.Claim {
		m.cfg.Pool.Plans, m.cfg.Pool.MaxDemand = nil, 0
	}
	if !can.Preboot {
		m.cfg.Pool.Booted = 0
	}
	if len(m.cfg.Pool.Plans) == 0 && m.cfg.Pool.MaxDemand == 0 && m.cfg.Pool.Booted == 0 {
		return nil, nil
	}
	return pool.New(pool.Options{
		Make: m.makeBox, NewID: func() string { return string(newID()) },
		MaxDemand: m.cfg.Pool.MaxDemand, Booted: m.cfg.Pool.Booted, Most: m.cfg.Pool.Spawners, MaxBytes: m.cfg.Pool.MaxBytes, Parallel: m.cfg.Pool.Parallel,
		Lease: warmLease, Log: m.log, Metrics: m.cfg.Pool.Metrics,
	})
}

// warmLease is how long warm boxes outlive a server that was killed.
const warmLease = 10 * time.Minute

// makeBox implements pool.Options.Make.
func (m *Manager) makeBox(ctx context.Context, k pool.Key, id string) (pool.Box, error) {
	if k.Tier == pool.Booted {
		return m.preboot(ctx, k, id)
	}
	return m.makeWarm(ctx, k, id)
}

// makeWarm makes a hot box. Its id is that of the sandbox it will be.
func (m *Manager) makeWarm(ctx context.Context, k pool.Key, id string) (provider.Box, error) {
	build, err := m.deps.Templates.Build(ctx, template.BuildID(k.Build))
	if err != nil {
		return nil, err
	}
	if err := m.admission.fits(); err != nil {
		return nil, err
	}
	if !canBeWarm(build) {
		return nil, fmt.Errorf("build %s is a snapshot: %w", build.ID, errdefs.ErrFailedPrecondition)
	}
	box, err := m.startIn(ctx, provider.Spec{
		SandboxID: id, Hostname: id, Rootfs: build.Rootfs, Resources: k.Resources,
		Labels: map[string]string{"caisson.pool": "warm", "caisson.node": m.cfg.Node},
		Egress: nowhere{}, Deadline: clock().Add(warmLease),
	}, build.Artifact)
	if err != nil {
		return nil, fmt.Errorf("create box: %w", err)
	}
	in := m.machine(Sandbox{ID: ID(id), Template: build.Template, Build: build.ID, Resources: k.Resources})
	in.DefaultUser = cmp.Or(build.User, m.cfg.DefaultUser)
	if err := box.Control().Prepare(ctx, in); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("prepare agent: %w", err), box.Destroy(clean))
	}
	return box, nil
}

// bindLimit is how long the agent of a warm box may take for its identity before
// the create goes on with another box.
const bindLimit = 2 * time.Second

// bind gives a claimed box its identity.
func (m *Manager) bind(ctx context.Context, sb Sandbox, box provider.Box) error {
	bctx, cancel := context.WithTimeoutCause(ctx, bindLimit, errors.New("agent did not answer in time"))
	defer cancel()
	err := m.initAgent(bctx, sb, box)
	if err != nil && ctx.Err() == nil {
		return errors.Join(errStale, err)
	}
	return err
}

// PoolStatus lists what is kept warm; empty when nothing is.
func (m *Manager) PoolStatus() []pool.Status {
	if m.pool == nil {
		return nil
	}
	return m.pool.Status()
}

// runPool keeps boxes warm until ctx ends.
func (m *Manager) runPool(ctx context.Context) {
	if m.pool == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.pool.Run(ctx)
	}()
	defer func() { <-done }()
	tick := time.NewTicker(planInterval)
	defer tick.Stop()
	for {
		m.planPool(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// planPool tells the pool which builds the planned templates mean now. A
// template that does not exist yet is looked for again later.
func (m *Manager) planPool(ctx context.Context) {
	plans, labels := map[pool.Key]pool.Plan{}, map[pool.Key]pool.Label{}
	for ref, plan := range m.cfg.Pool.Plans {
		_, build, err := m.deps.Templates.Resolve(ctx, identity.DefaultTeam, ref)
		if err == nil {
			var res provider.Resources
			if res, err = m.cfg.resources(provider.Resources{}, build.Resources); err == nil {
				label := pool.Label{Template: ref, Build: string(build.ID)}
				if k := bootedKey(build.Rootfs, res); plan.Most() > 0 && m.cfg.Pool.Booted > 0 {
					plans[k], labels[k] = pool.Plan{Hot: m.cfg.Pool.Booted}, label
				}
				if unsaved(build) {
					continue // creates of it are refused
				}
				if !canBeWarm(build) {
					m.log.WarnContext(ctx, "a snapshot cannot be kept warm", slog.String("template", ref))
					continue
				}
				k := keyOf(build, res)
				plans[k], labels[k] = plan, label
				continue
			}
		}
		if ctx.Err() == nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
			m.log.WarnContext(ctx, "template of a warm pool cannot be found", slog.String("template", ref), slog.Any("error", err))
			return // keep what there is
		}
	}
	m.pool.SetPlan(plans, labels)
}

// unsaved says that what a template's start command makes is still to come. A
// sandbox of it would lack what it is for.
func unsaved(b template.Build) bool { return b.Start != "" && b.Artifact == nil }

// canBeWarm is false for a snapshot: somebody's processes would run on, without
// their network and their identity. What a template's start command left running
// is made for that: it knew neither when it was saved.
func canBeWarm(b template.Build) bool { return b.Artifact == nil || !b.FromSandbox() }

func keyOf(build template.Build, res provider.Resources) pool.Key {
	return pool.Key{Build: string(build.ID), Resources: res}
}

// takeWarm gives a planned create a warm box, when there is one, and with it the
// box's id.
func (m *Manager) takeWarm(c *creation) {
	if m.pool == nil || !m.deps.Provider.Capabilities().Claim {
		return
	}
	k := keyOf(c.build, c.sb.Resources)
	if c.build.Artifact != nil && c.tmpl.Team != identity.DefaultTeam && !m.pool.Planned(k) {
		return // its start command would run on, at nobody's expense
	}
	box, ok := m.pool.Take(k, c.req.Template)
	if ok {
		c.warm, c.sb.ID = box.(provider.Box), ID(box.Handle().ID)
	}
}

// claim binds a warm box to the sandbox that it becomes.
func (m *Manager) claim(ctx context.Context, c *creation, id provider.Identity) (provider.Box, error) {
	claimer, ok := c.warm.(provider.Claimer)
	if !ok {
		return nil, fmt.Errorf("box cannot be claimed: %w", errdefs.ErrInternal)
	}
	if err := claimer.Claim(ctx, id); err != nil {
		return nil, fmt.Errorf("claim box: %w", errors.Join(errStale, err))
	}
	return c.warm, nil
}

// putBack returns a warm box that nothing was done with.
func (m *Manager) putBack(c *creation) {
	if c.warm != nil {
		m.pool.Return(keyOf(c.build, c.sb.Resources), c.warm)
		c.warm = nil
	}
}
