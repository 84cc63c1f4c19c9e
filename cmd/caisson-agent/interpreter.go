package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/codeinterp"
	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

const (
	interpreterDir = "/run/caisson-interpreter"
	// respawn is how long the interpreter is left ended.
	respawn = time.Second
	// reserve is what the rest of the sandbox keeps when a kernel takes all the
	// memory it may have.
	reserve = 128 << 20
)

// interpreter runs the code interpreter. Without arguments it keeps another
// process of itself running that serves: killing that one does no lasting harm.
func interpreter(args []string) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch {
	case len(args) == 0:
		return keepInterpreter(ctx, log)
	case len(args) == 1 && args[0] == "serve":
		return serveInterpreter(ctx, log)
	}
	return fmt.Errorf("interpreter takes no arguments: %q", args)
}

func keepInterpreter(ctx context.Context, log *slog.Logger) error {
	for {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "interpreter", "serve")
		cmd.Args[0] = "caisson-agent"
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		err := cmd.Run()
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("the code interpreter ended and is started again", slog.Any("error", err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(respawn):
		}
	}
}

func serveInterpreter(ctx context.Context, log *slog.Logger) error {
	debug.SetGCPercent(50)
	// See run: wake-ups of threads are dear in a sandbox.
	runtime.GOMAXPROCS(1)
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", codeinterp.Port))
	if err != nil {
		return fmt.Errorf("code interpreter: %w", err)
	}
	warm := strings.Fields(os.Getenv("CAISSON_INTERPRETER_WARM"))
	// Kernels and their children are not to see it.
	if err := os.Unsetenv("CAISSON_INTERPRETER_WARM"); err != nil {
		return err
	}
	memory, _, _ := kernel.Memory()
	kernels, err := kernel.NewMaker(interpreterDir, max(memory-reserve, 0), warm)
	if err != nil {
		return err
	}
	s, err := codeinterp.New(codeinterp.Config{
		Listener: listener, Kernels: kernels, Log: log,
		AgentURL: fmt.Sprintf("http://127.0.0.1:%d", control.AgentPort),
	})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
