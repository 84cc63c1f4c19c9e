// Command caisson is the server and the command line in one binary.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/config"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal ends things in order; a second one ends the process.
	context.AfterFunc(ctx, stop)
	app := cli.App{
		Version: version,
		In:      os.Stdin,
		Out:     os.Stdout,
		Err:     os.Stderr,
		Env:     config.OSEnviron(),
		Local:   local(),
	}
	code := app.Run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
