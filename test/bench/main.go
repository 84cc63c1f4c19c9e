// Command bench measures Caisson against fork+exec, bubblewrap, runc and
// Docker in one run and writes docs/benchmarks.md. Figures are medians of
// interleaved rounds, so that a noisy machine disturbs every row alike.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

type options struct {
	binary, data, rootfs, out, sdk string
	rounds, idle, cycles, density  int
	only                           string
}

const idleStep = "a command after idling"

func main() {
	var o options
	flag.StringVar(&o.binary, "caisson", "bin/caisson", "the binary under test")
	flag.StringVar(&o.data, "data", "", "a data directory that `caisson init` prepared")
	flag.StringVar(&o.rootfs, "rootfs", "", "an unpacked Debian tree for bubblewrap, runc and Docker")
	flag.StringVar(&o.sdk, "sdk", "", "directory with the JavaScript SDK installed")
	flag.StringVar(&o.out, "out", "docs/benchmarks.md", "report to write")
	flag.IntVar(&o.rounds, "rounds", 30, "rounds of each interleaved measurement")
	flag.IntVar(&o.idle, "idle", 100, "idle sandboxes for the memory figures")
	flag.IntVar(&o.density, "density", 500, "sandboxes live at once, at most")
	flag.IntVar(&o.cycles, "cycles", 500, "create/exec/kill cycles of the leak check")
	flag.StringVar(&o.only, "only", "", "run only the steps whose name contains this, and write no report")
	flag.Parse()
	if abs, err := filepath.Abs(o.binary); err == nil {
		o.binary = abs
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	started := time.Now()
	srv, err := benchServer(ctx, o, 0)
	if err != nil {
		return err
	}
	defer func() { srv.Stop() }()
	r := newReport(o, started)

	steps := []struct {
		name string
		run  func(context.Context, options, *testenv.Server, *report) error
	}{
		{"start to first output", benchStart},
		{"command in a running sandbox", benchExec},
		{"commands through the JavaScript SDK", benchSDK},
		{"files", benchFiles},
		{"creates per second", benchRate},
		{"idle sandboxes", benchIdle},
		{"pause and resume", benchPause},
		{"fork", benchFork},
		{"control plane", benchControl},
		{"density", benchDensity},
		{"leaks", benchLeaks},
	}
	var resting *idler
	if strings.Contains(idleStep, o.only) {
		if resting, err = newIdler(ctx, srv); err != nil {
			return fmt.Errorf("%s: %w", idleStep, err)
		}
	}
	for _, s := range steps {
		if !strings.Contains(s.name, o.only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "== %s (%.0fs)\n", s.name, time.Since(started).Seconds())
		if err := s.run(ctx, o, srv, r); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if resting != nil {
		fmt.Fprintf(os.Stderr, "== %s (%.0fs)\n", idleStep, time.Since(started).Seconds())
		if err := resting.wake(ctx, srv, r); err != nil {
			return fmt.Errorf("%s: %w", idleStep, err)
		}
	}
	srv.Stop()
	if strings.Contains("prebooted sandboxes", o.only) {
		fmt.Fprintf(os.Stderr, "== prebooted sandboxes (%.0fs)\n", time.Since(started).Seconds())
		if err := benchPrebooted(ctx, o, r); err != nil {
			return fmt.Errorf("prebooted sandboxes: %w", err)
		}
	}
	if strings.Contains("code interpreter", o.only) {
		fmt.Fprintf(os.Stderr, "== code interpreter (%.0fs)\n", time.Since(started).Seconds())
		if err := benchInterpreter(ctx, o, r); err != nil {
			return fmt.Errorf("code interpreter: %w", err)
		}
	}
	if strings.Contains("warm pool", o.only) {
		fmt.Fprintf(os.Stderr, "== warm pool (%.0fs)\n", time.Since(started).Seconds())
		if err := benchWarm(ctx, o, r); err != nil {
			return fmt.Errorf("warm pool: %w", err)
		}
	}
	if o.only != "" {
		return nil
	}
	return r.write()
}
