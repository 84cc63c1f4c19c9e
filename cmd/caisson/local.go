package main

import (
	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/server"
)

// local binds the commands that act on this machine to what does the work.
func local() cli.Local {
	return cli.Local{
		Serve:         server.Serve,
		Init:          server.Init,
		Checks:        server.Checks,
		BuildTemplate: server.BuildTemplate,
		Stock:         server.StockTemplates(),
		CreateKey:     server.CreateKey,
		ListKeys:      server.ListKeys,
		RevokeKey:     server.RevokeKey,
		SetTeamBudget: server.SetTeamBudget,
	}
}
