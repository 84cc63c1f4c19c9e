package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/egress"
)

const (
	maxAddrs   = 16 // addresses of one name that are looked at
	maxDials   = 4  // addresses of one name that are tried
	ownRefresh = 5 * time.Second
)

// denial says why something was not let through, for the record and the user.
type denial struct {
	reason string
	hint   string
}

func (d *denial) Error() string { return d.reason }

// resolve returns the addresses of a canonical name, IPv4 first.
func (g *Gateway) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, fixed := g.hosts[host]
	if !fixed {
		// The dot keeps the host's search domains out of it.
		found, err := g.cfg.Resolver.LookupNetIP(ctx, "ip", host+".")
		if err != nil {
			return nil, err
		}
		addrs = found
	}
	unique := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		// An IPv4-mapped address dials IPv4: judge and dial it as that.
		if a = a.Unmap(); !slices.Contains(unique, a) {
			unique = append(unique, a)
		}
	}
	slices.SortStableFunc(unique, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return unique[:min(len(unique), maxAddrs)], nil
}

// forbidden says why no policy can open an address, or "".
func (g *Gateway) forbidden(a netip.Addr, port uint16) string {
	reason := egress.Special(a)
	if reason == "" {
		own, err := g.own.contains(a)
		if err != nil {
			return "the host's own addresses are not known"
		}
		if !own {
			return ""
		}
		reason = "address of the host itself"
	}
	u := egress.Unwrap(a)
	for _, e := range g.cfg.AllowPrivate {
		if (e.Port == 0 || e.Port == port) && e.Prefix.Contains(u) {
			return ""
		}
	}
	return reason
}

// ownAddrs caches the host's addresses; they change rarely and listing them
// costs a system call for each interface.
type ownAddrs struct {
	list func() ([]netip.Addr, error)

	mu  sync.Mutex // guards the fields below
	at  time.Time
	set map[netip.Addr]struct{}
}

func (o *ownAddrs) contains(a netip.Addr) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.set == nil || time.Since(o.at) > ownRefresh {
		addrs, err := o.list()
		if err != nil {
			return false, fmt.Errorf("list the host's addresses: %w", err)
		}
		o.set = make(map[netip.Addr]struct{}, len(addrs))
		for _, own := range addrs {
			o.set[own.Unmap().WithZone("")] = struct{}{}
		}
		o.at = time.Now()
	}
	_, direct := o.set[a.Unmap()]
	_, hidden := o.set[egress.Unwrap(a)]
	return direct || hidden, nil
}

func interfaceAddrs() ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, n := range nets {
		if p, err := netip.ParsePrefix(n.String()); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs, nil
}

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6}}
	return d.DialContext(ctx, "tcp", addr.String())
}

// candidates returns the addresses that may be dialled for a request of host,
// or the denial of the first one. An empty judged host means that only address
// rules count.
func (b *box) candidates(ctx context.Context, f *flow, judged string) ([]netip.Addr, error) {
	if !f.bound {
		return []netip.Addr{f.dst.Addr()}, nil // judged when it arrived
	}
	addrs, err := b.g.resolve(ctx, f.host)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", f.host, err)
	}
	var good []netip.Addr
	var first error
	for _, a := range addrs {
		err := b.judge(egress.Request{Host: judged, Addr: a, Port: f.dst.Port()})
		if err == nil {
			good = append(good, a)
		} else if first == nil {
			first = err
		}
	}
	if len(good) == 0 && first == nil {
		first = fmt.Errorf("resolve %s: no addresses", f.host)
	}
	if len(good) == 0 {
		return nil, first
	}
	return good, nil
}

// connect resolves, judges, dials and activates a flow. The connection that it
// returns goes to the very address that was judged.
func (b *box) connect(f *flow, judged string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(f.ctx, b.g.cfg.Limits.Dial, errors.New("upstream did not answer in time"))
	defer cancel()
	addrs, err := b.candidates(ctx, f, judged)
	if err != nil {
		return nil, err
	}
	var dialErr error
	for _, a := range addrs[:min(len(addrs), maxDials)] {
		up, err := b.dialOne(ctx, netip.AddrPortFrom(a, f.dst.Port()))
		if err != nil {
			dialErr = err
			if ctx.Err() != nil {
				break
			}
			continue
		}
		r := egress.Request{Host: judged, Addr: a, Port: f.dst.Port()}
		if err := b.activate(f, up, r); err != nil {
			_ = up.Close()
			return nil, err
		}
		return up, nil
	}
	return nil, dialErr
}

func (b *box) dialOne(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.g.cfg.Limits.Dial/2, errors.New("upstream did not answer in time"))
	defer cancel()
	up, err := b.g.cfg.Dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	return up, nil
}
