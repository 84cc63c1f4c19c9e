package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
)

// guestVariable makes this test binary the agent: pid 1 of a namespace whose
// root is a throw-away layer over this machine's, below the directory named.
// agentVariable names the agent's executable, built as it is shipped.
const (
	guestVariable = "CAISSON_TEST_GUEST_ROOT"
	agentVariable = "CAISSON_TEST_AGENT"
)

const token = "guest-token"

func TestMain(m *testing.M) {
	if dir := os.Getenv(guestVariable); dir != "" {
		fmt.Fprintln(os.Stderr, "guest:", enterGuest(dir))
		os.Exit(77)
	}
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// program builds the agent once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "agent-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "caisson-agent")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w: %s", err, out)
	}
	return path, nil
})

// enterGuest keeps all that the agent changes off this machine, and becomes it.
func enterGuest(dir string) error {
	agent, err := unix.Open(os.Getenv(agentVariable), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the agent: %w", err)
	}
	up, work, root := filepath.Join(dir, "up"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	for _, d := range []string{up, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+up+",workdir="+work); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if err := unix.Mount("/dev", root+"/dev", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("dev: %w", err)
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", agent), append([]string{"caisson-agent"}, os.Args[1:]...), os.Environ())
}

type guest struct {
	cmd     *exec.Cmd
	control *control.Client
	client  *agentclient.Client
	stderr  *bytes.Buffer
}

func startGuest(t *testing.T, limits control.Limits) *guest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	agent, err := program()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	address, forward := freePort(t), freePort(t)
	g := &guest{stderr: &bytes.Buffer{}}
	g.cmd = exec.Command("/proc/self/exe", "--listen="+address, "--forward="+forward)
	g.cmd.Env = append(os.Environ(), guestVariable+"="+t.TempDir(), agentVariable+"="+agent)
	g.cmd.Stderr = g.stderr
	g.cmd.ExtraFiles = []*os.File{theirs}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	t.Cleanup(runtime.UnlockOSThread)
	if err := g.cmd.Start(); err != nil {
		t.Skipf("no namespaces here: %v", err)
	}
	_ = theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil {
		t.Fatal(err)
	}
	g.control = control.NewClient(os.NewFile(uintptr(pair[0]), "control"), slog.New(slog.DiscardHandler))
	g.client = agentclient.New(provider.Route{Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}}, secret.New(token))
	t.Cleanup(func() {
		g.client.Close()
		_ = g.control.Close()
		_ = g.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() {
			t.Error("the agent did not end on SIGTERM")
			_ = g.cmd.Process.Kill()
		})
		defer timer.Stop()
		if err := g.cmd.Wait(); err != nil {
			t.Errorf("agent: %v\n%s", err, g.stderr)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := g.control.Ready(ctx); err != nil {
		if strings.Contains(g.stderr.String(), "overlay") {
			t.Skipf("no overlay here: %s", g.stderr)
		}
		t.Fatalf("Ready() = %v\n%s", err, g.stderr)
	}
	if err := g.control.Init(ctx, control.Init{
		SandboxID: "i1", TemplateID: "base", BuildID: "b1", Hostname: "caisson-test", AccessToken: token, Limits: limits, Now: time.Now(),
		CABundle: "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", Seed: []byte("seed"),
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// sh runs a script and returns its output.
func (g *guest) sh(t *testing.T, user, script string) (string, agentclient.Exit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out bytes.Buffer
	p, err := g.client.Exec(ctx, agentclient.Command{Cmd: "/bin/sh", Args: []string{"-c", script}, User: user, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("exec %s: %v", script, err)
	}
	e, err := p.Wait()
	if err != nil {
		t.Fatalf("wait for %s: %v", script, err)
	}
	return out.String(), e
}

func TestGuest(t *testing.T) {
	g := startGuest(t, control.Limits{})
	for _, tt := range []struct{ name, script, want string }{
		{"marker", "cat /run/e2b/.E2B_SANDBOX; echo; cat /run/e2b/.E2B_SANDBOX_ID; echo; cat /run/e2b/.E2B_TEMPLATE_ID", "true\ni1\nbase"},
		{"template file", "cat /.e2b", "ENV_ID=base\nTEMPLATE_ID=base\nBUILD_ID=b1\n"},
		{"hostname", "hostname; grep -c caisson-test /etc/hosts", "caisson-test\n1\n"},
		{"trust", "tail -n 2 /etc/ssl/certs/ca-certificates.crt", "-----END CERTIFICATE-----\n# caisson end\n"},
		{"nice", "nice; cat /proc/self/oom_score_adj", "0\n"},
		{"descriptors", "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3 "},
		{"umask", "umask", "0022\n"},
		{"agent is first", "cat /proc/1/comm", ""},
	} {
		got, _ := g.sh(t, "", tt.script)
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if _, err := os.Lstat("/.e2b"); err == nil {
		t.Error("the guest wrote to this machine")
	}
}

// TestOrphansAreReaped leaves children without a parent behind.
func TestOrphansAreReaped(t *testing.T) {
	g := startGuest(t, control.Limits{})
	g.sh(t, "", "for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done; sleep 0.3")
	got, _ := g.sh(t, "", "grep -hE '^State' /proc/[0-9]*/status")
	if strings.Contains(got, "zombie") {
		t.Errorf("zombies are left:\n%s", got)
	}
}

// TestCapabilities fails if commands have what exempts from RLIMIT_NPROC, or
// the agent has lost it.
func TestCapabilities(t *testing.T) {
	g := startGuest(t, control.Limits{})
	const forbidden = 1<<21 | 1<<24 // CAP_SYS_ADMIN, CAP_SYS_RESOURCE
	check := func(file, lines string, exempt bool) {
		t.Helper()
		got, _ := g.sh(t, "", "grep -hE '^Cap("+lines+")' "+file)
		if got == "" {
			t.Fatalf("no capabilities in %s", file)
		}
		for line := range strings.Lines(got) {
			f := strings.Fields(line)
			n, err := strconv.ParseUint(f[1], 16, 64)
			if err != nil || (n&forbidden != 0) != exempt {
				t.Errorf("%s: %s exempting capabilities are %#x (%v), want some: %v", file, f[0], n&forbidden, err, exempt)
			}
		}
	}
	check("/proc/self/status", "Bnd|Prm|Inh|Eff", false)
	check("/proc/1/task/*/status", "Bnd|Inh", false)
	check("/proc/1/task/*/status", "Eff", true)
}

// TestForkBomb fails if commands escape their process limit or the agent is
// bound by it. Linux exempts the real root, so the bomb as root is tested in
// gVisor (test/e2e).
func TestForkBomb(t *testing.T) {
	const limit = 40
	g := startGuest(t, control.Limits{Processes: limit, WallTime: 3 * time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	bomb, err := g.client.Exec(ctx, agentclient.Command{
		Cmd: "/bin/sh", Args: []string{"-c", "b() { b | b & sleep 30; }; b; sleep 30"}, User: "daemon",
	})
	if err != nil {
		t.Fatal(err)
	}
	most := 0
	for range 10 {
		begun := time.Now()
		got, _ := g.sh(t, "root", "grep -lsE '^Uid:\\s+1\\s' /proc/[0-9]*/status | wc -l")
		var n int
		_, _ = fmt.Sscan(got, &n)
		most = max(most, n)
		if took := time.Since(begun); took > 15*time.Second { // the bomb sleeps for 30
			t.Errorf("a command beside the bomb took %v", took)
		}
	}
	if most < limit/2 || most > limit {
		t.Errorf("the bomb had up to %d processes, want close to and at most %d", most, limit)
	}
	if _, err := bomb.Wait(); err != nil {
		t.Fatalf("wait for the bomb: %v", err)
	}
	got, _ := g.sh(t, "daemon", "echo free again")
	if got != "free again\n" {
		t.Errorf("after the bomb: %q", got)
	}
}

// TestFreezeAndInit takes the identity away, as before a checkpoint, and gives
// another.
func TestFreezeAndInit(t *testing.T) {
	g := startGuest(t, control.Limits{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := g.control.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	// What comes meanwhile waits for an identity.
	soon, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if _, err := g.client.Exec(soon, agentclient.Command{Cmd: "true"}); err == nil {
		t.Error("a frozen agent runs commands")
	}
	if err := g.control.Init(ctx, control.Init{SandboxID: "i2", AccessToken: token}); err != nil {
		t.Fatal(err)
	}
	if got, _ := g.sh(t, "", "echo $E2B_SANDBOX_ID"); got != "i2\n" {
		t.Errorf("identity after thaw = %q", got)
	}
	if _, err := g.control.Dial(ctx, 1); !errors.Is(err, control.ErrRefused) {
		t.Errorf("Dial(1) = %v, want ErrRefused", err)
	}
}
