package cli_test

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/cli/clitest"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

// screen is a terminal whose output a test waits for.
type screen struct {
	master, slave *os.File

	mu   sync.Mutex // guards text
	text bytes.Buffer
	news chan struct{}
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{master: master, slave: slave, news: make(chan struct{}, 1)}
	if err := pty.Setsize(master, &pty.Winsize{Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.text.Write(buf[:n])
			s.mu.Unlock()
			select {
			case s.news <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		// A read of the slave that the command left behind holds it open.
		_, _ = master.WriteString("\n\n")
		slave.Close()
		<-done
		master.Close()
	})
	return s
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) wait(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(s.String(), want) {
		select {
		case <-s.news:
		case <-deadline:
			t.Fatalf("the terminal never showed %q, only %q", want, s.String())
		}
	}
}

func (s *screen) typeIn(t *testing.T, text string) {
	t.Helper()
	if _, err := s.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// run runs the command line with its streams on the terminal.
func (s *screen) run(t *testing.T, stub *clitest.Stub, args ...string) int {
	t.Helper()
	app := cli.App{
		Version: "test", In: s.slave, Out: s.slave, Err: s.slave,
		Env: config.Environ{"CAISSON_API_URL=" + stub.URL, "CAISSON_API_KEY_FILE=" + stub.KeyFile, "CAISSON_CONFIG=/dev/null", "TERM=xterm"},
	}
	return app.Run(t.Context(), args)
}

func create(t *testing.T, stub *clitest.Stub, name string) {
	t.Helper()
	key, err := os.ReadFile(stub.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(stub.URL, client.WithAPIKey(strings.TrimSpace(string(key))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), client.CreateOptions{Name: name, Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
}

// TestInteractive types into a shell, resizes its terminal and leaves it. The
// shell reads no profile, because the stand-in runs it as this machine's user.
func TestInteractive(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	create(t, stub, "box")
	s := newScreen(t)
	code := make(chan int, 1)
	go func() { code <- s.run(t, stub, "exec", "--tty", "box", "--", "bash", "--norc", "--noprofile", "-i") }()
	s.typeIn(t, "echo $((6 * 7))-$(stty size)\n")
	s.wait(t, "42-24 80")
	if err := pty.Setsize(s.master, &pty.Winsize{Cols: 101, Rows: 33}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	s.typeIn(t, "until [ \"$(stty size)\" = '33 101' ]; do sleep 0.05; done; echo re''sized\n")
	s.wait(t, "resized")
	// Ctrl-C reaches the program inside and not us.
	s.typeIn(t, "sh -c 'echo slee\"\"ping; exec sleep 1000'\n")
	s.wait(t, "sleeping")
	s.typeIn(t, "\x03echo on''wards; exit 5\n")
	s.wait(t, "onwards")
	if got := <-code; got != 5 {
		t.Errorf("shell = %d, want the exit code 5", got)
	}
}

// TestOutputOnTerminal shows hostile output of exec and of --tty.
func TestOutputOnTerminal(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	create(t, stub, "box")
	const program = `printf 'a\033[31mred\033[0m \033]0;title\007 \033[2J\302\233b'`

	s := newScreen(t)
	if code := s.run(t, stub, "exec", "box", "--", "sh", "-c", program); code != 0 {
		t.Fatalf("exec = %d: %s", code, s)
	}
	s.wait(t, `b`)
	got := s.String()
	if !strings.Contains(got, "a\x1b[31mred") {
		t.Errorf("colours were lost: %q", got)
	}
	for _, bad := range []string{"\x1b]", "\x07", "\x1b[2J", "\u009b"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q reached the terminal: %q", bad, got)
		}
	}

	raw := newScreen(t)
	if code := raw.run(t, stub, "exec", "--tty", "box", "--", "sh", "-c", program); code != 0 {
		t.Fatalf("exec --tty = %d: %s", code, raw)
	}
	raw.wait(t, "\x1b]0;title\x07")
}

// TestCreateProgress shows the stages of a slow create on a terminal, and takes
// them away; not when it is quick, and not where nobody asked.
func TestCreateProgress(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	slow := func() { stub.Slow(350 * time.Millisecond) }
	for _, tc := range []struct {
		name  string
		args  []string
		slow  bool
		shows bool
	}{
		{"create", []string{"sandbox", "create", "a"}, true, true},
		{"run", []string{"run", "-n", "--", "true"}, true, true},
		{"quick", []string{"run", "-n", "--", "true"}, false, false},
		{"quiet", []string{"-q", "sandbox", "create", "a"}, true, false},
		{"json", []string{"sandbox", "create", "a", "--json"}, true, false},
	} {
		stub.Slow(0)
		if tc.slow {
			slow()
		}
		s := newScreen(t)
		if code := s.run(t, stub, tc.args...); code != 0 {
			t.Fatalf("%s = %d: %s", tc.name, code, s)
		}
		if tc.shows {
			s.wait(t, "preparing … ")
			s.wait(t, "s  \r\x1b[K")
		} else if text := s.String(); strings.Contains(text, "…") {
			t.Errorf("%s shows %q", tc.name, text)
		}
	}
}

// TestOutputInPipe leaves every byte alone.
func TestOutputInPipe(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	create(t, stub, "box")
	var out, errs bytes.Buffer
	app := cli.App{
		Version: "test", In: strings.NewReader(""), Out: &out, Err: &errs,
		Env: config.Environ{"CAISSON_API_URL=" + stub.URL, "CAISSON_API_KEY_FILE=" + stub.KeyFile, "CAISSON_CONFIG=/dev/null"},
	}
	if code := app.Run(t.Context(), []string{"exec", "box", "--", "printf", `\033]0;x\007\377\000`}); code != 0 {
		t.Fatalf("exec = %d: %s", code, errs.String())
	}
	if want := "\x1b]0;x\x07\xff\x00"; out.String() != want {
		t.Errorf("exec wrote %q, want %q", out.String(), want)
	}
}

// TestCompletion offers sandboxes, those that the command can do something with,
// and the values of flags.
func TestCompletion(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	create(t, stub, "box-one")
	create(t, stub, "box-two")
	env := config.Environ{"CAISSON_API_URL=" + stub.URL, "CAISSON_API_KEY_FILE=" + stub.KeyFile, "CAISSON_CONFIG=/dev/null"}
	run := func(args ...string) string {
		var out bytes.Buffer
		app := cli.App{Version: "test", In: strings.NewReader(""), Out: &out, Err: io.Discard, Env: env}
		app.Run(t.Context(), args)
		return out.String()
	}
	run("sandbox", "pause", "box-two")
	for _, tc := range []struct {
		line, offers, not string
	}{
		{"sandbox status ", "box-one\t", "killed"},
		{"sandbox status ", "box-two\t", "killed"},
		{"sandbox pause ", "box-one\t", "box-two"},
		{"sandbox resume ", "box-two\t", "box-one"},
		{"sandbox create x --on-timeout ", "pause\t", "box-one"},
		{"template inspect ", "base\tdebian bookworm", "box-one"},
		{"sandbox create x --template ", "base\t", "box-one"},
		{"pool ", "status\t", "box-one"},
		{"pool status ", ":4", "box-one"},
		{"pool status --", "--watch\t", "box-one"},
		{"run --", "--parallel\t", "box-one"},
		{"run --p", "--preset\t", "box-one"},
	} {
		got := run(append([]string{"__complete"}, strings.Split(tc.line, " ")...)...)
		if !strings.Contains(got, tc.offers) || strings.Contains(got, tc.not) {
			t.Errorf("completion of %q offers %q, want %q and not %q", tc.line, got, tc.offers, tc.not)
		}
	}
}
