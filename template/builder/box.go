package builder

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/setup"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
)

const (
	// agentProgram is the agent in every box.
	agentProgram = "/.caisson/caisson-agent"
	// closeLimit bounds the end of a box.
	closeLimit = 30 * time.Second
	// chunk is how much of an archive is sent at a time.
	chunk = 1 << 20
	// deadlineGrace is how long after the build's limit a box ends whose server
	// has died.
	deadlineGrace = time.Minute
	// endPatience is how long to wait for the reason of a stream that broke.
	endPatience = 2 * time.Second
)

// box is one box of a build, with its agent.
type box struct {
	b      *Builder
	id     string
	box    provider.Box
	route  provider.Route // to the agent
	token  secret.Value
	client *agentclient.Client
	undo   undo.Stack
}

// dial returns another client of the agent, whose connections are c's.
func (x *box) dial(c *connections) *agentclient.Client {
	return agentclient.New(provider.Route{Dial: func(ctx context.Context) (net.Conn, error) {
		return c.dial(ctx, x.route.Dial)
	}}, x.token)
}

// open starts a box on an image, with a saved layer on it unless that is nil.
// The caller closes it.
func (r *run) open(ctx context.Context, rootfs image.Rootfs, layer *snapshot.Artifact, res provider.Resources, st state) (_ *box, err error) {
	b := r.Builder
	x := &box{b: b, id: b.claim()}
	x.undo.Add(func(context.Context) error { b.release(x.id); return nil })
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close(ctx))
		}
	}()
	// Under the build's name: the addresses that the gateway gave to names are in
	// the saved memory, and a sandbox of the build inherits them by it. A build has
	// one box at a time.
	name := cmp.Or(string(r.plan.Build), x.id)
	var att egress.Attachment
	if att, err = b.o.Guard.Attach(ctx, name, b.o.Policy); err != nil {
		return nil, fmt.Errorf("attach egress: %w", err)
	}
	x.undo.Add(func(ctx context.Context) error { return b.o.Guard.Detach(ctx, name) })
	deadline, _ := ctx.Deadline()
	spec := provider.Spec{
		SandboxID: x.id, Hostname: "build", Rootfs: rootfs, Resources: res, Egress: att,
		Labels: map[string]string{"caisson.build": string(r.plan.Build)}, Deadline: deadline.Add(deadlineGrace),
	}
	if layer == nil {
		x.box, err = b.o.Provider.Create(ctx, spec)
	} else {
		x.box, err = b.o.Provider.(provider.Restorer).Restore(ctx, spec, *layer, b.layers)
	}
	if err != nil {
		return nil, fmt.Errorf("start the build's sandbox: %w", err)
	}
	x.undo.Add(x.box.Destroy)
	limits := b.o.Command
	limits.Processes = res.Processes
	token := b.token()
	err = x.box.Control().Init(ctx, control.Init{
		SandboxID: x.id, BuildID: string(r.plan.Build), Hostname: "build", AccessToken: token,
		DefaultUser: st.User, DefaultWorkdir: st.Workdir, Limits: limits, CABundle: b.o.CABundle,
		Now: time.Now(), Seed: []byte(rand.Text()),
	})
	if err != nil {
		return nil, err
	}
	if x.route, err = x.box.Route(ctx, control.AgentPort); err != nil {
		return nil, err
	}
	if x.route.Dial == nil {
		return nil, fmt.Errorf("provider %s has no local route: %w", b.o.Provider.Name(), errdefs.ErrNotImplemented)
	}
	x.token = secret.New(token)
	x.client = agentclient.New(x.route, x.token)
	x.undo.Add(func(context.Context) error { x.client.Close(); return nil })
	return x, nil
}

// close ends the box and removes all of it.
func (x *box) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
	defer cancel()
	return x.undo.Run(ctx)
}

// errStatus is the exit of a command that failed.
type errStatus struct {
	code int
	text string
}

func (e *errStatus) Error() string { return e.text }

// Unwrap makes it errdefs.ErrFailedPrecondition.
func (*errStatus) Unwrap() error { return errdefs.ErrFailedPrecondition }

// command is what exec runs: a line for a login shell, or a program.
type command struct {
	line           string
	program        string
	args           []string
	user, dir      string
	env            map[string]string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// loginShell runs its first argument in a login shell: bash where there is one.
const loginShell = `if [ -x /bin/bash ]; then exec /bin/bash -l -c "$1"; fi; exec /bin/sh -l -c "$1"`

// exec runs a command to its end; an *errStatus when it failed.
func (x *box) exec(ctx context.Context, c command) error {
	p, err := x.start(ctx, c)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	if c.stdin != nil {
		go func() { sent <- send(ctx, p, c.stdin) }()
	} else {
		sent <- nil
	}
	exit, err := p.Wait()
	serr := <-sent // its own, or that of a command that ended before
	switch {
	case err != nil:
		return x.why(ctx, errors.Join(err, serr))
	case !exit.Exited || exit.Code != 0:
		if r, ok := errors.AsType[*readError](serr); ok {
			return r
		}
		return &errStatus{code: exit.Code, text: exit.Status}
	}
	return serr
}

func (x *box) start(ctx context.Context, c command) (*agentclient.Process, error) {
	cmd := agentclient.Command{
		Cmd: c.program, Args: c.args, Env: c.env, Dir: c.dir, User: c.user, Stdin: c.stdin != nil,
		Stdout: c.stdout, Stderr: c.stderr,
	}
	if c.line != "" {
		cmd.Cmd, cmd.Args = "/bin/sh", []string{"-c", loginShell, "sh", c.line}
	}
	p, err := x.client.Exec(ctx, cmd)
	if err != nil {
		return nil, x.why(ctx, err)
	}
	return p, nil
}

// readError is one of the host's end of standard input.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// send copies r to a command's standard input and closes that, whatever happens:
// a command whose input ends early must not wait for ever.
func send(ctx context.Context, p *agentclient.Process, r io.Reader) error {
	buf := make([]byte, chunk)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := p.Send(ctx, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return p.CloseStdin(ctx)
		case err != nil:
			return errors.Join(&readError{err}, p.Kill(ctx))
		}
	}
}

// why says what became of a stream that broke: the agent's own words, the end of
// the time, or how the box ended.
func (x *box) why(ctx context.Context, err error) error {
	if _, bounded := ctx.Deadline(); bounded && errors.Is(err, context.DeadlineExceeded) {
		// The agent's clock was the first to say so.
		_ = pause(ctx, endPatience)
	}
	if c, ok := errors.AsType[*connect.Error](err); ok && c.Code() != connect.CodeUnavailable && ctx.Err() == nil && connect.IsWireError(c) {
		// Its text is what clients look for, the word for its code too.
		return &fault{text: "command failed: " + c.Error(), kind: errdefs.ErrFailedPrecondition}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	wait, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	exit, werr := x.box.Wait(wait)
	switch {
	case werr != nil:
		return err
	case exit.Reason == provider.ReasonOOM:
		return &fault{
			text: "out of memory: the template has too little for this step", kind: errdefs.ErrResourceExhausted, cause: err,
		}
	}
	return fmt.Errorf("the build's sandbox has ended: %s %s: %w", exit.Reason, exit.Detail, errdefs.ErrUnavailable)
}

// maxAnswer bounds what the agent's set-up says.
const maxAnswer = 64 << 10

// setup has the guest do something to itself.
func (x *box) setup(ctx context.Context, r setup.Request, archive io.Reader) (setup.Result, error) {
	arg, err := json.Marshal(r)
	if err != nil {
		return setup.Result{}, fmt.Errorf("encode request: %w", err)
	}
	out, errs := &bounded{left: maxAnswer}, &bounded{left: maxAnswer}
	err = x.exec(ctx, command{
		program: agentProgram, args: []string{setup.Command, string(arg)}, user: "root", dir: "/",
		stdin: archive, stdout: out, stderr: errs,
	})
	if st, ok := errors.AsType[*errStatus](err); ok {
		text := strings.TrimSpace(errs.text.String())
		if st.code == setup.ExitRefused && text != "" {
			return setup.Result{}, invalid("%s", text)
		}
		return setup.Result{}, fmt.Errorf("%s %s: %w", st.text, text, errdefs.ErrInternal)
	}
	if err != nil {
		return setup.Result{}, err
	}
	var res setup.Result
	if err := json.Unmarshal([]byte(out.text.String()), &res); err != nil {
		return res, fmt.Errorf("decode the guest's answer: %w", err)
	}
	return res, nil
}

// bounded keeps the beginning of what is written.
type bounded struct {
	text strings.Builder
	left int
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.text.Write(p[:n])
	return len(p), nil
}
