// Command soak runs many lives of sandboxes on a server whose parts are killed
// meanwhile, and fails when anything was lost or is left.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
	"github.com/caisson-dev/caisson/internal/testenv/soak"
)

func main() {
	var o soak.Options
	binary := flag.String("caisson", "bin/caisson", "the binary under test")
	data := flag.String("data", "", "a data directory that `caisson init` prepared; a copy is used")
	hot := flag.Int("hot", 2, "warm sandboxes that the server keeps")
	flag.IntVar(&o.Cycles, "cycles", 10_000, "sandboxes to create, use and kill")
	flag.IntVar(&o.Workers, "workers", 4, "sandboxes in use at a time")
	flag.IntVar(&o.Chaos, "chaos", 50, "about how many cycles until the next kill -9 of server, engine, spawner or sandbox; 0 for none")
	flag.Uint64Var(&o.Seed, "seed", uint64(time.Now().UnixNano()), "of the choices")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *data, *hot, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary, data string, hot int, o soak.Options) error {
	dir, err := os.MkdirTemp(filepath.Dir(data), "soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "data")
	if err := testenv.CopyData(data, copied); err != nil {
		return err
	}
	s, err := testenv.Start(ctx, testenv.Options{
		Binary: binary, Data: copied, Args: []string{"--destroy-on-exit"},
		Env: []string{
			"CAISSON_RATE_REQUESTS_PER_SECOND=0", "CAISSON_RATE_CREATES_PER_SECOND=0",
			fmt.Sprintf("CAISSON_POOL_TEMPLATES=base=%d", hot),
		},
	})
	if err != nil {
		return err
	}
	defer func() { s.Stop() }()
	began := time.Now()
	o.Say = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "[%5.0fs] "+format+"\n", append([]any{time.Since(began).Seconds()}, args...)...)
	}
	o.Say("%d cycles by %d workers, seed %d", o.Cycles, o.Workers, o.Seed)
	r, err := soak.Run(ctx, s, o)
	if err != nil {
		return err
	}
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	fmt.Println(string(out))
	if len(r.Problems) > 0 {
		return fmt.Errorf("%d problems", len(r.Problems))
	}
	o.Say("nothing was lost and nothing is left")
	return nil
}
