// Package forward reaches ports inside the guest that listen on localhost only,
// which no packet from outside can. The server asks over the control channel
// for a port; the agent dials it and hands out a ticket; whoever presents the
// ticket on the forward port gets the connection.
package forward

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/control"
)

const (
	// maxTickets bounds dialled connections that nobody has fetched.
	maxTickets = 512
	// maxWaiting bounds connections that have not shown a ticket yet.
	maxWaiting = 256
	// dialTimeout bounds one attempt on one address.
	dialTimeout = 3 * time.Second
	copyBuffer  = 64 << 10
)

// DialFunc opens a connection, as net.Dialer does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Forwarder holds dialled connections until their tickets are shown. Safe for
// concurrent use.
type Forwarder struct {
	dial    DialFunc
	log     *slog.Logger
	waiting chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	tickets []*ticket
	conns   map[net.Conn]struct{}
}

type ticket struct {
	secret control.Ticket
	conn   net.Conn
	timer  *time.Timer
}

// New returns a forwarder; dial may be nil.
func New(dial DialFunc, log *slog.Logger) *Forwarder {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return &Forwarder{dial: dial, log: log, waiting: make(chan struct{}, maxWaiting), conns: make(map[net.Conn]struct{})}
}

// Dial connects to port on 127.0.0.1, then ::1, then the box's own addresses,
// and returns the ticket for the connection. It is control.ErrRefused when
// nothing listens.
func (f *Forwarder) Dial(ctx context.Context, port uint16) (control.Ticket, error) {
	conn, err := f.connect(ctx, port)
	if err != nil {
		return control.Ticket{}, err
	}
	t := &ticket{conn: conn}
	_, _ = rand.Read(t.secret[:]) // never fails
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || len(f.tickets) >= maxTickets {
		_ = conn.Close()
		return control.Ticket{}, fmt.Errorf("too many dialled connections: %w", errdefs.ErrResourceExhausted)
	}
	t.timer = time.AfterFunc(control.TicketTTL, func() {
		if f.remove(t) {
			_ = t.conn.Close()
		}
	})
	f.tickets = append(f.tickets, t)
	return t.secret, nil
}

func (f *Forwarder) connect(ctx context.Context, port uint16) (net.Conn, error) {
	var last error
	for _, host := range candidates() {
		conn, err := f.dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("dial port %d: %w", port, context.Cause(ctx))
		}
		if !closedPort(err) {
			last = err
		}
	}
	if last != nil {
		return nil, fmt.Errorf("dial port %d: %w", port, last)
	}
	return nil, control.ErrRefused
}

// closedPort reports whether err says that nothing listens at the address; an
// address family that the guest lacks counts.
func closedPort(err error) bool {
	for _, e := range []error{syscall.ECONNREFUSED, syscall.EADDRNOTAVAIL, syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EAFNOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func candidates() []string {
	hosts := []string{"127.0.0.1", "::1"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return hosts
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			hosts = append(hosts, n.IP.String())
		}
	}
	return hosts
}

// remove reports whether t was still waiting.
func (f *Forwarder) remove(t *ticket) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, other := range f.tickets {
		if other == t {
			f.tickets = append(f.tickets[:i], f.tickets[i+1:]...)
			return true
		}
	}
	return false
}

// redeem returns the connection of a ticket, once.
func (f *Forwarder) redeem(shown control.Ticket) (net.Conn, bool) {
	f.mu.Lock()
	var found *ticket
	for _, t := range f.tickets {
		if subtle.ConstantTimeCompare(t.secret[:], shown[:]) == 1 {
			found = t
		}
	}
	f.mu.Unlock()
	if found == nil || !f.remove(found) {
		return nil, false
	}
	found.timer.Stop()
	return found.conn, true
}

// Serve exchanges tickets on l until ctx ends; it closes l.
func (f *Forwarder) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			// Out of descriptors, or the peer was quicker: not fatal.
			f.log.Warn("accept forward connection", slog.Any("error", err))
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if !f.track(conn) {
			_ = conn.Close()
			continue
		}
		select {
		case f.waiting <- struct{}{}:
			f.wg.Go(func() { f.serve(conn) })
		default:
			f.untrack(conn)
		}
	}
}

func (f *Forwarder) serve(conn net.Conn) {
	defer f.untrack(conn)
	var shown control.Ticket
	_ = conn.SetReadDeadline(time.Now().Add(control.TicketTTL))
	_, err := io.ReadFull(conn, shown[:])
	<-f.waiting
	if err != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	target, ok := f.redeem(shown)
	if !ok {
		return
	}
	if !f.track(target) {
		_ = target.Close()
		return
	}
	defer f.untrack(target)
	splice(conn, target)
}

// track remembers a connection for Close; false after Close.
func (f *Forwarder) track(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.conns[c] = struct{}{}
	return true
}

func (f *Forwarder) untrack(c net.Conn) {
	_ = c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// Forget drops all tickets.
func (f *Forwarder) Forget() {
	f.mu.Lock()
	tickets := f.tickets
	f.tickets = nil
	f.mu.Unlock()
	for _, t := range tickets {
		t.timer.Stop()
		_ = t.conn.Close()
	}
}

// Close ends every connection and waits for its goroutines; Serve must be on
// its way out.
func (f *Forwarder) Close() {
	f.Forget()
	f.mu.Lock()
	f.closed = true
	for c := range f.conns {
		_ = c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

// splice copies both ways until both directions have ended or one failed.
func splice(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { oneWay(a, b) })
	oneWay(b, a)
	wg.Wait()
}

// oneWay copies until src ends and tells dst so; on an error both are closed.
func oneWay(dst, src net.Conn) {
	// Wrapped, because splice(2) in gVisor is slower than a copy.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, copyBuffer))
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	_ = dst.Close()
	_ = src.Close()
}
