package batch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/agentclient"
	pb "github.com/caisson-dev/caisson/gen/filesystem"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

const (
	// maxCollected bounds all files that one item returns.
	maxCollected = 4 << 20
	// grace is how much later than the agent we give up on a command.
	grace = 5 * time.Second
	// reasonLimit is how long the record of a sandbox that has ended may take to
	// say why.
	reasonLimit = 2 * time.Second
	reasonEvery = 20 * time.Millisecond
	chunk       = 64 << 10
)

// Codes of Result.Err.
const (
	codeTimeout   = "timeout"
	codeEnded     = "sandbox_ended"
	codeCancelled = "cancelled"
)

var errGone = errors.New("sandbox has ended")

// execute runs an item's command in res.Sandbox and fills res.
func (x *run) execute(ctx context.Context, it Item, res *Result) {
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	live, ok := x.cfg.Sandboxes.Live(res.Sandbox)
	if !ok {
		res.Err = x.explain(outer, res.Sandbox, errGone)
		return
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-live.Gone:
			cancel(errGone)
		case <-ctx.Done():
		}
	})
	defer func() { cancel(nil); watch.Wait() }()

	err := x.inside(ctx, it, res)
	switch {
	case err == nil:
	case errors.Is(err, context.DeadlineExceeded):
		res.Err = apierr.New(context.DeadlineExceeded, "ran longer than its timeout of %s", x.req.Timeout).WithCode(codeTimeout)
	case errors.Is(context.Cause(ctx), errGone):
		res.Err = x.explain(outer, res.Sandbox, err)
	case outer.Err() != nil:
		res.Err = apierr.New(errdefs.ErrAborted, "the batch was ended while it ran").WithCode(codeCancelled).WithCause(context.Cause(outer))
	default:
		res.Err = x.explain(outer, res.Sandbox, err)
	}
}

// inside does all that needs the sandbox's agent.
func (x *run) inside(ctx context.Context, it Item, res *Result) error {
	agent, err := x.cfg.Sandboxes.Agent(ctx, res.Sandbox)
	if err != nil {
		return err
	}
	cmd, args, script := it.command()
	for _, f := range it.Files {
		if err := x.write(ctx, agent, f); err != nil {
			return err
		}
	}
	if script != "" {
		if err := x.write(ctx, agent, File{Path: script, Content: []byte(it.Code)}); err != nil {
			return err
		}
		defer x.remove(ctx, agent, script)
	}
	var stdout, stderr output
	command := agentclient.Command{
		Cmd: cmd, Args: args, Env: it.Env, Dir: x.req.Dir, User: x.req.User, Stdin: it.Stdin != nil,
		Timeout: x.req.Timeout, Stdout: &stdout, Stderr: &stderr,
	}
	if it.Dir != "" {
		command.Dir = it.Dir
	}
	if x.req.Shared != "" && len(x.req.Env) > 0 {
		// The environment of a sandbox of its own has them from its create.
		command.Env = maps.Clone(x.req.Env)
		maps.Copy(command.Env, it.Env)
	}
	began := time.Now()
	exit, err := x.wait(ctx, agent, command, it.Stdin)
	res.Took = time.Since(began)
	res.Stdout, res.Stderr = stdout.result(), stderr.result()
	if err != nil {
		return err
	}
	res.ExitCode, res.Status = exit.Code, exit.Status
	res.Files = x.collect(ctx, agent, it.Collect)
	return nil
}

// wait starts a command and returns how it ended. When ctx ends, or the agent
// does not keep to its timeout, the command is killed.
func (x *run) wait(outer context.Context, agent *agentclient.Client, cmd agentclient.Command, stdin []byte) (agentclient.Exit, error) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(outer))
	late := time.AfterFunc(cmd.Timeout+grace, func() { cancel(context.DeadlineExceeded) })
	defer late.Stop()
	started := make(chan struct{})
	var side sync.WaitGroup
	side.Go(func() {
		select {
		case <-outer.Done():
			x.letStart(outer, started)
			cancel(context.Cause(outer))
		case <-ctx.Done():
		}
	})
	defer func() { cancel(nil); side.Wait() }()
	proc, err := agent.Exec(ctx, cmd)
	close(started)
	if err != nil {
		return agentclient.Exit{}, causeOf(ctx, err)
	}
	if stdin != nil {
		side.Go(func() { feed(ctx, proc, stdin) })
	}
	exit, err := proc.Wait()
	if err != nil {
		err = causeOf(ctx, err)
		if ctx.Err() != nil && x.req.Shared != "" && !errors.Is(err, errGone) {
			x.kill(ctx, agent, proc)
		}
	}
	return exit, err
}

// letStart gives a command in a shared sandbox the time to say who it is: what
// nobody knows nobody can kill.
func (x *run) letStart(outer context.Context, started <-chan struct{}) {
	if x.req.Shared == "" || errors.Is(context.Cause(outer), errGone) {
		return
	}
	select {
	case <-started:
	case <-time.After(grace):
	}
}

// causeOf prefers why ctx ended to what that led to.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// feed gives a command its input. That it reads no more is nobody's problem.
func feed(ctx context.Context, proc *agentclient.Process, stdin []byte) {
	for len(stdin) > 0 {
		n := min(chunk, len(stdin))
		if proc.Send(ctx, stdin[:n]) != nil {
			return
		}
		stdin = stdin[n:]
	}
	_ = proc.CloseStdin(ctx)
}

// kill ends a command in a shared sandbox, and what it started: every command
// leads a session and process group of its own.
func (x *run) kill(ctx context.Context, agent *agentclient.Client, proc *agentclient.Process) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	group := "-" + strconv.FormatUint(uint64(proc.PID()), 10)
	killer, err := agent.Exec(ctx, agentclient.Command{Cmd: "/bin/sh", Args: []string{"-c", "kill -KILL " + group}, User: x.req.User})
	if err == nil {
		_, _ = killer.Wait()
	}
	_ = proc.Kill(ctx) // also where there is no shell
}

func (x *run) write(ctx context.Context, agent *agentclient.Client, f File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.req.Timeout, context.DeadlineExceeded)
	defer cancel()
	if err := agent.WriteFile(ctx, x.req.User, f.Path, bytes.NewReader(f.Content)); err != nil {
		return fmt.Errorf("write %s: %w", f.Path, err)
	}
	return nil
}

func (x *run) remove(ctx context.Context, agent *agentclient.Client, path string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	_, _ = agent.Filesystem().Remove(ctx, connect.NewRequest(&pb.RemoveRequest{Path: path}))
}

// collect reads the files that an item asked for, as far as there is room.
func (x *run) collect(ctx context.Context, agent *agentclient.Client, paths []string) []Collected {
	if len(paths) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, x.req.Timeout, context.DeadlineExceeded)
	defer cancel()
	room := int64(maxCollected)
	all := make([]Collected, 0, len(paths))
	for _, path := range paths {
		content, err := x.read(ctx, agent, path, room)
		room -= int64(len(content))
		all = append(all, Collected{File: File{Path: path, Content: content}, Err: err})
	}
	return all
}

func (x *run) read(ctx context.Context, agent *agentclient.Client, path string, most int64) ([]byte, error) {
	r, err := agent.ReadFile(ctx, x.req.User, path)
	if errdefs.IsNotFound(err) {
		return nil, apierr.New(errdefs.ErrNotFound, "there is no file %q", path).WithCause(err)
	}
	if err != nil {
		return nil, shown(err)
	}
	defer r.Close()
	content, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", path, errdefs.ErrUnavailable, err)
	}
	if int64(len(content)) > most {
		return nil, apierr.New(errdefs.ErrResourceExhausted, "the files of one item may have %d MiB in all", maxCollected>>20)
	}
	return content, nil
}

// shown is an error of the agent about what the caller asked for: its own text
// is what they need.
func shown(err error) error {
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) {
		return apierr.New(errdefs.ErrInvalidArgument, "%s", apierr.Text(err)).WithCause(err)
	}
	return err
}

// explain says why an item's command could not be run to its end: what became of
// its sandbox, if anything has.
func (x *run) explain(ctx context.Context, id sandbox.ID, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reasonLimit)
	defer cancel()
	tick := time.NewTicker(reasonEvery)
	defer tick.Stop()
	for {
		if _, running := x.cfg.Sandboxes.Live(id); running {
			return shown(err)
		}
		sb, gerr := x.cfg.Sandboxes.Get(ctx, x.who, id)
		if gerr == nil && (sb.State.Ended() || sb.State == sandbox.Paused) {
			word := string(sb.State)
			if sb.Reason != "" {
				word = sb.Reason
			}
			return apierr.New(errdefs.ErrAborted, "its sandbox ended: %s", word).WithCode(codeEnded).WithCause(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return apierr.New(errdefs.ErrAborted, "its sandbox ended").WithCode(codeEnded).WithCause(err)
		}
	}
}

// notCreated says why an item got no sandbox before ctx ended.
func notCreated(ctx context.Context, refused, err error) error {
	cause := context.Cause(ctx)
	if !errors.Is(cause, errSlow) {
		return apierr.New(errdefs.ErrAborted, "the batch was ended before it ran").WithCode(codeCancelled).WithCause(cause)
	}
	if refused != nil {
		return apierr.New(errdefs.ErrResourceExhausted, "waited for a sandbox as long as its timeout: %s", apierr.Text(refused)).WithCode(codeTimeout).WithCause(err)
	}
	return apierr.New(context.DeadlineExceeded, "got no sandbox within its timeout").WithCode(codeTimeout).WithCause(err)
}
