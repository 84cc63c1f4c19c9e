package server

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/telemetry"
)

// flowRecorder counts each flow and hands it to the egress log.
type flowRecorder struct {
	log     *store.FlowLog
	metrics *telemetry.Metrics
}

func (f flowRecorder) Record(r egress.Record) {
	f.metrics.Flow(string(r.Kind), string(r.Verdict), r.BytesOut, r.BytesIn)
	f.log.Add(r)
}

func serverEgress(c config.Egress) egress.Server {
	return egress.Server{Default: c.Default, Presets: c.Presets, Allow: c.Allow}
}

// policyCompiler turns a sandbox's network configuration into its policy.
func policyCompiler(c config.Egress) func(sandbox.Network) (egress.Policy, error) {
	srv := serverEgress(c)
	return func(n sandbox.Network) (egress.Policy, error) {
		return egress.FromNetwork(egress.Network{AllowInternet: n.AllowInternet, AllowOut: n.AllowOut, DenyOut: n.DenyOut}, srv)
	}
}

func newGateway(cfg config.Egress, conf gateway.Config) (*gateway.Gateway, error) {
	var err error
	if conf.Ceiling, err = serverEgress(cfg).CeilingPolicy(cfg.CeilingAllow, cfg.CeilingDeny); err != nil {
		return nil, err
	}
	for _, s := range cfg.AllowPrivate {
		e, err := gateway.ParseException(s)
		if err != nil {
			return nil, fmt.Errorf("egress.allow_private: %w", err)
		}
		conf.AllowPrivate = append(conf.AllowPrivate, e)
	}
	conf.Hosts = map[string][]netip.Addr{}
	for name, addrs := range cfg.Hosts {
		host, err := egress.Canonical(name)
		if err != nil {
			return nil, fmt.Errorf("egress.hosts: %w", err)
		}
		for _, a := range strings.Fields(strings.ReplaceAll(addrs, ",", " ")) {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				return nil, fmt.Errorf("egress.hosts.%s: %q is no address: %w", name, a, errdefs.ErrInvalidArgument)
			}
			conf.Hosts[host] = append(conf.Hosts[host], addr)
		}
	}
	if len(cfg.Nameservers) > 0 {
		r, err := gateway.NewResolver(cfg.Nameservers)
		if err != nil {
			return nil, fmt.Errorf("egress.nameservers: %w", err)
		}
		conf.Resolver = r
	}
	return gateway.New(conf)
}
