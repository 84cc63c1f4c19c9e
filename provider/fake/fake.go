// Package fake is a provider without isolation: a box is the real agent inside
// this process, its commands are processes of this host and its files are this
// host's. It exists for tests of everything above the port and passes the
// provider suite. It claims nothing that it cannot do: no limit of its own, no
// egress control, no snapshots.
package fake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent"
	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/provider"
)

const (
	name          = "fake"
	handleVersion = 1
)

var validID = regexp.MustCompile(`^[a-z0-9]+$`)

// Config is what a Provider needs.
type Config struct {
	// Unenforced are limits that a spec may ask for although nothing enforces
	// them; asking for another is provider.ErrUnenforceable.
	Unenforced []provider.Limit
	Log        *slog.Logger
}

// Provider implements provider.Provider.
type Provider struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	boxes   map[string]*Box
	waiting map[string]*prebooted
}

// New returns a provider without boxes.
func New(cfg Config) (*Provider, error) {
	if cfg.Log == nil {
		return nil, fmt.Errorf("fake provider: no logger: %w", errdefs.ErrInvalidArgument)
	}
	return &Provider{cfg: cfg, boxes: make(map[string]*Box), waiting: make(map[string]*prebooted)}, nil
}

// Name implements provider.Provider.
func (p *Provider) Name() string { return name }

// Capabilities implements provider.Provider.
func (p *Provider) Capabilities() provider.Capabilities { return provider.Capabilities{Preboot: true} }

// Probe implements provider.Provider.
func (p *Provider) Probe(context.Context) error { return nil }

// Create implements provider.Provider.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (provider.Box, error) {
	if err := errors.Join(p.use(spec), p.check(spec)); err != nil {
		return nil, fmt.Errorf("create box %q: %w", spec.SandboxID, err)
	}
	p.mu.Lock()
	if _, ok := p.boxes[spec.SandboxID]; ok {
		p.mu.Unlock()
		return nil, fmt.Errorf("create box %q: %w", spec.SandboxID, errdefs.ErrAlreadyExists)
	}
	p.boxes[spec.SandboxID] = nil // taken
	p.mu.Unlock()

	b, err := p.start(ctx, spec)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		delete(p.boxes, spec.SandboxID)
		return nil, fmt.Errorf("create box %q: %w", spec.SandboxID, err)
	}
	p.boxes[spec.SandboxID] = b
	b.own.Go(b.reap)
	return b, nil
}

func (p *Provider) check(spec provider.Spec) error {
	if !validID.MatchString(spec.SandboxID) {
		return fmt.Errorf("sandbox id must match %s: %w", validID, errdefs.ErrInvalidArgument)
	}
	if spec.Egress == nil {
		return fmt.Errorf("no egress attachment: %w", errdefs.ErrInvalidArgument)
	}
	for _, l := range []struct {
		limit provider.Limit
		asked int64
	}{
		{provider.LimitMemory, spec.Resources.MemoryMiB},
		{provider.LimitCPU, int64(spec.Resources.CPUs)},
		{provider.LimitDisk, spec.Resources.DiskMiB},
	} {
		if l.asked != 0 && !slices.Contains(p.cfg.Unenforced, l.limit) {
			return fmt.Errorf("limit %q: %w", l.limit, provider.ErrUnenforceable)
		}
	}
	return nil
}

// start runs an agent and returns when it answers. Nothing is left on error.
func (p *Provider) start(ctx context.Context, spec provider.Spec) (*Box, error) {
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("agent port: %w", err)
	}
	tickets, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		_ = api.Close()
		return nil, fmt.Errorf("forward port: %w", err)
	}
	ours, theirs := net.Pipe()
	a, err := agent.New(agent.Config{
		Mode: child.Embedded, Listener: api, ForwardListener: tickets, Control: theirs, Log: p.cfg.Log,
	})
	if err != nil {
		_, _ = api.Close(), tickets.Close()
		return nil, err
	}
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	b := &Box{
		provider: p,
		id:       spec.SandboxID,
		control:  control.NewClient(ours, p.cfg.Log),
		cancel:   cancel,
		api:      api.Addr().String(),
		tickets:  tickets.Addr().String(),
		done:     make(chan struct{}),
	}
	b.own.Go(func() { b.serve(run, a) })
	if err := b.control.Ready(ctx); err != nil {
		cancel(errDestroyed)
		_ = b.control.Close()
		b.own.Wait()
		return nil, err
	}
	b.setDeadline(spec.Deadline)
	return b, nil
}

// Open implements provider.Provider. Boxes die with the process, so only this
// very provider finds its own.
func (p *Provider) Open(_ context.Context, h provider.Handle, a egress.Attachment) (provider.Box, error) {
	if h.Provider != name || h.Version != handleVersion {
		return nil, fmt.Errorf("open box: handle of provider %q version %d: %w", h.Provider, h.Version, errdefs.ErrInvalidArgument)
	}
	if a == nil {
		return nil, fmt.Errorf("open box %q: no egress attachment: %w", h.ID, errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.boxes[h.ID]
	if b == nil {
		return nil, fmt.Errorf("open box %q: %w", h.ID, errdefs.ErrNotFound)
	}
	return b, nil
}

// List implements provider.Provider.
func (p *Provider) List(context.Context) ([]provider.Handle, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	handles := []provider.Handle{}
	for _, b := range p.boxes {
		if b != nil {
			handles = append(handles, b.Handle())
		}
	}
	for _, b := range p.waiting {
		handles = append(handles, b.Handle())
	}
	return handles, nil
}

func (p *Provider) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.boxes, id)
}

// Close destroys every box.
func (p *Provider) Close() error {
	p.mu.Lock()
	var boxes []*Box
	for _, b := range p.boxes {
		if b != nil {
			boxes = append(boxes, b)
		}
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, b := range boxes {
		if err := b.Destroy(ctx); err != nil {
			return err
		}
	}
	return nil
}
