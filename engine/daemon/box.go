package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/bundle"
	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/spawner"
	"github.com/caisson-dev/caisson/engine/wire"
)

// box is one sandbox. It is registered before anything of it exists and stays
// registered after its end, until the server forgets it.
type box struct {
	e   *Engine
	dir string
	log *slog.Logger
	// request is what the box was created from; zero for one on record only.
	request wire.Create

	booted chan struct{} // closed when the boot has succeeded or failed
	done   chan struct{} // closed when the box has ended and is cleared up

	forgotten sync.Once

	mu       sync.Mutex // everything below
	info     wire.Box
	started  uint64 // kernel start time of the sentry, against reuse of its id
	sentry   *spawner.Sentry
	group    *cgroup.Group
	oom      *cgroup.OOMWatch
	console  *console
	nic      *os.File // host's end
	nicPeer  *os.File // guest's end, until start or restore
	agent    *os.File // host's end of the control channel
	layer    *os.File // writable layer, to tell its size and to export it
	restored bool     // with memory
	deadline *time.Timer
	reason   string // why it is being killed, when it is
	detail   string
}

func (b *box) ended() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

func (b *box) snapshot() wire.Box {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.info
}

// kill ends the box for the given reason; the first reason stays, except that
// running out of memory outranks the deadline. It does not wait for the end.
func (b *box) kill(reason, detail string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reason == "" || (reason == wire.ReasonOOM && b.reason == wire.ReasonDeadline) {
		b.reason, b.detail = reason, detail
	}
	b.signal()
}

// signal sends SIGKILL if there is a process. A box that is still booting gets
// it at the end of its boot. The caller holds mu.
func (b *box) signal() {
	if b.sentry == nil {
		return
	}
	rc, err := b.sentry.PIDFD.SyscallConn()
	if err != nil {
		return // closed: it has ended
	}
	_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
}

// setDeadline moves the hard end. The caller holds mu.
func (b *box) setDeadline(t time.Time) {
	if b.deadline != nil {
		b.deadline.Stop()
		b.deadline = nil
	}
	b.info.Deadline = t
	if t.IsZero() {
		return
	}
	b.deadline = time.AfterFunc(time.Until(t), func() { b.kill(wire.ReasonDeadline, "the hard deadline passed") })
}

// watch waits for the sandbox process to end and clears up after it.
func (b *box) watch() {
	waitPIDFD(b.sentry.PIDFD)
	ws, err := b.sentry.Reap(context.Background())
	if err != nil {
		b.log.Warn("status of sandbox is unknown", slog.Any("error", err))
	}
	exit := b.verdict(ws)
	b.finish(exit)
}

// waitPIDFD blocks, on Go's poller, until the process has ended.
func waitPIDFD(f *os.File) {
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || (err != nil && !errors.Is(err, unix.EINTR))
	})
}

// verdict says how the box ended.
func (b *box) verdict(ws unix.WaitStatus) *wire.Exit {
	b.mu.Lock()
	defer b.mu.Unlock()
	x := &wire.Exit{Reason: b.reason, Detail: b.detail, At: time.Now().UTC()}
	switch {
	case ws.Exited():
		x.Status = ws.ExitStatus()
	case ws.Signaled():
		x.Status = 128 + int(ws.Signal())
	}
	killed := b.group != nil && b.group.OOMKills() > 0
	switch {
	case killed && (b.reason == "" || b.reason == wire.ReasonDeadline || b.reason == wire.ReasonOOM):
		x.Reason, x.Detail = wire.ReasonOOM, "the memory limit was hit"
	case b.reason != "":
	case b.panicked() != "":
		x.Reason, x.Detail = wire.ReasonCrashed, b.panicked()
	case ws.Signaled():
		x.Reason, x.Detail = wire.ReasonCrashed, "the sandbox process was killed by "+ws.Signal().String()
	default:
		x.Reason = wire.ReasonExited
		x.Detail = b.console.lastLine()
	}
	return x
}

// panicked returns the first line of what the sentry said when it crashed. Its
// log shares the file; a warning there is no crash.
func (b *box) panicked() string {
	f, err := os.Open(filepath.Join(b.dir, bundle.PanicLog))
	if err != nil {
		return ""
	}
	defer f.Close()
	return crashLine(io.LimitReader(f, 64<<10))
}

// logLine matches the head of a line of the sentry's log: the letter of its
// severity and the date.
var logLine = regexp.MustCompile(`^[DIW][0-9]{4} [0-9:.]+ `)

// crashLine returns the first line that is not of a log, cut to 512 bytes.
func crashLine(r io.Reader) string {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 && !logLine.Match(line) {
			return string(line[:min(len(line), 512)])
		}
	}
	return ""
}

// finish releases what the box had on the host and announces its end. What
// remains is the record, so that a server that was away learns of it.
func (b *box) finish(exit *wire.Exit) {
	b.mu.Lock()
	if b.deadline != nil {
		b.deadline.Stop()
	}
	b.info.State, b.info.Exit = wire.StateEnded, exit
	err := b.release()
	info := b.info
	b.mu.Unlock()
	if err != nil {
		b.log.Error("clear up after box", slog.Any("error", err))
	}
	if exit.Reason != wire.ReasonDestroyed {
		if err := b.save(); err != nil {
			b.log.Error("keep record of ended box", slog.Any("error", err))
		}
	}
	close(b.done)
	b.log.Info("box ended", slog.String("reason", exit.Reason), slog.Int("status", exit.Status), slog.String("detail", exit.Detail))
	b.e.broadcast(info)
	b.e.mu.Lock()
	b.e.armIdle()
	b.e.mu.Unlock()
}

// release closes descriptors and removes the cgroup and the control socket.
// The caller holds mu.
func (b *box) release() error {
	var errs []error
	if b.sentry != nil {
		_ = b.sentry.PIDFD.Close()
	}
	if b.oom != nil {
		_ = b.oom.Close()
	}
	closeFiles([]*os.File{b.nic, b.nicPeer, b.agent, b.layer})
	b.nic, b.nicPeer, b.agent, b.layer = nil, nil, nil, nil
	if b.console != nil {
		b.console.close()
	}
	if b.group != nil {
		errs = append(errs, b.group.Remove())
	}
	if err := os.Remove(bundle.ControlSocket(b.info.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lookup finds a box.
func (e *Engine) lookup(id string) (*box, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.boxes[id]
	if b == nil {
		return nil, &wire.Error{Code: wire.CodeNotFound, Message: fmt.Sprintf("box %q does not exist", id)}
	}
	return b, nil
}

// alive finds a box that has booted and not ended.
func (e *Engine) alive(ctx context.Context, id string) (*box, error) {
	b, err := e.lookup(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-b.booted:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if b.ended() {
		return nil, &wire.Error{Code: wire.CodeNotFound, Message: fmt.Sprintf("box %q has ended", id)}
	}
	return b, nil
}
