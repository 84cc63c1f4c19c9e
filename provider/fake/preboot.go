package fake

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// prebooted is the promise of a box: here nothing takes long enough to be done
// ahead.
type prebooted struct {
	provider *Provider
	spec     provider.PrebootSpec
	done     chan struct{} // closed when it was destroyed before it was used
}

// Preboot implements provider.Prebooter.
func (p *Provider) Preboot(_ context.Context, spec provider.PrebootSpec) (provider.Prebooted, error) {
	err := p.check(provider.Spec{SandboxID: spec.ID, Resources: spec.Resources, Egress: noEgress{}})
	if err != nil {
		return nil, fmt.Errorf("preboot %q: %w", spec.ID, err)
	}
	b := &prebooted{provider: p, spec: spec, done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.boxes[spec.ID]; ok || p.waiting[spec.ID] != nil {
		return nil, fmt.Errorf("preboot %q: %w", spec.ID, errdefs.ErrAlreadyExists)
	}
	p.waiting[spec.ID] = b
	return b, nil
}

// noEgress stands in for the attachment that a box gets with its spec.
type noEgress struct{ egress.Attachment }

// Takes implements provider.Prebooter: nothing can be saved.
func (p *Provider) Takes(snapshot.Artifact) bool { return false }

// use takes the box that a spec names out of those that wait.
func (p *Provider) use(spec provider.Spec) error {
	if spec.Prebooted == nil {
		return nil
	}
	b, ok := spec.Prebooted.(*prebooted)
	if !ok || b.provider != p {
		return fmt.Errorf("the prebooted box is another provider's: %w", errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	waits := p.waiting[b.spec.ID] == b
	delete(p.waiting, b.spec.ID)
	p.mu.Unlock()
	switch {
	case !waits:
		return fmt.Errorf("the prebooted box has ended: %w", errdefs.ErrNotFound)
	case b.spec.Rootfs.Digest != spec.Rootfs.Digest || b.spec.Resources != spec.Resources:
		return fmt.Errorf("the prebooted box is of another kind: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Handle implements provider.Prebooted.
func (b *prebooted) Handle() provider.Handle {
	return provider.Handle{Provider: name, Version: handleVersion, ID: b.spec.ID}
}

// Stats implements provider.Prebooted.
func (b *prebooted) Stats(context.Context) (provider.Stats, error) {
	return provider.Stats{At: time.Now()}, nil
}

// Wait implements provider.Prebooted.
func (b *prebooted) Wait(ctx context.Context) (provider.Exit, error) {
	select {
	case <-b.done:
		return provider.Exit{Reason: provider.ReasonDestroyed, At: time.Now()}, nil
	case <-ctx.Done():
		return provider.Exit{}, fmt.Errorf("wait for box %q: %w", b.spec.ID, context.Cause(ctx))
	}
}

// Destroy implements provider.Prebooted.
func (b *prebooted) Destroy(context.Context) error {
	p := b.provider
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[b.spec.ID] == b {
		delete(p.waiting, b.spec.ID)
		close(b.done)
	}
	return nil
}
