package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

// The life of a one-shot sandbox is a lease that is renewed while its command
// runs: if this process dies, the sandbox soon follows.
const (
	lease      = 90 * time.Second
	leaseRenew = 30 * time.Second
)

func (s *session) runCommand() *cobra.Command {
	var create createFlags
	var f execFlags
	var co code
	var p parallel
	var out string
	cmd := &cobra.Command{
		Use:   "run [--] [<command> [argument...]]",
		Short: "Run a command or code in a fresh sandbox, then destroy it",
		Long: `Create a sandbox, run a command, or code given with -c or -f, in it with our standard streams, and destroy it, also when the command fails or Ctrl-C ends it. Its exit code becomes ours.

With --parallel or --items the command is run once for each item behind ":::" and each line of the file, every time in a sandbox of its own. The item takes the place of {} in the arguments, or is added as the last; code gets it as its argument. A line that begins with { is an item in JSON (docs/batch.md). --timeout is each item's then, and five minutes when it is not given. The exit code is the number of items that failed, 100 for more.

With --out code is run by the code interpreter, of the template code-interpreter-v1 if none is named, in Python, JavaScript, TypeScript, R, Java or Bash. The charts, pictures, tables and data that it shows are saved in that directory, and the text of its value is printed. In a template without an interpreter it is run as without --out.`,
		Example: `caisson run -- python3 -c 'print(6 * 7)'
caisson run -l javascript -c 'console.log(6 * 7)'
caisson run --preset pypi -- bash -c 'pip install -q requests && pip list'
cat main.py | caisson run -c -
caisson run --parallel 8 -- pytest -q ::: tests/a.py tests/b.py
ls data | caisson run --parallel 4 --items - -c 'import sys; print(sys.argv[1])'
caisson run --out charts -c 'import matplotlib.pyplot as plt; plt.plot([1, 4, 9]); plt.show()'`,
		Args: args("[command]", "[argument...]"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if out != "" && (p.given() || !co.given()) {
				return usage(fmt.Errorf("--out goes with code: -c CODE or -f FILE"))
			}
			if out != "" && (f.dir != "" || f.user != "") {
				return usage(fmt.Errorf("--out runs the code where and as whom the code interpreter does: leave out --cwd and --user"))
			}
			if p.given() {
				return s.runParallel(ctx, c, create, f, co, p, got)
			}
			if p.failFast {
				return usage(fmt.Errorf("--fail-fast goes with --parallel or --items"))
			}
			if len(got) == 0 && !co.given() {
				return usage(fmt.Errorf("nothing to run: give a command, -c CODE or -f FILE"))
			}
			if len(got) > 0 && co.given() {
				return usage(fmt.Errorf("give a command or code, not both: %s", quoted(got[0])))
			}
			return s.oneShot(ctx, c, create, f, co, got, out)
		}),
	}
	create.add(s, cmd)
	f.add(cmd)
	co.add(cmd)
	p.add(cmd)
	cmd.Flags().StringVarP(&out, "out", "o", "", "run code in the code interpreter and save what it shows in this directory")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (c *code) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&c.text, "code", "c", "", "code to run; - reads it from standard input")
	fl.StringVarP(&c.file, "file", "f", "", "file with the code; - is standard input")
	fl.StringVarP(&c.language, "language", "l", "python", "language of the code: python, javascript or bash")
}

func (s *session) oneShot(ctx context.Context, c *connection, create createFlags, f execFlags, co code, argv []string, out string) (err error) {
	o, err := create.options(s)
	if err != nil {
		return err
	}
	var prepare prepared
	var shown client.Code
	if out != "" {
		shown, err = s.codeFor(co)
		withInterpreter(ctx, c, &o)
	} else {
		prepare, err = s.prepare(co, argv)
	}
	if err != nil {
		return err
	}
	o.Timeout = lease
	// Ctrl-C while it is being created must not leave it behind.
	creating, cancel := outlive(ctx, 5*time.Second)
	end := s.watchCreate(&o, f.json)
	sb, err := c.Create(creating, o)
	end()
	cancel()
	if err != nil {
		return err
	}
	defer func() {
		s.hintDenied(ctx, c, sb.ID, 0)
		err = s.destroy(ctx, c, sb.ID, err)
	}()
	leased, release := context.WithCancel(ctx)
	defer release()
	go renew(leased, c, sb.ID)
	if out == "" {
		return s.runPrepared(ctx, c, sb, f, prepare, false)
	}
	agent := c.Agent(sb).As(f.user)
	has, err := s.interpreter(ctx, agent, sb)
	if err != nil {
		return err
	}
	if has {
		err := s.runForResults(ctx, agent, sb, f, shown, out)
		return c.endedMeanwhile(ctx, sb.ID, err)
	}
	s.say("warning: template %s has no code interpreter: nothing is saved in %s\n", sb.TemplateName, quoted(out))
	if prepare, err = s.prepare(code{text: shown.Text, language: shown.Language}, argv); err != nil {
		return err
	}
	return s.runPrepared(ctx, c, sb, f, prepare, false)
}

// codeFor reads the code of a run with --out. Which languages there are is for
// the sandbox to say.
func (s *session) codeFor(co code) (client.Code, error) {
	if co.text != "" && co.file != "" {
		return client.Code{}, usage(fmt.Errorf("--code/-c and --file/-f both name the code: give one of them"))
	}
	text, _, err := co.read(s)
	return client.Code{Text: text, Language: co.language}, err
}

// outlive returns a context that ends d after ctx does.
func outlive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-longer.Done():
		case <-time.After(d):
			cancel(context.Cause(ctx))
		}
	})
	return longer, func() { stop(); cancel(nil) }
}

// renew keeps a one-shot sandbox alive until ctx ends. A failed renewal is
// tried again at the next turn; when all fail the sandbox ends by itself.
func renew(ctx context.Context, c *connection, id string) {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = c.Extend(ctx, id, lease)
		}
	}
}

// destroy ends a one-shot sandbox after its command ended with err, and tells
// when it had already ended for a reason of its own.
func (s *session) destroy(ctx context.Context, c *connection, id string, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	kerr := c.Kill(ctx, id)
	if kerr == nil {
		return err
	}
	if !errors.Is(kerr, errdefs.ErrNotFound) {
		s.say("warning: sandbox %s was not destroyed and ends by itself within %s: %s\n", id, lease.String(), kerr)
		return err
	}
	if sb, gerr := c.Get(ctx, id); gerr == nil && sb.Reason != "" && sb.Reason != "killed" {
		return &codeError{code: exitOurs, cause: fmt.Errorf("the sandbox ended: %s%s", sb.Reason, reasonText(sb))}
	}
	return err
}

// reasonText explains a reason of the end of a sandbox.
func reasonText(sb client.Sandbox) string {
	switch sb.Reason {
	case "oom":
		return fmt.Sprintf(": it used more than its %d MiB of memory; give more with --memory", sb.Resources.MemoryMiB)
	case "timeout":
		return ": its time to live was over"
	}
	return ""
}

// prepared is what to run, made once the sandbox is there.
type prepared struct {
	make    func(ctx context.Context, a *client.Agent) (client.Command, func(), error)
	noStdin bool // standard input was the code
	program string
}

func (s *session) prepare(co code, argv []string) (prepared, error) {
	if !co.given() {
		return prepared{program: argv[0], make: func(context.Context, *client.Agent) (client.Command, func(), error) {
			return client.Command{Path: argv[0], Args: argv[1:]}, func() {}, nil
		}}, nil
	}
	if co.text != "" && co.file != "" {
		return prepared{}, usage(fmt.Errorf("--code/-c and --file/-f both name the code: give one of them"))
	}
	lang, err := languageOf(co.language)
	if err != nil {
		return prepared{}, err
	}
	text, fromStdin, err := co.read(s)
	if err != nil {
		return prepared{}, err
	}
	return prepared{program: lang.program, noStdin: fromStdin, make: func(ctx context.Context, a *client.Agent) (client.Command, func(), error) {
		return lang.command(ctx, a, text)
	}}, nil
}

func (s *session) runPrepared(ctx context.Context, c *connection, sb client.Sandbox, f execFlags, p prepared, words bool) error {
	agent := c.Agent(sb).As(f.user)
	cmd, cleanup, err := p.make(ctx, agent)
	if err != nil {
		return err
	}
	defer cleanup()
	cmd.Dir, cmd.Timeout = f.dir, time.Duration(f.timeout)
	j := job{agent: agent, cmd: cmd}
	if !f.noStdin && !p.noStdin {
		j.stdin = s.piped()
	}
	if f.json {
		err = s.runJSON(ctx, sb.ID, j)
	} else {
		err = s.runStreaming(ctx, j, words)
	}
	if ce, ok := errors.AsType[*codeError](err); ok && ce.code == 127 && ce.cause == nil {
		s.say("hint: 127 means that %s was not found in template %s\n", quoted(p.program), sb.TemplateName)
	}
	return timedOut(c.endedMeanwhile(ctx, sb.ID, err), time.Duration(f.timeout))
}

// endedMeanwhile replaces an error of the agent's by the reason of the
// sandbox's end, when it has ended, or by word of its pause.
func (c *connection) endedMeanwhile(ctx context.Context, id string, err error) error {
	ce, ok := errors.AsType[*client.Error](err)
	if !ok || errors.Is(err, client.ErrTimeout) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	sb, gerr := c.Get(ctx, id)
	// A stream breaks a moment before the end is on record.
	for ce.Code == "unreachable" && gerr == nil && (sb.State == client.Running || sb.State == client.Killing) {
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
		sb, gerr = c.Get(ctx, id)
	}
	if gerr != nil {
		return err
	}
	switch sb.State {
	case client.Pausing, client.Paused:
		err := fmt.Errorf("the sandbox was paused; what ran in it%s", afterPause(sb))
		return &codeError{code: exitOurs, cause: hint(err, "caisson sandbox resume %s", sb.ID)}
	case client.Pending, client.Running, client.Resuming:
		return err
	}
	return &codeError{code: exitOurs, cause: fmt.Errorf("the sandbox ended: %s%s", cmp.Or(sb.Reason, string(sb.State)), reasonText(sb))}
}

// afterPause says what becomes of processes in a paused sandbox.
func afterPause(sb client.Sandbox) string {
	if sb.Saved != nil && sb.Saved.Kind == client.SavedFiles {
		return " has ended"
	}
	return " goes on when it is resumed"
}

func (s *session) sandboxRunCommand() *cobra.Command {
	f := execFlags{timeout: seconds(30 * time.Second)}
	var co code
	cmd := &cobra.Command{
		Use:   "run <sandbox> {-c CODE | -f FILE | -c -}",
		Short: "Run code in a sandbox",
		Long: `Run code in a sandbox that exists: Python, JavaScript or Bash. Output is streamed; the exit code of the code becomes ours. With --json an object with stdout, stderr, exit_code and execution_time is printed at the end.

A sandbox that "sandbox create" made lives its --ttl minutes on from here.`,
		Example: `caisson sandbox run work -c 'print(6 * 7)'
caisson sandbox run work -l bash -f setup.sh --timeout 120
echo 'console.log(1)' | caisson sandbox run work -l javascript -c -`,
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if !co.given() {
				return usage(fmt.Errorf("Must provide --code/-c or --file/-f")) //nolint:staticcheck // the wording is a contract
			}
			p, err := s.prepare(co, nil)
			if err != nil {
				return err
			}
			sb, err := c.reachable(ctx, got[0])
			if err != nil {
				return err
			}
			before := s.lastFlow(ctx, c, sb.ID)
			err = s.runPrepared(ctx, c, sb, f, p, true)
			s.hintDenied(ctx, c, sb.ID, before)
			if ttl := labelledTTL(sb, 0); ttl > 0 && ctx.Err() == nil {
				_, _ = c.Extend(ctx, sb.ID, time.Duration(ttl)*time.Minute)
			}
			return err
		}),
	}
	f.add(cmd)
	co.add(cmd)
	return cmd
}

// unknownFlow is the number of a flow that is not known.
const unknownFlow = -1

// lastFlow returns the number of the latest flow of a sandbox, 0 when there is
// none and unknownFlow when it cannot be told.
func (s *session) lastFlow(ctx context.Context, c *connection, id string) int64 {
	if s.quiet {
		return unknownFlow // there will be no hint
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	last := int64(0)
	for f, err := range c.Flows(ctx, id, client.RowOptions{Limit: 1}) {
		if err != nil {
			return unknownFlow
		}
		last = f.Seq
	}
	return last
}

// hintDenied tells, in one line, which names were denied after the flow with
// the number before, and how to allow them.
func (s *session) hintDenied(ctx context.Context, c *connection, id string, before int64) {
	if s.quiet || before == unknownFlow || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var names []string
	for f, err := range c.Flows(ctx, id, client.RowOptions{After: before}) {
		if err != nil {
			return
		}
		// Without a hint no request could have opened it.
		if f.Verdict != "deny" || f.Hint == "" {
			continue
		}
		name := f.Host
		if name == "" {
			name = f.Address
		}
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	more := ""
	if len(names) > 3 {
		more = fmt.Sprintf(" and %d more", len(names)-3)
		names = names[:3]
	}
	list := strings.Join(names, ",")
	s.say("hint: the egress policy denied %s%s; to allow: --allow %s at create or run, or \"caisson egress allow %s %s\"\n",
		strings.Join(names, ", "), more, list, id, strings.Join(names, " "))
}
