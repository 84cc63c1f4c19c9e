package vnet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/caisson-dev/caisson/egress"
)

// DefaultMTU is the largest packet on the link, in bytes: as large as IPv4
// allows, because every packet costs a system call on each side.
const DefaultMTU = 65520

// PrefixLen is the length of the guest's network prefix (10.0.0.0/24).
const PrefixLen = 24

// GuestAddr returns the address of every guest. Networks share nothing, so all
// of them can use the same one, and a fork needs no change.
func GuestAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, 2}) }

// GatewayAddr returns the guest's default gateway, which is also its resolver.
func GatewayAddr() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, 1}) }

// Default limits of one network; see [Options].
const (
	DefaultMaxFlows   = 1024
	DefaultMaxPending = 256
	DefaultMaxDNS     = 64
	DefaultFlowRate   = 500
)

// Buffer limits of one TCP connection in bytes. The default is what a
// connection starts with; it grows to the maximum when it is fast.
const (
	tcpBufferMin     = 4 << 10
	tcpBufferDefault = 1 << 20
	tcpBufferMax     = 4 << 20
)

const nicID tcpip.NICID = 1

// Options configure one network. Zero limits mean the defaults.
type Options struct {
	// FD is the host's end of a datagram socketpair; [Pair] makes one. New
	// takes ownership of it, also when New fails.
	FD int
	// MTU is the size of the largest packet in bytes, at most DefaultMTU.
	MTU uint32
	// Attachment decides and serves every flow. Nil refuses everything until
	// SetAttachment is called.
	Attachment egress.Attachment
	Log        *slog.Logger

	// MaxFlows bounds the guest's open connections; beyond it new ones are
	// reset.
	MaxFlows int
	// MaxPending bounds connection attempts that are being decided; beyond it
	// attempts are ignored and the guest repeats them.
	MaxPending int
	// MaxDNS bounds DNS queries being answered; beyond it queries are dropped.
	MaxDNS int
	// FlowRate bounds new connections a second, with a burst of MaxFlows;
	// beyond it attempts are ignored and the guest repeats them.
	FlowRate int
}

func (o *Options) fill() error {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.MTU < header.IPv4MinimumMTU || o.MTU > DefaultMTU {
		return fmt.Errorf("mtu %d is outside %d to %d", o.MTU, header.IPv4MinimumMTU, DefaultMTU)
	}
	for _, l := range []struct {
		name  string
		value *int
		def   int
	}{
		{"MaxFlows", &o.MaxFlows, DefaultMaxFlows},
		{"MaxPending", &o.MaxPending, DefaultMaxPending},
		{"MaxDNS", &o.MaxDNS, DefaultMaxDNS},
		{"FlowRate", &o.FlowRate, DefaultFlowRate},
	} {
		if *l.value < 0 {
			return fmt.Errorf("%s is negative", l.name)
		}
		if *l.value == 0 {
			*l.value = l.def
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Network is one sandbox's network. Its methods are safe for concurrent use.
type Network struct {
	opts  Options
	link  *link
	stack *stack.Stack

	attachment atomic.Pointer[egress.Attachment]
	flows      chan struct{} // one slot a connection the guest opened
	queries    chan struct{} // one slot a DNS query
	limit      *rate.Limiter

	ctx    context.Context // ends with Close; given to the attachment
	cancel context.CancelFunc
	work   sync.WaitGroup // flows and DNS queries

	mu     sync.Mutex // guards closed against work.Add
	closed bool
	done   chan struct{} // closed when Close has finished
}

// New starts the network on o.FD. Close must be called to free it.
func New(o Options) (*Network, error) {
	if err := o.fill(); err != nil {
		closeFD(o.FD)
		return nil, fmt.Errorf("vnet options: %w", err)
	}
	if err := checkSocket(o.FD); err != nil {
		closeFD(o.FD)
		return nil, err
	}
	growBuffers(o.FD)
	n := &Network{
		opts:    o,
		flows:   make(chan struct{}, o.MaxFlows),
		queries: make(chan struct{}, o.MaxDNS),
		limit:   rate.NewLimiter(rate.Limit(o.FlowRate), o.MaxFlows),
		done:    make(chan struct{}),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if o.Attachment != nil {
		n.attachment.Store(&o.Attachment)
	}
	l, err := newLink(o.FD, o.MTU, o.Log, n.inspect)
	if err != nil {
		n.cancel()
		return nil, fmt.Errorf("open network link: %w", err)
	}
	n.link = l
	if err := n.buildStack(); err != nil {
		n.cancel()
		l.close()
		return nil, err
	}
	l.start()
	return n, nil
}

func closeFD(fd int) {
	if fd > 2 { // never a standard stream because of a forgotten field
		_ = unix.Close(fd)
	}
}

func (n *Network) buildStack() error {
	st := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC},
	})
	if err := st.CreateNIC(nicID, n.link); err != nil {
		return fmt.Errorf("create network interface: %s", err)
	}
	// Accept packets for any destination and answer from any address: the
	// guest sees the whole internet, we decide what of it exists.
	st.SetPromiscuousMode(nicID, true)
	st.SetSpoofing(nicID, true)
	gateway := tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom4(GatewayAddr().As4()).WithPrefix(),
	}
	if err := st.AddProtocolAddress(nicID, gateway, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("set gateway address: %s", err)
	}
	st.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})

	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}
	// Nothing can arrive late on this link, so closed connections are
	// forgotten soon and a guest cannot pile them up.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(time.Second)
	linger := tcpip.TCPLingerTimeoutOption(10 * time.Second)
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &receive, &send, &timeWait, &linger} {
		if err := st.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("set tcp option %T: %s", opt, err)
		}
	}
	forwarder := tcp.NewForwarder(st, tcpBufferDefault, n.opts.MaxPending, n.serveTCP)
	st.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		if isSYN(pkt) && !n.limit.Allow() {
			return true // swallowed: the guest tries again later
		}
		return forwarder.HandlePacket(id, pkt)
	})
	n.stack = st
	return nil
}

func isSYN(pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	return len(h) >= header.TCPMinimumSize && h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn
}

// SetAttachment replaces who decides new flows and queries; flows that are
// being served stay with the attachment that accepted them. A pooled box is
// given its policy this way. Nil refuses everything.
func (n *Network) SetAttachment(a egress.Attachment) {
	if a == nil {
		n.attachment.Store(nil)
		return
	}
	n.attachment.Store(&a)
}

// begin registers one piece of work that Close waits for; it reports false
// after Close.
func (n *Network) begin() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.work.Add(1)
	return true
}

// Close cuts every connection, waits for the goroutines of the network and
// frees its descriptor. It is idempotent; a second call waits for the first.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		<-n.done
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	defer close(n.done)

	n.cancel()
	n.abort()
	finished := make(chan struct{})
	go func() {
		n.work.Wait()
		close(finished)
	}()
	// A handshake that began just before abort creates its connection after
	// it, so abort until the last flow has ended.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-finished:
			waiting = false
		case <-tick.C:
			n.abort()
		}
	}
	n.abort()
	n.stack.Close()
	n.link.close()
	n.stack.Wait()
	return nil
}

func (n *Network) abort() {
	for _, e := range n.stack.RegisteredEndpoints() {
		e.Abort()
	}
	for _, e := range n.stack.CleanupEndpoints() {
		e.Abort()
	}
}

var (
	_ io.Closer = (*Network)(nil)
	_ net.Conn  = (*conn)(nil)
)
