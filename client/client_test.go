package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/cli/clitest"
	"github.com/caisson-dev/caisson/client"
)

// connect returns a client of a fresh stand-in with the real agent.
func connect(t *testing.T) (*client.Client, *clitest.Stub) {
	t.Helper()
	stub := clitest.NewStub(t)
	key, err := os.ReadFile(stub.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(stub.URL, client.WithAPIKey(strings.TrimSpace(string(key))))
	if err != nil {
		t.Fatal(err)
	}
	return c, stub
}

func sandbox(t *testing.T, c *client.Client, name string) client.Sandbox {
	t.Helper()
	sb, err := c.Create(t.Context(), client.CreateOptions{Name: name, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func TestFind(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	first, second := sandbox(t, c, "same"), sandbox(t, c, "same")
	for ref, want := range map[string]string{first.ID: first.ID, "same": second.ID} {
		if got, err := c.Find(t.Context(), ref); err != nil || got.ID != want || got.AgentToken == "" {
			t.Errorf("Find(%q) = %s, %v, want %s with its token", ref, got.ID, err, want)
		}
	}
	if err := c.Kill(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Find(t.Context(), "same"); err != nil || got.ID != first.ID {
		t.Errorf("Find = %s, %v, want the one that runs, %s", got.ID, err, first.ID)
	}
	if err := c.Kill(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Find(t.Context(), "same"); err != nil || got.ID != second.ID || got.State != client.Killed {
		t.Errorf("Find = %s, %s, %v, want the newest that ended", got.ID, got.State, err)
	}
	if err := c.Kill(t.Context(), first.ID); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("second Kill = %v, want not found", err)
	}
	if _, err := c.Find(t.Context(), "other"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Find(other) = %v, want not found", err)
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	want := client.Lifecycle{OnTimeout: client.PauseOnTimeout, AutoResume: true}
	sb, err := c.Create(t.Context(), client.CreateOptions{Name: "nap", Timeout: time.Minute, Lifecycle: want})
	if err != nil || sb.Lifecycle != want {
		t.Fatalf("Create() = %+v, %v, want lifecycle %+v", sb.Lifecycle, err, want)
	}
	paused, err := c.Pause(t.Context(), sb.ID, true)
	if err != nil || paused.State != client.Paused || !paused.EndsAt.IsZero() || paused.PausedAt.IsZero() ||
		paused.Saved == nil || paused.Saved.Kind != client.SavedFiles || paused.Saved.SizeBytes <= 0 {
		t.Fatalf("Pause() = %+v, %v", paused, err)
	}
	if _, err := c.Pause(t.Context(), sb.ID, false); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("Pause() of a paused sandbox = %v, want a conflict", err)
	}
	if _, err := c.SetTimeout(t.Context(), sb.ID, time.Minute); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("SetTimeout() of a paused sandbox = %v, want a conflict", err)
	}
	// A paused one comes before an ended one of the same name.
	ended := sandbox(t, c, "nap")
	if err := c.Kill(t.Context(), ended.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Find(t.Context(), "nap"); err != nil || got.ID != sb.ID {
		t.Errorf("Find() = %s, %v, want the paused %s", got.ID, err, sb.ID)
	}
	for range 2 { // the second call finds it running
		got, err := c.Resume(t.Context(), sb.ID, time.Hour)
		if err != nil || got.State != client.Running || !got.PausedAt.IsZero() || got.Saved != nil ||
			time.Until(got.EndsAt) < 59*time.Minute || got.AgentToken != sb.AgentToken {
			t.Errorf("Resume() = %+v, %v", got, err)
		}
	}
	if err := c.Kill(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(t.Context(), sb.ID, time.Hour); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Resume() of an ended sandbox = %v, want not found", err)
	}
}

func TestListPages(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	for i := range 5 {
		sandbox(t, c, fmt.Sprint(i))
	}
	var names []string
	for sb, err := range c.List(t.Context(), client.ListOptions{Limit: 2}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, sb.Name)
	}
	if d := cmp.Diff([]string{"4", "3", "2", "1", "0"}, names); d != "" {
		t.Errorf("List (-want +got)\n%s", d)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	a := c.Agent(sandbox(t, c, "p"))
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	tests := []struct {
		name   string
		cmd    client.Command
		stdin  string
		out    string
		errs   string
		exit   client.Exit
		timout bool
	}{
		{name: "streams", cmd: client.Command{Path: "sh", Args: []string{"-c", "echo o; echo e >&2"}}, out: "o\n", errs: "e\n", exit: client.Exit{Status: "exit status 0"}},
		{name: "code", cmd: client.Command{Path: "sh", Args: []string{"-c", "exit 3"}}, exit: client.Exit{Code: 3, Status: "exit status 3"}},
		{name: "missing", cmd: client.Command{Path: "no-such-program"}, exit: client.Exit{Code: 127, Status: "exit status 127"}},
		{name: "signal", cmd: client.Command{Path: "sh", Args: []string{"-c", "kill -9 $$"}}, exit: client.Exit{Code: -1, Status: "signal: killed"}},
		{name: "input", cmd: client.Command{Path: "cat", Stdin: true}, stdin: big, out: big, exit: client.Exit{Status: "exit status 0"}},
		{name: "input nobody reads", cmd: client.Command{Path: "true", Stdin: true}, stdin: big, exit: client.Exit{Status: "exit status 0"}},
		{name: "environment", cmd: client.Command{Path: "sh", Args: []string{"-c", "echo $A $PWD"}, Env: map[string]string{"A": "b"}, Dir: "/tmp"}, out: "b /tmp\n", exit: client.Exit{Status: "exit status 0"}},
		{name: "timeout", cmd: client.Command{Path: "sleep", Args: []string{"60"}, Timeout: 200 * time.Millisecond}, timout: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := a.Start(t.Context(), tt.cmd)
			if err != nil {
				t.Fatal(err)
			}
			fed := make(chan error, 1)
			go func() {
				if tt.cmd.Stdin {
					fed <- p.SendAll(t.Context(), strings.NewReader(tt.stdin))
					return
				}
				fed <- nil
			}()
			var out, errs bytes.Buffer
			exit, err := p.Wait(&out, &errs)
			if tt.timout {
				if !errors.Is(err, client.ErrTimeout) {
					t.Fatalf("Wait = %v, want a timeout", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "missing" {
				exit.Status, errs = "exit status 127", bytes.Buffer{}
			}
			if exit != tt.exit || out.String() != tt.out || errs.String() != tt.errs {
				t.Errorf("Wait = %+v, %d bytes, %q, want %+v, %d bytes, %q", exit, out.Len(), errs.String(), tt.exit, len(tt.out), tt.errs)
			}
			if err := <-fed; err != nil {
				t.Errorf("SendAll = %v", err)
			}
		})
	}
}

func TestKillProcess(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	a := c.Agent(sandbox(t, c, "k"))
	p, err := a.Start(t.Context(), client.Command{Path: "sleep", Args: []string{"1000"}, Tag: "sleeper"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := a.Processes(t.Context())
	if err != nil || len(list) != 1 || list[0].Tag != "sleeper" || list[0].PID != p.PID {
		t.Errorf("Processes = %+v, %v, want the sleeper", list, err)
	}
	if err := p.Terminate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.Wait(nil, nil); err != nil || exit.Status != "signal: terminated" {
		t.Errorf("Wait = %+v, %v, want signal: terminated", exit, err)
	}
	if err := p.Kill(t.Context()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Kill of an ended process = %v, want not found", err)
	}
}

// TestSandboxDies breaks the stream of a running command.
func TestSandboxDies(t *testing.T) {
	t.Parallel()
	c, stub := connect(t)
	sb := sandbox(t, c, "d")
	p, err := c.Agent(sb).Start(t.Context(), client.Command{Path: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	stub.End(sb.ID, "oom")
	if _, err := p.Wait(nil, nil); !errors.Is(err, errdefs.ErrUnavailable) || !strings.HasPrefix(err.Error(), "the connection to the sandbox broke: ") {
		t.Errorf("Wait = %v, want a broken connection", err)
	}
	if err := c.Agent(sb).Health(t.Context()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Health = %v, want not found", err)
	}
}

func TestCancelledWait(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	p, err := c.Agent(sandbox(t, c, "c")).Start(ctx, client.Command{Path: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	cancel(why)
	if _, err := p.Wait(nil, nil); !errors.Is(err, why) {
		t.Errorf("Wait = %v, want the cause", err)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	c, _ := connect(t)
	a := c.Agent(sandbox(t, c, "f"))
	dir := filepath.Join(t.TempDir(), "sub")
	for name, content := range map[string]string{"empty": "", "text": "hello", "odd name %&?.bin": "\x00\xff"} {
		path := filepath.Join(dir, name)
		if err := a.WriteFile(t.Context(), path, strings.NewReader(content), int64(len(content))); err != nil {
			t.Fatal(err)
		}
		body, size, err := a.ReadFile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil || string(got) != content || size != int64(len(content)) {
			t.Errorf("ReadFile(%s) = %q of %d, %v, want %q", name, got, size, err, content)
		}
	}
	if err := a.WriteFile(t.Context(), filepath.Join(dir, "stream"), io.MultiReader(strings.NewReader("a"), strings.NewReader("b")), -1); err != nil {
		t.Fatal(err)
	}
	list, err := a.ListDir(t.Context(), dir, 1)
	if err != nil || len(list) != 4 {
		t.Errorf("ListDir = %d entries, %v, want 4", len(list), err)
	}
	if f, err := a.Stat(t.Context(), dir); err != nil || f.Type != client.Directory {
		t.Errorf("Stat = %+v, %v, want a directory", f, err)
	}
	if err := a.MakeDir(t.Context(), dir); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("MakeDir of an existing one = %v, want conflict", err)
	}
	if err := a.Remove(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Stat(t.Context(), dir); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Stat of a removed one = %v, want not found", err)
	}
	if _, _, err := a.ReadFile(t.Context(), dir); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("ReadFile of a removed one = %v, want not found", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		status  int
		body    string
		class   error
		message string
	}{
		{"field", 400, `{"code":400,"message":"must be positive","field":"timeout"}`, errdefs.ErrInvalidArgument, "timeout: must be positive"},
		{"key", 401, `{"code":401,"message":"unknown API key"}`, errdefs.ErrUnauthenticated, "unknown API key"},
		{"limit", 429, `{"code":429,"message":"too many","limit":"sandboxes"}`, errdefs.ErrResourceExhausted, "too many"},
		{"busy", 503, `{"code":503,"message":"no capacity","requestID":"r1"}`, errdefs.ErrUnavailable, "no capacity"},
		{"not ours", 404, "<html>nginx</html>", errdefs.ErrNotFound, "the server answered 404 Not Found: <html>nginx</html>"},
		{"redirect", 302, "", nil, "the server answered 302 Found"},
		{"nonsense", 200, "<html>", nil, "the answer is not what a Caisson server sends: is the URL right?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			}))
			defer srv.Close()
			c, err := client.New(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Status(t.Context())
			if e, ok := errors.AsType[*client.Error](err); !ok || e.Error() != tt.message || (tt.class != nil && !errors.Is(err, tt.class)) {
				t.Errorf("Status = %v, want %q of class %v", err, tt.message, tt.class)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	c, err := client.New("http://127.0.0.1:1", client.WithAPIKey("e2b_secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Status(t.Context())
	if !errors.Is(err, errdefs.ErrUnavailable) || strings.Contains(fmt.Sprintf("%+v %v", err, c), "e2b_secret") {
		t.Errorf("Status = %v, want unavailable without the key", err)
	}
	for _, bad := range []string{"", "127.0.0.1:3000", "ftp://x", "http://"} {
		if _, err := client.New(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("New(%q) = %v, want invalid argument", bad, err)
		}
	}
}

// TestFollow reads a stream with comments, several events and an end.
func TestFollow(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, ": hi\n\nevent: flow\nid: 1\ndata: {\"seq\":1,\"host\":\"a\"}\n\n: ping\n\nevent: flow\ndata: {\"seq\":2}\n\nevent: end\ndata: {}\n\nevent: flow\ndata: {\"seq\":3}\n\n")
	}))
	defer srv.Close()
	c, err := client.New(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	var got []int64
	for f, err := range c.Flows(t.Context(), "i1", client.RowOptions{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, f.Seq)
	}
	if d := cmp.Diff([]int64{1, 2}, got); d != "" {
		t.Errorf("Flows (-want +got)\n%s", d)
	}
}
