package gvisor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// Snapshot implements provider.Snapshotter. Before memory is saved the agent
// forgets its token and the injected variables, so that they are in no file:
// afterwards, also after an error, the box runs on without an identity, and the
// caller sends Control().Init again.
func (b *Box) Snapshot(ctx context.Context, k snapshot.Kind, v snapshot.Vault) (_ snapshot.Artifact, err error) {
	op, names := wire.OpSaveFiles, wire.SavedFiles()
	switch k {
	case snapshot.Filesystem:
	case snapshot.Memory:
		op, names = wire.OpCheckpoint, wire.CheckpointFiles()
		if err := b.Control().Freeze(ctx); err != nil {
			return snapshot.Artifact{}, fmt.Errorf("snapshot: %w", err)
		}
	default:
		return snapshot.Artifact{}, fmt.Errorf("snapshot of kind %q: %w", k, errdefs.ErrNotImplemented)
	}
	a := snapshot.Artifact{
		ID: snapshot.ID(strings.ToLower(rand.Text())), Kind: k, ABI: b.meta.ABI, RootfsDigest: b.meta.RootfsDigest,
	}
	dir, err := v.Dir(ctx, a.ID)
	if err != nil {
		return snapshot.Artifact{}, fmt.Errorf("snapshot: %w", err)
	}
	var steps undo.Stack
	steps.Add(func(ctx context.Context) error { return v.Delete(ctx, a.ID) })
	defer func() {
		if err != nil {
			clean, cancel := cleanupContext(ctx)
			defer cancel()
			err = errors.Join(err, steps.Run(clean))
		}
	}()
	files, err := createAll(dir, names)
	defer closeFiles(files)
	if err != nil {
		return snapshot.Artifact{}, fmt.Errorf("snapshot: %w", err)
	}
	if err := b.p.call(ctx, op, wire.ByID{ID: b.id}, nil, files...); err != nil {
		err = errors.Join(err, full(dir))
		for _, f := range files {
			// The sentry of a failed save may keep its descriptors for long.
			_ = f.Truncate(0)
		}
		return snapshot.Artifact{}, fmt.Errorf("snapshot: %w", err)
	}
	for _, f := range files {
		fi, err := f.Stat()
		if err != nil {
			return snapshot.Artifact{}, fmt.Errorf("snapshot: %w", err)
		}
		a.SizeBytes += fi.Size()
	}
	return a, nil
}

// nearlyFull is how much space may be left where writing failed for want of it.
const nearlyFull = 16 << 20

// full is ENOSPC when the file system of dir has no room; what the sentry says
// of a failed write has no kind.
func full(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize > nearlyFull {
		return nil
	}
	return syscall.ENOSPC
}

func createAll(dir string, names []string) ([]*os.File, error) {
	var files []*os.File
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Restore implements provider.Restorer. The box keeps process limit, disk size
// and CPU count of the one that was saved; its root filesystem must be the same
// file. errdefs.ErrFailedPrecondition when the artifact does not fit.
func (p *Provider) Restore(ctx context.Context, spec provider.Spec, a snapshot.Artifact, v snapshot.Vault) (provider.Box, error) {
	if a.RootfsDigest != spec.Rootfs.Digest {
		return nil, fmt.Errorf("restore: the snapshot lies on image %s, not %s: %w",
			a.RootfsDigest, spec.Rootfs.Digest, errdefs.ErrFailedPrecondition)
	}
	dir, err := v.Dir(ctx, a.ID)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	switch a.Kind {
	case snapshot.Filesystem:
		if engine, _ := splitABI(a.ABI); engine != p.engineABI() {
			return nil, p.otherABI(a)
		}
		return p.create(ctx, spec, launch{filesFrom: dir})
	case snapshot.Memory:
		engine, digest := splitABI(a.ABI)
		agent := p.agentPath(digest)
		if _, err := os.Stat(agent); engine != p.engineABI() || err != nil {
			return nil, p.otherABI(a)
		}
		files, err := openAll(dir, wire.CheckpointFiles())
		defer closeFiles(files)
		if err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
		return p.create(ctx, spec, launch{restore: files, abi: a.ABI, agent: agent})
	}
	return nil, fmt.Errorf("restore of kind %q: %w", a.Kind, errdefs.ErrNotImplemented)
}

func (p *Provider) otherABI(a snapshot.Artifact) error {
	return fmt.Errorf("restore: it was saved by engine %s, this is %s: %w", a.ABI, p.abi, snapshot.ErrOtherEngine)
}

// agentDigits is how much of an agent's digest names it.
const agentDigits = 16

// joinABI makes the ABI of memory snapshots: that of the engine, which saved
// files depend on too, and the agent, which runs on in a restored box.
func joinABI(engine, agentDigest string) string {
	return engine + agentMark + agentDigest[:agentDigits]
}

func splitABI(abi string) (engine, agentDigest string) {
	engine, agentDigest, _ = strings.Cut(abi, agentMark)
	return engine, agentDigest
}

func (p *Provider) engineABI() string {
	engine, _ := splitABI(p.abi)
	return engine
}

func openAll(dir string, names []string) ([]*os.File, error) {
	var files []*os.File
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// ExportLayer implements provider.LayerExporter.
func (b *Box) ExportLayer(ctx context.Context, w io.Writer) error {
	r, pw, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("export layer: %w", err)
	}
	defer r.Close()
	copied := make(chan error, 1)
	go func() { _, err := io.Copy(w, r); _ = r.Close(); copied <- err }()
	err = b.p.call(ctx, wire.OpExportLayer, wire.ByID{ID: b.id}, nil, pw)
	_ = pw.Close()
	if err != nil {
		_ = r.Close()
	}
	if err := errors.Join(err, <-copied); err != nil {
		return fmt.Errorf("export layer: %w", err)
	}
	return nil
}
