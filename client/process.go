package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"

	pb "github.com/caisson-dev/caisson/gen/process"
)

// Command says what to run.
type Command struct {
	// Path is looked up in PATH when it has no slash.
	Path string
	Args []string
	Env  map[string]string
	Dir  string
	// Stdin opens an input for the command; without it it reads nothing.
	Stdin bool
	// PTY, when set, runs the command on a terminal of this size.
	PTY *Size
	// Tag names the process for Connect; need not be unique.
	Tag string
	// Timeout kills the command when it runs longer; 0 means the server's
	// limit only.
	Timeout time.Duration
}

// Size is that of a terminal.
type Size struct{ Cols, Rows uint16 }

// Exit is how a process ended.
type Exit struct {
	// Code is the exit code; -1 when a signal ended the process.
	Code int
	// Status is a text such as "exit status 1" or "signal: killed".
	Status string
	// Reason is set when a limit ended it.
	Reason string
}

// Process is a process in a sandbox whose output this client receives.
type Process struct {
	PID uint32

	agent  *Agent
	pty    bool
	stream *connect.ServerStreamForClient[pb.StartResponse]
	ctx    context.Context
	cancel context.CancelCauseFunc
	once   sync.Once
}

// ErrTimeout ends Wait when the timeout of a Command has passed; the process
// was killed.
var ErrTimeout = errors.New("the command ran longer than its timeout")

// timeoutGrace is how much later than the agent this client gives up.
const timeoutGrace = 5 * time.Second

// Start starts a process and returns when it runs. The caller must call Wait
// or Close. When ctx ends the output stops; the process goes on.
func (a *Agent) Start(ctx context.Context, cmd Command) (*Process, error) {
	msg := &pb.StartRequest{
		Process: &pb.ProcessConfig{Cmd: cmd.Path, Args: cmd.Args, Envs: cmd.Env},
		Stdin:   &cmd.Stdin,
	}
	if cmd.Dir != "" {
		msg.Process.Cwd = &cmd.Dir
	}
	if cmd.Tag != "" {
		msg.Tag = &cmd.Tag
	}
	if cmd.PTY != nil {
		msg.Pty = &pb.PTY{Size: cmd.PTY.proto()}
	}
	req := connect.NewRequest(msg)
	req.Header().Set("Keepalive-Ping-Interval", "50")
	ctx, cancel := context.WithCancelCause(ctx)
	if cmd.Timeout > 0 {
		// The agent must see this deadline, not a context's: it kills the
		// process then, and its answer must still arrive here.
		req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(cmd.Timeout.Milliseconds(), 10))
		timer := time.AfterFunc(cmd.Timeout+timeoutGrace, func() { cancel(ErrTimeout) })
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	stream, err := a.proc.Start(ctx, req)
	if err != nil {
		cancel(nil)
		return nil, rpcError("start process", err)
	}
	p := &Process{agent: a, pty: cmd.PTY != nil, stream: stream, ctx: ctx, cancel: cancel}
	if !stream.Receive() {
		err := p.failure()
		p.Close()
		if err == nil {
			err = &Error{Op: "start process", Message: "the stream ended before the process started"}
		}
		return nil, err
	}
	start := stream.Msg().GetEvent().GetStart()
	if start == nil {
		p.Close()
		return nil, &Error{Op: "start process", Message: "the agent's first event is not a start"}
	}
	p.PID = start.GetPid()
	return p, nil
}

func (s Size) proto() *pb.PTY_Size {
	return &pb.PTY_Size{Cols: uint32(s.Cols), Rows: uint32(s.Rows)}
}

// Close stops receiving output and frees the connection. The process goes on.
func (p *Process) Close() {
	p.once.Do(func() {
		p.cancel(nil)
		_ = p.stream.Close()
	})
}

// Wait copies output until the process has ended, then closes p. The output
// of a terminal goes to stdout. A nil writer discards. The first error of a
// writer ends the copying and is returned.
func (p *Process) Wait(stdout, stderr io.Writer) (Exit, error) {
	defer p.Close()
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	for p.stream.Receive() {
		ev := p.stream.Msg().GetEvent()
		if end := ev.GetEnd(); end != nil {
			return exitOf(end), nil
		}
		data := ev.GetData()
		if data == nil {
			continue
		}
		if err := copyOut(data, stdout, stderr); err != nil {
			return Exit{}, fmt.Errorf("write output: %w", err)
		}
	}
	if err := p.failure(); err != nil {
		return Exit{}, err
	}
	return Exit{}, &Error{Op: "wait for process", Code: "unreachable", Message: "the stream ended before the process did"}
}

func copyOut(data *pb.ProcessEvent_DataEvent, stdout, stderr io.Writer) error {
	w, b := stdout, data.GetStdout()
	switch {
	case len(data.GetPty()) > 0:
		b = data.GetPty()
	case len(data.GetStderr()) > 0:
		w, b = stderr, data.GetStderr()
	}
	if len(b) == 0 {
		return nil
	}
	_, err := w.Write(b)
	return err
}

func exitOf(end *pb.ProcessEvent_EndEvent) Exit {
	return exitFrom(int(end.GetExitCode()), end.GetExited(), end.GetStatus())
}

// exitFrom is an Exit; what is neither an exit nor a signal is a limit.
func exitFrom(code int, exited bool, status string) Exit {
	e := Exit{Code: code, Status: status}
	if !exited && !strings.HasPrefix(status, "signal: ") {
		e.Reason = status
	}
	return e
}

// failure explains why the stream ended without an end event.
func (p *Process) failure() error {
	if cause := context.Cause(p.ctx); cause != nil {
		return cause
	}
	err := p.stream.Err()
	if err == nil {
		return nil
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok && !connect.IsWireError(ce) {
		return &Error{Op: "wait for process", Code: "unreachable", Message: "the connection to the sandbox broke: " + ce.Message(), cause: err}
	}
	if connect.CodeOf(err) == connect.CodeDeadlineExceeded {
		return fmt.Errorf("%w: %w", ErrTimeout, rpcError("wait for process", err))
	}
	return rpcError("wait for process", err)
}

func (p *Process) selector() *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_Pid{Pid: p.PID}}
}

func (p *Process) input(b []byte) *pb.ProcessInput {
	if p.pty {
		return &pb.ProcessInput{Input: &pb.ProcessInput_Pty{Pty: b}}
	}
	return &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: b}}
}

// Send writes to the process's input or terminal.
func (p *Process) Send(ctx context.Context, b []byte) error {
	_, err := p.agent.proc.SendInput(ctx, connect.NewRequest(&pb.SendInputRequest{Process: p.selector(), Input: p.input(b)}))
	return rpcError("send input", err)
}

// stdinClosed is what an agent says of a process that reads no more.
const stdinClosed = "stdin is closed"

// SendAll copies r to the process's input in one stream and closes the input
// at the end. It returns nil when the process stops reading.
func (p *Process) SendAll(ctx context.Context, r io.Reader) error {
	in := p.agent.proc.StreamInput(ctx)
	start := &pb.StreamInputRequest{Event: &pb.StreamInputRequest_Start{Start: &pb.StreamInputRequest_StartEvent{Process: p.selector()}}}
	if err := in.Send(start); err != nil {
		_, err = in.CloseAndReceive()
		return rpcError("send input", err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, rerr := r.Read(buf)
		if n > 0 {
			data := &pb.StreamInputRequest_DataEvent{Input: p.input(buf[:n])}
			if in.Send(&pb.StreamInputRequest{Event: &pb.StreamInputRequest_Data{Data: data}}) != nil {
				// The other side has closed: the process reads no more.
				_, _ = in.CloseAndReceive()
				return nil
			}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			_, _ = in.CloseAndReceive()
			return fmt.Errorf("read input: %w", rerr)
		}
	}
	_, err := in.CloseAndReceive()
	if err == nil {
		err = p.CloseStdin(ctx)
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok && ce.Code() == connect.CodeInternal && ce.Message() == stdinClosed {
		return nil
	}
	if connect.CodeOf(err) == connect.CodeNotFound || errors.Is(err, errdefs.ErrNotFound) {
		return nil // it has ended
	}
	return rpcError("send input", err)
}

// CloseStdin ends the process's input; on a terminal it sends the end-of-file
// character.
func (p *Process) CloseStdin(ctx context.Context) error {
	if p.pty {
		return p.Send(ctx, []byte{4})
	}
	_, err := p.agent.proc.CloseStdin(ctx, connect.NewRequest(&pb.CloseStdinRequest{Process: p.selector()}))
	return rpcError("close stdin", err)
}

// Resize sets the size of the process's terminal.
func (p *Process) Resize(ctx context.Context, s Size) error {
	_, err := p.agent.proc.Update(ctx, connect.NewRequest(&pb.UpdateRequest{Process: p.selector(), Pty: &pb.PTY{Size: s.proto()}}))
	return rpcError("resize terminal", err)
}

// Terminate asks the process to end (SIGTERM).
func (p *Process) Terminate(ctx context.Context) error {
	return p.signal(ctx, pb.Signal_SIGNAL_SIGTERM)
}

// Kill ends the process (SIGKILL).
func (p *Process) Kill(ctx context.Context) error {
	return p.signal(ctx, pb.Signal_SIGNAL_SIGKILL)
}

func (p *Process) signal(ctx context.Context, s pb.Signal) error {
	_, err := p.agent.proc.SendSignal(ctx, connect.NewRequest(&pb.SendSignalRequest{Process: p.selector(), Signal: s}))
	return rpcError("send signal", err)
}

// ProcessInfo is a running process that the agent started.
type ProcessInfo struct {
	PID  uint32            `json:"pid"`
	Tag  string            `json:"tag,omitempty"`
	Cmd  string            `json:"cmd"`
	Args []string          `json:"args,omitempty"`
	Env  map[string]string `json:"env,omitempty"`
	Dir  string            `json:"cwd,omitempty"`
}

// Processes lists the running processes that the agent started.
func (a *Agent) Processes(ctx context.Context) ([]ProcessInfo, error) {
	resp, err := a.proc.List(ctx, connect.NewRequest(&pb.ListRequest{}))
	if err != nil {
		return nil, rpcError("list processes", err)
	}
	var out []ProcessInfo
	for _, p := range resp.Msg.GetProcesses() {
		cfg := p.GetConfig()
		out = append(out, ProcessInfo{PID: p.GetPid(), Tag: p.GetTag(), Cmd: cfg.GetCmd(), Args: cfg.GetArgs(), Env: cfg.GetEnvs(), Dir: cfg.GetCwd()})
	}
	return out, nil
}
