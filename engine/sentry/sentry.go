// Package sentry is the part of caisson-engine that runs as gVisor: the sandbox
// process re-executes our own binary with the sub-commands "boot" and "umount",
// and Main takes over before anything of the engine runs. It has only these two
// sub-commands, which keeps the binary small and its start short, and brings a
// precompiled seccomp program.
package sentry

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

// Argv0 is the prefix of the program name that gVisor gives its processes.
const Argv0 = "runsc"

// Invoked reports whether this process was started by gVisor as one of its
// own: either under its program name or as "/proc/self/exe umount".
func Invoked(args []string) bool {
	if len(args) == 0 {
		return false
	}
	if strings.HasPrefix(filepath.Base(args[0]), Argv0) {
		return true
	}
	return args[0] == "/proc/self/exe" && len(args) > 1 && args[1] == "umount"
}

// Main runs the gVisor sub-command in os.Args and does not return.
func Main() {
	// The program was compiled for process 1, which the sandbox process is in its
	// own namespace; gVisor's rules contain the number.
	if slices.Contains(os.Args[1:], "boot") && os.Getpid() == 1 {
		registerSeccomp()
		registerHostname()
	}
	const internal = "internal use only"
	cli.Run(map[util.SubCommand]string{
		new(cmd.Boot):   internal,
		new(cmd.Umount): internal,
	}, []subcommands.Command{})
}
