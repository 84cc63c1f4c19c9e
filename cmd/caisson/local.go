package main

import "github.com/caisson-dev/caisson/cli"

// local binds the commands that act on this machine to what does the work.
func local() cli.Local {
	return cli.Local{}
}
