package vnet

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// readSize is the largest datagram read; an IPv4 packet cannot be longer.
	readSize = buffer.MaxChunkSize
	// copyBelow is the packet size in bytes under which a packet is copied
	// into a buffer of its own. It keeps what a queued packet holds below
	// twice its length: otherwise many small packets, each in a buffer of
	// readSize, would hold far more than the receive window allows.
	copyBelow = readSize / 2
	// queueBytes and queuePackets bound what waits for a guest that reads
	// slowly. Beyond them packets are dropped and TCP sends them again.
	queueBytes   = 4 << 20
	queuePackets = 1024
)

// link is the stack's interface: it moves IP packets over the socketpair. It
// reads through the runtime's poller, so an idle network holds neither a thread
// nor a buffer.
type link struct {
	file   *os.File
	raw    syscall.RawConn
	mtu    uint32
	log    *slog.Logger
	filter func(packet []byte) bool

	readers sync.WaitGroup
	writers sync.WaitGroup

	mu         sync.Mutex // guards dispatcher, queue, queued, flushing, closed
	dispatcher stack.NetworkDispatcher
	queue      []*stack.PacketBuffer
	queued     int
	flushing   bool
	closed     bool
}

// newLink takes ownership of fd, also when it fails.
func newLink(fd int, mtu uint32, log *slog.Logger, filter func([]byte) bool) (*link, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "vnet")
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &link{file: f, raw: raw, mtu: mtu, log: log, filter: filter}, nil
}

// close stops reading and writing and frees the descriptor. It returns when no
// goroutine of the link runs any more.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	_ = l.file.Close()
	l.readers.Wait()
	l.writers.Wait()
	l.mu.Lock()
	for _, p := range l.queue {
		p.DecRef()
	}
	l.queue, l.queued = nil, 0
	l.mu.Unlock()
}

// readLoop delivers packets until the descriptor is closed.
func (l *link) readLoop(d stack.NetworkDispatcher) {
	var view *buffer.View
	var n int
	var rerr error
	read := func(fd uintptr) bool {
		if view == nil {
			view = buffer.NewViewSize(readSize)
		}
		for {
			n, rerr = unix.Read(int(fd), view.AsSlice())
			if rerr != unix.EINTR {
				break
			}
		}
		if rerr == unix.EAGAIN {
			view.Release() // idle: keep no buffer
			view = nil
			return false
		}
		return true
	}
	for {
		if err := l.raw.Read(read); err != nil {
			break
		}
		switch {
		case rerr == unix.ECONNRESET || rerr == unix.ECONNREFUSED:
			continue // the peer went away; its successor may reuse the pair
		case rerr != nil:
			l.log.Error("sandbox network link stopped", "error", rerr)
			return
		}
		if n == 0 || !l.filter(view.AsSlice()[:n]) {
			continue
		}
		var payload *buffer.View
		if n < copyBelow {
			payload = buffer.NewViewWithData(view.AsSlice()[:n])
		} else {
			payload, view = view, nil
			payload.CapLength(n)
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(payload)})
		pkt.RXChecksumValidated = true // the peer leaves checksums out: memory does not flip bits
		d.DeliverNetworkPacket(ipv4.ProtocolNumber, pkt)
		pkt.DecRef()
	}
	if view != nil {
		view.Release()
	}
}

// WritePackets implements [stack.LinkWriter]. A packet that the socket does not
// take now is queued; the queue is drained by one goroutine that lives only as
// long as the queue is not empty.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, pkt := range pkts.AsSlice() {
		if l.closed {
			return i, &tcpip.ErrClosedForSend{}
		}
		if !l.flushing {
			// The write does not block; the lock keeps packets in order.
			err := l.tryWrite(pkt)
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.EAGAIN) {
				continue // the guest is gone: drop, as a cable would
			}
		}
		if len(l.queue) >= queuePackets || l.queued >= queueBytes {
			continue
		}
		l.queue = append(l.queue, pkt.IncRef())
		l.queued += pkt.Size()
		if !l.flushing {
			l.flushing = true
			l.writers.Go(l.flush)
		}
	}
	return pkts.Len(), nil
}

func (l *link) tryWrite(pkt *stack.PacketBuffer) error {
	var werr error
	if err := l.raw.Write(func(fd uintptr) bool {
		werr = send(int(fd), pkt)
		return true
	}); err != nil {
		return err
	}
	return werr
}

// flush sends queued packets, waiting until the socket takes each.
func (l *link) flush() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 || l.closed {
			l.flushing = false
			l.queue = nil
			l.mu.Unlock()
			return
		}
		pkt := l.queue[0]
		l.queue = l.queue[1:]
		l.queued -= pkt.Size()
		l.mu.Unlock()
		_ = l.raw.Write(func(fd uintptr) bool {
			return send(int(fd), pkt) != unix.EAGAIN
		})
		pkt.DecRef()
	}
}

func send(fd int, pkt *stack.PacketBuffer) error {
	slices := pkt.AsSlices()
	for {
		var err error
		if len(slices) == 1 {
			_, err = unix.Write(fd, slices[0])
		} else {
			_, err = unix.Writev(fd, slices)
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// Attach implements [stack.NetworkLinkEndpoint]. The NIC attaches once, at
// creation, and detaches with nil when it is removed.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// start begins delivery; the link has been attached and the stack is set up.
func (l *link) start() {
	l.mu.Lock()
	d := l.dispatcher
	l.mu.Unlock()
	l.readers.Go(func() { l.readLoop(d) })
}

func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dispatcher != nil
}

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
}

// inject writes one ready-made IP packet to the guest, past the stack.
func (l *link) inject(packet []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		Payload: buffer.MakeWithView(buffer.NewViewWithData(packet)),
	})
	var list stack.PacketBufferList
	list.PushBack(pkt)
	_, _ = l.WritePackets(list)
	list.Reset()
}
