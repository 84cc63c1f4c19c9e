package vnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// serveTCP runs on a goroutine of its own for each connection attempt of the
// guest and returns when the connection has ended.
func (n *Network) serveTCP(r *tcp.ForwarderRequest) {
	if !n.begin() {
		r.Complete(false)
		return
	}
	defer n.work.Done()
	p := n.attachment.Load()
	if p == nil {
		r.Complete(true)
		return
	}
	select {
	case n.flows <- struct{}{}:
		defer func() { <-n.flows }()
	default:
		n.opts.Log.Debug("sandbox connection refused", "reason", "too many open connections", "limit", cap(n.flows))
		r.Complete(true)
		return
	}
	id := r.ID()
	f := &flow{
		request: r,
		dst:     netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort),
	}
	defer f.finish()
	(*p).TCP(n.ctx, f)
}

// flow implements [egress.Flow] on a half-open connection.
type flow struct {
	dst netip.AddrPort

	mu      sync.Mutex // guards request and conn
	request *tcp.ForwarderRequest
	conn    net.Conn
}

var errDecided = errors.New("flow was already accepted or rejected")

// Destination implements [egress.Flow].
func (f *flow) Destination() netip.AddrPort { return f.dst }

func (f *flow) take() *tcp.ForwarderRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.request
	f.request = nil
	return r
}

// Accept implements [egress.Flow]. It waits for the guest to complete the
// handshake; the network's end aborts the wait.
func (f *flow) Accept() (net.Conn, error) {
	r := f.take()
	if r == nil {
		return nil, errDecided
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		r.Complete(true)
		return nil, fmt.Errorf("accept sandbox connection to %s: %w", f.dst, toError(terr))
	}
	r.Complete(false)
	c := &conn{TCPConn: gonet.NewTCPConn(&wq, ep), ep: ep}
	f.mu.Lock()
	f.conn = c
	f.mu.Unlock()
	return c, nil
}

// Reject implements [egress.Flow].
func (f *flow) Reject() {
	if r := f.take(); r != nil {
		r.Complete(true)
	}
}

// finish frees what the attachment left behind: a connection never outlives
// the call that serves it.
func (f *flow) finish() {
	f.Reject()
	f.mu.Lock()
	c := f.conn
	f.mu.Unlock()
	if c != nil {
		_ = c.Close()
	}
}

// conn is a connection to the guest. It has CloseWrite and CloseRead for
// half-closes, and Abort.
type conn struct {
	*gonet.TCPConn
	ep tcpip.Endpoint
}

// Abort resets the connection, so that the guest sees an error and not an end
// of stream.
func (c *conn) Abort() { c.ep.Abort() }

// Dial opens a TCP connection to a port of the guest. The error wraps
// [syscall.ECONNREFUSED] when the guest answers with a reset, [net.ErrClosed]
// after Close, and ctx's cause when ctx ends first.
func (n *Network) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if !n.begin() {
		return nil, n.dialError(port, net.ErrClosed)
	}
	defer n.work.Done()
	var wq waiter.Queue
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if terr != nil {
		return nil, n.dialError(port, toError(terr))
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(GuestAddr().As4()), Port: port})
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return nil, n.dialError(port, context.Cause(ctx))
		case <-n.ctx.Done():
			ep.Close()
			return nil, n.dialError(port, net.ErrClosed)
		}
	}
	if terr != nil {
		ep.Close()
		return nil, n.dialError(port, toError(terr))
	}
	return &conn{TCPConn: gonet.NewTCPConn(&wq, ep), ep: ep}, nil
}

func (n *Network) dialError(port uint16, err error) error {
	return &net.OpError{
		Op: "dial", Net: "tcp", Err: err,
		Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(GuestAddr(), port)),
	}
}

// toError gives the stack's errors the identity that callers test for.
func toError(e tcpip.Error) error {
	switch e.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrNoPortAvailable:
		return syscall.EADDRNOTAVAIL
	case *tcpip.ErrClosedForSend, *tcpip.ErrClosedForReceive:
		return net.ErrClosed
	}
	return errors.New(e.String())
}
