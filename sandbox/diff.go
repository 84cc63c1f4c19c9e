package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caisson-dev/caisson/agent/machine"
	"github.com/caisson-dev/caisson/diff"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

const (
	// diffsAtOnce bounds comparisons, whose lists are held in memory.
	diffsAtOnce = 2
	// exportSlack is what a layer may take beyond the disk limit of its sandbox,
	// for headers and holes.
	exportSlack = 512 << 20
)

// point is what one side of a Diff names.
type point struct {
	build     template.Build
	resources provider.Resources
	team      identity.TeamID
	// artifact is the saved state on top of the build's image, nil for none.
	artifact *snapshot.Artifact
	release  func()
}

// Diff compares the files of two points: sandboxes that run or are paused, by
// id, snapshots and templates, by reference. An empty from means the image that
// to started from. Mounts such as /tmp are not compared.
//
// A sandbox that runs stands still for the time of a checkpoint, as for a
// Snapshot. Layers are read from copies, started for that behind a network that
// leads nowhere, so that whatever reading costs is theirs; a copy takes its turn
// like a create.
func (m *Manager) Diff(ctx context.Context, who identity.Principal, from, to string, l diff.Options) (diff.Report, error) {
	if err := m.canCopy(); err != nil {
		return diff.Report{}, err
	}
	if to == "" {
		return diff.Report{}, apierr.Field("to", "must be given")
	}
	if !m.deps.Provider.Capabilities().ExportsLayers {
		return diff.Report{}, fmt.Errorf("provider %s cannot export files: %w", m.deps.Provider.Name(), errdefs.ErrNotImplemented)
	}
	select {
	case m.diffs <- struct{}{}:
		defer func() { <-m.diffs }()
	case <-ctx.Done():
		return diff.Report{}, context.Cause(ctx)
	}
	var points [2]diff.Point
	for i, ref := range []string{from, to} {
		if ref == "" {
			continue
		}
		p, err := m.findPoint(ctx, who, ref)
		if err != nil {
			return diff.Report{}, err
		}
		layer, err := m.layerOf(ctx, p)
		p.release()
		if err != nil {
			return diff.Report{}, fmt.Errorf("read files of %.200q: %w", ref, err)
		}
		if layer != nil {
			defer layer.Close()
		}
		points[i] = diff.Point{Image: p.build.Rootfs.Path, Digest: p.build.Rootfs.Digest, Layer: layer}
	}
	if from == "" {
		points[0] = diff.Point{Image: points[1].Image, Digest: points[1].Digest}
	}
	// What the agent of every sandbox writes about itself is no change.
	l.Ignore = append(l.Ignore, ".e2b", "run/e2b", "etc/hostname")
	l.Begin, l.End = machine.BlockBegin, machine.BlockEnd
	return diff.Compare(ctx, points[0], points[1], l)
}

// findPoint finds what ref names; of a sandbox that runs it makes a checkpoint.
// release must be called.
func (m *Manager) findPoint(ctx context.Context, who identity.Principal, ref string) (*point, error) {
	sb, err := m.Get(ctx, who, ID(ref))
	if errdefs.IsNotFound(err) {
		tmpl, build, err := m.deps.Templates.Resolve(ctx, who.Team, ref)
		if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			return nil, apierr.New(errdefs.ErrNotFound, "there is no sandbox, snapshot or template %.200q", ref).WithCause(err)
		}
		if err != nil {
			return nil, err
		}
		p := &point{build: build, resources: build.Resources, team: who.Team, artifact: build.Artifact, release: func() {}}
		if build.Artifact != nil {
			if tmpl.Team != who.Team {
				return nil, apierr.New(errdefs.ErrNotFound, "there is no sandbox, snapshot or template %.200q", ref)
			}
			m.hold(build.Artifact.ID)
			p.release = func() { m.unhold(build.Artifact.ID) }
		}
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	p := &point{resources: sb.Resources, team: sb.Team, release: func() {}}
	if p.build, err = m.deps.Templates.Build(ctx, sb.Build); err != nil {
		return nil, fmt.Errorf("template of sandbox %q: %w", ref, err)
	}
	if sb.State == Paused && sb.Saved != nil {
		p.artifact = sb.Saved
		return p, nil
	}
	e, err := m.beginCopy(ctx, who, sb.ID)
	if err != nil {
		return nil, err
	}
	defer m.endCopy(e)
	saving, cancel := m.saveContext(ctx)
	defer cancel()
	c, err := m.checkpoint(saving, e, snapshot.Scratch{Vault: m.deps.Vault})
	if err != nil {
		return nil, fmt.Errorf("read sandbox %q: %w", ref, err)
	}
	p.artifact = &c.artifact
	p.release = func() { m.deleteArtifact(ctx, c.artifact.ID); c.release() }
	return p, nil
}

// layerOf writes what a point has on top of its image to a file that has no name
// any more; nil for one that has nothing there. The caller closes it.
func (m *Manager) layerOf(ctx context.Context, p *point) (_ *os.File, err error) {
	if p.artifact == nil {
		return nil, nil
	}
	restorer, ok := m.deps.Provider.(provider.Restorer)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot restore: %w", m.deps.Provider.Name(), errdefs.ErrNotImplemented)
	}
	leave, err := m.admission.enter(ctx, p.team, nil)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeoutCause(ctx, m.cfg.SaveTimeout,
		fmt.Errorf("files were not read within %s: %w", m.cfg.SaveTimeout, errdefs.ErrUnavailable))
	defer cancel()

	// An entry keeps the sweep from the box, which has no record.
	e := newEntry(newID(), p.team, func(error) {})
	m.mu.Lock()
	m.entries[e.id] = e
	m.mu.Unlock()
	defer m.forget(e)
	box, err := restorer.Restore(ctx, provider.Spec{
		SandboxID: string(e.id), Hostname: string(e.id), Rootfs: p.build.Rootfs, Resources: p.resources,
		Labels: map[string]string{"caisson.team": string(p.team), "caisson.node": m.cfg.Node},
		Egress: nowhere{}, Deadline: clock().Add(m.cfg.SaveTimeout + m.cfg.DestroyTimeout),
	}, *p.artifact, m.deps.Vault)
	if errors.Is(err, snapshot.ErrOtherEngine) {
		return nil, errEngine(err)
	}
	if err != nil {
		return nil, because(ctx, fmt.Errorf("start a copy: %w", err))
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.cfg.DestroyTimeout)
		defer cancel()
		if err := box.Destroy(clean); err != nil {
			m.log.ErrorContext(clean, "copy could not be destroyed; the sweep will", slog.String("box", string(e.id)), slog.Any("error", err))
		}
	}()
	exporter, ok := box.(provider.LayerExporter)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot export files: %w", m.deps.Provider.Name(), errdefs.ErrNotImplemented)
	}
	f, err := m.unnamed(ctx)
	if err != nil {
		return nil, err
	}
	out := &sparse{f: f, left: p.resources.DiskMiB<<20 + exportSlack}
	if err = exporter.ExportLayer(ctx, out); err == nil {
		err = f.Truncate(out.at) // it may end with a hole
	}
	if err != nil {
		_ = f.Close()
		return nil, because(ctx, err)
	}
	return f, nil
}

// unnamed makes a file in the vault, whose file system is made for large ones,
// and takes its name away.
func (m *Manager) unnamed(ctx context.Context) (*os.File, error) {
	id := snapshot.ID(strings.ToLower(rand.Text()))
	m.hold(id)
	defer m.unhold(id)
	dir, err := m.deps.Vault.Dir(ctx, id)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "layer.tar"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	m.deleteArtifact(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("make file for a layer: %w", err)
	}
	return f, nil
}

// sparse writes a file in which runs of zeros are holes, up to a length.
type sparse struct {
	f        *os.File
	at, left int64
}

// Write implements io.Writer.
func (s *sparse) Write(p []byte) (int, error) {
	if int64(len(p)) > s.left {
		return 0, fmt.Errorf("the files that were changed are too long to be compared: %w", errdefs.ErrResourceExhausted)
	}
	done := 0
	for part := range slices.Chunk(p, len(zeros)) {
		if !bytes.Equal(part, zeros[:len(part)]) {
			if n, err := s.f.WriteAt(part, s.at); err != nil {
				return done + n, err
			}
		}
		s.at, s.left, done = s.at+int64(len(part)), s.left-int64(len(part)), done+len(part)
	}
	return done, nil
}

// zeros is what a hole reads as.
//
//nolint:gochecknoglobals // a constant in all but syntax
var zeros [32 << 10]byte
