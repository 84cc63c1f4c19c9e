package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// prebooted is a box whose sentry has booted and waits. The engine ends it with
// the connection over which it was made.
type prebooted struct {
	box *Box
	// agent is the image that it has mounted; digest and resources are what else
	// is fixed.
	agent, digest string
	resources     provider.Resources

	mu    sync.Mutex
	files []*os.File // network and control channel, until it is used
}

var _ provider.Prebooted = (*prebooted)(nil)

// Preboot implements provider.Prebooter. It is errdefs.ErrFailedPrecondition
// while an engine of an earlier build serves, which stays until its boxes have
// ended.
func (p *Provider) Preboot(ctx context.Context, spec provider.PrebootSpec) (_ provider.Prebooted, err error) {
	full := provider.Spec{
		SandboxID: spec.ID, Hostname: spec.ID, Rootfs: spec.Rootfs, Resources: spec.Resources, Egress: denyAll{},
	}
	req, err := p.request(full, launch{})
	if err != nil {
		return nil, err
	}
	c, err := p.engine(ctx)
	if err != nil {
		return nil, err
	}
	if !c.Hello.Claims {
		return nil, fmt.Errorf("preboot: the running engine is of an earlier build, which cannot: %w", errdefs.ErrFailedPrecondition)
	}
	pre := &prebooted{
		box: newBox(p, spec.ID, p.metaOf(full, launch{})), agent: req.Agent, digest: spec.Rootfs.Digest, resources: spec.Resources,
	}
	if err := p.register(pre.box); err != nil {
		return nil, err
	}
	var steps undo.Stack
	defer func() {
		if err != nil {
			clean, cancel := cleanupContext(ctx)
			defer cancel()
			err = errors.Join(err, steps.Run(clean))
		}
	}()
	steps.Add(pre.Destroy)
	files, err := c.CallFiles(ctx, wire.OpCreate, req, nil)
	if err != nil {
		return nil, fmt.Errorf("preboot: %w", err)
	}
	if len(files) != 2 {
		closeFiles(files)
		return nil, fmt.Errorf("preboot: engine sent %d files, want 2: %w", len(files), errdefs.ErrInternal)
	}
	pre.files = files
	pre.box.wait()
	return pre, nil
}

// Takes implements provider.Prebooter: what was saved must have this build's
// agent, which the box has mounted. The saved layer of files is given to a box
// when it boots.
func (p *Provider) Takes(a snapshot.Artifact) bool {
	return a.Kind == snapshot.Memory && a.ABI == p.abi
}

// takePrebooted checks that the box of a spec fits what is to be started. The box
// is the caller's also when there is an error.
func (p *Provider) takePrebooted(spec provider.Spec, l launch) (*prebooted, error) {
	if spec.Prebooted == nil {
		return nil, nil
	}
	pre, ok := spec.Prebooted.(*prebooted)
	switch {
	case !ok || pre.box.p != p:
		return nil, fmt.Errorf("create box: the prebooted box is another provider's: %w", errdefs.ErrInvalidArgument)
	case pre.digest != spec.Rootfs.Digest, pre.resources != spec.Resources, l.filesFrom != "", l.agent != "" && l.agent != pre.agent:
		return pre, fmt.Errorf("create box: the prebooted box is of another kind: %w", errdefs.ErrInvalidArgument)
	}
	return pre, nil
}

// claimOf is what of a request is not fixed in a prebooted box.
func claimOf(r wire.Create) *wire.Claim {
	return &wire.Claim{ID: r.ID, Hostname: r.Hostname, Deadline: r.Deadline, Meta: r.Meta}
}

// wait says that a box waits to be used: the engine has it, although it has no
// network yet.
func (b *Box) wait() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.prebooted = true
}

// take returns the box's descriptors to the one that uses it.
func (b *prebooted) take() []*os.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	files := b.files
	b.files = nil
	return files
}

// Handle implements provider.Prebooted.
func (b *prebooted) Handle() provider.Handle { return b.box.Handle() }

// Stats implements provider.Prebooted.
func (b *prebooted) Stats(ctx context.Context) (provider.Stats, error) { return b.box.Stats(ctx) }

// Wait implements provider.Prebooted.
func (b *prebooted) Wait(ctx context.Context) (provider.Exit, error) { return b.box.Wait(ctx) }

// Destroy implements provider.Prebooted.
func (b *prebooted) Destroy(ctx context.Context) error {
	closeFiles(b.take())
	return b.box.Destroy(ctx)
}

// cpu is the CPU time that was last seen.
func (b *Box) cpu() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cpuSeen
}
