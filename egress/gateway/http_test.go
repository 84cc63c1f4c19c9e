package gateway_test

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/egress"
)

// echConfigList builds the public part of an ECH configuration.
func echConfigList(t *testing.T, public string) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := []byte{1, 0, 0x20, 0, 32} // id, X25519, key
	c = append(c, key.PublicKey().Bytes()...)
	c = append(c, 0, 4, 0, 1, 0, 1, 32, byte(len(public))) // HKDF-SHA256, AES-128-GCM, name length
	c = append(c, public...)
	c = append(c, 0, 0)
	config := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(c)))
	config = append(config, c...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
}

// Requests that name another host, or that two parsers could read differently,
// never reach upstream. Port 80 is inspected; 8080 is dialled first and held to
// the same rules.
func TestHTTPHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	ok := "GET /ok HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
	for name, tt := range map[string]struct {
		send string
		want string // how the last answer starts
	}{
		"another host":           {"GET /bad HTTP/1.1\r\nHost: other.test\r\n\r\n", "HTTP/1.1 403"},
		"denied host":            {"GET /bad HTTP/1.1\r\nHost: denied.test\r\n\r\n", "HTTP/1.1 403"},
		"pipelined other host":   {ok + "GET /bad HTTP/1.1\r\nHost: other.test\r\n\r\n", "HTTP/1.1 403"},
		"absolute form":          {"GET http://other.test/bad HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "HTTP/1.1 403"},
		"absolute form, host":    {"GET http://allowed.test/bad HTTP/1.1\r\nHost: other.test\r\n\r\n", "HTTP/1.1 403"},
		"absolute form, https":   {"GET https://allowed.test/bad HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "HTTP/1.1 400"},
		"user info":              {"GET http://allowed.test@other.test/bad HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "HTTP/1.1 400"},
		"user info in host":      {"GET /bad HTTP/1.1\r\nHost: allowed.test@other.test\r\n\r\n", "HTTP/1.1 4"},
		"no host":                {"GET /bad HTTP/1.1\r\n\r\n", "HTTP/1.1 403"},
		"no host, 1.0":           {"GET /bad HTTP/1.0\r\n\r\n", "HTTP/1.1 403"},
		"two hosts":              {"GET /bad HTTP/1.1\r\nHost: allowed.test\r\nHost: other.test\r\n\r\n", "HTTP/1.1 400"},
		"host is an address":     {"GET /bad HTTP/1.1\r\nHost: 93.184.216.1\r\n\r\n", "HTTP/1.1 403"},
		"host in hex":            {"GET /bad HTTP/1.1\r\nHost: 0x7f000001\r\n\r\n", "HTTP/1.1 403"},
		"NUL in host":            {"GET /bad HTTP/1.1\r\nHost: allowed.test\x00other.test\r\n\r\n", "HTTP/1.1 400"},
		"CONNECT":                {"CONNECT allowed.test:443 HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n", "HTTP/1.1 405"},
		"CONNECT elsewhere":      {"CONNECT other.test:443 HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "HTTP/1.1 405"},
		"http/2":                 {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 505"},
		"length and chunked":     {"POST /bad HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400"},
		"two lengths":            {"POST /bad HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", "HTTP/1.1 400"},
		"signed length":          {"POST /bad HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: +4\r\n\r\nabcd", "HTTP/1.1 400"},
		"odd transfer encoding":  {"POST /bad HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "HTTP/1.1 400"},
		"space before the colon": {"POST /bad HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400"},
		"folded header":          {"GET /bad HTTP/1.1\r\nHost: allowed.test\r\nX: a\r\n b\r\n\r\n", "HTTP/1.1 400"},
		"bare LF":                {"GET /bad HTTP/1.1\r\nHost: allowed.test\nX: y\r\n\r\n", "HTTP/1.1 400"},
		"bare CR":                {"GET /bad HTTP/1.1\r\nHost: allowed.test\r\nX: a\rHost: other.test\r\n\r\n", "HTTP/1.1 400"},
		"empty line first":       {"\r\nGET /bad HTTP/1.1\r\nHost: other.test\r\n\r\n", "HTTP/1.1 4"},
		"body that is a request": {"POST /ok HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 42\r\n\r\nGET /inner HTTP/1.1\r\nHost: other.test\r\n\r\n123", "HTTP/1.1 4"},
		"head without end":       {"GET /bad HTTP/1.1\r\nHost: allowed.test\r\nX: " + strings.Repeat("x", 100<<10), "HTTP/1.1 431"},
	} {
		for _, port := range []string{"80", "8080"} {
			t.Run(name+" "+port, func(t *testing.T) {
				got := exchange(t, g, "allowed.test:"+port, tt.send)
				if strings.Contains(got, " /bad") || strings.Contains(got, "host=other.test") {
					t.Fatalf("reached upstream: %q", got)
				}
				last := got
				if i := strings.LastIndex(got, "HTTP/1.1 "); i >= 0 {
					last = got[i:]
				}
				if !strings.HasPrefix(last, tt.want) {
					t.Errorf("answer %q, want %s", got, tt.want)
				}
			})
		}
	}
	r := w.rec.find(t, func(r egress.Record) bool { return strings.Contains(r.Reason, "asks for other.test") })
	if r.Verdict != egress.Deny || r.Kind != "tcp" {
		t.Errorf("record = %+v", r)
	}
}

// A redirect to a denied name ends there, and a proxy variable is not needed.
func TestRedirectToDenied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	if code, body, err := w.url(w.box("a", allowing("allowed.test")).Client(t), "http://allowed.test/redirect"); err == nil || !refused(err) {
		t.Errorf("GET = %d %q, %v, want a name that does not exist", code, body, err)
	}
}

func TestHTTPBehaviours(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	for name, tt := range map[string]struct{ send, want string }{
		"1.0":                {"GET /a HTTP/1.0\r\nHost: allowed.test\r\n\r\n", "GET /a host=allowed.test"},
		"host with port":     {"GET /a HTTP/1.1\r\nHost: Allowed.Test:80\r\nConnection: close\r\n\r\n", "GET /a"},
		"trailing dot":       {"GET /a HTTP/1.1\r\nHost: allowed.test.\r\nConnection: close\r\n\r\n", "GET /a"},
		"absolute form":      {"GET http://allowed.test/a HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n", "GET /a host=allowed.test"},
		"pipelined":          {"GET /a HTTP/1.1\r\nHost: allowed.test\r\n\r\nGET /b HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n", "GET /b"},
		"chunked":            {"POST /a HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "body=abc"},
		"expect":             {"POST /a HTTP/1.1\r\nHost: allowed.test\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", "body=abc"},
		"half-closed client": {"GET /a HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n", "GET /a"},
		"upgrade to http/2":  {"GET /a HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "GET /a"},
	} {
		for _, port := range []string{"80", "8080"} {
			t.Run(name+" "+port, func(t *testing.T) {
				if got := exchange(t, g, "allowed.test:"+port, tt.send); !strings.Contains(got, tt.want) {
					t.Errorf("answer %q, want %q in it", got, tt.want)
				}
			})
		}
	}
}

// upstream is a server made of one function, reached as allowed.test on port.
func (w *world) upstream(port string, serve func(net.Conn)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	w.route("93.184.216.1:"+port, l.Addr().String())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

func TestWebSocketUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	serve := func(c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil || req.Header.Get("Upgrade") != "websocket" {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
		_, _ = io.Copy(c, br)
	}
	for _, port := range []string{"80", "8080"} {
		w.upstream(port, serve)
		got := exchange(t, w.box("a"+port, allowing("allowed.test")), "allowed.test:"+port,
			"GET /ws HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1 is a frame now")
		if !strings.HasPrefix(got, "HTTP/1.1 101") || !strings.HasSuffix(got, "hiGET / HTTP/1.1 is a frame now") {
			t.Errorf("port %s: %q", port, got)
		}
	}
}

// Upstream must not turn the connection into something that is not inspected.
func TestUnaskedUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("80", func(c net.Conn) {
		br := bufio.NewReader(c)
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		for _, h := range []string{"Upgrade", "Http2-Settings", "Connection"} {
			if v := req.Header.Get(h); v != "" {
				t.Errorf("upstream was sent %s: %s", h, v)
			}
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		_, _ = io.Copy(c, br)
	})
	got := exchange(t, w.box("a", allowing("allowed.test")), "allowed.test:80",
		"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
	if strings.Contains(got, "other.test") && strings.HasPrefix(got, "HTTP/1.1 101") {
		t.Errorf("tunnel to upstream: %q", got)
	}
}

func TestInterimAndStreamedResponses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	next := make(chan struct{})
	w.upstream("80", func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
		<-next // the rest comes when the guest has read this much
		_, _ = io.WriteString(c, "4\r\nlast\r\n0\r\n\r\n")
	})
	g := w.box("a", allowing("allowed.test"))
	resp, err := g.Client(t).Get("http://allowed.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "first" {
		t.Fatalf("first part: %q, %v", b, err)
	}
	close(next)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "last" {
		t.Errorf("rest: %q, %v", rest, err)
	}
}

// A server that never speaks HTTP on port 80 does not hold the gateway, and an
// endless response head is cut.
func TestHostileUpstream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ended := make(chan struct{})
	w.upstream("80", func(c net.Conn) {
		defer close(ended)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		line := "X: " + strings.Repeat("x", 8<<10) + "\r\n"
		for {
			if _, err := io.WriteString(c, line); err != nil {
				return
			}
		}
	})
	if got := exchange(t, w.box("a", allowing("allowed.test")), "allowed.test:80", "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n"); strings.Contains(got, "200") {
		t.Errorf("got %d bytes", len(got))
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("upstream is still being read")
	}
}

// Protocols in which the server speaks first, or that are neither TLS nor HTTP,
// pass on ports that are not inspected.
func TestOpaqueProtocols(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("22", func(c net.Conn) {
		_, _ = io.WriteString(c, "SSH-2.0-server\r\n")
		_, _ = io.Copy(c, c)
	})
	w.upstream("6379", func(c net.Conn) { _, _ = io.Copy(c, c) })
	g := w.box("a", allowing("allowed.test"))
	if got := exchange(t, g, "allowed.test:22", "SSH-2.0-client\r\n"); got != "SSH-2.0-server\r\nSSH-2.0-client\r\n" {
		t.Errorf("ssh: %q", got)
	}
	for _, send := range []string{"PING\r\n", "*1\r\n$4\r\nPING\r\n", "\x00\x00\x00\x08\x04\xd2\x16\x2f", "HELO x\r\n", "x", "\r\n"} {
		if got := exchange(t, g, "allowed.test:6379", send); got != send {
			t.Errorf("%q came back as %q", send, got)
		}
	}
}

// Empty lines, which some servers skip, do not hide a request.
func TestEmptyLinesFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.upstream("6379", func(c net.Conn) { _, _ = io.Copy(c, c) })
	got := exchange(t, w.box("a", allowing("allowed.test")), "allowed.test:6379", "\r\n\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("upstream was sent %q", got)
	}
}

// The first line of a request cannot be hidden by sending it in pieces.
func TestDribbledRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("allowed.test"))
	for _, port := range []string{"80", "8080"} {
		c, err := g.DialName(t.Context(), "tcp", "allowed.test:"+port)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		for _, b := range []byte("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n") {
			if _, err := c.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		b, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(b), "HTTP/1.1 403") {
			t.Errorf("port %s: %q", port, b)
		}
		_ = c.Close()
	}
}

func TestUpstreamDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	g := w.box("a", allowing("down.test"))
	if got := exchange(t, g, "down.test:80", "GET / HTTP/1.1\r\nHost: down.test\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 502") {
		t.Errorf("inspected: %q", got)
	}
	if _, err := g.DialName(t.Context(), "tcp", "down.test:22"); !refused(err) {
		t.Errorf("not inspected: %v, want refused: the dial comes before the accept", err)
	}
	r := w.rec.find(t, func(r egress.Record) bool { return r.Port == 22 })
	if r.Verdict != egress.Allow || !strings.Contains(r.Reason, "refused") {
		t.Errorf("record = %+v", r)
	}
}
