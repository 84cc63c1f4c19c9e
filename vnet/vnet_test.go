package vnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/vnet"
	"github.com/caisson-dev/caisson/vnet/vnettest"
)

// attachment is a fake gateway made of functions.
type attachment struct {
	tcp  func(context.Context, egress.Flow)
	dns  func([]byte) []byte
	drop func(netip.AddrPort)
}

func (a *attachment) TCP(ctx context.Context, f egress.Flow) {
	if a.tcp != nil {
		a.tcp(ctx, f)
	}
}

func (a *attachment) DNS(_ context.Context, q []byte) []byte {
	if a.dns != nil {
		return a.dns(q)
	}
	return nil
}

func (a *attachment) DroppedUDP(dst netip.AddrPort) {
	if a.drop != nil {
		a.drop(dst)
	}
}

func pair(t testing.TB, o vnet.Options) (*vnet.Network, *vnettest.Guest) {
	t.Helper()
	host, guest, err := vnet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	o.FD = host
	n, err := vnet.New(o)
	if err != nil {
		t.Fatal(err)
	}
	g := vnettest.New(t, guest)
	t.Cleanup(func() { _ = n.Close() })
	return n, g
}

func echo(_ context.Context, f egress.Flow) {
	c, err := f.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, c)
}

func TestFlowReachesAttachment(t *testing.T) {
	t.Parallel()
	want := netip.MustParseAddrPort("93.184.216.34:8443")
	got := make(chan netip.AddrPort, 1)
	_, g := pair(t, vnet.Options{Attachment: &attachment{tcp: func(ctx context.Context, f egress.Flow) {
		got <- f.Destination()
		echo(ctx, f)
	}}})
	c, err := g.Dial(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if d := <-got; d != want {
		t.Errorf("Destination() = %v, want %v", d, want)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite() // half-close: the answer still arrives
	b, err := io.ReadAll(c)
	if err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v, want the echo", b, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]vnet.Options{
		"no attachment":      {},
		"rejected":           {Attachment: &attachment{tcp: func(_ context.Context, f egress.Flow) { f.Reject() }}},
		"neither":            {Attachment: &attachment{tcp: func(context.Context, egress.Flow) {}}},
		"no slot for a flow": {Attachment: &attachment{tcp: echo}, MaxFlows: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, g := pair(t, o)
			to := netip.MustParseAddrPort("1.2.3.4:80")
			if o.MaxFlows > 0 {
				c, err := g.Dial(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
			}
			if _, err := g.Dial(t.Context(), to); !errors.Is(err, vnettest.ErrRefused) {
				t.Errorf("Dial() = %v, want refused", err)
			}
		})
	}
}

// The guest's connect must not return before the gateway has dialled.
func TestAcceptIsLazy(t *testing.T) {
	t.Parallel()
	asked, decide := make(chan struct{}), make(chan struct{})
	_, g := pair(t, vnet.Options{Attachment: &attachment{tcp: func(_ context.Context, f egress.Flow) {
		close(asked)
		<-decide
		c, err := f.Accept()
		if err == nil {
			_ = c.Close()
		}
	}}})
	connected := make(chan error, 1)
	go func() {
		_, err := g.Dial(t.Context(), netip.MustParseAddrPort("1.2.3.4:22"))
		connected <- err
	}()
	<-asked
	select {
	case err := <-connected:
		t.Fatalf("the guest was connected before the decision (%v)", err)
	default:
	}
	close(decide)
	if err := <-connected; err != nil {
		t.Fatal(err)
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	n, g := pair(t, vnet.Options{})
	l := g.Listen(t, 49983)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	c, err := n.Dial(t.Context(), 49983)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Dial(t.Context(), 81); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial(closed port) = %v, want ECONNREFUSED", err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := n.Dial(ctx, 81); !errors.Is(err, cause) {
		t.Errorf("Dial(ended context) = %v, want its cause", err)
	}
	_ = n.Close()
	if _, err := n.Dial(t.Context(), 49983); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close = %v, want net.ErrClosed", err)
	}
	if _, err := c.Read(b); err == nil {
		t.Error("a connection outlived Close")
	}
}

// A dial to a guest that answers nothing ends with its context.
func TestDialSilentGuest(t *testing.T) {
	t.Parallel()
	host, guest, err := vnet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(guest)
	n, err := vnet.New(vnet.Options{FD: host})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.Dial(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial() = %v, want the deadline", err)
	}
}

func TestDNS(t *testing.T) {
	t.Parallel()
	dropped := make(chan netip.AddrPort, 8)
	_, g := pair(t, vnet.Options{Attachment: &attachment{
		dns:  func(q []byte) []byte { return append([]byte("re:"), q...) },
		drop: func(d netip.AddrPort) { dropped <- d },
	}})
	for _, to := range []string{"10.0.0.1:53", "8.8.8.8:53"} {
		c, err := g.UDP(netip.MustParseAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1500)
		for _, q := range []string{"A", "AAAA"} { // two queries on one socket
			_, _ = c.Write([]byte(q))
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := c.Read(b)
			if err != nil || string(b[:n]) != "re:"+q {
				t.Errorf("%s: answer %q, %v, want re:%s", to, b[:n], err, q)
			}
		}
		_ = c.Close()
	}
	for _, to := range []string{"8.8.8.8:443", "1.1.1.1:123"} {
		c, err := g.UDP(netip.MustParseAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("x"))
		if d := <-dropped; d.String() != to {
			t.Errorf("DroppedUDP(%v), want %s", d, to)
		}
		_ = c.Close()
	}
}

// packet returns an IPv4 packet with a TCP SYN, changed by edit.
func packet(edit func(p []byte) []byte) []byte {
	p := make([]byte, 40)
	p[0], p[8], p[9] = 0x45, 64, 6
	p[3] = 40
	copy(p[12:], []byte{10, 0, 0, 2})
	copy(p[16:], []byte{9, 9, 9, 9})
	p[20], p[21] = 0x30, 0x39 // source port
	p[23] = 80
	p[32], p[33], p[34] = 0x50, 0x02, 0x10
	p = edit(p)
	if len(p) < 20 {
		return p
	}
	p[10], p[11] = 0, 0
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	p[10], p[11] = byte(^sum>>8), byte(^sum)
	return p
}

// Hostile packets must neither reach the attachment nor stop the network.
func TestHostilePackets(t *testing.T) {
	t.Parallel()
	flows := make(chan netip.AddrPort, 64)
	n, g := pair(t, vnet.Options{Attachment: &attachment{tcp: func(_ context.Context, f egress.Flow) {
		flows <- f.Destination()
		f.Reject()
	}, drop: func(d netip.AddrPort) { flows <- d }, dns: func([]byte) []byte { flows <- netip.AddrPort{}; return nil }}})
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(p []byte) []byte { copy(p[at:], v); return p }
	}
	for name, p := range map[string][]byte{
		"empty":               {},
		"one byte":            {0x45},
		"ipv6":                packet(set(0, 0x60)),
		"header length 0":     packet(set(0, 0x40)),
		"header length 60":    packet(set(0, 0x4f)),
		"total too long":      packet(set(2, 0xff, 0xff)),
		"total below header":  packet(set(2, 0, 8)),
		"first fragment":      packet(set(6, 0x20)),
		"later fragment":      packet(set(6, 0, 8)),
		"spoofed source":      packet(set(12, 10, 0, 0, 9)),
		"icmp":                packet(set(9, 1)),
		"sctp":                packet(set(9, 132)),
		"multicast":           packet(set(16, 224, 0, 0, 1)),
		"broadcast":           packet(set(16, 255, 255, 255, 255)),
		"loopback":            packet(set(16, 127, 0, 0, 1)),
		"unspecified":         packet(set(16, 0, 0, 0, 0)),
		"to the guest itself": packet(set(16, 10, 0, 0, 2)),
		"short tcp":           packet(func(p []byte) []byte { p[3] = 24; return p[:24] }),
		"short udp":           packet(func(p []byte) []byte { p[9], p[3] = 17, 24; return p[:24] }),
		"udp length lies":     packet(func(p []byte) []byte { p[9] = 17; p[24], p[25] = 0xff, 0xff; return p }),
		"huge query": append(packet(func(p []byte) []byte {
			p[9] = 17
			p[2], p[3] = 0x20, 0
			p[22], p[23] = 0, 53
			p[24], p[25] = 0x1f, 0xec
			return p
		}), make([]byte, 0x2000-40)...),
	} {
		if err := g.Raw(p); err != nil && len(p) > 0 {
			t.Fatalf("%s: %v", name, err)
		}
	}
	// The link is in order, and round trips give what slipped through time to
	// show.
	for range 30 {
		if _, err := g.Dial(t.Context(), netip.MustParseAddrPort("9.9.9.9:90")); !errors.Is(err, vnettest.ErrRefused) {
			t.Fatal(err)
		}
	}
	_ = n.Close() // waits for queries that are being answered
	close(flows)
	for d := range flows {
		if d.Port() != 90 {
			t.Errorf("a hostile packet arrived for %v", d)
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(packet(func(p []byte) []byte { return p }))
	f.Add([]byte{0x45})
	_, g := pair(f, vnet.Options{Attachment: &attachment{tcp: func(_ context.Context, fl egress.Flow) { fl.Reject() }}})
	f.Fuzz(func(_ *testing.T, p []byte) { _ = g.Raw(p) })
}

func TestSetAttachment(t *testing.T) {
	t.Parallel()
	n, g := pair(t, vnet.Options{})
	to := netip.MustParseAddrPort("1.2.3.4:80")
	if _, err := g.Dial(t.Context(), to); !errors.Is(err, vnettest.ErrRefused) {
		t.Fatalf("Dial() = %v, want refused", err)
	}
	n.SetAttachment(&attachment{tcp: echo})
	c, err := g.Dial(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	n.SetAttachment(nil)
	if _, err := g.Dial(t.Context(), to); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("Dial() = %v, want refused again", err)
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stream[1])
	if _, err := vnet.New(vnet.Options{FD: stream[0]}); err == nil {
		t.Error("New(seqpacket) succeeded")
	}
	if _, err := unix.FcntlInt(uintptr(stream[0]), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Error("New kept a descriptor it refused")
	}
	if _, err := vnet.New(vnet.Options{FD: -1}); err == nil {
		t.Error("New(-1) succeeded")
	}
	a, b, err := vnet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(b)
	if _, err := vnet.New(vnet.Options{FD: a, MTU: 70000}); err == nil {
		t.Error("New(MTU 70000) succeeded")
	}
}

// Close with flows in every state leaves neither goroutines nor descriptors.
func TestCloseFreesEverything(t *testing.T) {
	host, guest, err := vnet.Pair()
	if err != nil {
		t.Fatal(err)
	}
	g := vnettest.New(t, guest)
	time.Sleep(0)
	before := goleak.IgnoreCurrent()
	accepted := make(chan struct{}, 8)
	n, err := vnet.New(vnet.Options{FD: host, Attachment: &attachment{tcp: func(ctx context.Context, f egress.Flow) {
		switch f.Destination().Port() {
		case 1: // pending for ever
			accepted <- struct{}{}
			<-ctx.Done()
		default:
			c, err := f.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []uint16{1, 2, 3} {
		go func() { _, _ = g.Dial(context.Background(), netip.AddrPortFrom(netip.MustParseAddr("5.5.5.5"), p)) }()
		<-accepted
	}
	// A handshake that the guest never completes.
	_ = g.Raw(packet(func(p []byte) []byte { p[20] = 0x7f; return p }))
	l := g.Listen(t, 7)
	go func() { _, _ = l.Accept() }()
	if _, err := n.Dial(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _ = n.Close() })
	}
	wg.Wait()
	if _, err := unix.FcntlInt(uintptr(host), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Error("Close left the descriptor open")
	}
	g.Close()
	_ = l.Close()
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/caisson-dev/caisson/vnet_test.TestCloseFreesEverything.func2"),
		goleak.IgnoreAnyFunction("github.com/caisson-dev/caisson/vnet_test.TestCloseFreesEverything.func3"))
}

// The bytes survive many windows of both sizes, in both directions at once.
func TestBulkBothWays(t *testing.T) {
	t.Parallel()
	_, g := pair(t, vnet.Options{Attachment: &attachment{tcp: echo}})
	c, err := g.Dial(t.Context(), netip.MustParseAddrPort("1.2.3.4:80"))
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("echo of %d bytes gave %d bytes, %v, equal %v", len(data), len(got), err, bytes.Equal(got, data))
	}
}
