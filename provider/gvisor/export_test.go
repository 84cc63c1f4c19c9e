package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/engine/wire"
)

// BoxCgroups is the pattern of the groups of an engine's boxes.
func BoxCgroups(dataDir, controller string) string {
	sum := sha256.Sum256([]byte(filepath.Join(dataDir, "engine")))
	return filepath.Join("/sys/fs/cgroup", controller, "caisson-"+hex.EncodeToString(sum[:4]), "*", "cgroup.procs")
}

// SentryPID is the sandbox process of a box.
func (b *Box) SentryPID(ctx context.Context) (int, error) { return b.p.SentryOf(ctx, b.id) }

// SentryOf is the sandbox process of the box with an id.
func (p *Provider) SentryOf(ctx context.Context, id string) (int, error) {
	boxes, err := p.list(ctx)
	if err != nil {
		return 0, err
	}
	for _, w := range boxes {
		if w.ID == id {
			return w.PID, nil
		}
	}
	return 0, errdefs.ErrNotFound
}

// EnginePID is the process that runs the boxes.
func (p *Provider) EnginePID(ctx context.Context) (int, error) {
	c, err := p.engine(ctx)
	if err != nil {
		return 0, err
	}
	return c.Hello.PID, nil
}

// Socket is where the engine listens.
func (p *Provider) Socket() string { return p.options.Socket }

// Layout returns the agent's image and the directory of writable layers.
func (p *Provider) Layout() (agentImage, overlays string) { return p.agentImage, p.overlays }

// LateExit tells the provider again how the box ended, as an engine that was
// slow to say so does.
func (b *Box) LateExit() {
	m, _ := json.Marshal(b.meta)
	b.p.onExit(wire.Box{ID: b.id, Meta: m, Exit: &wire.Exit{Reason: wire.ReasonDestroyed}})
}

// SettleBeside settles what an engine runs while a box waits to be created, and
// reports whether that was taken for lost.
func (p *Provider) SettleBeside(ctx context.Context, id string) (lost bool, err error) {
	b := newBox(p, id, meta{})
	if err := p.register(b); err != nil {
		return false, err
	}
	defer p.forget(b)
	p.settle(ctx)
	select {
	case <-b.done:
		return true, nil
	default:
		return false, nil
	}
}
