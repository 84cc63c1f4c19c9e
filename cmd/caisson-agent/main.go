// Command caisson-agent is the in-sandbox agent: pid 1 of every sandbox. Its
// engine donates the control channel as descriptor 3 and mounts what the guest
// needs; the agent mounts nothing.
//
// Run outside a sandbox (with --control-fd=-1) it is a bare agent without a
// token holder, for clients in debug mode and for tests.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent"
	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/machine"
	"github.com/caisson-dev/caisson/agent/setup"
	"github.com/caisson-dev/caisson/agent/version"
)

const usage = `usage: caisson-agent [--control-fd=N] [--listen=ADDR] [--forward=ADDR] [--token=TOKEN] [--user=NAME] [--version]
       caisson-agent setup REQUEST
       caisson-agent interpreter

As pid 1 of a sandbox it takes no flags: control on descriptor 3, the agent
protocol on :49983, dialled ports on :49982. The second form is for template
builds, which run it in a sandbox of their own; REQUEST is JSON. As interpreter
it is the code interpreter on :49999.
`

type options struct {
	controlFD       int
	listen, forward string
	token, user     string
	version         bool
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == setup.Command {
		os.Exit(setup.Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "interpreter" {
		if err := interpreter(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "caisson-agent interpreter:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	fs := flag.NewFlagSet("caisson-agent", flag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(fs.Output(), usage) }
	fs.IntVar(&o.controlFD, "control-fd", 3, "")
	fs.StringVar(&o.listen, "listen", fmt.Sprintf(":%d", control.AgentPort), "")
	fs.StringVar(&o.forward, "forward", fmt.Sprintf(":%d", control.ForwardPort), "")
	fs.StringVar(&o.token, "token", "", "")
	fs.StringVar(&o.user, "user", "", "")
	fs.BoolVar(&o.version, "version", false, "")
	if err := fs.Parse(os.Args[1:]); err != nil {
		os.Exit(2)
	}
	if o.version {
		fmt.Println(version.Envd)
		return
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "caisson-agent:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A terminal or pipe of ours that goes away must not end the sandbox.
	// Caught and dropped, not ignored: commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGPIPE)
	syscall.Umask(0o022)
	// Idle sandboxes are many and their memory counts; the heap is small.
	debug.SetGCPercent(50)

	keepInherited()

	cfg := agent.Config{Mode: child.Embedded, Path: os.Getenv("PATH"), Log: log}
	if os.Getpid() == 1 {
		cfg.Mode = child.Guest
		cfg.MetadataFile = "/var/lib/caisson-agent/metadata.json"
		cfg.Guest = machine.Machine{Root: "/", Kernel: true, Log: log}
		// Commands get a score of their own; best effort.
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0o644)
		// More processors would wake each other for every goroutine that becomes
		// ready, and in a sandbox each wake-up is two switches to the sentry.
		runtime.GOMAXPROCS(1)
	}
	var err error
	if cfg.Listener, err = net.Listen("tcp", o.listen); err != nil {
		return fmt.Errorf("agent port: %w", err)
	}
	if cfg.ForwardListener, err = net.Listen("tcp", o.forward); err != nil {
		return fmt.Errorf("forward port: %w", err)
	}
	if o.controlFD >= 0 {
		if cfg.Control, err = channel(o.controlFD); err != nil {
			return err
		}
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	if o.controlFD < 0 {
		if err := bare(ctx, a, o); err != nil {
			return err
		}
	}
	return a.Run(ctx)
}

// channel wraps the donated descriptor. It stays in blocking mode: a blocked
// read is restarted after a restore and finds what the new peer has sent.
func channel(fd int) (io.ReadWriteCloser, error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil, fmt.Errorf("control descriptor %d: %w", fd, err)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, fmt.Errorf("control descriptor %d: %w", fd, err)
	}
	return &blocking{fd: fd}, nil
}

// blocking is a descriptor whose reads hold a thread. Close does not unblock
// them; shutdown does.
type blocking struct{ fd int }

func (b *blocking) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(b.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (b *blocking) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Write(b.fd, p[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, os.NewSyscallError("write", err)
		}
		done += n
	}
	return done, nil
}

func (b *blocking) Close() error { return unix.Shutdown(b.fd, unix.SHUT_RDWR) }

// bare binds an identity without a control channel.
func bare(ctx context.Context, a *agent.Agent, o options) error {
	token := o.token
	if token == "" {
		token = rand.Text()
		fmt.Println("X-Access-Token:", token)
	}
	return a.Init(ctx, control.Init{
		SandboxID: "debugsandboxid", TemplateID: "bare", AccessToken: token, DefaultUser: o.user, Now: time.Now(),
	})
}

// keepInherited keeps whatever descriptors we were given from commands.
func keepInherited() {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, n := range names {
		if fd, err := strconv.Atoi(n.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}
