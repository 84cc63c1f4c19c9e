package agentclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"connectrpc.com/connect"

	pb "github.com/caisson-dev/caisson/gen/process"
)

// Command is what Exec runs.
type Command struct {
	Cmd  string
	Args []string
	Env  map[string]string
	// Dir and User are the agent's defaults when empty.
	Dir, User string
	Tag       string
	// Stdin keeps standard input open for Process.Write; else it is /dev/null.
	Stdin bool
	// Cols and Rows, when set, give the command a terminal of that size; its
	// output goes to Stdout.
	Cols, Rows uint16
	// Timeout, when set, is after how long the agent kills the command and all
	// that it started; Wait then returns all output and
	// context.DeadlineExceeded. It has no effect when the context of Exec has a
	// deadline.
	Timeout time.Duration
	// Stdout and Stderr receive output while Wait runs; nil discards it.
	Stdout, Stderr io.Writer
}

// Exit tells how a command ended.
type Exit struct {
	Code   int  // -1 when it was killed
	Exited bool // false when it was killed
	// Status is a text such as "exit status 3", or the limit that was hit.
	Status string
}

// Process is a running command.
type Process struct {
	c      *Client
	cmd    Command
	stream *connect.ServerStreamForClient[pb.StartResponse]
	pid    uint32
}

// Exec starts a command and returns when it runs. A deadline of ctx is the
// command's: it is killed then. Cancelling ctx otherwise ends the stream only.
// The caller must call Wait.
func (c *Client) Exec(ctx context.Context, cmd Command) (*Process, error) {
	msg := &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: cmd.Cmd, Args: cmd.Args, Envs: cmd.Env},
		Stdin:   &cmd.Stdin,
	}
	if cmd.Dir != "" {
		msg.Process.Cwd = &cmd.Dir
	}
	if cmd.Tag != "" {
		msg.Tag = &cmd.Tag
	}
	if cmd.Cols > 0 && cmd.Rows > 0 {
		msg.Pty = &pb.PTY{Size: &pb.PTY_Size{Cols: uint32(cmd.Cols), Rows: uint32(cmd.Rows)}}
	}
	req := connect.NewRequest(msg)
	if cmd.User != "" {
		req.Header().Set("Authorization", basicUser(cmd.User))
	}
	if cmd.Timeout > 0 {
		if _, bounded := ctx.Deadline(); !bounded {
			req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(max(1, cmd.Timeout.Milliseconds()), 10))
		}
	}
	stream, err := c.procs.Start(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", kind(err))
	}
	if !stream.Receive() {
		err := stream.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, errors.Join(fmt.Errorf("exec: %w", kind(err)), stream.Close())
	}
	start := stream.Msg().GetEvent().GetStart()
	if start == nil {
		return nil, errors.Join(errors.New("exec: first event is not start"), stream.Close())
	}
	return &Process{c: c, cmd: cmd, stream: stream, pid: start.GetPid()}, nil
}

// PID is the command's process id in the guest.
func (p *Process) PID() uint32 { return p.pid }

// Wait copies output until the command has ended and returns how. An error
// means that the stream broke, not that the command failed.
func (p *Process) Wait() (Exit, error) {
	defer p.stream.Close()
	for p.stream.Receive() {
		switch ev := p.stream.Msg().GetEvent().GetEvent().(type) {
		case *pb.ProcessEvent_Data:
			if err := p.output(ev.Data); err != nil {
				return Exit{}, err
			}
		case *pb.ProcessEvent_End:
			e := ev.End
			return Exit{Code: int(e.GetExitCode()), Exited: e.GetExited(), Status: e.GetStatus()}, nil
		}
	}
	err := p.stream.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return Exit{}, fmt.Errorf("wait for process %d: %w", p.pid, kind(err))
}

func (p *Process) output(d *pb.ProcessEvent_DataEvent) error {
	w, b := p.cmd.Stdout, d.GetStdout()
	switch out := d.GetOutput().(type) {
	case *pb.ProcessEvent_DataEvent_Stderr:
		w, b = p.cmd.Stderr, out.Stderr
	case *pb.ProcessEvent_DataEvent_Pty:
		b = out.Pty
	}
	if w == nil {
		return nil
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("copy output: %w", err)
	}
	return nil
}

// Send writes to standard input or the terminal.
func (p *Process) Send(ctx context.Context, b []byte) error {
	in := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: b}}
	if p.cmd.Cols > 0 && p.cmd.Rows > 0 {
		in = &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: b}}
	}
	_, err := p.c.procs.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: p.selector(), Input: in}))
	if err != nil {
		return fmt.Errorf("send input: %w", kind(err))
	}
	return nil
}

// CloseStdin ends standard input.
func (p *Process) CloseStdin(ctx context.Context) error {
	_, err := p.c.procs.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: p.selector()}))
	if err != nil {
		return fmt.Errorf("close stdin: %w", kind(err))
	}
	return nil
}

// Resize changes the terminal's size.
func (p *Process) Resize(ctx context.Context, cols, rows uint16) error {
	_, err := p.c.procs.Update(ctx, connect.NewRequest(&pb.UpdateRequest{
		Process: p.selector(),
		Pty:     &pb.PTY{Size: &pb.PTY_Size{Cols: uint32(cols), Rows: uint32(rows)}},
	}))
	if err != nil {
		return fmt.Errorf("resize terminal: %w", kind(err))
	}
	return nil
}

// Terminate sends SIGTERM, Kill SIGKILL, to this one process.
func (p *Process) Terminate(ctx context.Context) error {
	return p.signal(ctx, pb.Signal_SIGNAL_SIGTERM)
}

// Kill sends SIGKILL to this one process.
func (p *Process) Kill(ctx context.Context) error {
	return p.signal(ctx, pb.Signal_SIGNAL_SIGKILL)
}

func (p *Process) signal(ctx context.Context, sig pb.Signal) error {
	_, err := p.c.procs.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: p.selector(), Signal: sig}))
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, kind(err))
	}
	return nil
}

func (p *Process) selector() *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: p.pid}}
}
