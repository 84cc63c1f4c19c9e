package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
	"github.com/caisson-dev/caisson/template/oci"
)

// Where builds keep what they need again.
func (h *home) buildDir() string { return filepath.Join(h.dir, "builds") }
func (h *home) indexDir() string { return filepath.Join(h.dir, "builds", "images") }

// newBuilder makes what carries template builds out.
func (n *node) newBuilder() (*builder.Builder, error) {
	policy, err := buildPolicy(n.cfg.Build)
	if err != nil {
		return nil, err
	}
	if n.puller, err = n.newPuller(); err != nil {
		return nil, err
	}
	c := n.cfg.Build
	defaults, _ := resources(n.cfg.Limits)
	return builder.New(builder.Options{
		Dir: n.home.buildDir(), Images: n.home.images, Provider: n.prov, Guard: n.gateway, Policy: policy, Vault: n.home.vault,
		Puller: n.puller, Defaults: defaults, Command: control.Limits{OutputBytes: int64(n.cfg.Limits.OutputBytes)},
		Limits: builder.Limits{
			Build: c.Timeout, Step: c.StepTimeout, Ready: c.ReadyTimeout, LogBytes: int64(c.LogBytes), ArchiveBytes: int64(c.ArchiveBytes),
			MemoryMiB: int64(c.MemoryMiB), CacheBytes: int64(c.CacheMiB) << 20, CacheAge: c.CacheKeep,
		},
		Log: n.log,
	})
}

// buildPolicy is what builds may reach: the names of presets are told from those
// of hosts.
func buildPolicy(c config.Build) (egress.Policy, error) {
	s := egress.Server{Default: egress.Deny}
	for _, item := range c.Egress {
		if _, ok := egress.Preset(item); ok {
			s.Presets = append(s.Presets, item)
		} else {
			s.Allow = append(s.Allow, item)
		}
	}
	p, err := egress.FromNetwork(egress.Network{}, s)
	if err != nil {
		return p, fmt.Errorf("build.egress: %w", err)
	}
	return p, nil
}

func (n *node) newPuller() (*oci.Puller, error) {
	c := n.cfg.Images
	o := oci.Options{
		Dir: n.home.indexDir(), Images: n.home.images, Aliases: c.Aliases, Mirrors: c.Mirrors, Insecure: c.Insecure,
		Limits: erofs.Limits{Bytes: int64(c.MaxMiB) << 20},
		Templates: func(ctx context.Context, name string) (template.Build, error) {
			_, b, err := n.home.catalog.Resolve(ctx, identity.DefaultTeam, name)
			return b, err
		},
	}
	for _, s := range c.AllowPrivate {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("images.allow_private: %w", err)
		}
		o.AllowPrivate = append(o.AllowPrivate, prefix)
	}
	return oci.New(o)
}

// collectImages removes root filesystems that neither a template nor a sandbox
// nor a cached build needs.
func (h *home) collectImages(ctx context.Context, keep time.Duration) error {
	steps, err := builder.KeepImages(h.buildDir())
	pulled, perr := oci.KeepImages(ctx, h.indexDir(), keep)
	if err := errors.Join(err, perr); err != nil {
		return err
	}
	_, err = h.catalog.GC(ctx, append(steps, pulled...)...)
	return err
}
