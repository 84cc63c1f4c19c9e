package spawner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/wire"
)

// worker is the engine's end of one spawner process.
type worker struct {
	cmd  *exec.Cmd
	conn *wire.Conn
	gone chan struct{}
	// announce is called for every started sandbox whose caller still waits.
	announce func(pid int)

	mu      sync.Mutex // guards what follows
	next    uint64
	pending map[uint64]pending
}

// pending is a call that waits for its reply.
type pending struct {
	op string
	ch chan reply // takes one
}

// errUnsent says that a spawner can take no request any more. It has not acted on
// this one: a request is complete or nothing.
var errUnsent = errors.New("request was not sent")

type reply struct {
	m     wire.Message
	files []*os.File
}

func startWorker(o Options, announce func(pid int)) (*worker, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make spawner socket: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "spawner"), os.NewFile(uintptr(fds[1]), "engine")
	defer theirs.Close()
	c, err := net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		return nil, fmt.Errorf("open spawner socket: %w", err)
	}
	args := []string{"spawner"}
	if o.Debug {
		args = append(args, "--debug")
	}
	if o.Rootless {
		args = append(args, "--rootless")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "caisson-engine"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	// A session of its own, so that a terminal's signals do not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("start spawner: %w", err)
	}
	return &worker{
		cmd: cmd, conn: wire.NewConn(c.(*net.UnixConn)), gone: make(chan struct{}),
		announce: announce, pending: make(map[uint64]pending),
	}, nil
}

func (w *worker) dead() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}

func (w *worker) receive() {
	defer close(w.gone)
	defer w.conn.Close()
	for {
		m, files, err := w.conn.Receive()
		if err != nil {
			return
		}
		if !w.deliver(m, files) { // its caller gave up
			closeFiles(files)
		}
	}
}

// deliver hands a reply to the call that waits for it; false when none does.
func (w *worker) deliver(m wire.Message, files []*os.File) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	call, ok := w.pending[m.ID]
	if !ok {
		return false
	}
	delete(w.pending, m.ID)
	var r spawnReply
	if call.op == opSpawn && m.Error == nil && json.Unmarshal(m.Body, &r) == nil {
		w.announce(r.PID)
	}
	call.ch <- reply{m, files}
	return true
}

func (w *worker) call(ctx context.Context, op string, body any, files ...*os.File) (wire.Message, []*os.File, error) {
	ch := make(chan reply, 1)
	w.mu.Lock()
	w.next++
	id := w.next
	w.pending[id] = pending{op, ch}
	w.mu.Unlock()
	if err := w.conn.Send(wire.Message{ID: id, Op: op, Body: wire.Encode(body)}, files...); err != nil {
		w.abandon(id)
		return wire.Message{}, nil, fmt.Errorf("%w: %w", errUnsent, err)
	}
	var err error
	select {
	case r := <-ch:
		return r.result()
	case <-w.gone:
		err = &wire.Error{Code: wire.CodeUnavailable, Message: "the spawner died"}
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.abandon(id)
	select {
	case r := <-ch: // both at once: what was started is ours to take
		return r.result()
	default:
		return wire.Message{}, nil, err
	}
}

// abandon gives up on a reply: it has been delivered, or never will be.
func (w *worker) abandon(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, id)
}

func (r reply) result() (wire.Message, []*os.File, error) {
	if r.m.Error != nil {
		return r.m, r.files, r.m.Error
	}
	return r.m, r.files, nil
}
