// Package cli is the command line: one file a command. It talks to a server
// through package client like any other program; the few commands that act on
// this machine (serve, init, doctor, template build) call the functions of
// Local, which cmd/caisson injects. Only cmd/caisson imports it.
//
// Data goes to standard output, words to standard error. What comes from
// inside a sandbox reaches a terminal only through package cli/terminal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"charm.land/fang/v2"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/doctor"
	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/telemetry"
)

// App is one invocation: its streams, environment and what it can do here.
type App struct {
	Version string
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Env     config.Environ
	Local   Local
}

// Progress tells of long work. A call with a step begins it and ends the one
// before; a call without one gives a detail of the current step, such as a
// line of a build log.
type Progress = func(step, detail string)

// Local is what acts on this machine. A command whose function is nil says
// that this binary cannot do it.
type Local struct {
	// Serve runs the server until ctx ends.
	Serve func(ctx context.Context, cfg config.Config, o ServeOptions) error
	// Init prepares all that Serve needs; it is idempotent.
	Init func(ctx context.Context, cfg config.Config, p Progress) error
	// Checks are further checks of doctor, for example an engine probe.
	Checks func(cfg config.Config) []doctor.Check
	// BuildTemplate builds a template into the data directory.
	BuildTemplate func(ctx context.Context, cfg config.Config, b TemplateBuild, p Progress) (client.Template, error)
	// Stock are the templates that BuildTemplate builds from packages.
	Stock []StockTemplate
	// CreateKey, ListKeys and RevokeKey act on the data directory, for teams
	// other than that of the caller's key.
	CreateKey func(ctx context.Context, cfg config.Config, team, name string) (client.Key, error)
	ListKeys  func(ctx context.Context, cfg config.Config, team string) ([]client.Key, error)
	RevokeKey func(ctx context.Context, cfg config.Config, team, id string) error
	// SetTeamBudget gives a team of the data directory a budget, nil the server's.
	SetTeamBudget func(ctx context.Context, cfg config.Config, team string, b *client.BudgetOfTeam) error
}

// ServeOptions are what Serve gets beside the configuration.
type ServeOptions struct {
	Version string
	Log     *slog.Logger
	Metrics *telemetry.Metrics
	// DestroyOnExit ends every sandbox when the server stops.
	DestroyOnExit bool
	// Progress tells of preparations before the server is ready.
	Progress Progress
	// Ready must be called once, when requests are answered.
	Ready func(Ready)
}

// Ready is what a server tells once it answers.
type Ready struct {
	// URL is where it can be reached from this machine.
	URL string
	// NewKey is the first API key when it has just been made, otherwise empty.
	NewKey secret.Value
	// CAFile is the certificate of the self-signed authority, or empty.
	CAFile string
	// Problem is why no sandbox can be created yet, ErrNoTemplate for one;
	// nil when all is well.
	Problem error
}

// ErrNoTemplate is the problem of a data directory that was never prepared.
var ErrNoTemplate = errors.New("no template is built: run \"caisson init\" with the same --data")

// TemplateBuild asks for a build.
type TemplateBuild struct {
	Name string
	// FromTar is a tar file of a root file system; empty builds the stock
	// template of that name from Debian packages.
	FromTar string
	// Force builds although one of the same recipe is there.
	Force     bool
	Resources client.Resources
}

// session is one invocation with its global flags.
type session struct {
	App
	configFile string
	data       string
	url        string
	keyFile    string
	quiet      bool
	sets       []string
}

// Run executes the command line args (without the program's name) and returns
// the exit code. It ends commands in sandboxes when ctx ends.
func (a App) Run(ctx context.Context, args []string) int {
	s := &session{App: a}
	root := s.root()
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	var failed error
	deferErrors(root, &failed)
	err := fang.Execute(ctx, root,
		fang.WithVersion(a.Version),
		fang.WithoutManpage(),
		fang.WithErrorHandler(func(_ io.Writer, _ fang.Styles, err error) { s.printError(err) }),
	)
	if err == nil && failed != nil {
		s.printError(failed)
		err = failed
	}
	return exitCode(root, args, err)
}

// deferErrors keeps the errors of commands from fang, which would ask the
// terminal for its colours, on its input, before it hands one to us.
func deferErrors(cmd *cobra.Command, failed *error) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, got []string) error {
			*failed = check(c, got)
			return nil
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, got []string) error {
			if *failed == nil {
				*failed = run(c, got)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		deferErrors(sub, failed)
	}
}

func (s *session) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "caisson",
		Short: "Sandboxes for AI agents: isolated, on your own machine, speaking the E2B protocol",
		Example: `# start a server, in one terminal
caisson serve --data ./data
# run code in a fresh sandbox, in another
caisson run --data ./data -- python3 -c 'print(6 * 7)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	f := root.PersistentFlags()
	f.StringVar(&s.configFile, "config", "", "configuration file")
	f.StringVar(&s.data, "data", "", "data directory of the local server")
	f.StringVar(&s.url, "url", "", "server to talk to (default: CAISSON_API_URL, E2B_API_URL, the local server)")
	f.StringVar(&s.keyFile, "api-key-file", "", "file with the API key (default: CAISSON_API_KEY, E2B_API_KEY, DIR/api-key)")
	f.BoolVarP(&s.quiet, "quiet", "q", false, "no progress and no hints")
	root.AddGroup(
		&cobra.Group{ID: "use", Title: "sandboxes"},
		&cobra.Group{ID: "operate", Title: "operation"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("use", s.runCommand(), s.sandboxCommand(), s.templateCommand(), s.snapshotCommand(), s.egressGroup())
	add("operate", s.serveCommand(), s.initCommand(), s.doctorCommand(), s.configCommand(), s.poolCommand(), s.keyCommand(), s.usageCommand(), s.budgetCommand(), s.versionCommand())
	for _, c := range []*cobra.Command{s.execCommand(), s.shellCommand(), s.copyCommand(), s.listCommand()} {
		c.Hidden = true
		root.AddCommand(c)
	}
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args, completion.RunE = knownShell, showHelp
	}
	return root
}

// knownShell refuses a shell that there is no completion script for.
func knownShell(cmd *cobra.Command, got []string) error {
	if len(got) == 0 {
		return nil
	}
	var shells []string
	for _, c := range cmd.Commands() {
		shells = append(shells, c.Name())
	}
	slices.Sort(shells)
	return usage(fmt.Errorf("there is no completion for %q: use one of %s", got[0], strings.Join(shells, ", ")))
}

// load reads the configuration; flags maps keys to values given as flags.
func (s *session) load(flags map[string]config.Flag) (*config.Loaded, error) {
	in := config.Inputs{File: s.configFile, Env: s.Env, Flags: map[string]config.Flag{}}
	for _, kv := range s.sets {
		key, value, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, usage(fmt.Errorf("--set %s: write KEY=VALUE", kv))
		}
		if !knownKey(key) {
			return nil, usage(fmt.Errorf("--set %s: unknown key %q: run \"caisson config --keys\" for the list", kv, key))
		}
		in.Flags[key] = config.Flag{Name: "--set " + key, Value: value}
	}
	for key, f := range flags {
		in.Flags[key] = f
	}
	if s.data != "" {
		in.Flags["data"] = config.Flag{Name: "--data", Value: s.data}
	}
	l, err := config.Load(in)
	if err != nil {
		return nil, err
	}
	for _, w := range l.Warnings {
		s.say("warning: %s\n", w)
	}
	return l, nil
}

func knownKey(name string) bool {
	for _, k := range config.Keys() {
		if k.Name == name {
			return true
		}
	}
	return false
}

// say writes words to standard error unless --quiet is given. Arguments from
// outside are made safe for the terminal.
func (s *session) say(format string, args ...any) {
	if s.quiet {
		return
	}
	s.sayAlways(format, args...)
}

func (s *session) sayAlways(format string, args ...any) {
	for i, a := range args {
		switch v := a.(type) {
		case string:
			args[i] = terminal.Text(v)
		case error:
			args[i] = terminal.Text(v.Error())
		}
	}
	fmt.Fprintf(s.Err, format, args...)
}

// errNotHere is returned by commands whose Local function is missing.
var errNotHere = errors.New("this binary was built without it")
