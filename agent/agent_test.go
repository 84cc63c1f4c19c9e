package agent_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caisson-dev/caisson/agent"
	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/gen/filesystem/filesystemconnect"
	"github.com/caisson-dev/caisson/gen/process/processconnect"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
)

const token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// box is an agent in this process.
type box struct {
	url     string
	control *control.Client
	client  *agentclient.Client
	procs   processconnect.ProcessClient
	files   filesystemconnect.FilesystemClient
	http    *http.Client
	tickets string
	// home is the default working directory.
	home string
	init control.Init
}

// start runs an agent with the identity that change made.
func start(t *testing.T, change func(*control.Init)) *box {
	t.Helper()
	b := startBare(t)
	b.init = control.Init{
		SandboxID: "i0", TemplateID: "base", BuildID: "b0", AccessToken: token, DefaultUser: "root",
		DefaultWorkdir: b.home, EnvVars: map[string]string{"GLOBAL": "one", "HOME_LESS": "x"},
	}
	if change != nil {
		change(&b.init)
	}
	if err := b.control.Init(t.Context(), b.init); err != nil {
		t.Fatal(err)
	}
	return b
}

// startBare runs an agent without an identity.
func startBare(t *testing.T) *box {
	t.Helper()
	api, tickets := listen(t), listen(t)
	ours, theirs := net.Pipe()
	log := slog.New(slog.DiscardHandler)
	a, err := agent.New(agent.Config{
		Mode: child.Embedded, Listener: api, ForwardListener: tickets, Control: theirs, Log: log, Path: agent.DefaultPath,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b := &box{
		url: "http://" + api.Addr().String(), control: control.NewClient(ours, log), tickets: tickets.Addr().String(),
		home: t.TempDir(), http: &http.Client{Transport: &http.Transport{DisableCompression: true}},
	}
	// Other users must get there.
	for _, dir := range []string{b.home, filepath.Dir(b.home)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.client = agentclient.New(provider.Route{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", api.Addr().String())
	}}, secret.New(token))
	authorized := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		r.Header.Set("X-Access-Token", token)
		return b.http.Transport.RoundTrip(r)
	})}
	b.procs = processconnect.NewProcessClient(authorized, b.url)
	b.files = filesystemconnect.NewFilesystemClient(authorized, b.url)
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
		_ = b.control.Close()
		b.client.Close()
		b.http.CloseIdleConnections()
	})
	if err := b.control.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// request sends a request with header pairs and returns status, body, headers.
func (b *box) request(t *testing.T, method, path, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, b.url+path, r)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// needRoot skips where users cannot be changed.
func needRoot(t *testing.T) *user.User {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changing users needs root")
	}
	u, err := user.Lookup("daemon")
	if err != nil {
		t.Skip("no user daemon here")
	}
	return u
}
