package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// job is one command in a sandbox, attached to our streams.
type job struct {
	agent *client.Agent
	cmd   client.Command
	// stdin is nil for none.
	stdin io.Reader
	// stdout and stderr receive the output as it is.
	stdout, stderr io.Writer
}

// killAfter is how long a process has between the signals of Ctrl-C, and the
// agent between the last of them and its answer.
const killAfter = 2 * time.Second

// run runs the job to its end. When ctx ends the process is asked to end,
// then killed, and errInterrupted is returned.
func (s *session) run(ctx context.Context, j job) (client.Exit, error) {
	j.cmd.Stdin = j.stdin != nil
	// The stream outlives ctx, so that the last output and the exit arrive.
	lasting := context.WithoutCancel(ctx)
	if ctx.Err() != nil {
		return client.Exit{}, errInterrupted
	}
	p, err := j.agent.Start(lasting, j.cmd)
	if err != nil {
		return client.Exit{}, err
	}
	defer p.Close()
	finished := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() {
		select {
		case <-ctx.Done():
			end(lasting, p, finished)
		case <-finished:
		}
	})
	if j.stdin != nil {
		// Not waited for: a read of our standard input cannot be ended.
		go s.feed(lasting, p, j, finished)
	}
	if j.cmd.PTY != nil {
		helpers.Go(func() { s.followSize(lasting, p, finished) })
	}
	exit, err := p.Wait(j.stdout, j.stderr)
	close(finished)
	helpers.Wait()
	if ctx.Err() != nil {
		return exit, errInterrupted
	}
	return exit, err
}

// end terminates the process, kills it when it goes on, and gives up on an
// agent that does not say that it ended.
func end(ctx context.Context, p *client.Process, finished <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, 3*killAfter)
	defer cancel()
	_ = p.Terminate(ctx)
	select {
	case <-finished:
		return
	case <-time.After(killAfter):
	}
	_ = p.Kill(ctx)
	select {
	case <-finished:
	case <-time.After(killAfter):
		p.Close()
	}
}

// feed passes standard input on. That it cannot be any more once the command has
// finished is nobody's problem: its sandbox may be gone by then.
func (s *session) feed(ctx context.Context, p *client.Process, j job, finished <-chan struct{}) {
	if j.cmd.PTY == nil {
		err := p.SendAll(ctx, j.stdin)
		select {
		case <-finished:
		default:
			if err != nil {
				s.say("warning: standard input was not passed on to its end: %s\n", err)
			}
		}
		return
	}
	buf := make([]byte, 4096)
	for {
		n, err := j.stdin.Read(buf)
		if n > 0 && p.Send(ctx, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = p.CloseStdin(ctx)
			return
		}
	}
}

// followSize passes changes of our terminal's size on.
func (s *session) followSize(ctx context.Context, p *client.Process, finished <-chan struct{}) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		select {
		case <-finished:
			return
		case <-changed:
			_ = p.Resize(ctx, s.size())
		}
	}
}

func (s *session) size() client.Size {
	cols, rows := terminal.Size(s.Out)
	return client.Size{Cols: uint16(min(cols, 1000)), Rows: uint16(min(rows, 1000))}
}

// output returns where a job's output goes: raw into pipes and files, escaped
// onto a terminal. done must be called after the job.
func (s *session) output() (stdout, stderr io.Writer, done func()) {
	var closers []io.Closer
	safe := func(w io.Writer) io.Writer {
		if !terminal.Is(w) {
			return w
		}
		e := terminal.NewWriter(w)
		closers = append(closers, e)
		return e
	}
	stdout, stderr = safe(s.Out), safe(s.Err)
	return stdout, stderr, func() {
		for _, c := range closers {
			_ = c.Close()
		}
	}
}

// piped returns our standard input unless it is a terminal.
func (s *session) piped() io.Reader {
	if s.In == nil || terminal.Is(s.In) {
		return nil
	}
	if f, ok := s.In.(*os.File); ok {
		st, err := f.Stat()
		if err != nil || st.Mode()&os.ModeCharDevice != 0 {
			return nil // /dev/null and the like
		}
	}
	return s.In
}

// codeOf gives the exit code a shell would for how a process ended.
func codeOf(e client.Exit) int {
	if e.Code >= 0 {
		return e.Code
	}
	for name, n := range signals {
		if e.Status == "signal: "+name {
			return exitSignal + int(n)
		}
	}
	return exitSignal + int(syscall.SIGKILL)
}

// signals by the names that the agent reports.
var signals = map[string]syscall.Signal{
	"hangup": syscall.SIGHUP, "interrupt": syscall.SIGINT, "quit": syscall.SIGQUIT, "aborted": syscall.SIGABRT,
	"killed": syscall.SIGKILL, "segmentation fault": syscall.SIGSEGV, "broken pipe": syscall.SIGPIPE,
	"alarm clock": syscall.SIGALRM, "terminated": syscall.SIGTERM, "illegal instruction": syscall.SIGILL,
	"bus error": syscall.SIGBUS, "floating point exception": syscall.SIGFPE,
}

// limited collects at most max bytes and remembers that there was more.
type limited struct {
	bytes.Buffer
	max       int
	truncated bool
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.Len(); len(p) > room {
		l.truncated = true
		l.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return l.Buffer.Write(p)
}

// collected bounds each output of a job with --json.
const collected = 64 << 20

// execution is a finished run as --json prints it.
type execution struct {
	Stdout        string  `json:"stdout"`
	Stderr        string  `json:"stderr"`
	ExitCode      int     `json:"exit_code"`
	ExecutionTime float64 `json:"execution_time"`
	SandboxID     string  `json:"sandbox_id"`
	Status        string  `json:"status,omitempty"`
	Reason        string  `json:"reason,omitempty"`
	Truncated     bool    `json:"truncated,omitempty"`
}

// runJSON runs a job and prints its execution object.
func (s *session) runJSON(ctx context.Context, id string, j job) error {
	stdout, stderr := &limited{max: collected}, &limited{max: collected}
	j.stdout, j.stderr = stdout, stderr
	begun := time.Now()
	exit, err := s.run(ctx, j)
	if err != nil {
		return err
	}
	code := codeOf(exit)
	e := execution{
		Stdout: stdout.String(), Stderr: stderr.String(), ExitCode: code, SandboxID: id,
		ExecutionTime: time.Since(begun).Seconds(), Status: exit.Status, Reason: exit.Reason, Truncated: stdout.truncated || stderr.truncated,
	}
	if err := s.printJSON(e); err != nil {
		return err
	}
	return exitWith(code)
}

// runStreaming runs a job with its output on our streams; words, when set,
// tells its end.
func (s *session) runStreaming(ctx context.Context, j job, words bool) error {
	stdout, stderr, done := s.output()
	j.stdout, j.stderr = stdout, stderr
	begun := time.Now()
	exit, err := s.run(ctx, j)
	done()
	if err != nil {
		return err
	}
	code, took := codeOf(exit), time.Since(begun).Seconds()
	switch {
	case exit.Reason != "":
		s.say("the command was %s\n", exit.Reason)
	case words && code == 0:
		s.say("Execution completed in %.2fs\n", took)
	case words:
		s.say("Execution failed with exit code %d (%.2fs)\n", code, took)
	case exit.Code < 0:
		s.say("the command ended by %s\n", exit.Status)
	}
	return exitWith(code)
}

// timedOut words a timeout.
func timedOut(err error, after time.Duration) error {
	if !errors.Is(err, client.ErrTimeout) {
		return err
	}
	return &codeError{code: exitTimeout, cause: fmt.Errorf("Code execution exceeded %g second timeout", after.Seconds())} //nolint:staticcheck // the wording is a contract
}
