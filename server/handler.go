package server

import (
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/caisson-dev/caisson/agent/version"
	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/api/e2b"
	"github.com/caisson-dev/caisson/api/native"
	"github.com/caisson-dev/caisson/batch"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/ingress"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/spec"
)

// handler is the one listener: the API and, by host name or headers, the
// sandboxes.
func (n *node) handler(stop <-chan struct{}) (*ingress.Handler, error) {
	cfg := n.cfg
	defaults, maxima := resources(cfg.Limits)
	policy, err := policyCompiler(cfg.Egress)(sandbox.Network{})
	if err != nil {
		return nil, err
	}
	creates := identity.NewLimiter(float64(cfg.Rate.CreatesPerSecond), cfg.Rate.CreateBurst)
	batches, err := batch.New(batch.Config{
		Sandboxes: n.manager, MaxConcurrency: cfg.Limits.BatchConcurrency, MaxTimeout: cfg.Limits.MaxTimeout, Log: n.log,
		Allow: func(team identity.TeamID) (time.Duration, bool) {
			q, ok := creates.Allow(string(team))
			return q.RetryAfter, ok
		},
	})
	if err != nil {
		return nil, err
	}
	transfers, err := n.newTransfers()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/", api.Handler(api.Config{
		Auth:     n.home.keys,
		Limiter:  identity.NewLimiter(float64(cfg.Rate.RequestsPerSecond), cfg.Rate.Burst),
		Failures: identity.NewLimiter(float64(cfg.Rate.FailuresPerMinute)/60, cfg.Rate.FailuresPerMinute),
		Health:   n.health,
		Spec:     spec.Native,
		Observe:  n.opts.Metrics.Request,
		Log:      n.log,
		Uploads:  e2b.UploadHandler(n.builds, n.home.uploads, n.log),
		E2B: e2b.Handler(e2b.Config{
			Sandboxes: n.manager, Templates: n.home.store, Builds: n.builds, Tags: n.home.store,
			MaxUpload: int64(cfg.Template.UploadMax), Meter: n.meter, Audit: n.home.store,
			EgressLog: n.flows, Creates: creates, PublicDomain: n.domain,
			AgentVersion: version.Envd, MaxTimeout: cfg.Limits.MaxTimeout, Resources: defaults, Log: n.log,
		}),
		Native: native.Handler(native.Config{
			Sandboxes: n.manager, Tree: n.manager, EgressLog: n.flows, Audit: n.home.store, Keys: n.home.keys, Templates: n.home.catalog, Builds: n.builds, Transfers: transfers,
			Meter: n.meter, Budgets: n.manager, Batches: batches, Creates: creates, Policy: policy, Health: n.health, Version: n.opts.Version, PublicDomain: n.domain,
			Limits:    native.Limits{MaxTimeout: cfg.Limits.MaxTimeout, SandboxesPerTeam: cfg.Limits.SandboxesPerTeam, Default: defaults, Max: maxima},
			Providers: []native.Provider{{Name: n.prov.Name(), Default: true, Capabilities: n.prov.Capabilities()}},
			Pool:      n.poolStatus(), Stop: stop, Log: n.log,
		}),
	}))
	if cfg.Metrics.Listen == "" {
		mux.Handle("GET /metrics", loopbackOnly(n.opts.Metrics.Handler()))
	}
	return ingress.New(ingress.Config{Domains: n.domains(), API: mux, Sandboxes: n.manager, Observe: n.opts.Metrics.Proxied, Log: n.log})
}

// loopbackOnly keeps the metrics of a public listener to this machine.
func loopbackOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		addr, perr := netip.ParseAddr(host)
		if err != nil || perr != nil || !addr.Unmap().IsLoopback() {
			http.Error(w, "metrics are served to this machine only; set metrics.listen to serve them elsewhere", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
