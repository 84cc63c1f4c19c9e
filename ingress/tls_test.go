package ingress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"

	"github.com/caisson-dev/caisson/ingress"
	"github.com/caisson-dev/caisson/ingress/tlscert"
	"github.com/caisson-dev/caisson/sandbox"
)

// Wildcard names over TLS, with HTTP/2 by ALPN and without.
func TestTLS(t *testing.T) {
	t.Parallel()
	started := make(chan struct{}, 1)
	w := start(t, options{ports: map[uint16]http.Handler{3000: streams(started)}})
	config, caPath, err := tlscert.SelfSigned(t.TempDir(), []string{"box.example"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(caPath)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	server := ingress.Server(w.server.Config.Handler, config, slog.New(slog.DiscardHandler))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.ServeTLS(listener, "", "")
	}()
	t.Cleanup(func() { _ = server.Close(); <-served })

	for _, tc := range []struct {
		proto string
		next  []string
	}{
		{"HTTP/2.0", []string{"h2"}}, {"HTTP/1.1", []string{"http/1.1"}},
	} {
		id := boxID
		if tc.proto == "HTTP/1.1" {
			id = "isecond"
			w.add("isecond", agentToken, options{})
		}
		var p http.Protocols
		p.SetHTTP2(tc.next[0] == "h2")
		p.SetHTTP1(tc.next[0] != "h2")
		transport := &http.Transport{
			Protocols: &p, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "3000-" + id + ".box.example"},
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, listener.Addr().String())
			},
		}
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://3000-"+id+".box.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Proto != tc.proto {
			t.Errorf("protocol = %s, want %s", resp.Proto, tc.proto)
		}
		lines := bufio.NewReader(resp.Body)
		if line, err := lines.ReadString('\n'); err != nil || line != "first\n" {
			t.Fatalf("read %q, %v", line, err)
		}
		<-started
		w.kill(sandbox.ID(id))
		if _, err := io.ReadAll(lines); err == nil {
			t.Errorf("%s: the stream ended cleanly", tc.proto)
		}
		resp.Body.Close()
		transport.CloseIdleConnections()
	}
}
