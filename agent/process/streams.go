package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/control"
	pb "github.com/caisson-dev/caisson/gen/process"
)

const (
	pipeChunk = 32 << 10
	ptyChunk  = 16 << 10
	// leftover bounds what is read of a pipe after its process was killed.
	leftover = 1 << 20
)

// streams are the agent's ends of a command's standard files, and until the
// fork the command's own ends.
type streams struct {
	outputs []output
	tty     *os.File // the terminal's master, also the only output
	// in is where input goes, nil when there is none; token serialises
	// writers and Close.
	in    *os.File
	token chan struct{}

	childEnds             []int
	stdin, stdout, stderr uintptr
}

type output struct {
	file  *os.File
	chunk int
	event func([]byte) *pb.ProcessEvent_DataEvent
}

func stdoutData(b []byte) *pb.ProcessEvent_DataEvent {
	return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stdout{Stdout: b}}
}

func stderrData(b []byte) *pb.ProcessEvent_DataEvent {
	return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stderr{Stderr: b}}
}

func ptyData(b []byte) *pb.ProcessEvent_DataEvent {
	return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Pty{Pty: b}}
}

func dataEvent(d *pb.ProcessEvent_DataEvent) *pb.ProcessEvent {
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: d}}
}

// openPipes makes stdin, stdout and stderr; without input stdin is /dev/null.
func (s *streams) openPipes(input bool) error {
	s.token = make(chan struct{}, 1)
	if input {
		r, w, err := s.pipe()
		if err != nil {
			return err
		}
		s.stdin = uintptr(r)
		s.childEnds = append(s.childEnds, r)
		s.in = pollable(w, "stdin")
	} else {
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/null: %w", err)
		}
		s.stdin = uintptr(null)
		s.childEnds = append(s.childEnds, null)
	}
	for _, o := range []struct {
		name  string
		fd    *uintptr
		event func([]byte) *pb.ProcessEvent_DataEvent
	}{{"stdout", &s.stdout, stdoutData}, {"stderr", &s.stderr, stderrData}} {
		r, w, err := s.pipe()
		if err != nil {
			return err
		}
		*o.fd = uintptr(w)
		s.childEnds = append(s.childEnds, w)
		s.outputs = append(s.outputs, output{pollable(r, o.name), pipeChunk, o.event})
	}
	return nil
}

func (s *streams) pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("make pipe: %w", err)
	}
	return p[0], p[1], nil
}

// pollable wraps fd so that deadlines work; only this end becomes non-blocking.
func pollable(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// openTTY makes a terminal owned by u.
func (s *streams) openTTY(size *pb.PTY_Size, u account.User) error {
	s.token = make(chan struct{}, 1)
	master, slave, err := pty.Open()
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	defer master.Close()
	defer slave.Close()
	// Fresh descriptors: the library leaves its own in blocking mode.
	m, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	s.tty = pollable(m, "tty")
	s.in = s.tty
	s.outputs = []output{{s.tty, ptyChunk, ptyData}}
	t, err := unix.FcntlInt(slave.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	s.childEnds = []int{t}
	s.stdin, s.stdout, s.stderr = uintptr(t), uintptr(t), uintptr(t)
	// Best effort: programs reopen their terminal by name.
	_ = unix.Fchown(t, int(u.UID), -1)
	_ = unix.Fchmod(t, 0o620)
	return s.setSize(size)
}

func (s *streams) setSize(size *pb.PTY_Size) error {
	if size == nil {
		return nil
	}
	ws := &unix.Winsize{Col: clamp(size.GetCols()), Row: clamp(size.GetRows())}
	conn, err := s.tty.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	var ioctl error
	if err := conn.Control(func(fd uintptr) { ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) }); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	if ioctl != nil {
		return fmt.Errorf("resize terminal: %w", ioctl)
	}
	return nil
}

func clamp(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// closeChildEnds closes what the command has inherited.
func (s *streams) closeChildEnds() {
	for _, fd := range s.childEnds {
		_ = unix.Close(fd)
	}
	s.childEnds = nil
}

// interrupt ends blocked reads of all outputs.
func (s *streams) interrupt() {
	for _, o := range s.outputs {
		if o.file.SetReadDeadline(time.Unix(1, 0)) != nil {
			_ = o.file.Close()
		}
	}
}

// close closes everything; a writer in progress fails.
func (s *streams) close() {
	s.closeChildEnds()
	for _, o := range s.outputs {
		_ = o.file.Close()
	}
	if s.in != nil {
		_ = s.in.Close()
	}
}

// pump publishes what comes out of o until its end, or after an interrupt what
// is already there.
func (p *proc) pump(o output) {
	buf := make([]byte, o.chunk)
	for {
		n, err := o.file.Read(buf)
		p.output(o, buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.rest(o, buf)
			return
		}
		if err != nil {
			return
		}
	}
}

// rest publishes what the pipe still holds, without waiting.
func (p *proc) rest(o output, buf []byte) {
	conn, err := o.file.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < leftover; {
		n := 0
		// Control, not Read: a deadline has passed.
		if conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }) != nil || n <= 0 {
			return
		}
		total += n
		p.output(o, buf[:n])
	}
}

// output counts and publishes one chunk. What goes beyond the output limit is
// cut off, and the command killed.
func (p *proc) output(o output, b []byte) {
	if len(b) == 0 {
		return
	}
	total := p.written.Add(int64(len(b)))
	limit := p.limits.OutputBytes
	over := limit > 0 && total > limit
	if over {
		b = b[:max(0, int64(len(b))-(total-limit))]
		// Before publishing: a slow subscriber must not put off the kill.
		p.killFor(control.LimitOutput, fmt.Sprintf("killed: output limit of %d bytes reached", limit))
	}
	if subs := p.hub.listeners(); len(b) > 0 && len(subs) > 0 {
		deliver(subs, dataEvent(o.event(bytes.Clone(b))))
	}
}

// input writes to stdin or the terminal; it waits as long as ctx allows when
// the process does not read.
func (p *proc) input(ctx context.Context, in *pb.ProcessInput) error {
	var data []byte
	switch v := in.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		if p.files.tty != nil {
			return connect.NewError(connect.CodeInternal, errors.New("process has a terminal: send pty input"))
		}
		data = v.Stdin
	case *pb.ProcessInput_Pty:
		if p.files.tty == nil {
			return connect.NewError(connect.CodeInternal, errors.New("process has no terminal: send stdin"))
		}
		data = v.Pty
	default:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("input is empty"))
	}
	if p.files.in == nil {
		return connect.NewError(connect.CodeInternal, errors.New("stdin is not open"))
	}
	select {
	case p.files.token <- struct{}{}:
		defer func() { <-p.files.token }()
	case <-ctx.Done():
		return connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(expired)
		_ = p.files.in.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := p.files.in.Write(data)
	if !stop() {
		<-expired // or it would come after the reset, for every later write
		_ = p.files.in.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("process does not read its input"))
	case errors.Is(err, os.ErrClosed), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EIO):
		return connect.NewError(connect.CodeInternal, errors.New("stdin is closed"))
	}
	return connect.NewError(connect.CodeInternal, fmt.Errorf("write input: %w", err))
}

// closeStdin closes the input pipe, if there is one. Idempotent.
func (p *proc) closeStdin() error {
	if p.files.tty != nil {
		return errors.New("a terminal's input cannot be closed: send 0x04")
	}
	if p.files.in == nil {
		return nil
	}
	if err := p.files.in.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close stdin: %w", err)
	}
	return nil
}

func (p *proc) resize(size *pb.PTY_Size) error {
	if p.files.tty == nil {
		return errors.New("process has no terminal")
	}
	return p.files.setSize(size)
}
