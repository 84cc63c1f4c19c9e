package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"

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

// ceiling is the most that any policy can open: denials first, then what the
// operator lets requests open, and nothing else.
func ceiling(c config.Egress) egress.Policy {
	p := egress.Policy{Version: 1, Default: egress.Deny}
	if len(c.CeilingDeny) > 0 {
		p.Rules = append(p.Rules, egress.Rule{Hosts: c.CeilingDeny, Verdict: egress.Deny, Note: "egress.ceiling_deny"})
	}
	if len(c.CeilingAllow) > 0 {
		p.Rules = append(p.Rules, egress.Rule{Hosts: c.CeilingAllow, Verdict: egress.Allow, Note: "egress.ceiling_allow"})
	}
	return p
}

func newGateway(cfg config.Egress, conf gateway.Config) (*gateway.Gateway, error) {
	conf.Ceiling = ceiling(cfg)
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
		r, err := resolver(cfg.Nameservers)
		if err != nil {
			return nil, err
		}
		conf.Resolver = r
	}
	return gateway.New(conf)
}

// resolver asks the given nameservers in turn instead of the host's.
func resolver(servers []string) (*net.Resolver, error) {
	var addrs []string
	for _, s := range servers {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			addrs = append(addrs, ap.String())
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("egress.nameservers: %q is no address: %w", s, errdefs.ErrInvalidArgument)
		}
		addrs = append(addrs, netip.AddrPortFrom(a, 53).String())
	}
	var next atomic.Uint64
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addrs[int(next.Add(1)-1)%len(addrs)])
	}}, nil
}
