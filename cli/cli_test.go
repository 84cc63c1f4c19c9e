package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/caisson-dev/caisson/cli"
	"github.com/caisson-dev/caisson/cli/clitest"
	"github.com/caisson-dev/caisson/cli/doctor"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/secret"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"caisson": program})
}

// program is cmd/caisson with local work that is only pretended.
func program() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	app := cli.App{Version: "v0.0.0-test", In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: config.OSEnviron(), Local: pretended()}
	code := app.Run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

func pretended() cli.Local {
	return cli.Local{
		Serve: func(ctx context.Context, cfg config.Config, o cli.ServeOptions) error {
			o.Progress("prepare", "")
			if cfg.Egress.Default == "allow" {
				return errors.New("the engine does not start\nits log says more")
			}
			if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
				return err
			}
			var problem error
			if cfg.Log.Level == "debug" {
				problem = cli.ErrNoTemplate
			}
			o.Ready(cli.Ready{Problem: problem, URL: config.LocalURL(cfg.Listen, cfg.TLS.Enabled()), NewKey: secret.New("e2b_new"), CAFile: config.CAFile(cfg.Data)})
			<-ctx.Done()
			return context.Cause(ctx)
		},
		Init: func(_ context.Context, cfg config.Config, p cli.Progress) error {
			p("unpack engine", "")
			p("build template base", "")
			p("", "retrieving packages\x1b[2J")
			if cfg.Log.Level == "error" {
				return errors.New("mmdebstrap: no mirror answers")
			}
			return nil
		},
		Checks: func(cfg config.Config) []doctor.Check {
			return []doctor.Check{{Name: "engine", Run: func(context.Context) doctor.Result {
				if cfg.Template.Suite == "sid" {
					return doctor.Result{Status: doctor.Fail, Detail: "does not start", Fix: "look"}
				}
				return doctor.Result{Status: doctor.OK, Detail: "systrap"}
			}}}
		},
		BuildTemplate: func(_ context.Context, _ config.Config, b cli.TemplateBuild, p cli.Progress) (client.Template, error) {
			p("pack "+b.Name, "")
			t := client.Template{ID: "t1", Names: []string{b.Name}, Source: b.FromTar, Resources: b.Resources, RootfsBytes: 3 << 20, UpdatedAt: time.Now()}
			switch {
			case b.Name == "bad":
				return t, errors.New("no mirror answers")
			case b.Name == "old" && !b.Force:
				t.UpdatedAt = time.Unix(1e9, 0)
			}
			return t, nil
		},
		Stock: []cli.StockTemplate{{Name: "base", About: "for most"}, {Name: "old", About: "was built before"}, {Name: "bad", About: "cannot be built"}, {Name: "dev", About: "compilers"}},
		CreateKey: func(_ context.Context, _ config.Config, team, name string) (client.Key, error) {
			return client.Key{ID: "k9", Name: name, Team: team, Key: "e2b_local"}, nil
		},
		ListKeys: func(_ context.Context, _ config.Config, team string) ([]client.Key, error) {
			return []client.Key{{ID: "k9", Name: "n", Team: team}}, nil
		},
		RevokeKey: func(_ context.Context, _ config.Config, team, id string) error {
			return fmt.Errorf("key %s of team %s does not exist", id, team)
		},
	}
}

// TestScripts runs what must hold for every server.
func TestScripts(t *testing.T) {
	t.Parallel()
	clitest.Scripts(t, clitest.NewStub(t).Target, "testdata/script")
}

// TestStubScripts runs what needs the stand-in to do something.
func TestStubScripts(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	stub.Cmds = map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"deny": func(_ *testscript.TestScript, _ bool, args []string) { stub.Deny(args[0]) },
		"end":  func(_ *testscript.TestScript, _ bool, args []string) { stub.End(args[0], args[1]) },
		"warm": func(ts *testscript.TestScript, _ bool, args []string) {
			var st client.PoolStatus
			ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &st))
			stub.Warm(st)
		},
	}
	clitest.Scripts(t, stub.Target, "testdata/stub")
}

// TestBareScripts runs what needs a server without templates.
func TestBareScripts(t *testing.T) {
	t.Parallel()
	stub := clitest.NewStub(t)
	stub.DropTemplates()
	clitest.Scripts(t, stub.Target, "testdata/bare")
}

// TestLocalScripts runs what needs no server.
func TestLocalScripts(t *testing.T) {
	t.Parallel()
	clitest.Scripts(t, clitest.Target{URL: "http://127.0.0.1:1", KeyFile: os.DevNull}, "testdata/local")
}
