package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// engineDir is where the provider keeps programs, boxes and the engine's
// socket.
func engineDir(home string) string { return filepath.Join(home, "engine") }

func newProvider(ctx context.Context, h *home, cfg config.Config, log *slog.Logger) (*gvisor.Provider, error) {
	return gvisor.New(ctx, gvisor.Config{DataDir: engineDir(h.dir), Unenforced: unenforced(cfg.Limits), SavedABIs: h.savedABIs, Log: log})
}

// savedABIs lists what the memory of paused sandboxes and of snapshots was saved
// by.
func (h *home) savedABIs(ctx context.Context) ([]string, error) {
	all, err := h.store.Unfinished(ctx)
	if err != nil {
		return nil, err
	}
	artifacts, err := h.store.Artifacts(ctx)
	if err != nil {
		return nil, err
	}
	var abis []string
	for _, a := range artifacts {
		abis = append(abis, a.ABI)
	}
	for _, sb := range all {
		if sb.Saved != nil && sb.Saved.Kind == snapshot.Memory {
			abis = append(abis, sb.Saved.ABI)
		}
	}
	return abis, nil
}

// unpackEngine writes the embedded programs, so that the first start is quick.
func unpackEngine(home string) error {
	for _, get := range []func() (embedded.Artifact, error){embedded.Engine, embedded.Agent} {
		a, err := get()
		if err != nil {
			return err
		}
		if _, err := a.Unpack(filepath.Join(engineDir(home), "programs")); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
	}
	return nil
}

// health says whether a create can succeed now.
func (n *node) health(ctx context.Context) error {
	if err := n.prov.Probe(ctx); err != nil {
		return err
	}
	if err := n.home.store.Ping(ctx); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	all, err := n.home.catalog.List(ctx, identity.DefaultTeam)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return cli.ErrNoTemplate
	}
	return nil
}

// destroyAll ends every sandbox, for servers that leave nothing behind.
func (n *node) destroyAll(ctx context.Context) {
	var live []sandbox.ID
	n.manager.EachLive(func(l *sandbox.Live) bool {
		live = append(live, l.ID)
		return true
	})
	var g errgroup.Group
	g.SetLimit(16)
	for _, id := range live {
		g.Go(func() error {
			if err := n.manager.Kill(ctx, identity.System, id, "shutdown"); err != nil {
				n.log.Warn("end sandbox at exit", "sandbox", id, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait()
}

func (n *node) stopEngine(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("the engine did not end within 10s"))
	defer cancel()
	return n.prov.StopEngine(ctx)
}
