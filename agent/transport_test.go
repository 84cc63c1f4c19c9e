package agent_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/agentclient"
	pb "github.com/caisson-dev/caisson/gen/process"
	"github.com/caisson-dev/caisson/gen/process/processconnect"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
)

// TestProtocols runs a command over every protocol and codec that clients use.
func TestProtocols(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h2.CloseIdleConnections)
	h1 := b.http.Transport
	for _, tt := range []struct {
		name      string
		transport http.RoundTripper
		opts      []connect.ClientOption
	}{
		{"connect proto http/1.1", h1, nil},
		{"connect json http/1.1", h1, []connect.ClientOption{connect.WithProtoJSON()}},
		{"connect json h2c", h2, []connect.ClientOption{connect.WithProtoJSON()}},
		{"grpc h2c", h2, []connect.ClientOption{connect.WithGRPC()}},
		{"grpc-web http/1.1", h1, []connect.ClientOption{connect.WithGRPCWeb()}},
		{"compressed requests", h1, []connect.ClientOption{connect.WithSendGzip()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				r.Header.Set("X-Access-Token", token)
				return tt.transport.RoundTrip(r)
			})}
			stream, err := processconnect.NewProcessClient(client, b.url, tt.opts...).Start(limited(t), connect.NewRequest(shell("echo hi; exit 2")))
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			var out string
			var code int32
			for stream.Receive() {
				out += string(stream.Msg().GetEvent().GetData().GetStdout())
				code = stream.Msg().GetEvent().GetEnd().GetExitCode()
			}
			if out != "hi\n" || code != 2 || stream.Err() != nil {
				t.Errorf("got %q, %d, %v", out, code, stream.Err())
			}
		})
	}
}

func TestMessageLimit(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	_, err := b.procs.SendInput(limited(t), connect.NewRequest(&pb.SendInputRequest{Process: byTag("x"), Input: stdin(strings.Repeat("x", 33<<20))}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a message above the limit = %v, want resource_exhausted", err)
	}
}

func TestAgentClient(t *testing.T) {
	t.Parallel()
	b := start(t, nil)
	ctx := limited(t)
	if err := b.client.Ready(ctx); err != nil {
		t.Errorf("Ready() = %v", err)
	}
	content := bytes.Repeat([]byte("0123456789"), 100000)
	path := b.home + "/new/file"
	if err := b.client.WriteFile(ctx, "", path, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	r, err := b.client.ReadFile(ctx, "root", path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if _, err := b.client.ReadFile(ctx, "", path+"-none"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("ReadFile of nothing = %v, want ErrNotFound", err)
	}
	if _, err := b.client.Exec(ctx, agentclient.Command{Cmd: "true", User: "who"}); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("Exec as nobody known = %v, want ErrUnauthenticated", err)
	}
	var out bytes.Buffer
	p, err := b.client.Exec(ctx, agentclient.Command{Cmd: "cat", Stdin: true, Stdout: &out, Tag: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Send(ctx, []byte("typed")), p.CloseStdin(ctx)); err != nil {
		t.Fatal(err)
	}
	if e, err := p.Wait(); err != nil || e.Code != 0 || out.String() != "typed" {
		t.Errorf("Wait() = %+v, %v, output %q", e, err, out.String())
	}
	if p, err = b.client.Exec(ctx, agentclient.Command{Cmd: "sleep", Args: []string{"30"}, Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Resize(ctx, 100, 50), p.Kill(ctx)); err != nil {
		t.Error(err)
	}
	if e, err := p.Wait(); err != nil || e.Exited || e.Status != "signal: killed" {
		t.Errorf("Wait() = %+v, %v, want killed", e, err)
	}
	stranger := agentclient.New(provider.Route{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(b.url, "http://"))
	}}, secret.New("wrong"))
	defer stranger.Close()
	if _, err := stranger.Exec(ctx, agentclient.Command{Cmd: "true"}); !errors.Is(err, errdefs.ErrUnauthenticated) {
		t.Errorf("Exec with a wrong token = %v, want ErrUnauthenticated", err)
	}
}

// TestFreezeClosesIdleConnections, because a checkpoint cannot keep them, and must
// not keep what was read from them: also of those whose answer has only just left.
func TestFreezeClosesIdleConnections(t *testing.T) {
	t.Parallel()
	if err := readAfterFreeze(t, ""); !errors.Is(err, io.EOF) {
		t.Errorf("read from the idle connection = %v, want EOF", err)
	}
}

// TestFreezeClosesHalfRequests: a connection that has begun a request and does not
// go on is not waited for.
func TestFreezeClosesHalfRequests(t *testing.T) {
	t.Parallel()
	var late net.Error
	if err := readAfterFreeze(t, "GET /he"); err == nil || errors.As(err, &late) && late.Timeout() {
		t.Errorf("read from the connection = %v, want that it is closed", err)
	}
}

// readAfterFreeze makes a request and the beginning of a next one, freezes the
// agent when the first is answered, and returns how the connection ends.
func readAfterFreeze(t *testing.T, next string) error {
	t.Helper()
	b := start(t, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"+next)
	buf := make([]byte, 1024)
	if n, err := c.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 204") {
		t.Fatalf("health = %q, %v", buf[:n], err)
	}
	if err := b.control.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, err = c.Read(buf)
	return err
}
