// Package server wires every room into one process: it opens a data directory,
// builds the gateway, the provider, the manager and the two HTTP faces from
// the configuration, and runs them until its context ends. It holds no rule of
// its own. Only cmd/caisson imports it.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/gofrs/flock"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/upload"
)

// home is an opened data directory.
type home struct {
	dir     string
	store   *store.Store
	seed    identity.Seed
	keys    *identity.Keys
	images  *image.Store
	catalog *template.Catalog
	vault   *snapshot.Local
	uploads *upload.Files
}

// open prepares the directory and its database. Several processes may have it
// open; only one may serve it (see lock).
func open(ctx context.Context, cfg config.Config) (*home, error) {
	dir, err := filepath.Abs(cfg.Data)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	h := &home{dir: dir}
	if h.seed, err = identity.LoadSeed(dir); err != nil {
		return nil, err
	}
	if h.images, err = image.Open(filepath.Join(dir, "images")); err != nil {
		return nil, err
	}
	if h.vault, err = snapshot.NewLocal(filepath.Join(dir, "snapshots")); err != nil {
		return nil, err
	}
	if h.uploads, err = upload.Open(filepath.Join(dir, "uploads"), upload.Limits{
		Space: int64(cfg.Template.UploadSpace), Team: int64(cfg.Template.UploadTeam),
	}); err != nil {
		return nil, err
	}
	dsn := filepath.Join(dir, "caisson.db")
	if cfg.Database != "" {
		dsn = cfg.Database
	}
	if h.store, err = store.Open(ctx, dsn); err != nil {
		return nil, errors.Join(err, h.uploads.Close())
	}
	h.keys = identity.NewKeys(h.store)
	h.catalog = template.NewCatalog(h.store, h.images)
	return h, nil
}

func (h *home) close(log *slog.Logger) {
	if err := errors.Join(h.store.Close(), h.uploads.Close()); err != nil {
		log.Error("close data directory", "error", err)
	}
}

// lock keeps a second server from serving the same directory.
func (h *home) lock() (*flock.Flock, error) {
	l := flock.New(filepath.Join(h.dir, "server.lock"))
	ok, err := l.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("another server is using %s: stop it, or give this one its own --data: %w", h.dir, errdefs.ErrFailedPrecondition)
	}
	return l, nil
}

func resources(l config.Limits) (defaults, maxima provider.Resources) {
	return provider.Resources{MemoryMiB: int64(l.MemoryMiB), CPUs: l.CPUs, DiskMiB: int64(l.DiskMiB), Processes: l.Processes},
		provider.Resources{MemoryMiB: int64(l.MaxMemoryMiB), CPUs: l.MaxCPUs, DiskMiB: int64(l.MaxDiskMiB), Processes: l.MaxProcesses}
}

func unenforced(l config.Limits) []provider.Limit {
	var out []provider.Limit
	for _, name := range l.Unenforced {
		out = append(out, provider.Limit(name))
	}
	return out
}

// Opened runs fn on an opened data directory, for commands that act on one.
func opened(ctx context.Context, cfg config.Config, _ *slog.Logger, fn func(*home) error) (err error) {
	h, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.store.Close(), h.uploads.Close()) }()
	return fn(h)
}
