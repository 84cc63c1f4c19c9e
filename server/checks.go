package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/caisson-dev/caisson/cli/doctor"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
)

// Checks are doctor's checks that need the engine or the data directory.
func Checks(cfg config.Config) []doctor.Check {
	return []doctor.Check{
		{Name: "engine", Run: func(context.Context) doctor.Result { return checkEmbedded() }},
		{Name: "sandbox start", Run: func(ctx context.Context) doctor.Result { return checkStart(ctx, cfg) }},
		{Name: "base template", Run: func(ctx context.Context) doctor.Result { return checkTemplate(ctx, cfg) }},
	}
}

func checkEmbedded() doctor.Result {
	for _, get := range []func() (embedded.Artifact, error){embedded.Engine, embedded.Agent} {
		if _, err := get(); err != nil {
			return doctor.Result{Status: doctor.Fail, Detail: err.Error(), Fix: "build with make build, which embeds engine and agent"}
		}
	}
	return doctor.Result{Status: doctor.OK, Detail: "engine and agent are in the binary"}
}

// checkStart boots a trial box in a directory of its own, so that a running
// server is left alone.
func checkStart(ctx context.Context, cfg config.Config) doctor.Result {
	dir, err := os.MkdirTemp("", "caisson-doctor-")
	if err != nil {
		return doctor.Result{Status: doctor.Fail, Detail: err.Error(), Fix: "make the temporary directory writable"}
	}
	defer os.RemoveAll(dir)
	p, err := gvisor.New(ctx, gvisor.Config{DataDir: engineDir(dir), Unenforced: unenforced(cfg.Limits), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return doctor.Result{Status: doctor.Fail, Detail: err.Error(), Fix: "see the cause above; docs/operating.md lists what the engine needs"}
	}
	err = p.Probe(ctx)
	caps := p.Capabilities()
	err = errors.Join(err, p.StopEngine(context.WithoutCancel(ctx)), p.Close())
	if err != nil {
		return doctor.Result{Status: doctor.Fail, Detail: err.Error(), Fix: "this host cannot start a gVisor sandbox: check seccomp and user namespace restrictions of an outer container"}
	}
	r := doctor.Result{Status: doctor.OK, Detail: "a gVisor sandbox starts (systrap)"}
	for _, want := range []provider.Limit{provider.LimitMemory, provider.LimitCPU} {
		has := false
		for _, l := range caps.Limits {
			has = has || l == want
		}
		if !has {
			r.Status = doctor.Warn
			r.Detail += fmt.Sprintf("; the %s limit cannot be enforced", want)
			r.Fix = "run as root with writable cgroups, or accept it with --set limits.unenforced=memory,cpu"
		}
	}
	return r
}

func checkTemplate(ctx context.Context, cfg config.Config) doctor.Result {
	fix := fmt.Sprintf("run: caisson init --data %s", cfg.Data)
	if _, err := os.Stat(cfg.Data); err != nil {
		return doctor.Result{Status: doctor.Warn, Detail: "nothing is prepared in " + cfg.Data, Fix: fix}
	}
	r := doctor.Result{Status: doctor.OK}
	err := opened(ctx, cfg, slog.New(slog.DiscardHandler), func(h *home) error {
		_, b, err := h.catalog.Resolve(ctx, identity.DefaultTeam, "base")
		if err == nil {
			r.Detail = fmt.Sprintf("base is %d MB, %s", b.Rootfs.SizeBytes/1_000_000, b.Source)
		}
		return err
	})
	if err != nil {
		return doctor.Result{Status: doctor.Warn, Detail: err.Error(), Fix: fix}
	}
	return r
}
