package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/vnet"
	"github.com/caisson-dev/caisson/vnet/vnettest"
)

// The names of the test's internet and where they lead.
var internet = map[string][]string{
	"allowed.test":   {"93.184.216.1"},
	"denied.test":    {"93.184.216.2"},
	"other.test":     {"93.184.216.1"}, // the same front as allowed.test
	"w.wild.test":    {"93.184.216.3"},
	"rebind.test":    {"169.254.169.254"},
	"private.test":   {"10.1.2.3"},
	"mapped.test":    {"::ffff:127.0.0.1"},
	"nat64.test":     {"64:ff9b::7f00:1"},
	"mixed.test":     {"192.168.0.1", "93.184.216.1"},
	"six.test":       {"2606:4700::1"},
	"ula.test":       {"fd00:ec2::254"},
	"own.test":       {"93.184.216.99"},
	"blocked.test":   {"93.185.0.1"},
	"down.test":      {"93.184.216.66"},
	"loop.test":      {"127.0.0.1"},
	"sixtofour.test": {"2002:7f00:1::1"},
}

const ownAddr = "93.184.216.99"

// world is a gateway with an internet of local servers.
type world struct {
	t       testing.TB
	gateway *gateway.Gateway
	rec     *recorder
	http    *httptest.Server
	tls     *httptest.Server

	mu     sync.Mutex
	dialed []string
	lookup []string
	routes map[string]string // addr:port → local listener
}

type recorder struct {
	mu      sync.Mutex
	records []egress.Record
	added   chan struct{}
}

func (r *recorder) Record(x egress.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, x)
	select {
	case r.added <- struct{}{}:
	default:
	}
}

// find waits for a record that matches.
func (r *recorder) find(t testing.TB, match func(egress.Record) bool) egress.Record {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		r.mu.Lock()
		i := slices.IndexFunc(r.records, match)
		var got egress.Record
		if i >= 0 {
			got = r.records[i]
		}
		all := slices.Clone(r.records)
		r.mu.Unlock()
		if i >= 0 {
			return got
		}
		select {
		case <-r.added:
		case <-deadline:
			t.Fatalf("no such record among %+v", all)
		}
	}
}

type resolver struct{ w *world }

func (r resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	r.w.lookup = append(r.w.lookup, host)
	list, ok := internet[strings.TrimSuffix(host, ".")]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out, nil
}

func newWorld(t testing.TB, change func(*gateway.Config)) *world {
	t.Helper()
	w := &world{t: t, rec: &recorder{added: make(chan struct{}, 1)}, routes: map[string]string{}}
	w.http = httptest.NewServer(http.HandlerFunc(echoHandler))
	w.tls = httptest.NewTLSServer(http.HandlerFunc(echoHandler))
	t.Cleanup(w.http.Close)
	t.Cleanup(w.tls.Close)
	c := gateway.Config{
		Ceiling: egress.Policy{Default: egress.Allow}, Resolver: resolver{w}, Recorder: w.rec, Dial: w.dial,
		OwnAddrs: func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(ownAddr)}, nil },
	}
	if change != nil {
		change(&c)
	}
	g, err := gateway.New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.gateway = g
	t.Cleanup(func() { _ = g.Close(context.Background()) })
	return w
}

func echoHandler(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case "/redirect":
		http.Redirect(rw, r, "http://denied.test/", http.StatusFound)
	default:
		fmt.Fprintf(rw, "%s %s host=%s body=%s", r.Method, r.URL.Path, r.Host, body)
	}
}

// route leads an address to a local listener; "" makes the dial hang up.
func (w *world) route(addr, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.routes[addr] = to
}

func (w *world) dial(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, a.String())
	to, ok := w.routes[a.String()]
	w.mu.Unlock()
	if !ok {
		switch {
		case a.Addr() == netip.MustParseAddr("93.184.216.66"):
			return nil, errors.New("connection refused")
		case a.Port() == 443 || a.Port() == 8443:
			to = w.tls.Listener.Addr().String()
		default:
			to = w.http.Listener.Addr().String()
		}
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to)
}

func (w *world) dials() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.dialed)
}

func (w *world) lookups() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lookup)
}

// box attaches a sandbox and starts a guest in it.
func (w *world) box(id string, p egress.Policy) *vnettest.Guest {
	w.t.Helper()
	a, err := w.gateway.Attach(w.t.Context(), id, p)
	if err != nil {
		w.t.Fatal(err)
	}
	host, guest, err := vnet.Pair()
	if err != nil {
		w.t.Fatal(err)
	}
	n, err := vnet.New(vnet.Options{FD: host, Attachment: a})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = n.Close() })
	return vnettest.New(w.t, guest)
}

func allowing(hosts ...string) egress.Policy {
	return egress.Policy{Rules: []egress.Rule{{Hosts: hosts, Verdict: egress.Allow}}}
}

func (w *world) url(c *http.Client, url string) (int, string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// exchange sends raw bytes to a name and returns all that comes back.
func exchange(t testing.TB, g *vnettest.Guest, hostport, send string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := g.DialName(ctx, "tcp", hostport)
	if err != nil {
		return "dial: " + err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(c, send)
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// handshake does TLS with a server name on a connection to a name or address.
func handshake(t testing.TB, g *vnettest.Guest, hostport, sni string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := g.DialName(ctx, "tcp", hostport)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: sni})
	if err := tc.HandshakeContext(ctx); err != nil {
		return err
	}
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+hostport+"/", nil)
	if err := req.Write(tc); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(tc), req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// fakeFlow is a flow without a network behind it.
type fakeFlow struct {
	dst      netip.AddrPort
	guest    net.Conn // the guest's end
	gate     net.Conn
	rejected bool
	accepted chan struct{}
}

func newFlow(dst netip.AddrPort) *fakeFlow {
	f := &fakeFlow{dst: dst, accepted: make(chan struct{})}
	f.guest, f.gate = net.Pipe()
	return f
}

func (f *fakeFlow) Destination() netip.AddrPort { return f.dst }
func (f *fakeFlow) Accept() (net.Conn, error)   { close(f.accepted); return f.gate, nil }
func (f *fakeFlow) Reject()                     { f.rejected = true }
