package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

// bootedPatience is how long a start waits for a box that is being booted for the
// pool.
const bootedPatience = 2 * time.Second

// keepForPaused is how long boxes are kept booted for a sandbox that was paused.
const keepForPaused = time.Hour

// bootedKey is the key of prebooted boxes. Whose they become does not matter: of
// a team there is nothing in them.
func bootedKey(rootfs image.Rootfs, res provider.Resources) pool.Key {
	return pool.Key{Tier: pool.Booted, Image: rootfs.Digest, Resources: res}
}

// labelOf says for what a box is booted ahead.
func labelOf(sb Sandbox) pool.Label {
	return pool.Label{Template: cmp.Or(sb.Alias, string(sb.Template)), Build: string(sb.Build)}
}

// preboot implements pool.Options.Make for prebooted boxes.
func (m *Manager) preboot(ctx context.Context, k pool.Key, id string) (provider.Prebooted, error) {
	p, ok := m.deps.Provider.(provider.Prebooter)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot boot ahead: %w", m.deps.Provider.Name(), errdefs.ErrNotImplemented)
	}
	build, err := m.deps.Templates.Build(ctx, template.BuildID(k.Build))
	if err != nil {
		return nil, err
	}
	if build.Rootfs.Digest != k.Image {
		return nil, fmt.Errorf("build %s lies on another image: %w", k.Build, errdefs.ErrFailedPrecondition)
	}
	if err := m.admission.fits(); err != nil {
		return nil, err
	}
	return p.Preboot(ctx, provider.PrebootSpec{ID: id, Rootfs: build.Rootfs, Resources: k.Resources})
}

// startBox starts the box of a sandbox, afresh or from what was saved: in a
// prebooted one where there is one, else, and when that one fails, in one that is
// booted now.
func (m *Manager) startBox(ctx context.Context, sb Sandbox, spec provider.Spec, from *snapshot.Artifact) (provider.Box, error) {
	k := bootedKey(spec.Rootfs, spec.Resources)
	if pre, ok := m.takeBooted(ctx, k, labelOf(sb), from); ok {
		spec.Prebooted = pre
		box, err := m.startIn(ctx, spec, from)
		m.pool.Settle(k, pre)
		if err == nil || ctx.Err() != nil {
			return box, err
		}
		m.log.WarnContext(ctx, "prebooted box failed; another is started", slog.String("sandbox", spec.SandboxID),
			slog.String("box", pre.Handle().ID), slog.Any("error", err))
		spec.Prebooted = nil
	}
	return m.startIn(ctx, spec, from)
}

func (m *Manager) startIn(ctx context.Context, spec provider.Spec, from *snapshot.Artifact) (provider.Box, error) {
	if from == nil {
		return m.deps.Provider.Create(ctx, spec)
	}
	restorer, ok := m.deps.Provider.(provider.Restorer)
	if !ok || m.deps.Vault == nil {
		return nil, fmt.Errorf("provider %s cannot restore: %w", m.deps.Provider.Name(), errdefs.ErrNotImplemented)
	}
	return restorer.Restore(ctx, spec, *from, m.deps.Vault)
}

// takeBooted takes a prebooted box that can be started from what was saved, nil
// for a fresh start. The caller settles it.
func (m *Manager) takeBooted(ctx context.Context, k pool.Key, l pool.Label, from *snapshot.Artifact) (provider.Prebooted, bool) {
	p, ok := m.deps.Provider.(provider.Prebooter)
	if m.pool == nil || !ok || from != nil && !p.Takes(*from) {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, bootedPatience)
	defer cancel()
	box, ok := m.pool.TakeBooted(ctx, k, l)
	if !ok {
		return nil, false
	}
	return box.(provider.Prebooted), true
}

// expectResume has boxes kept booted for a sandbox that has just been paused.
func (m *Manager) expectResume(ctx context.Context, sb Sandbox) {
	if m.pool == nil || sb.Saved == nil || sb.Saved.Kind != snapshot.Memory {
		return
	}
	build, err := m.deps.Templates.Build(ctx, sb.Build)
	if err != nil {
		return // the resume will tell
	}
	m.pool.Want(bootedKey(build.Rootfs, sb.Resources), labelOf(sb), keepForPaused)
}

// expectChildren has boxes booted for a fork while its source is being saved.
func (m *Manager) expectChildren(ctx context.Context, id ID, n int) {
	if m.pool == nil {
		return
	}
	sb, err := m.deps.Store.Get(ctx, id)
	if err != nil {
		return // the fork will tell
	}
	build, err := m.deps.Templates.Build(ctx, sb.Build)
	if err != nil {
		return
	}
	m.pool.Rush(bootedKey(build.Rootfs, sb.Resources), labelOf(sb), n)
}
