package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

// errAborted is the cause of a create that a kill ended.
var errAborted = fmt.Errorf("sandbox was killed while it was being created: %w", errdefs.ErrAborted)

// creation is one create under way.
type creation struct {
	who   identity.Principal
	req   CreateRequest
	tmpl  template.Template
	build template.Build
	sb    Sandbox
	entry *entry
	// warm is the box that it starts from; nil when one must be made.
	warm  provider.Box
	undo  undo.Stack
	stage string
	// from is the saved state to start with, nil for a fresh start; names is
	// under which id egress keeps the names that it knows.
	from  *snapshot.Artifact
	names string
	// created is the event of the record.
	created audit.Event
}

// Create makes a sandbox and returns when its agent answers. On an error nothing
// of it is left but a Failed record, and not even that when it was not admitted.
// A timeout, template, environment, metadata or network that cannot be is
// errdefs.ErrInvalidArgument or ErrNotFound; the team's limit, and a queue that
// is full or slow, is ErrResourceExhausted.
//
// With an idempotency key the team's same request within Config.Idempotency
// gives the same sandbox while it runs, also while it is still being made and
// after a restart, and makes a new one when the first failed. One that has ended
// or is paused is ErrConflict: a request that arrives late must not start what
// nobody waits for. Another request with the key is apierr.ErrUnprocessable.
func (m *Manager) Create(ctx context.Context, who identity.Principal, r CreateRequest) (Sandbox, error) {
	if r.IdempotencyKey != "" {
		return m.createOnce(ctx, who, r)
	}
	return m.create(ctx, who, r, "")
}

// create makes a sandbox, with the fingerprint of its request when it has a key.
func (m *Manager) create(ctx context.Context, who identity.Principal, r CreateRequest, mark string) (Sandbox, error) {
	for _, warm := range []bool{true, false} {
		c, err := m.planned(ctx, who, r, warm)
		if err != nil {
			return Sandbox{}, err
		}
		c.sb.Idempotency = Idempotency{Key: r.IdempotencyKey, Fingerprint: mark}
		sb, err := m.launch(ctx, c)
		if !errors.Is(err, errStale) || ctx.Err() != nil {
			return sb, err
		}
	}
	return Sandbox{}, fmt.Errorf("create sandbox: %w", errStale)
}

// planned is plan with the id settled: that of a warm box, where there is one.
func (m *Manager) planned(ctx context.Context, who identity.Principal, r CreateRequest, warm bool) (*creation, error) {
	c, err := m.plan(ctx, who, r)
	if err != nil {
		return nil, err
	}
	if warm && canBeWarm(c.build) {
		m.takeWarm(c)
	}
	if c.sb.Sealed, err = m.seal(c.sb.ID, guestOf(m.cfg, c.build, r)); err != nil {
		m.putBack(c)
		return nil, err
	}
	return c, nil
}

// launch makes what was planned.
func (m *Manager) launch(ctx context.Context, c *creation) (Sandbox, error) {
	began := time.Now()
	leave := func() {}
	if c.warm == nil {
		admitted, err := m.admission.enter(ctx, c.sb.Team, func() { c.enter(StageQueue) })
		if err != nil {
			if ctx.Err() == nil {
				m.countFailure(StageQueue)
			}
			return Sandbox{}, err // there is no record, and nothing to undo
		}
		leave = sync.OnceFunc(admitted)
		defer leave()
	}
	m.stamp(c, clock())
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	c.entry = newEntry(c.sb.ID, c.sb.Team, abort)
	m.mu.Lock()
	m.entries[c.sb.ID] = c.entry
	m.mu.Unlock()

	c.enter(StageAdmit)
	if err := m.insert(ctx, c); err != nil {
		m.forget(c.entry)
		m.countFailure(StageAdmit)
		return Sandbox{}, err
	}
	box, err := m.start(ctx, c)
	leave()
	if c.warm != nil {
		m.pool.Settle(keyOf(c.build, c.sb.Resources), c.warm)
	}
	if err == nil {
		if m.publish(c.entry, box, c.sb) {
			m.watch(c.entry, box)
			// The deadline given to the box allowed for the whole of the create.
			m.tasks.add(func(ctx context.Context) { _ = m.syncDeadline(ctx, c.entry, box) }) // logged there; the sweep retries
			c.undo.Done()
			if f := m.deps.Metrics.Created; f != nil {
				f(time.Since(began))
			}
			c.ready()
			return c.sb, nil
		}
		err = errAborted
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(cause, errAborted) {
		err = cause
	}
	return Sandbox{}, m.unwind(ctx, c, err)
}

// stamp says from when a creation counts: it may have waited since it was planned.
func (m *Manager) stamp(c *creation, now time.Time) {
	c.sb.CreatedAt, c.sb.EndsAt, c.created.At = now, now.Add(c.req.Timeout), now
	if c.sb.Idempotency.Key != "" {
		c.sb.Idempotency.Until = now.Add(m.cfg.Idempotency)
	}
}

// insert writes the record. One that starts from a warm box is Running from the
// beginning, which saves a write: a server that dies before the agent has its
// identity leaves it to the one that takes over. On an error the warm box is the
// pool's again, or the sweep's.
func (m *Manager) insert(ctx context.Context, c *creation) error {
	events := []audit.Event{c.created}
	if c.warm != nil {
		now := clock()
		c.sb.State, c.sb.Handle = Running, c.warm.Handle()
		c.sb.StartedAt, c.sb.EndsAt = now, now.Add(c.req.Timeout)
		events = append(events, audit.Event{Type: "sandbox.started", At: now, Actor: c.who.KeyID})
	}
	err := m.deps.Store.Insert(ctx, c.sb, m.cfg.MaxPerTeam, events...)
	if err == nil {
		return nil
	}
	if errdefs.IsResourceExhausted(err) || errdefs.IsNotFound(err) || errors.Is(err, ErrKeyTaken) {
		m.putBack(c)
		return err
	}
	// The commit may have gone through and its answer been lost.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickCall)
	defer cancel()
	switch _, gerr := m.deps.Store.Get(after, c.sb.ID); {
	case gerr == nil:
		return nil
	case errdefs.IsNotFound(gerr):
		m.putBack(c)
	case c.warm != nil:
		// Nobody knows whether the box has a record; the sweep will.
		m.pool.Settle(keyOf(c.build, c.sb.Resources), c.warm)
	}
	return err
}

// plan checks a request and settles everything that needs no I/O on the host.
func (m *Manager) plan(ctx context.Context, who identity.Principal, r CreateRequest) (*creation, error) {
	if m.tasks.ended() {
		return nil, fmt.Errorf("server is shutting down: %w", errdefs.ErrUnavailable)
	}
	if who.Team == "" {
		return nil, fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
	}
	if err := r.check(m.cfg); err != nil {
		return nil, err
	}
	if err := m.mayUse(ctx, who.Team); err != nil {
		return nil, err
	}
	tmpl, build, err := m.deps.Templates.Resolve(ctx, who.Team, r.Template)
	if err != nil {
		return nil, err
	}
	if unsaved(build) {
		return nil, apierr.New(errdefs.ErrUnavailable,
			"template %.200q is being prepared: its start command runs and its memory is saved, which takes some seconds; "+
				"if it stays so, `caisson template inspect` and the server's log say why", r.Template).WithCode("template_preparing")
	}
	build, ports, err := m.opened(tmpl, build)
	if err != nil {
		return nil, err
	}
	r.Network.PrivatePorts = ports
	res, err := m.resources(r.Resources, build)
	if err != nil {
		return nil, err
	}
	if err := m.unenforceable(res); err != nil {
		return nil, err
	}
	budget, err := r.Budget.within(m.cfg.Budget)
	if err != nil {
		return nil, err
	}
	if r.OnTimeout == OnTimeoutPause {
		if err := m.canSave(atEnd{filesOnly: r.FilesOnly}.kind()); err != nil {
			return nil, err
		}
	}
	policy, err := m.deps.Policy(r.Network)
	if err != nil {
		return nil, err
	}
	now := clock()
	sb := Sandbox{
		ID:        newID(),
		Team:      who.Team,
		Template:  tmpl.ID,
		Name:      r.Name,
		Build:     build.ID,
		State:     Pending,
		Node:      m.cfg.Node,
		Network:   r.Network,
		Egress:    policy,
		Resources: res,
		Metadata:  maps.Clone(r.Metadata),
		CreatedAt: now,
		EndsAt:    now.Add(r.Timeout),
		OnTimeout: r.OnTimeout,
		Lifecycle: Lifecycle{AutoResume: r.AutoResume, FilesOnly: r.FilesOnly, Timeout: r.Timeout, Budget: budget},
		Version:   1,
	}
	if sb.OnTimeout == "" {
		sb.OnTimeout = OnTimeoutKill
	}
	if len(tmpl.Names) > 0 {
		sb.Alias = tmpl.Names[0]
	}
	c := &creation{who: who, req: r, tmpl: tmpl, build: build, sb: sb, created: audit.Event{
		Type: "sandbox.created", At: now, Actor: who.KeyID,
		Fields: map[string]string{"template": string(sb.Template), "build": string(sb.Build)},
	}}
	c.descend()
	return c, nil
}

// start takes the steps from an admitted record to a Running one; what it did
// is on c.undo.
func (m *Manager) start(ctx context.Context, c *creation) (provider.Box, error) {
	id := string(c.sb.ID)
	ctx, cancel := context.WithTimeoutCause(ctx, m.cfg.CreateTimeout,
		fmt.Errorf("sandbox did not start within %s: %w", m.cfg.CreateTimeout, errdefs.ErrUnavailable))
	defer cancel()

	c.enter(StageAttach)
	if err := m.inherit(ctx, c); err != nil {
		return nil, err
	}
	// Before the step, for once: an Attach that fails late may have attached.
	c.undo.Add(func(ctx context.Context) error { return m.deps.Guard.Detach(ctx, id) })
	if c.warm != nil {
		c.undo.Add(c.warm.Destroy)
	}
	att, err := m.deps.Guard.Attach(ctx, id, c.sb.Egress)
	if err != nil {
		return nil, because(ctx, fmt.Errorf("attach egress: %w", err))
	}

	c.enter(StageBox)
	box, err := m.createBox(ctx, c, att)
	if err != nil {
		return nil, err
	}

	c.enter(StageAgent)
	if c.warm != nil {
		return box, m.bind(ctx, c.sb, box) // recorded as Running already
	}
	if err := m.initAgent(ctx, c.sb, box); err != nil {
		return nil, err
	}

	c.enter(StageCommit)
	now := clock()
	sb, err := m.deps.Store.Mutate(ctx, c.sb.ID, func(s *Sandbox) (audit.Event, error) {
		s.State, s.Handle = Running, box.Handle()
		s.StartedAt, s.EndsAt = now, now.Add(c.req.Timeout)
		return audit.Event{Type: "sandbox.started", At: now, Actor: c.who.KeyID}, nil
	})
	if err != nil {
		return nil, because(ctx, fmt.Errorf("record sandbox: %w", err))
	}
	c.sb = sb
	return box, nil
}

func (m *Manager) createBox(ctx context.Context, c *creation, att egress.Attachment) (provider.Box, error) {
	spec := m.spec(c.sb, c.build, att)
	if c.warm != nil {
		return m.claim(ctx, c, provider.Identity{SandboxID: spec.SandboxID, Labels: spec.Labels, Egress: att})
	}
	spec.Deadline = clock().Add(c.req.Timeout + m.cfg.CreateTimeout + m.graceAt(endOf(c.sb)))
	var box provider.Box
	var err error
	if c.from != nil {
		box, err = m.restoreBox(ctx, c, spec)
	} else {
		box, err = m.startBox(ctx, c.sb, spec, nil)
	}
	if err != nil {
		return nil, because(ctx, fmt.Errorf("create box: %w", err))
	}
	c.undo.Add(box.Destroy)
	return box, nil
}

// spec is what the provider is told of a sandbox.
func (m *Manager) spec(sb Sandbox, build template.Build, att egress.Attachment) provider.Spec {
	return provider.Spec{
		SandboxID: string(sb.ID),
		Hostname:  string(sb.ID),
		Rootfs:    build.Rootfs,
		Resources: sb.Resources,
		Labels: map[string]string{
			"caisson.team": string(sb.Team), "caisson.template": string(sb.Template), "caisson.node": m.cfg.Node,
		},
		Egress: att,
	}
}

// initAgent waits for the agent and gives it its identity. A box that dies
// meanwhile ends the wait at once.
func (m *Manager) initAgent(ctx context.Context, sb Sandbox, box provider.Box) error {
	g, err := m.unseal(sb)
	if err != nil {
		return err
	}
	ctl := box.Control()
	if ctl == nil {
		return fmt.Errorf("box has no control channel: %w", errdefs.ErrInternal)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	died := make(chan struct{})
	go func() {
		defer close(died)
		if exit, err := box.Wait(ctx); err == nil {
			cancel(fmt.Errorf("box ended while it was starting (%s %s): %w", exit.Reason, exit.Detail, errdefs.ErrUnavailable))
		}
	}()
	defer func() { cancel(nil); <-died }()

	in := m.machine(sb)
	in.AccessToken = m.deps.Seed.AgentToken(string(sb.ID)).Reveal()
	in.EnvVars, in.DefaultUser, in.DefaultWorkdir = g.Env, g.User, g.Workdir
	if err := ctl.Init(ctx, in); err != nil {
		return because(ctx, fmt.Errorf("init agent: %w", err))
	}
	return nil
}

// machine is what an agent is told of a sandbox beside its secrets.
func (m *Manager) machine(sb Sandbox) control.Init {
	limits := m.cfg.Command
	limits.Processes = sb.Resources.Processes
	return control.Init{
		SandboxID:  string(sb.ID),
		TemplateID: string(sb.Template),
		BuildID:    string(sb.Build),
		Hostname:   string(sb.ID),
		Limits:     limits,
		CABundle:   m.cfg.CABundle,
		Now:        time.Now(),
	}
}

// unwind takes a failed create back and returns the error to show, which is the
// first one.
func (m *Manager) unwind(ctx context.Context, c *creation, first error) error {
	m.countFailure(c.stage)
	m.mu.Lock()
	killed, why, by := c.entry.why != "", c.entry.why, c.entry.by
	m.markGone(c.entry)
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
	defer cancel()
	if err := c.undo.Run(ctx); err != nil {
		// The sweep destroys what is left once the record has ended.
		m.log.ErrorContext(ctx, "failed create could not be undone", slog.String("sandbox", string(c.sb.ID)), slog.Any("error", err))
	}
	now := clock()
	_, err := m.deps.Store.Mutate(ctx, c.sb.ID, func(s *Sandbox) (audit.Event, error) {
		s.EndedAt = now
		if !killed {
			s.Idempotency.Key = "" // the next one with it starts afresh
		}
		if killed || s.State == Running {
			s.State, s.Reason = Killed, why
			if !killed {
				// The commit went through and its answer was lost.
				s.Reason = reasonText(s.ID, c.stage, first)
			}
			return audit.Event{Type: "sandbox.killed", At: now, Actor: by, Reason: s.Reason}, nil
		}
		s.State, s.Reason = Failed, reasonText(s.ID, c.stage, first)
		return audit.Event{Type: "sandbox.failed", At: now, Actor: c.who.KeyID, Reason: c.stage}, nil
	})
	if err != nil {
		m.log.ErrorContext(ctx, "failed create could not be recorded", slog.String("sandbox", string(c.sb.ID)), slog.Any("error", err))
	}
	m.log.WarnContext(ctx, "sandbox was not created", slog.String("sandbox", string(c.sb.ID)),
		slog.String("stage", c.stage), slog.Any("error", first))
	m.forget(c.entry)
	return first
}

func (m *Manager) countFailure(stage string) {
	if f := m.deps.Metrics.CreateFailed; f != nil {
		f(stage)
	}
}

// because puts the cause of an ended context before the error it led to.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w (%v)", cause, err) //nolint:errorlint // the cause is the kind; err only says where
	}
	return err
}

// newID returns "i" and 20 characters of [a-z2-7]: 100 random bits.
func newID() ID { return ID("i" + strings.ToLower(rand.Text())[:20]) }

// clock is now as records hold it: UTC, whole milliseconds, no monotonic part.
func clock() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
