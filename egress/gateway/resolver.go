package gateway

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/containerd/errdefs"
)

// NewResolver returns a resolver that asks the given servers in turn, each
// written ADDRESS or ADDRESS:PORT. Without servers it is the host's own.
func NewResolver(servers []string) (Resolver, error) {
	if len(servers) == 0 {
		return net.DefaultResolver, nil
	}
	addrs := make([]string, 0, len(servers))
	for i, s := range servers {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, fmt.Errorf("egress.nameservers[%d]: %q is not an address, with or without :PORT: %w", i, s, errdefs.ErrInvalidArgument)
			}
			ap = netip.AddrPortFrom(a, dnsPort)
		}
		addrs = append(addrs, ap.String())
	}
	var next atomic.Uint32
	return &net.Resolver{
		PreferGo: true,
		// Each attempt of a lookup dials anew, so a dead server costs one try.
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addrs[int(next.Add(1)-1)%len(addrs)])
		},
	}, nil
}
