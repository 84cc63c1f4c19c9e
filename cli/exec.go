package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// seconds is a flag value: a number of seconds, or a duration.
type seconds time.Duration

func (d *seconds) Set(s string) error {
	if n, err := strconv.ParseFloat(s, 64); err == nil && n >= 0 && n < 1e9 {
		*d = seconds(n * float64(time.Second))
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("write a number of seconds or a duration such as 10m")
	}
	*d = seconds(v)
	return nil
}

func (d *seconds) String() string { return time.Duration(*d).String() }
func (d *seconds) Type() string   { return "seconds" }

// execFlags are the flags of commands that run something.
type execFlags struct {
	env     []string
	dir     string
	user    string
	timeout seconds
	json    bool
	noStdin bool
}

func (f *execFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&f.dir, "cwd", "w", "", "directory to run in")
	fl.StringVarP(&f.user, "user", "u", "", "user to run as")
	fl.Var(&f.timeout, "timeout", "end the command after this time; 0 for never")
	fl.BoolVarP(&f.json, "json", "j", false, "print one JSON object at the end instead of the output")
	fl.BoolVarP(&f.noStdin, "no-stdin", "n", false, "do not pass standard input on")
	cmd.Annotations = map[string]string{remote: "yes"}
}

func (s *session) execCommand() *cobra.Command {
	var f execFlags
	var tty bool
	cmd := &cobra.Command{
		Use:   "exec <sandbox> [--] <command> [argument...]",
		Short: "Run a command in a sandbox",
		Long: `Run a command in a sandbox with our standard streams; piped input is passed on. Its exit code becomes ours.

Control sequences in the output, colours excepted, are shown as text when standard output is a terminal, and are left alone in a pipe and with --tty.`,
		Example: `caisson sandbox exec work -- ls -l /
echo 'print(1)' | caisson sandbox exec work -- python3 -
caisson sandbox exec -t work -- top`,
		Args:              args("<sandbox>", "<command>", "[argument...]"),
		ValidArgsFunction: s.completeSandbox,
	}
	exec := func(argv []string) func(*cobra.Command, []string) error {
		return s.command(func(ctx context.Context, c *connection, got []string) error {
			env, err := pairs("--env", f.env, s.Env.Lookup)
			if err != nil {
				return err
			}
			sb, err := c.reachable(ctx, got[0])
			if err != nil {
				return err
			}
			j := job{agent: c.Agent(sb).As(f.user), cmd: client.Command{Path: argv[0], Args: argv[1:], Env: env, Dir: f.dir, Timeout: time.Duration(f.timeout)}}
			if !f.noStdin {
				j.stdin = s.piped()
			}
			if tty {
				return c.endedMeanwhile(ctx, sb.ID, s.interactive(ctx, j))
			}
			before := s.lastFlow(ctx, c, sb.ID)
			defer func() { s.hintDenied(ctx, c, sb.ID, before) }()
			if f.json {
				err = s.runJSON(ctx, sb.ID, j)
			} else {
				err = s.runStreaming(ctx, j, false)
			}
			return timedOut(c.endedMeanwhile(ctx, sb.ID, err), time.Duration(f.timeout))
		})
	}
	cmd.RunE = func(cmd *cobra.Command, got []string) error {
		argv, err := lateFlags(cmd, got[1:])
		if err != nil {
			return err
		}
		if help, _ := cmd.Flags().GetBool("help"); help {
			return cmd.Help()
		}
		if len(argv) == 0 {
			return usage(fmt.Errorf("missing argument: <command>"))
		}
		return exec(argv)(cmd, got)
	}
	f.add(cmd)
	cmd.Flags().StringArrayVarP(&f.env, "env", "e", nil, "variable: NAME takes it from here (for secrets), NAME=VALUE sets it")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "run it on a terminal")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// lateFlags reads the flags of ours that stand between the sandbox and the
// command, and returns the command. Flags end at the first word that is none,
// or at "--"; what follows is the command's own and is left as it is.
func lateFlags(cmd *cobra.Command, rest []string) ([]string, error) {
	if cmd.ArgsLenAtDash() >= 0 {
		return rest, nil // the sandbox stands behind "--" already
	}
	if err := cmd.Flags().Parse(rest); err != nil {
		return nil, usage(err)
	}
	return cmd.Flags().Args(), nil
}

func (s *session) shellCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:               "shell <sandbox>",
		Aliases:           []string{"sh"},
		Short:             "Open a shell in a sandbox",
		Example:           "caisson sandbox shell work",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		Annotations:       map[string]string{remote: "yes"},
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.reachable(ctx, got[0])
			if err != nil {
				return err
			}
			const pick = `if [ -x /bin/bash ]; then exec /bin/bash -il; fi; exec /bin/sh -i`
			err = s.interactive(ctx, job{
				agent: c.Agent(sb).As(f.user),
				cmd:   client.Command{Path: "/bin/sh", Args: []string{"-c", pick}, Dir: f.dir, Env: map[string]string{}},
			})
			return c.endedMeanwhile(ctx, sb.ID, err)
		}),
	}
	cmd.Flags().StringVarP(&f.dir, "cwd", "w", "", "directory to start in")
	cmd.Flags().StringVarP(&f.user, "user", "u", "", "user to run as")
	return cmd
}

// interactive runs a job on a terminal of its own. Ours is raw meanwhile, so
// that Ctrl-C reaches the program inside; its output is not touched.
func (s *session) interactive(ctx context.Context, j job) error {
	size := s.size()
	j.cmd.PTY = &size
	if j.cmd.Env == nil {
		j.cmd.Env = map[string]string{}
	}
	for name, fallback := range map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"} {
		if _, set := j.cmd.Env[name]; set {
			continue
		}
		j.cmd.Env[name] = fallback
		if v, ok := s.Env.Lookup(name); ok && name == "TERM" && v != "" && v != "dumb" {
			j.cmd.Env[name] = v
		}
	}
	j.stdin, j.stdout, j.stderr = s.In, s.Out, s.Out
	restore, err := terminal.Raw(s.In)
	if err != nil {
		return fmt.Errorf("set up the terminal: %w", err)
	}
	defer restore()
	exit, err := s.run(ctx, j)
	if err != nil {
		return err
	}
	return exitWith(codeOf(exit))
}
