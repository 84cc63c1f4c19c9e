package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caisson-dev/caisson/egress"
)

// maxPresented bounds the names that one connection may use.
const maxPresented = 32

// flow is one TCP connection of a guest.
type flow struct {
	b     *box
	dst   netip.AddrPort
	host  string // the name that dst stands for, else the name the guest used
	bound bool   // dst is synthetic: host is fixed
	start time.Time

	in, out atomic.Int64 // bytes to and from the guest

	ctx    context.Context
	cancel context.CancelCauseFunc

	mu       sync.Mutex // guards the fields below
	client   net.Conn
	upstream net.Conn
	addr     netip.Addr       // that was dialled
	judged   []egress.Request // all must stay allowed
}

// aborter is a connection that can be reset instead of closed.
type aborter interface{ Abort() }

// TCP implements [egress.Attachment].
func (b *box) TCP(ctx context.Context, ef egress.Flow) {
	if !b.begin() {
		ef.Reject()
		return
	}
	defer b.work.Done()
	f := &flow{b: b, dst: netip.AddrPortFrom(ef.Destination().Addr().Unmap(), ef.Destination().Port()), start: time.Now()}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	default:
		ef.Reject()
		b.record(f.record(&denial{reason: "too many open connections"}))
		return
	}
	f.ctx, f.cancel = context.WithCancelCause(ctx)
	defer f.cancel(nil)
	stop := context.AfterFunc(b.ctx, func() { f.cancel(context.Cause(b.ctx)) })
	defer stop()
	stopCut := context.AfterFunc(f.ctx, f.abort)
	defer stopCut()

	if f.dst.Addr() == resolverAddr && f.dst.Port() == dnsPort {
		b.dnsOverTCP(f, ef.Accept)
		return
	}
	err := b.serve(f, ef)
	b.forget(f)
	f.closeAll()
	if cause := context.Cause(f.ctx); cause != nil {
		if err = cause; errors.Is(cause, context.Canceled) {
			err = errStopped
		}
	}
	b.record(f.record(err))
}

var errStopped = errors.New("cut when the sandbox stopped")

// serve decides and relays one flow. A [denial] means that it was refused,
// another error that it was allowed and broke.
func (b *box) serve(f *flow, ef egress.Flow) error {
	if err := b.identify(f); err != nil {
		ef.Reject()
		return err
	}
	if f.bound && inspected(f.dst.Port()) {
		return b.serveInspected(f, ef)
	}
	up, err := b.connect(f, f.boundHost())
	if err != nil {
		ef.Reject()
		return err
	}
	client, err := ef.Accept()
	if err != nil {
		return err
	}
	f.attach(client)
	return b.serveSniffed(f, client, up)
}

// inspected ports carry protocols that name their host: the guest must say the
// name before anything is dialled.
func inspected(port uint16) bool { return port == 80 || port == 443 }

// identify finds out where a flow goes and refuses what needs no look inside.
func (b *box) identify(f *flow) error {
	a := f.dst.Addr()
	switch {
	case synthetic.Contains(a):
		host, ok := b.names.name(a)
		if !ok {
			return &denial{reason: "the address was never given to a name"}
		}
		f.host, f.bound = host, true
		_, err := b.decideName(host)
		return err
	case guestNet.Contains(a):
		return &denial{reason: "address of the sandbox's own network"}
	}
	f.host = b.names.realName(a)
	return b.judge(egress.Request{Addr: a, Port: f.dst.Port()})
}

// boundHost is the name that rules may look at before the guest has spoken.
func (f *flow) boundHost() string {
	if f.bound {
		return f.host
	}
	return ""
}

// checkName judges a name that the guest used inside a connection. On a flow
// to a name it must be that name; on a flow to an address the name must be
// allowed as well as the address, so that a denied name stays denied.
func (b *box) checkName(f *flow, name string, addr netip.Addr) error {
	if f.bound {
		if name != f.host {
			shown := name
			if addr.IsValid() {
				shown = addr.String()
			}
			return &denial{reason: fmt.Sprintf("the connection is for %s but asks for %s", f.host, shown)}
		}
		return nil
	}
	if addr.IsValid() {
		if addr != f.dst.Addr() {
			return &denial{reason: fmt.Sprintf("the connection is for %s but asks for %s", f.dst.Addr(), addr)}
		}
		return nil
	}
	if err := b.present(f, egress.Request{Host: name, Addr: f.dst.Addr(), Port: f.dst.Port()}); err != nil {
		return err
	}
	f.mu.Lock()
	f.host = name
	f.mu.Unlock()
	return nil
}

// serveInspected handles flows to a name on a port whose protocol is known: it
// is TLS or HTTP for that name, or it is closed.
func (b *box) serveInspected(f *flow, ef egress.Flow) error {
	client, err := ef.Accept()
	if err != nil {
		return err
	}
	f.attach(client)
	limit := b.g.cfg.Limits
	_ = client.SetReadDeadline(time.Now().Add(limit.Handshake))
	br := bufio.NewReaderSize(client, limit.HeaderBytes)
	first, err := br.Peek(1)
	if err != nil {
		f.abort()
		return &denial{reason: "the guest said nothing"}
	}
	if first[0] != tlsHandshake {
		dial := func() (net.Conn, error) { return b.connect(f, f.host) }
		return b.serveHTTP(f, client, br, dial)
	}
	hello, err := readHello(br, limit.HeaderBytes)
	if err != nil {
		f.abort()
		return err
	}
	judged := ""
	if hello.name != "" {
		if err := b.checkName(f, hello.name, netip.Addr{}); err != nil {
			f.abort()
			return err
		}
		judged = hello.name
	}
	_ = client.SetReadDeadline(time.Time{})
	up, err := b.connect(f, judged)
	if err != nil {
		f.abort()
		return err
	}
	return f.relay(client, hello.rest(br, client), up, up)
}

// serveSniffed relays a connection that was dialled already, on any port. What
// looks like TLS or HTTP is held to the same rules as on the inspected ports.
func (b *box) serveSniffed(f *flow, client, up net.Conn) error {
	limit := min(b.g.cfg.Limits.HeaderBytes, sniffBytes)
	first := make(chan bool, 2) // true when it is the server that spoke
	fromUp := peek(bufio.NewReaderSize(up, upstreamBuffer), func() { first <- true })
	fromClient := peek(bufio.NewReaderSize(client, limit), func() { first <- false })
	defer func() { // no goroutine of ours outlives the flow
		f.closeAll()
		<-fromUp.done
		<-fromClient.done
	}()
	if serverFirst := <-first; serverFirst || fromClient.err != nil {
		// The server speaks first, so it is neither TLS nor HTTP; or the guest
		// ended without a word.
		return f.relay(client, fromClient, up, fromUp)
	}
	cr := fromClient.Reader
	_ = client.SetReadDeadline(time.Now().Add(b.g.cfg.Limits.Handshake))
	kind, err := classify(cr)
	if err != nil {
		f.abort()
		return err
	}
	switch kind {
	case kindTLS:
		hello, err := readHello(cr, b.g.cfg.Limits.HeaderBytes)
		if err == nil && hello.name != "" {
			err = b.checkName(f, hello.name, netip.Addr{})
		} else if err == nil && f.bound {
			// No name: only address rules count.
			err = b.present(f, egress.Request{Addr: f.addr, Port: f.dst.Port()})
		}
		if err != nil {
			f.abort()
			return err
		}
		_ = client.SetReadDeadline(time.Time{})
		return f.relay(client, hello.rest(cr, client), up, fromUp)
	case kindHTTP:
		return b.serveHTTP(f, client, cr, func() (net.Conn, error) { return &readConn{Conn: up, r: fromUp}, nil })
	default:
		_ = client.SetReadDeadline(time.Time{})
		return f.relay(client, cr, up, fromUp)
	}
}

// attach names the connection that cut must end.
func (f *flow) attach(c net.Conn) {
	f.mu.Lock()
	f.client = c
	f.mu.Unlock()
	if f.ctx.Err() != nil {
		f.abort()
	}
}

// cut ends a flow for a reason that is recorded.
func (f *flow) cut(cause error) { f.cancel(cause) }

// abort resets the guest's side and closes the other.
func (f *flow) abort() {
	f.mu.Lock()
	client, up := f.client, f.upstream
	f.mu.Unlock()
	if client != nil {
		if a, ok := client.(aborter); ok {
			a.Abort()
		} else if t, ok := client.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
			_ = t.Close()
		} else {
			_ = client.Close()
		}
	}
	if up != nil {
		_ = up.Close()
	}
}

func (f *flow) closeAll() {
	f.mu.Lock()
	client, up := f.client, f.upstream
	f.mu.Unlock()
	if client != nil {
		_ = client.Close()
	}
	if up != nil {
		_ = up.Close()
	}
}

// record describes a flow that ended with err.
func (f *flow) record(err error) egress.Record {
	f.mu.Lock()
	host, addr := f.host, f.addr
	f.mu.Unlock()
	r := egress.Record{
		SandboxID: f.b.id, At: f.start, Kind: "tcp", Host: host, Addr: addr, Port: f.dst.Port(), Verdict: egress.Allow,
		BytesIn: f.in.Load(), BytesOut: f.out.Load(), Duration: time.Since(f.start),
	}
	if !r.Addr.IsValid() && !f.bound {
		r.Addr = f.dst.Addr()
	}
	var d *denial
	switch {
	case errors.As(err, &d):
		r.Verdict, r.Reason, r.Hint = egress.Deny, d.reason, d.hint
	case err != nil:
		r.Reason = err.Error()
	}
	return r
}
