// Command gen writes the seccomp program of the engine's configuration, as
// gVisor would compile it at run time. It runs at development time only.
package main

import (
	"fmt"
	"os"

	"github.com/caisson-dev/caisson/engine/sentry/seccompgen"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen <file>")
		os.Exit(2)
	}
	if os.Getpid() != 1 {
		if err := seccompgen.Command(os.Args[1:]...).Run(); err != nil {
			fmt.Fprintln(os.Stderr, "gen:", err)
			os.Exit(1)
		}
		return
	}
	b, err := seccompgen.Program()
	if err == nil {
		err = os.WriteFile(os.Args[1], b, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}
