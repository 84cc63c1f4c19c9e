// Package vnettest is a guest for tests of the network: a second TCP/IP stack
// on the sandbox's end of the socketpair, set up as the sentry sets up its own.
// Only tests import it.
package vnettest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	mtu    = 65520
	buffer = 1 << 20
)

// Guest is the inside of a box.
type Guest struct {
	Stack *stack.Stack
	fd    int
	link  stack.LinkEndpoint
}

// New starts a guest on fd, the sandbox's end of a pair, and takes ownership of
// it. The guest is closed when the test ends.
func New(t testing.TB, fd int) *Guest {
	t.Helper()
	link, err := fdbased.New(&fdbased.Options{
		FDs: []int{fd}, MTU: mtu, PacketDispatchMode: fdbased.RecvMMsg,
		RXChecksumOffload: true, TXChecksumOffload: true, ProcessorsPerChannel: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	st := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := st.CreateNIC(1, link); err != nil {
		t.Fatal(err)
	}
	address := tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom4([4]byte{10, 0, 0, 2}).WithPrefix(),
	}
	if err := st.AddProtocolAddress(1, address, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	st.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}})
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: buffer, Max: 4 * buffer}
	st.SetTransportProtocolOption(tcp.ProtocolNumber, &receive)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: buffer, Max: 4 * buffer}
	st.SetTransportProtocolOption(tcp.ProtocolNumber, &send)
	g := &Guest{Stack: st, fd: fd, link: link}
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest as a kill of the sandbox does: without a word to the
// other side.
func (g *Guest) Close() {
	if g.fd < 0 {
		return
	}
	g.link.Attach(nil)
	g.Stack.Close()
	_ = unix.Close(g.fd)
	g.fd = -1
}

// Dial connects from inside the box. The error is [ErrRefused] on a reset.
func (g *Guest) Dial(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	c, err := gonet.DialContextTCP(ctx, g.Stack, full(to), ipv4.ProtocolNumber)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Err.Error() == (&tcpip.ErrConnectionRefused{}).String() {
			return nil, ErrRefused
		}
		return nil, err
	}
	return c, nil
}

// ErrRefused says that a connection was answered with a reset.
var ErrRefused = errors.New("connection refused")

// Listen serves a port inside the box.
func (g *Guest) Listen(t testing.TB, port uint16) net.Listener {
	t.Helper()
	l, err := gonet.ListenTCP(g.Stack, tcpip.FullAddress{NIC: 1, Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// UDP opens a datagram socket connected to an address.
func (g *Guest) UDP(to netip.AddrPort) (net.Conn, error) {
	a := full(to)
	return gonet.DialUDP(g.Stack, nil, &a, ipv4.ProtocolNumber)
}

// Resolver asks the sandbox's resolver, as the guest's libc would.
func (g *Guest) Resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			to := netip.MustParseAddrPort("10.0.0.1:53")
			if network == "tcp" {
				return g.Dial(ctx, to)
			}
			return g.UDP(to)
		},
	}
}

// DialName resolves through the sandbox's resolver and connects, as programs
// inside do.
func (g *Guest) DialName(ctx context.Context, _, hostport string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		ips, err := g.Resolver().LookupNetIP(ctx, "ip4", host+".")
		if err != nil {
			return nil, err
		}
		addr = ips[0].Unmap()
	}
	p, err := net.LookupPort("tcp", port)
	if err != nil {
		return nil, err
	}
	return g.Dial(ctx, netip.AddrPortFrom(addr, uint16(p)))
}

// Client is an HTTP client inside the box.
func (g *Guest) Client(t testing.TB) *http.Client {
	tr := &http.Transport{DialContext: g.DialName, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// Raw sends one packet as a compromised guest kernel could.
func (g *Guest) Raw(packet []byte) error {
	_, err := unix.Write(g.fd, packet)
	return err
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}
