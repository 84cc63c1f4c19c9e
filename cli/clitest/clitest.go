// Package clitest runs the command line's scripts against a server: a stand-in
// with the real agent (Stub), or a real one. Only tests import it.
package clitest

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Target is the server that scripts talk to.
type Target struct {
	URL string
	// KeyFile holds the API key.
	KeyFile string
	// Bin, when set, is a directory with the caisson program, put first in
	// PATH; otherwise the test binary must provide the command "caisson" (see
	// testscript.Main).
	Bin string
	// Cmds are further commands for the scripts.
	Cmds map[string]func(ts *testscript.TestScript, neg bool, args []string)
}

// Scripts runs every script of dir against the target. Scripts must not
// assume more than the base template offers, nor who they are inside.
func Scripts(t *testing.T, target Target, dir string) {
	t.Helper()
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		Cmds:                target.Cmds,
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("CAISSON_API_URL", target.URL)
			env.Setenv("CAISSON_API_KEY_FILE", target.KeyFile)
			env.Setenv("CAISSON_CONFIG", os.DevNull)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TZ", "UTC")
			// A program with the race detector otherwise waits a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			if target.Bin != "" {
				env.Setenv("PATH", target.Bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			}
			return nil
		},
	})
}
