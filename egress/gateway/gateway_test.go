package gateway_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/vnet/vnettest"
)

func TestAllowedHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := w.box("a", allowing("allowed.test", "*.wild.test")).Client(t)
	for _, host := range []string{"allowed.test", "w.wild.test"} {
		for range 2 { // the second on the kept connection
			code, body, err := w.url(c, "http://"+host+"/x")
			if err != nil || code != 200 || body != "GET /x host="+host+" body=" {
				t.Fatalf("GET %s = %d %q, %v", host, code, body, err)
			}
		}
	}
	resp, err := c.Post("http://allowed.test/p", "text/plain", io.LimitReader(zeros{}, 1<<20)) // chunked
	if err != nil {
		t.Fatal(err)
	}
	n, _ := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if n < 1<<20 {
		t.Errorf("posted 1 MiB, echoed %d bytes", n)
	}
	c.CloseIdleConnections()
	r := w.rec.find(t, func(r egress.Record) bool { return r.Kind == "tcp" && r.Host == "allowed.test" })
	if r.SandboxID != "a" || r.Verdict != egress.Allow || r.Addr.String() != "93.184.216.1" || r.Port != 80 || r.BytesOut < 1<<20 || r.BytesIn < 1<<20 || r.Duration <= 0 || r.At.IsZero() {
		t.Errorf("record = %+v", r)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func TestAllowedTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	if err := handshake(t, g, "allowed.test:443", "allowed.test"); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, g, "allowed.test:8443", "allowed.test"); err != nil {
		t.Fatal("port that is not inspected:", err)
	}
	r := w.rec.find(t, func(r egress.Record) bool { return r.Port == 443 })
	if r.Verdict != egress.Allow || r.BytesIn == 0 || r.BytesOut == 0 {
		t.Errorf("record = %+v", r)
	}
}

// refused is what a guest sees of a destination that does not exist for it.
func refused(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound || errors.Is(err, vnettest.ErrRefused)
}

// Names and addresses that a default-deny policy with one allowed name keeps
// out, by the way they are asked for.
func TestDeniedDestinations(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test", "rebind.test", "private.test", "mapped.test", "nat64.test", "ula.test", "own.test", "sixtofour.test", "loop.test", "*.wild.test"))
	for name, to := range map[string]string{
		"denied name":               "denied.test:80",
		"apex of a wildcard":        "wild.test:80",
		"subdomain of an exact":     "x.allowed.test:80",
		"raw address":               "93.184.216.1:80",
		"raw address, tls":          "93.184.216.1:443",
		"raw address, smtp":         "93.184.216.1:25",
		"metadata":                  "169.254.169.254:80",
		"private":                   "192.168.1.1:80",
		"gateway":                   "10.0.0.1:80",
		"gateway, docker":           "10.0.0.1:2375",
		"neighbour":                 "10.0.0.3:49983",
		"other sandbox's agent":     "10.1.0.2:49983",
		"carrier-private":           "100.100.100.200:80",
		"host's own":                ownAddr + ":3000",
		"synthetic, never given":    "198.18.77.77:80",
		"dns over tls":              "1.1.1.1:853",
		"dns over https":            "1.1.1.1:443",
		"dns over tcp, elsewhere":   "8.8.8.8:53",
		"rebound to metadata":       "rebind.test:80",
		"rebound to metadata, tls":  "rebind.test:8443",
		"rebound to private":        "private.test:22",
		"mapped loopback":           "mapped.test:22",
		"nat64 loopback":            "nat64.test:22",
		"6to4 loopback":             "sixtofour.test:22",
		"ipv6 metadata":             "ula.test:22",
		"name of the host":          "own.test:22",
		"loopback by name":          "loop.test:22",
		"name with a trailing junk": "allowed.test.evil.test:80",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			c, err := g.DialName(ctx, "tcp", to)
			if err == nil { // inspected ports are accepted before they are decided
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				host, _, _ := net.SplitHostPort(to)
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
				b, _ := io.ReadAll(c)
				if !strings.HasPrefix(string(b), "HTTP/1.1 403 ") {
					t.Errorf("connected, and got %q", b)
				}
			} else if !refused(err) {
				t.Errorf("Dial(%s) = %v, want refused", to, err)
			}
		})
	}
	if d := w.dials(); len(d) > 0 {
		t.Errorf("the gateway dialled %v", d)
	}
	for _, l := range w.lookups() {
		if strings.Contains(l, "denied") || strings.Contains(l, "evil") || l == "wild.test." {
			t.Errorf("the gateway asked upstream for %s", l)
		}
	}
}

// A name with a good and a bad address is reached by the good one only.
func TestEveryAddressIsChecked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("mixed.test"))
	if _, err := g.DialName(t.Context(), "tcp", "mixed.test:22"); err != nil {
		t.Fatal(err)
	}
	if d := w.dials(); len(d) != 1 || d[0] != "93.184.216.1:22" {
		t.Errorf("dialled %v", d)
	}
}

// Hosts and AllowPrivate open a private service, on its port only; the policy
// still decides. Real dialling, no fake internet.
func TestAllowPrivate(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(echoHandler))
	defer srv.Close()
	ap := netip.MustParseAddrPort(srv.Listener.Addr().String())
	ex, err := gateway.ParseException(ap.String())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *gateway.Config) {
		c.Dial, c.OwnAddrs = nil, nil
		c.AllowPrivate = []gateway.Exception{ex}
		c.Hosts = map[string][]netip.Addr{"Local.Test": {ap.Addr()}}
	})
	port := ap.String()[strings.LastIndex(ap.String(), ":"):]
	g := w.box("a", allowing("local.test"))
	code, body, err := w.url(g.Client(t), "http://local.test"+port+"/y")
	if err != nil || code != 200 || !strings.Contains(body, "host=local.test"+port) {
		t.Fatalf("GET = %d %q, %v", code, body, err)
	}
	other := httptest.NewServer(http.HandlerFunc(echoHandler))
	defer other.Close()
	_, otherPort, _ := net.SplitHostPort(other.Listener.Addr().String())
	if _, err := g.DialName(t.Context(), "tcp", "local.test:"+otherPort); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("another port of an exception: %v", err)
	}
	a, err := w.gateway.Attach(t.Context(), "b", allowing("allowed.test"))
	if err != nil {
		t.Fatal(err)
	}
	f := newFlow(ap)
	a.TCP(t.Context(), f)
	if !f.rejected {
		t.Error("an exception allowed by itself")
	}
}

func TestRawAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("93.184.216.0/24"))
	for _, to := range []string{"93.184.216.1:80", "93.184.216.1:9000"} {
		if code, _, err := w.url(g.Client(t), "http://"+to+"/"); err != nil || code != 200 {
			t.Errorf("GET %s = %d, %v", to, code, err)
		}
	}
	if _, err := g.Dial(t.Context(), netip.MustParseAddrPort("93.185.0.1:80")); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("an address outside the CIDR: %v", err)
	}
	if err := handshake(t, g, "93.184.216.1:443", ""); err != nil {
		t.Errorf("TLS without a name to an allowed address: %v", err)
	}
	// A policy by address resolves no names: DNS would be a way out.
	if _, err := g.DialName(t.Context(), "tcp", "allowed.test:80"); !refused(err) {
		t.Errorf("Dial(name) = %v, want refused", err)
	}
}

// CIDR rules judge where a name leads.
func TestDenyOutHitsNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p, err := egress.FromNetwork(egress.Network{DenyOut: []string{"93.185.0.0/16"}}, egress.Server{Default: egress.Allow})
	if err != nil {
		t.Fatal(err)
	}
	g := w.box("a", p)
	if _, err := g.DialName(t.Context(), "tcp", "blocked.test:80"); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("Dial() = %v, want refused", err)
	}
	if code, _, err := w.url(g.Client(t), "http://allowed.test/"); err != nil || code != 200 {
		t.Errorf("GET = %d, %v", code, err)
	}
}

func TestCeiling(t *testing.T) {
	t.Parallel()
	ceiling, err := egress.Server{}.CeilingPolicy([]string{"*"}, []string{"denied.test", "93.185.0.0/16"})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *gateway.Config) { c.Ceiling = ceiling })
	g := w.box("a", egress.Policy{Default: egress.Allow})
	for _, to := range []string{"denied.test:80", "blocked.test:80", "93.185.0.1:22"} {
		if _, err := g.DialName(t.Context(), "tcp", to); !refused(err) {
			t.Errorf("Dial(%s) = %v, want refused", to, err)
		}
	}
	r := w.rec.find(t, func(r egress.Record) bool { return r.Host == "denied.test" })
	if !strings.Contains(r.Reason, "ceiling") || r.Hint != "" {
		t.Errorf("record = %+v", r)
	}
	// The denied name stays denied on an address that is allowed.
	if err := handshake(t, g, "93.184.216.2:443", "denied.test"); err == nil {
		t.Error("a denied server name passed on a raw address")
	}
	if s := exchange(t, g, "93.184.216.2:80", "GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n"); strings.Contains(s, "200 OK") {
		t.Errorf("a denied Host passed on a raw address: %q", s)
	}
}

func TestTLSNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	for _, to := range []string{"allowed.test:443", "allowed.test:8443", "allowed.test:80"} {
		for name, sni := range map[string]string{"fronting": "other.test", "another": "denied.test", "none": ""} {
			before := len(w.dials())
			if err := handshake(t, g, to, sni); err == nil {
				t.Errorf("%s with %s name passed", to, name)
			}
			if strings.HasSuffix(to, ":443") && name != "none" && len(w.dials()) != before {
				t.Errorf("%s with %s name was dialled", to, name)
			}
		}
	}
	r := w.rec.find(t, func(r egress.Record) bool { return strings.Contains(r.Reason, "asks for other.test") })
	if r.Verdict != egress.Deny || r.Host != "allowed.test" {
		t.Errorf("record = %+v", r)
	}
	// A name in capitals is the same name.
	if err := handshake(t, g, "allowed.test:443", "ALLOWED.test"); err != nil {
		t.Error(err)
	}
}

// clientHello captures what crypto/tls says first.
func clientHello(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	go func() { _ = tls.Client(b, cfg).HandshakeContext(t.Context()); _ = b.Close() }()
	buf := make([]byte, 16<<10)
	n, err := a.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// Hellos that hide, fragment or break the name.
func TestHostileHellos(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	good := clientHello(t, &tls.Config{ServerName: "allowed.test"})
	// One handshake message in two records.
	body := good[5:]
	split := good[:3] + string([]byte{0, 50}) + body[:50] + good[:3] + string([]byte{byte((len(body) - 50) >> 8), byte(len(body) - 50)}) + body[50:]
	g := w.box("a", allowing("allowed.test"))
	if s := exchange(t, g, "allowed.test:443", split); s == "" || strings.HasPrefix(s, "dial") {
		t.Errorf("a fragmented hello for the right name got no answer: %q", s)
	}
	bad := strings.Replace(split, "allowed.test", "aenied.test\x00", 1)
	for name, send := range map[string]string{
		"fragmented, NUL in the name": bad,
		"NUL in the name":             strings.Replace(good, "allowed.test", "allowed\x00test", 1),
		"space in the name":           strings.Replace(good, "allowed.test", "allowed test", 1),
		"cut off":                     good[:60],
		"not TLS":                     "SSH-2.0-x\r\n",
		"nothing":                     "",
		"sslv2":                       "\x80\x2e\x01\x03\x01",
		"garbage record":              "\x16\x03\x01\xff\xff" + strings.Repeat("x", 100),
		"endless hello":               "\x16\x03\x01\x40\x00\x01\x00\xff\xff" + strings.Repeat("\x00", 60<<10),
	} {
		before := len(w.dials())
		s := exchange(t, g, "allowed.test:443", send)
		if s != "" && !strings.HasPrefix(s, "HTTP/1.1 4") || len(w.dials()) != before {
			t.Errorf("%s: answered %q, dialled %v", name, s, w.dials()[before:])
		}
	}
}

// With ECH the outer name is what counts.
func TestECHOuterName(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	list := echConfigList(t, "front.test")
	send := clientHello(t, &tls.Config{ServerName: "allowed.test", EncryptedClientHelloConfigList: list, MinVersion: tls.VersionTLS13})
	if !strings.Contains(send, "front.test") || strings.Contains(send, "allowed.test") {
		t.Fatal("the hello is not encrypted; this test shows nothing")
	}
	g := w.box("a", allowing("allowed.test"))
	if s := exchange(t, g, "allowed.test:443", send); s != "" || len(w.dials()) > 0 {
		t.Errorf("ECH for another front got %q, dialled %v", s, w.dials())
	}
}

// An exception for the host's network does not open the sandbox's own, which
// may have the same addresses.
func TestGuestNetworkStaysClosed(t *testing.T) {
	t.Parallel()
	ten, err := gateway.ParseException("10.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *gateway.Config) { c.AllowPrivate = []gateway.Exception{ten} })
	g := w.box("a", egress.Policy{Default: egress.Allow})
	for _, to := range []string{"10.0.0.1:2375", "10.0.0.3:80"} {
		if _, err := g.Dial(t.Context(), netip.MustParseAddrPort(to)); !errors.Is(err, vnettest.ErrRefused) {
			t.Errorf("Dial(%s) = %v, want refused", to, err)
		}
	}
	if _, err := g.Dial(t.Context(), netip.MustParseAddrPort("10.9.0.1:22")); err != nil {
		t.Errorf("an address that the exception opens: %v", err)
	}
	if _, err := g.Dial(t.Context(), netip.MustParseAddrPort("198.18.77.77:22")); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("a synthetic address that was never given: %v", err)
	}
	w.rec.find(t, func(r egress.Record) bool { return strings.Contains(r.Reason, "never given") })
}

// A name that is denied by now is not even looked up.
func TestDeniedNameIsNotResolved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	if _, err := g.DialName(t.Context(), "tcp", "allowed.test:22"); err != nil {
		t.Fatal(err)
	}
	before := len(w.lookups())
	if err := w.gateway.Update(t.Context(), "a", allowing("93.184.0.0/16")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Dial(t.Context(), netip.MustParseAddrPort("198.18.0.1:22")); !errors.Is(err, vnettest.ErrRefused) {
		t.Errorf("Dial() = %v, want refused", err)
	}
	if l := w.lookups()[before:]; len(l) > 0 {
		t.Errorf("asked upstream for %v", l)
	}
}

func TestHelloLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *gateway.Config) { c.Limits.HeaderBytes = 3000 })
	var protos []string
	for range 40 {
		protos = append(protos, strings.Repeat("x", 100))
	}
	big := clientHello(t, &tls.Config{ServerName: "allowed.test", NextProtos: protos})
	g := w.box("a", allowing("allowed.test"))
	if s := exchange(t, g, "allowed.test:443", big); s != "" || len(w.dials()) > 0 {
		t.Errorf("a hello of %d bytes got %q and dialled %v", len(big), s, w.dials())
	}
	if err := handshake(t, g, "allowed.test:443", "allowed.test"); err != nil {
		t.Error(err)
	}
}

// A request to an allowed address cannot name another one.
func TestRawAddressHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("93.184.216.0/24"))
	if s := exchange(t, g, "93.184.216.1:80", "GET / HTTP/1.1\r\nHost: 93.184.216.2\r\n\r\n"); !strings.HasPrefix(s, "HTTP/1.1 403") {
		t.Errorf("answer %q", s)
	}
}

// A server name that is no name is refused even where everything is allowed:
// it could not be judged by a ceiling.
func TestBadServerNameOnRawAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", egress.Policy{Default: egress.Allow})
	send := strings.Replace(clientHello(t, &tls.Config{ServerName: "allowed.test"}), "allowed.test", "allowed\x00test", 1)
	if s := exchange(t, g, "93.184.216.1:443", send); s != "" {
		t.Errorf("answer %q", s)
	}
	w.rec.find(t, func(r egress.Record) bool {
		return r.Verdict == egress.Deny && strings.Contains(r.Reason, "server name")
	})
}
