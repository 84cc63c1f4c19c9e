// Package clientaddr reduces the address of an HTTP client to what limits are
// counted by.
package clientaddr

import (
	"net"
	"net/netip"
)

// Key takes a host:port of a connection and returns the IPv4 address, or the
// /64 that one IPv6 subscriber commonly has.
func Key(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return host
	}
	return p.String()
}
