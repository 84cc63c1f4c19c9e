// Command caisson-engine runs sandboxes: as "daemon" it is the engine, as
// "spawner" one of its children, and under gVisor's names a sandbox process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"gvisor.dev/gvisor/runsc/version"

	"github.com/caisson-dev/caisson/engine/daemon"
	"github.com/caisson-dev/caisson/engine/sentry"
	"github.com/caisson-dev/caisson/engine/spawner"
)

// exitRunning is the exit status when another engine serves the directory.
const exitRunning = 3

func main() {
	// First, and cheaply: a starting sandbox comes through here three times.
	if sentry.Invoked(os.Args) {
		sentry.Main()
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "caisson-engine:", err)
		if errors.Is(err, daemon.ErrRunning) {
			os.Exit(exitRunning)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: caisson-engine {daemon | launch | version}")
	}
	switch args[0] {
	case "daemon":
		return runDaemon(args[1:])
	case "launch":
		return launch(args[1:])
	case "spawner":
		return runSpawner(args[1:])
	case "version":
		fmt.Println(version.Version())
		return nil
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func runDaemon(args []string) error {
	fs := flag.NewFlagSet("daemon", flag.ContinueOnError)
	var o daemon.Options
	fs.StringVar(&o.Root, "root", "", "directory of the engine's records")
	fs.StringVar(&o.Socket, "socket", "", "unix socket to listen on")
	fs.IntVar(&o.Spawners, "spawners", runtime.NumCPU(), "sandboxes that may boot at once")
	fs.DurationVar(&o.IdleExit, "idle-exit", 30*time.Second, "exit after this long without server and boxes; 0 means never")
	fs.BoolVar(&o.Debug, "debug", false, "write gVisor's debug logs")
	readyFD := fs.Int("ready-fd", -1, "descriptor to write one byte to when ready")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if o.Root == "" || o.Socket == "" {
		return errors.New("daemon: --root and --socket are required")
	}
	// Leave the terminal and its signals; already a session leader is fine.
	_, _ = syscall.Setsid()
	level := slog.LevelInfo
	if o.Debug {
		level = slog.LevelDebug
	}
	o.Log = slog.New(slog.NewJSONHandler(&boundedLog{f: os.Stderr}, &slog.HandlerOptions{Level: level}))
	o.Ready = func() {
		if *readyFD < 0 {
			return
		}
		f := os.NewFile(uintptr(*readyFD), "ready")
		_, _ = f.Write([]byte{1})
		_ = f.Close()
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return daemon.Run(ctx, o)
}

// launch starts a daemon that outlives its caller and returns when the daemon
// answers. Because launch itself ends, the daemon is nobody's child.
func launch(args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("launch: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{"daemon", "--ready-fd=3"}, args...)...)
	cmd.Args[0] = "caisson-engine"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return fmt.Errorf("launch: %w", err)
	}
	_ = w.Close()
	if n, _ := r.Read(make([]byte, 1)); n == 1 {
		return nil
	}
	err = cmd.Wait()
	if x, ok := errors.AsType[*exec.ExitError](err); ok && x.ExitCode() == exitRunning {
		return daemon.ErrRunning
	}
	return fmt.Errorf("the engine did not start: %w", err)
}

func runSpawner(args []string) error {
	fs := flag.NewFlagSet("spawner", flag.ContinueOnError)
	var o spawner.Options
	fs.BoolVar(&o.Debug, "debug", false, "write gVisor's debug logs")
	fs.BoolVar(&o.Rootless, "rootless", false, "run without root")
	if err := fs.Parse(args); err != nil {
		return err
	}
	// The engine ends this process by closing the connection.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	return spawner.Serve(o)
}
