package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/ingress"
	"github.com/caisson-dev/caisson/ingress/tlscert"
	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template/builder"
	"github.com/caisson-dev/caisson/template/oci"
	"github.com/caisson-dev/caisson/template/queue"
)

// node holds what one running server is made of.
type node struct {
	cfg     config.Config
	opts    cli.ServeOptions
	log     *slog.Logger
	home    *home
	flows   *store.FlowLog
	gateway *gateway.Gateway
	prov    *gvisor.Provider
	manager *sandbox.Manager
	meter   *meter.Meter
	warm    *warmth
	builder *builder.Builder
	puller  *oci.Puller
	builds  *queue.Queue
	domain  string
}

// Serve runs a server until ctx ends. Sandboxes go on without it.
func Serve(ctx context.Context, cfg config.Config, o cli.ServeOptions) (err error) {
	h, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	defer h.close(o.Log)
	lock, err := h.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()

	n := &node{cfg: cfg, opts: o, log: o.Log, home: h}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w: choose another address with --listen", err)
	}
	defer listener.Close()
	n.domain = publicDomain(cfg, listener.Addr())

	if err := n.build(ctx, o.Progress); err != nil {
		return err
	}
	return n.run(ctx, listener)
}

// publicDomain is what clients are told; without one it is localhost with the
// port that was really taken.
func publicDomain(cfg config.Config, addr net.Addr) string {
	if cfg.PublicDomain != "" {
		return cfg.PublicDomain
	}
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "localhost"
	}
	return net.JoinHostPort("localhost", port)
}

func (n *node) build(ctx context.Context, progress cli.Progress) error {
	cfg := n.cfg
	n.flows = store.NewFlowLog(n.home.store, cfg.Retention.EgressMax, cfg.Retention.EgressLog, n.log)
	var err error
	n.gateway, err = newGateway(cfg.Egress, gateway.Config{
		Names: n.home.store, Recorder: flowRecorder{n.flows, n.opts.Metrics}, Log: n.log,
	})
	if err != nil {
		return err
	}
	progress("start the engine", "")
	if n.prov, err = newProvider(ctx, n.home, cfg, n.log); err != nil {
		return err
	}
	if n.meter, err = n.newMeter(); err != nil {
		return err
	}
	if n.builder, err = n.newBuilder(); err != nil {
		return err
	}
	defaults, maxima := resources(cfg.Limits)
	m := n.opts.Metrics
	if n.warm, err = newWarmth(cfg.Pool, m); err != nil {
		return err
	}
	n.manager, err = sandbox.New(sandbox.Config{
		MaxTimeout: cfg.Limits.MaxTimeout, MaxPerTeam: cfg.Limits.SandboxesPerTeam,
		CreateQueue: cmp.Or(cfg.Limits.CreateQueue, -1), CreateQueueWait: cfg.Limits.CreateQueueWait,
		MemoryReserve: int64(cfg.Limits.MemoryReserveMiB) << 20, Idempotency: cfg.Retention.Idempotency,
		KeepPaused: cfg.Retention.Paused, MaxPaused: cfg.Limits.PausedPerTeam,
		Retention: cfg.Retention.Sandboxes, Defaults: defaults, Maxima: maxima, Unenforced: unenforced(cfg.Limits),
		Budget: sandbox.Budget{CPU: cfg.Limits.BudgetCPU, Wall: cfg.Limits.BudgetWall, EgressBytes: int64(cfg.Limits.BudgetEgress)},
		TeamBudget: sandbox.TeamBudget{
			Budget: sandbox.Budget{
				CPU: cfg.Limits.TeamBudgetCPU, Wall: cfg.Limits.TeamBudgetWall, EgressBytes: int64(cfg.Limits.TeamBudgetEgress),
			},
			Period: sandbox.Period(cfg.Limits.TeamBudgetPeriod),
		},
		TeamInterval: cfg.Metrics.Interval,
		Snapshots:    sandbox.SnapshotQuota{Count: cfg.Limits.SnapshotsPerTeam, Bytes: int64(cfg.Limits.SnapshotBytesPerTeam)},
		Command:      control.Limits{WallTime: cfg.Limits.WallTime, OutputBytes: int64(cfg.Limits.OutputBytes)},
		Pool:         n.warm.pool,
	}, sandbox.Deps{
		Store: n.home.store, Snapshots: n.home.store, Templates: n.home.catalog, Provider: n.prov, Guard: n.gateway,
		Vault: n.home.vault, Teams: n.home.store, Policy: policyCompiler(cfg.Egress), Seed: n.home.seed, Log: n.log,
		Closing: n.closing, FreeMemory: freeMemory, Owned: n.builder.Owns,
		Metrics: sandbox.Metrics{
			Created:      func(took time.Duration) { m.Created("ok", took) },
			CreateFailed: func(stage string) { m.Created(createResult(stage), 0) },
			Ended:        m.Ended,
			Paused:       m.Paused,
			Resumed:      m.Resumed,
			Queued:       m.SetCreateQueue,
			QueueWaited:  m.CreateWaited,
			Refused:      m.CreateRefused,
			Live:         func(live int) { m.SetSandboxes(map[string]int{"running": live}) },
		},
	})
	if err != nil {
		return err
	}
	n.builds, err = n.newBuilds(n.builder)
	return err
}

func createResult(stage string) string {
	if stage == sandbox.StageAdmit || stage == sandbox.StageQueue {
		return "limit"
	}
	return "error"
}

// run serves until ctx ends, then lets requests in flight finish for a while,
// breaks what is left and stops the background work.
func (n *node) run(ctx context.Context, listener net.Listener) error {
	newKey, created, err := n.home.keys.EnsureFirstKey(ctx, n.home.dir)
	if err != nil {
		return err
	}
	stopping := make(chan struct{})
	handler, err := n.handler(stopping)
	if err != nil {
		return err
	}
	tlsConfig, caFile, err := n.tls(listener.Addr())
	if err != nil {
		return err
	}

	// Background work outlives the listener, so that requests in flight
	// still find it; it ends with work's context.
	workCtx, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	work, workCtx := errgroup.WithContext(workCtx)
	work.Go(func() error { return ended(n.manager.Run(workCtx)) })
	work.Go(func() error { return ended(n.flows.Run(workCtx)) })
	work.Go(func() error { return ended(n.home.keys.Run(workCtx)) })
	work.Go(func() error { return ended(n.meter.Run(workCtx)) })
	work.Go(func() error { return ended(n.builds.Run(workCtx)) })
	work.Go(func() error { return ended(n.maintain(workCtx)) })
	work.Go(func() error { return ended(n.saveTemplates(workCtx)) })

	// Until the sandboxes of the last run are taken over, connections wait in
	// the listener's queue: a known sandbox must not answer "not found".
	select {
	case <-n.manager.Recovered():
	case <-ctx.Done():
	case <-workCtx.Done():
	}
	srv := ingress.Server(handler, tlsConfig, n.log)
	serveErr := make(chan error, 1)
	go func() {
		if tlsConfig != nil {
			serveErr <- srv.ServeTLS(listener, "", "")
		} else {
			serveErr <- srv.Serve(listener)
		}
	}()
	stopMetrics, err := n.serveMetrics()
	if err != nil {
		return err
	}
	defer stopMetrics()

	if ctx.Err() == nil && workCtx.Err() == nil {
		ready := cli.Ready{URL: n.url(listener.Addr()), CAFile: caFile, Problem: n.health(ctx)}
		if created {
			ready.NewKey = newKey
		}
		n.opts.Ready(ready)
	}
	select {
	case <-ctx.Done():
	case <-workCtx.Done():
	case err = <-serveErr:
		err = fmt.Errorf("serve: %w", err)
	}
	close(stopping)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.cfg.ShutdownGrace)
	defer cancel()
	if shutErr := srv.Shutdown(grace); shutErr != nil {
		_ = srv.Close() // streams to sandboxes do not end by themselves
	}
	handler.Close()
	if n.opts.DestroyOnExit {
		n.destroyAll(context.WithoutCancel(ctx))
	}
	stopWork()
	err = errors.Join(err, work.Wait())
	if n.opts.DestroyOnExit {
		err = errors.Join(err, n.stopEngine(context.WithoutCancel(ctx)))
	}
	err = errors.Join(err, n.prov.Close())
	return errors.Join(err, n.gateway.Close(context.WithoutCancel(ctx)))
}

// ended makes the end of a context no error.
func ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// url is where this machine reaches the server.
func (n *node) url(addr net.Addr) string {
	scheme := "http"
	if n.cfg.TLS.Enabled() {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return scheme + "://" + addr.String()
	}
	if a, err := netip.ParseAddr(host); err == nil && a.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// domains are the names below which PORT-ID.NAME reaches a sandbox.
func (n *node) domains() []string {
	var out []string
	for _, d := range append([]string{n.domain}, n.cfg.Domains...) {
		if host, _, err := net.SplitHostPort(d); err == nil {
			d = host
		}
		out = append(out, strings.ToLower(d))
	}
	return out
}

func (n *node) tls(addr net.Addr) (conf *tls.Config, caFile string, err error) {
	switch t := n.cfg.TLS; {
	case t.SelfSigned:
		addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
		if ap, err := netip.ParseAddrPort(addr.String()); err == nil && !ap.Addr().IsUnspecified() {
			addrs = append(addrs, ap.Addr())
		}
		return tlscert.SelfSigned(filepath.Join(n.home.dir, "tls"), n.domains(), addrs)
	case t.Cert != "":
		conf, err := tlscert.Files(t.Cert, t.Key)
		return conf, "", err
	}
	return nil, "", nil
}

// serveMetrics opens the separate metrics listener, where one is configured.
func (n *node) serveMetrics() (stop func(), err error) {
	if n.cfg.Metrics.Listen == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", n.cfg.Metrics.Listen)
	if err != nil {
		return nil, fmt.Errorf("metrics.listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.opts.Metrics.Handler())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("metrics listener", "error", err)
		}
	}()
	return func() { _ = srv.Close(); <-done }, nil
}
