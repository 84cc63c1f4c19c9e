package providertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/provider"
)

func (s *suite) exec(t *testing.T) {
	p := s.new(t)
	c := s.agent(t, s.create(t, p, s.spec()))
	for _, tt := range []struct {
		name   string
		cmd    agentclient.Command
		out    string
		errs   string
		exit   int
		killed bool
	}{
		{name: "output", cmd: agentclient.Command{Args: []string{"echo", "a", "b"}}, out: "a b\n"},
		{name: "error output", cmd: agentclient.Command{Args: []string{"stderr", "bad"}}, errs: "bad\n"},
		{name: "status", cmd: agentclient.Command{Args: []string{"exit", "7"}}, exit: 7},
		{name: "environment", cmd: agentclient.Command{Args: []string{"env", "FOO"}, Env: map[string]string{"FOO": "bar"}}, out: "bar\n"},
		{name: "signal", cmd: agentclient.Command{Args: []string{"die", "9"}}, killed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs strings.Builder
			tt.cmd.Cmd, tt.cmd.Stdout, tt.cmd.Stderr = s.o.Tool, &out, &errs
			proc, err := c.Exec(step(t), tt.cmd)
			if err != nil {
				t.Fatalf("Exec() = %v", err)
			}
			x, err := proc.Wait()
			if err != nil {
				t.Fatalf("Wait() = %v", err)
			}
			if x.Exited == tt.killed || (x.Exited && x.Code != tt.exit) {
				t.Errorf("exit = %+v, want code %d, killed %v", x, tt.exit, tt.killed)
			}
			if out.String() != tt.out || errs.String() != tt.errs {
				t.Errorf("output = %q, %q, want %q, %q", out.String(), errs.String(), tt.out, tt.errs)
			}
		})
	}
	t.Run("stdin", func(t *testing.T) {
		var out strings.Builder
		proc, err := c.Exec(step(t), agentclient.Command{Cmd: s.o.Tool, Args: []string{"cat"}, Stdin: true, Stdout: &out})
		if err != nil {
			t.Fatalf("Exec() = %v", err)
		}
		if err := errors.Join(proc.Send(step(t), []byte("through")), proc.CloseStdin(step(t))); err != nil {
			t.Fatalf("stdin: %v", err)
		}
		if x, err := proc.Wait(); err != nil || x.Code != 0 || out.String() != "through" {
			t.Errorf("cat = %q, %+v, %v, want through", out.String(), x, err)
		}
	})
	t.Run("much output", func(t *testing.T) {
		var n counter
		proc, err := c.Exec(step(t), agentclient.Command{Cmd: s.o.Tool, Args: []string{"flood", "8"}, Stdout: &n})
		if err != nil {
			t.Fatalf("Exec() = %v", err)
		}
		if x, err := proc.Wait(); err != nil || x.Code != 0 || n != 8<<20 {
			t.Errorf("flood = %d bytes, %+v, %v, want %d bytes", n, x, err, 8<<20)
		}
	})
}

type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// httpClient reaches one port of the box.
func (s *suite) httpClient(t *testing.T, b provider.Box, port uint16) *http.Client {
	t.Helper()
	r, err := b.Route(step(t), port)
	if err != nil {
		t.Fatalf("Route(%d) = %v", port, err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.Dial(ctx) }}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func (s *suite) get(t *testing.T, b provider.Box, port uint16, path string) string {
	t.Helper()
	resp, err := s.httpClient(t, b, port).Get("http://box" + path)
	if err != nil {
		t.Fatalf("GET %s of port %d: %v", path, port, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s of port %d: %v", path, port, err)
	}
	return string(body)
}

func (s *suite) routes(t *testing.T) {
	p := s.new(t)
	b := s.create(t, p, s.spec())
	c := s.agent(t, b)
	for _, addr := range []string{"0.0.0.0:18700", "127.0.0.1:18701"} {
		s.background(t, c, "serve", addr)
		port := netip.MustParseAddrPort(addr).Port()
		if got := s.get(t, b, port, "/count"); got != "1" {
			t.Errorf("count at %s = %q, want 1", addr, got)
		}
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
		resp, err := s.httpClient(t, b, port).Post("http://box/echo", "application/octet-stream", bytes.NewReader(big))
		if err != nil {
			t.Fatalf("echo at %s: %v", addr, err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, big) {
			t.Errorf("echo at %s: %d bytes, %v, want %d", addr, len(got), err, len(big))
		}
	}
	r, err := b.Route(step(t), 18799)
	if err != nil {
		t.Fatalf("Route() = %v", err)
	}
	if r.Dial == nil {
		t.Skip("a route by URL says nothing of closed ports")
	}
	if conn, err := r.Dial(step(t)); !errors.Is(err, provider.ErrPortClosed) {
		t.Errorf("Dial(closed port) = %v, %v, want ErrPortClosed", conn, err)
	}
}

func (s *suite) needOwnNetwork(t *testing.T, p provider.Provider) {
	t.Helper()
	if !s.o.OwnNetwork || !p.Capabilities().EnforcesEgress {
		t.Skip("this provider's boxes have no network of their own")
	}
}

func (s *suite) egress(t *testing.T) {
	p := s.new(t)
	s.needOwnNetwork(t, p)
	spec, rec := s.spec(), NewRecorder(true)
	spec.Egress = rec
	c := s.agent(t, s.create(t, p, spec))
	if got := s.tool(t, c, "dial", "192.0.2.1:443", "over"); got != "over" {
		t.Errorf("dial = %q, want the echo", got)
	}
	if diff := cmp.Diff([]string{"192.0.2.1:443"}, texts(rec.Flows())); diff != "" {
		t.Errorf("flows (-want +got):\n%s", diff)
	}
	if got := s.tool(t, c, "resolve", "name.example"); got != "[198.18.0.7]" {
		t.Errorf("resolve = %q, want [198.18.0.7]", got)
	}
	s.tool(t, c, "udp", "192.0.2.1:5000")
	deadline := time.After(patience)
	for len(rec.Dropped()) == 0 {
		select {
		case <-rec.changed:
		case <-deadline:
			t.Fatal("a datagram to port 5000 was not reported")
		}
	}
	if diff := cmp.Diff([]string{"192.0.2.1:5000"}, texts(rec.Dropped())); diff != "" {
		t.Errorf("dropped (-want +got):\n%s", diff)
	}
}

func texts(addrs []netip.AddrPort) []string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// egressDenied tries to leave a box whose attachment denies everything.
func (s *suite) egressDenied(t *testing.T) {
	p := s.new(t)
	s.needOwnNetwork(t, p)
	spec, rec := s.spec(), NewRecorder(false)
	spec.Egress = rec
	b := s.create(t, p, spec)
	c := s.agent(t, b)
	// Outside, the gateway's own address, the host's loopback, metadata.
	for _, addr := range []string{"192.0.2.1:443", "10.0.0.1:22", "10.0.0.3:80", "169.254.169.254:80"} {
		if out, x := s.toolAs(t, c, "", "dial", addr, "x"); x.Exited && x.Code == 0 && out != "refused" {
			t.Errorf("dial %s = %q, want no way out", addr, out)
		}
	}
	if got := s.tool(t, c, "resolve", "name.example"); !strings.HasPrefix(got, "failed") {
		t.Errorf("resolve = %q, want failure", got)
	}
}

func (s *suite) claim(t *testing.T) {
	p := s.new(t)
	if !p.Capabilities().Claim {
		t.Skip("this provider's boxes cannot be claimed")
	}
	s.needOwnNetwork(t, p)
	b := s.create(t, p, s.spec())
	rec := NewRecorder(true)
	cl := b.(provider.Claimer)
	if err := cl.Claim(step(t), provider.Identity{SandboxID: id()}); err == nil {
		t.Error("Claim(no egress attachment) succeeded")
	}
	if err := cl.Claim(step(t), provider.Identity{SandboxID: id(), Egress: rec}); err != nil {
		t.Fatalf("Claim() = %v", err)
	}
	if got := s.tool(t, s.agent(t, b), "dial", "192.0.2.1:80", "mine"); got != "mine" || len(rec.Flows()) != 1 {
		t.Errorf("dial after claim = %q with flows %v, want the new attachment", got, rec.Flows())
	}
}
