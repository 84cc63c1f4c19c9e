package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/vnet/vnettest"
)

// patience is how long a connection may take on a machine with much else to do.
const patience = 30 * time.Second

// talk opens an echo connection to allowed.test and proves that it works.
func talk(t *testing.T, g *vnettest.Guest, port string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := g.DialName(ctx, "tcp", "allowed.test:"+port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	ping(t, c)
	return c
}

func ping(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "\x00ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func TestUpdateCutsAndOpens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("7", echo)
	w.upstream("9", echo)
	g := w.box("a", allowing("allowed.test"))
	c := talk(t, g, "7")
	if n := len(w.gateway.Flows("a")); n != 1 {
		t.Errorf("Flows() has %d, want 1", n)
	}
	// A policy that still allows it does not touch it.
	narrower := allowing("allowed.test", "x.test")
	narrower.Rules[0].Ports = []uint16{7}
	if err := w.gateway.Update(t.Context(), "a", narrower); err != nil {
		t.Fatal(err)
	}
	ping(t, c)
	if _, err := g.DialName(t.Context(), "tcp", "allowed.test:9"); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("a new flow that the new policy denies: %v", err)
	}
	if err := w.gateway.Update(t.Context(), "a", egress.Policy{Rules: []egress.Rule{{Hosts: []string{"a b"}, Verdict: egress.Allow}}}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Update(bad policy) = %v", err)
	}
	ping(t, c) // a policy that is refused changes nothing
	if err := w.gateway.Update(t.Context(), "a", egress.Policy{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a cut connection ended as if all was sent")
	}
	r := w.rec.find(t, func(r egress.Record) bool { return strings.Contains(r.Reason, "policy changed") })
	if r.BytesOut != 15 || r.BytesIn != 15 {
		t.Errorf("record = %+v", r)
	}
	if _, err := g.DialName(t.Context(), "tcp", "allowed.test:7"); !refused(err) {
		t.Errorf("Dial() = %v, want refused", err)
	}
	if err := w.gateway.Update(t.Context(), "nobody", egress.Policy{}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Update(unknown) = %v", err)
	}
}

// A flow that is being dialled while the policy changes is judged by the new
// one: it does not slip through.
func TestUpdateDuringDial(t *testing.T) {
	t.Parallel()
	dialing, proceed := make(chan struct{}), make(chan struct{})
	a, b := net.Pipe()
	defer b.Close()
	w := newWorld(t, func(c *gateway.Config) {
		c.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) {
			close(dialing)
			<-proceed
			return a, nil
		}
	})
	g := w.box("a", allowing("allowed.test"))
	got := make(chan error, 1)
	go func() {
		_, err := g.DialName(context.Background(), "tcp", "allowed.test:7")
		got <- err
	}()
	<-dialing
	if err := w.gateway.Update(t.Context(), "a", egress.Policy{}); err != nil {
		t.Fatal(err)
	}
	close(proceed)
	if err := <-got; !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("Dial() = %v, want refused", err)
	}
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("the upstream connection stayed open")
	}
}

func TestDetach(t *testing.T) {
	w := newWorld(t, nil)
	w.upstream("7", echo)
	g := w.box("a", allowing("allowed.test"))
	before := goleak.IgnoreCurrent()
	c := talk(t, g, "7")
	pending, err := g.DialName(t.Context(), "tcp", "allowed.test:443") // has said nothing yet
	if err != nil {
		t.Fatal(err)
	}
	if err := w.gateway.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a cut connection ended as if all was sent")
	}
	_ = c.Close()
	_ = pending.Close()
	if _, err := g.Dial(t.Context(), netip.MustParseAddrPort("198.18.0.1:7")); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("Dial after Detach = %v, want refused", err)
	}
	for range 2 {
		if err := w.gateway.Detach(t.Context(), "a"); err != nil {
			t.Errorf("Detach again = %v", err)
		}
	}
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/caisson-dev/caisson/egress/gateway_test.(*world).upstream.func2.1"))
	a := attach(t, w.gateway, "b", allowing("allowed.test"))
	if _, err := w.gateway.Attach(t.Context(), "b", egress.Policy{}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("Attach again = %v", err)
	}
	_ = w.gateway.Detach(t.Context(), "b")
	if out := a.DNS(t.Context(), query(t, "allowed.test.", dnsmessage.TypeA)); out != nil {
		t.Errorf("DNS after Detach = %x", out)
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("7", func(c net.Conn) { // answers only when the guest has finished
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes", len(b))
	})
	if got := exchange(t, w.box("a", allowing("allowed.test")), "allowed.test:7", "\x00"+strings.Repeat("x", 99999)); got != "100000 bytes" {
		t.Errorf("got %q", got)
	}
}

// When one side breaks, the other learns it.
func TestBrokenUpstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("7", func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 5))
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	g := w.box("a", allowing("allowed.test"))
	c, err := g.DialName(t.Context(), "tcp", "allowed.test:7")
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, "\x00ping")
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a reset upstream ended as if all was sent")
	}
}

func TestFlowLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *gateway.Config) { c.Limits.Flows = 2 })
	w.upstream("7", echo)
	g, other := w.box("a", allowing("allowed.test")), w.box("b", allowing("allowed.test"))
	first, _ := talk(t, g, "7"), talk(t, g, "7")
	if _, err := g.DialName(t.Context(), "tcp", "allowed.test:7"); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("one flow too many: %v", err)
	}
	talk(t, other, "7") // another sandbox has its own
	_ = first.Close()
	w.rec.find(t, func(r egress.Record) bool { return r.Kind == "tcp" && r.Verdict == egress.Allow })
	talk(t, g, "7")
}

// A guest that does not say whom it wants is closed in time, and holds up
// nobody.
func TestHandshakeTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *gateway.Config) { c.Limits.Handshake = 50 * time.Millisecond })
	g := w.box("a", allowing("allowed.test"))
	for name, send := range map[string]string{"nothing": "", "half a hello": "\x16\x03\x01", "half a head": "GET / HTTP/1.1\r\nHost: "} {
		c, err := g.DialName(t.Context(), "tcp", "allowed.test:443")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, send)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = io.ReadAll(c)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: still open", name)
		}
		_ = c.Close()
	}
	if d := w.dials(); len(d) > 0 {
		t.Errorf("dialled %v", d)
	}
	// An idle connection that has said whom it wants lives on.
	w.upstream("7", echo)
	c := talk(t, g, "7")
	time.Sleep(150 * time.Millisecond) // three times the limit: there is nothing to wait for
	ping(t, c)
}

func TestRecordFlood(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *gateway.Config) { c.Limits.Records = 2 })
	a, b := attach(t, w.gateway, "a", egress.Policy{}), attach(t, w.gateway, "b", egress.Policy{})
	for range 1000 {
		a.DroppedUDP(netip.MustParseAddrPort("8.8.8.8:443"))
	}
	b.DroppedUDP(netip.MustParseAddrPort("8.8.8.8:443"))
	w.rec.find(t, func(r egress.Record) bool { return r.SandboxID == "b" && r.Kind == "udp" && r.Verdict == egress.Deny })
	w.rec.mu.Lock()
	defer w.rec.mu.Unlock()
	if n := len(w.rec.records); n > 20 {
		t.Errorf("%d records of a flood were kept", n)
	}
}

func TestQueue(t *testing.T) {
	t.Parallel()
	q := gateway.NewQueue(4)
	for i := range 6 {
		q.Record(egress.Record{Port: uint16(i)})
	}
	if q.Dropped() != 2 {
		t.Errorf("Dropped() = %d, want 2", q.Dropped())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var kept atomic.Int64
	done := make(chan struct{})
	got := make(chan int, 16)
	go func() {
		defer close(done)
		q.Run(ctx, func(_ context.Context, r []egress.Record) { kept.Add(int64(len(r))); got <- len(r) })
	}()
	<-got
	cancel()
	q.Record(egress.Record{})
	<-done
	if n := kept.Load(); n < 4 {
		t.Errorf("kept %d records, want at least 4", n)
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]gateway.Config{
		"no ceiling":       {},
		"bad ceiling":      {Ceiling: egress.Policy{Default: "ask"}},
		"bad host":         {Ceiling: egress.Policy{Default: egress.Allow}, Hosts: map[string][]netip.Addr{"a b": nil}},
		"empty exception":  {Ceiling: egress.Policy{Default: egress.Allow}, AllowPrivate: []gateway.Exception{{}}},
		"bad ceiling rule": {Ceiling: egress.Policy{Default: egress.Allow, Rules: []egress.Rule{{}}}},
	} {
		if _, err := gateway.New(c); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: New() = %v", name, err)
		}
	}
	for _, s := range []string{"", "x", "10.0.0.0/33", "10.0.0.1:0", "10.0.0.1:x", "fe80::1%lo"} {
		if e, err := gateway.ParseException(s); err == nil {
			t.Errorf("ParseException(%q) = %+v", s, e)
		}
	}
	// When the host's addresses are unknown, nothing is public.
	w := newWorld(t, func(c *gateway.Config) { c.OwnAddrs = func() ([]netip.Addr, error) { return nil, errors.New("no") } })
	if _, err := w.box("a", allowing("allowed.test")).DialName(t.Context(), "tcp", "allowed.test:22"); !refused(err) {
		t.Errorf("Dial() = %v, want refused", err)
	}
}

// One sandbox that has as many connections as it may, and opens more as fast as
// it can, does not keep another from its own.
func TestFloodStaysAtHome(t *testing.T) {
	t.Parallel()
	const flows = 16
	w := newWorld(t, func(c *gateway.Config) { c.Limits.Flows = flows })
	w.upstream("7", echo)
	bad, good := w.box("bad", allowing("allowed.test")), w.box("good", allowing("allowed.test"))
	for range flows {
		defer talk(t, bad, "7").Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
				_, _ = bad.Dial(short, netip.MustParseAddrPort("1.2.3.4:80"))
				stop()
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	// How long it takes is the machine's business; none may be refused or starve.
	for range 20 {
		_ = talk(t, good, "7").Close()
	}
}

// BenchmarkDownload is an HTTP download by a guest through both stacks and the
// gateway.
func BenchmarkDownload(b *testing.B) {
	const size = 64 << 20
	for _, port := range []string{"80", "9000"} {
		b.Run("port"+port, func(b *testing.B) {
			w := newWorld(b, nil)
			w.upstream(port, func(c net.Conn) {
				buf := make([]byte, 256<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
					for sent := 0; sent < size; sent += len(buf) {
						if _, err := c.Write(buf); err != nil {
							return
						}
					}
				}
			})
			c := w.box("a", allowing("allowed.test")).Client(b)
			b.SetBytes(size)
			for b.Loop() {
				resp, err := c.Get("http://allowed.test:" + port + "/")
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				if err != nil || n != size {
					b.Fatal(n, err)
				}
				_ = resp.Body.Close()
			}
		})
	}
}

// Traffic counts what open and ended connections carried, whatever the records
// leave out.
func TestTraffic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("7", echo)
	g := w.box("a", allowing("allowed.test"))
	if in, out, ok := w.gateway.Traffic("a"); in != 0 || out != 0 || !ok {
		t.Errorf("Traffic() before any = %d, %d, %t", in, out, ok)
	}
	first := talk(t, g, "7")
	second := talk(t, g, "7")
	ping(t, second)
	// A byte is counted once it has been passed on: the echo may be here first.
	in, out, _ := w.gateway.Traffic("a")
	for deadline := time.Now().Add(10 * time.Second); (in != 15 || out != 15) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
		in, out, _ = w.gateway.Traffic("a")
	}
	if in != 15 || out != 15 {
		t.Errorf("Traffic() of open connections = %d, %d, want 15 each", in, out)
	}
	_ = first.Close()
	if r := w.rec.find(t, func(r egress.Record) bool { return r.Kind == "tcp" }); r.BytesIn != 5 {
		t.Errorf("record of the ended connection is %+v", r)
	}
	if in, out, _ := w.gateway.Traffic("a"); in != 15 || out != 15 {
		t.Errorf("Traffic() after one ended = %d, %d, want 15 each", in, out)
	}
	_ = second.Close()
	if err := w.gateway.Detach(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := w.gateway.Traffic("a"); ok {
		t.Error("Traffic() of a detached sandbox")
	}
}
