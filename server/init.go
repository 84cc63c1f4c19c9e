package server

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/template"
)

// Init prepares all that Serve needs: the directory, its keys, the engine and
// the base template. What is there already is kept.
func Init(ctx context.Context, cfg config.Config, progress cli.Progress) error {
	log := slog.New(slog.DiscardHandler)
	return opened(ctx, cfg, log, func(h *home) error {
		progress("prepare "+h.dir, "")
		progress("unpack the engine", "")
		if err := unpackEngine(h.dir); err != nil {
			return err
		}
		if _, _, err := h.catalog.EnsureBase(ctx, baseOptions(cfg, template.BaseName, false, progress)); err != nil {
			return fmt.Errorf("base template: %w", err)
		}
		return h.collectImages(ctx, cfg.Build.CacheKeep)
	})
}

func baseOptions(cfg config.Config, name string, force bool, progress cli.Progress) template.BaseOptions {
	var stage template.Stage
	return template.BaseOptions{
		Suite: cfg.Template.Suite, Mirror: cfg.Template.DebianMirror, Force: force,
		Progress: func(p template.Progress) {
			if p.Stage != stage && p.Stage != template.StageDone {
				stage = p.Stage
				progress(name+" template: "+string(stage), "")
			}
			switch {
			case p.Line != "":
				progress("", p.Line)
			case p.Stage != template.StageDone && p.Total > 0:
				progress("", fmt.Sprintf("%d of %d", p.Done, p.Total))
			}
		},
	}
}

// BuildTemplate builds a template into the data directory. A running server
// sees it at once.
func BuildTemplate(ctx context.Context, cfg config.Config, b cli.TemplateBuild, progress cli.Progress) (out client.Template, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.Template.BuildTimeout, fmt.Errorf("the build took longer than template.build_timeout (%s)", cfg.Template.BuildTimeout))
	defer cancel()
	err = opened(ctx, cfg, slog.New(slog.DiscardHandler), func(h *home) error {
		t, build, err := buildTemplate(ctx, h, cfg, b, progress)
		if err != nil {
			return err
		}
		if b.FromTar == "" {
			if err := finishHere(ctx, cfg, h, b.Name, progress); err != nil {
				// Its files are there, and the next server tries again.
				progress("save its memory: left to the server", err.Error())
			}
		}
		out = client.Template{
			ID: string(t.ID), Names: t.Names, Public: t.Public, BuildID: string(build.ID), BuildStatus: string(build.Status), Source: build.Source,
			RootfsDigest: build.Rootfs.Digest, RootfsBytes: build.Rootfs.SizeBytes, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
		}
		return nil
	})
	return out, err
}

func buildTemplate(ctx context.Context, h *home, cfg config.Config, b cli.TemplateBuild, progress cli.Progress) (template.Template, template.Build, error) {
	switch {
	case b.FromTar != "":
		f, err := os.Open(b.FromTar)
		if err != nil {
			return template.Template{}, template.Build{}, err
		}
		defer f.Close()
		progress("write the image", b.FromTar)
		return h.catalog.BuildTar(ctx, identity.DefaultTeam, b.Name, f, template.TarOptions{Resources: resourcesOf(b.Resources)})
	}
	o := baseOptions(cfg, b.Name, b.Force, progress)
	o.Resources = resourcesOf(b.Resources)
	t, build, err := h.catalog.EnsureStock(ctx, b.Name, o)
	if errdefs.IsNotFound(err) {
		return t, build, fmt.Errorf("template %q: only %s are built from packages; give --from-tar FILE for another: %w",
			b.Name, strings.Join(template.StockNames(), ", "), errdefs.ErrInvalidArgument)
	}
	return t, build, err
}

// StockTemplates tells the command line what BuildTemplate builds from packages.
func StockTemplates() (out []cli.StockTemplate) {
	for _, s := range template.StockTemplates() {
		out = append(out, cli.StockTemplate{Name: s.Name, About: s.About})
	}
	return out
}

func resourcesOf(r client.Resources) provider.Resources {
	return provider.Resources{MemoryMiB: r.MemoryMiB, CPUs: r.CPUs, DiskMiB: r.DiskMiB, Processes: r.Processes}
}

// CreateKey makes an API key of any team, and the team if there is none.
func CreateKey(ctx context.Context, cfg config.Config, team, name string) (out client.Key, err error) {
	err = opened(ctx, cfg, slog.New(slog.DiscardHandler), func(h *home) error {
		if _, err := h.store.EnsureTeam(ctx, identity.Team{ID: identity.TeamID(team), Name: team, CreatedAt: time.Now()}); err != nil {
			return err
		}
		k, plain, err := h.keys.Create(ctx, "cli", identity.TeamID(team), name)
		out = wireKey(k)
		out.Key = plain.Reveal()
		return err
	})
	return out, err
}

// SetTeamBudget gives a team a budget of its own; nil takes it away. A running
// server holds it within metrics.interval.
func SetTeamBudget(ctx context.Context, cfg config.Config, team string, b *client.BudgetOfTeam) error {
	return opened(ctx, cfg, slog.New(slog.DiscardHandler), func(h *home) error {
		if b == nil {
			return h.store.SetTeamBudget(ctx, identity.TeamID(team), nil, "cli")
		}
		return h.store.SetTeamBudget(ctx, identity.TeamID(team), &sandbox.TeamBudget{
			Budget: sandbox.Budget{
				CPU: time.Duration(b.CPUSeconds) * time.Second, Wall: time.Duration(b.WallSeconds) * time.Second, EgressBytes: b.EgressBytes,
			},
			Period: sandbox.Period(b.Period),
		}, "cli")
	})
}

// ListKeys lists a team's keys.
func ListKeys(ctx context.Context, cfg config.Config, team string) (out []client.Key, err error) {
	err = opened(ctx, cfg, slog.New(slog.DiscardHandler), func(h *home) error {
		keys, err := h.keys.List(ctx, identity.TeamID(team))
		for _, k := range keys {
			out = append(out, wireKey(k))
		}
		return err
	})
	return out, err
}

// RevokeKey ends a key. A running server refuses it within its cache time.
func RevokeKey(ctx context.Context, cfg config.Config, team, id string) error {
	return opened(ctx, cfg, slog.New(slog.DiscardHandler), func(h *home) error {
		return h.keys.Revoke(ctx, "cli", identity.TeamID(team), id)
	})
}

func wireKey(k identity.Key) client.Key {
	return client.Key{ID: k.ID, Team: string(k.Team), Name: k.Name, Mask: k.Mask, CreatedAt: k.CreatedAt, LastUsedAt: k.LastUsedAt}
}
