package spawner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/wire"
)

// spawnTimeout is far beyond any healthy start; a spawner that exceeds it is
// replaced.
const spawnTimeout = 20 * time.Second

// Pool is a fixed number of spawner processes. One that dies is replaced; the
// sandboxes it had started live on as children of the engine.
type Pool struct {
	o    Options
	log  *slog.Logger
	free chan *worker
	// Orphans is called after a spawner died, when sandboxes that it had not
	// announced may be left.
	orphans func()

	mu      sync.Mutex
	workers map[*worker]bool
	closed  bool
	wg      sync.WaitGroup
}

// Sentry is a started sandbox process.
type Sentry struct {
	PID int
	// PIDFD refers to the process; it is the caller's.
	PIDFD *os.File
	w     *worker
}

// NewPool starts n spawners. orphans is called whenever one of them died.
func NewPool(n int, o Options, log *slog.Logger, orphans func()) (*Pool, error) {
	p := &Pool{o: o, log: log, free: make(chan *worker, n), orphans: orphans, workers: make(map[*worker]bool)}
	for range n {
		if err := p.add(); err != nil {
			return nil, errors.Join(err, p.Close())
		}
	}
	return p, nil
}

// Close ends all spawners; each kills what it has started.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	for w := range p.workers {
		_ = w.conn.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// PIDs lists the spawner processes.
func (p *Pool) PIDs() map[int]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	pids := make(map[int]bool, len(p.workers))
	for w := range p.workers {
		pids[w.cmd.Process.Pid] = true
	}
	return pids
}

// Spawn starts the sandbox of the bundle in dir. The files, in the order of
// spawnRequest, stay the caller's. When it fails, no process is left.
// The sandbox starts inside group.
func (p *Pool) Spawn(ctx context.Context, c wire.Create, dir string, group *cgroup.Group, files []*os.File) (*Sentry, error) {
	var w *worker
	select {
	case w = <-p.free:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	// A start that has begun is finished even if the caller has gone; only then
	// is it known what to clean up.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), spawnTimeout)
	defer cancel()
	m, got, err := w.call(call, opSpawn, spawnRequest{Create: c, Bundle: dir, Cgroups: group.Dirs(), V2: group.V2()}, files...)
	if errors.Is(err, context.DeadlineExceeded) {
		p.log.Error("spawner does not answer", slog.String("box", c.ID))
		_ = w.cmd.Process.Kill()
		return nil, &wire.Error{Code: wire.CodeUnavailable, Message: "the sandbox process did not start in time"}
	}
	if !w.dead() {
		p.free <- w
	}
	if err != nil {
		closeFiles(got)
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	var r spawnReply
	if err := json.Unmarshal(m.Body, &r); err != nil || len(got) != 1 {
		closeFiles(got)
		return nil, fmt.Errorf("start sandbox: bad reply of spawner: %w", err)
	}
	return &Sentry{PID: r.PID, PIDFD: got[0], w: w}, nil
}

// Reap collects the status of a sandbox that has ended. It is called once.
func (s *Sentry) Reap(ctx context.Context) (unix.WaitStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, spawnTimeout)
	defer cancel()
	m, files, err := s.w.call(ctx, opReap, reapRequest{PID: s.PID})
	closeFiles(files)
	if err == nil {
		var r reapReply
		if err = json.Unmarshal(m.Body, &r); err == nil {
			return unix.WaitStatus(r.Status), nil
		}
	}
	// Its spawner has died, so it is the engine's own child now.
	var ws unix.WaitStatus
	if _, werr := unix.Wait4(s.PID, &ws, unix.WNOHANG, nil); werr == nil {
		return ws, nil
	}
	return 0, fmt.Errorf("reap sandbox: %w", err)
}

func (p *Pool) add() error {
	w, err := startWorker(p.o)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = w.conn.Close()
	}
	p.workers[w] = true
	p.wg.Go(func() { p.watch(w) })
	if !p.closed {
		p.free <- w
	}
	return nil
}

// watch owns one spawner until it ends, and then replaces it.
func (p *Pool) watch(w *worker) {
	started := time.Now()
	w.receive()
	err := w.cmd.Wait()
	p.mu.Lock()
	delete(p.workers, w)
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	p.log.Error("spawner died", slog.Any("error", err))
	p.drop(w)
	p.orphans()
	if time.Since(started) < time.Second {
		time.Sleep(time.Second) // it cannot start; do not spin
	}
	if err := p.add(); err != nil {
		p.log.Error("replace spawner", slog.Any("error", err))
	}
}

// drop takes a dead worker out of the free list.
func (p *Pool) drop(dead *worker) {
	for range cap(p.free) {
		select {
		case w := <-p.free:
			if w != dead {
				p.free <- w
			}
		default:
			return
		}
	}
}

// worker is the engine's end of one spawner process.
type worker struct {
	cmd  *exec.Cmd
	conn *wire.Conn
	gone chan struct{}

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan reply
}

type reply struct {
	m     wire.Message
	files []*os.File
}

func startWorker(o Options) (*worker, error) {
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
		pending: make(map[uint64]chan reply),
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
		w.mu.Lock()
		ch := w.pending[m.ID]
		delete(w.pending, m.ID)
		w.mu.Unlock()
		if ch == nil { // its caller gave up
			closeFiles(files)
			continue
		}
		ch <- reply{m, files}
	}
}

func (w *worker) call(ctx context.Context, op string, body any, files ...*os.File) (wire.Message, []*os.File, error) {
	ch := make(chan reply, 1)
	w.mu.Lock()
	w.next++
	id := w.next
	w.pending[id] = ch
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.pending, id)
		w.mu.Unlock()
	}()
	if err := w.conn.Send(wire.Message{ID: id, Op: op, Body: wire.Encode(body)}, files...); err != nil {
		return wire.Message{}, nil, err
	}
	select {
	case r := <-ch:
		if r.m.Error != nil {
			return r.m, r.files, r.m.Error
		}
		return r.m, r.files, nil
	case <-w.gone:
		return wire.Message{}, nil, &wire.Error{Code: wire.CodeUnavailable, Message: "the spawner died"}
	case <-ctx.Done():
		return wire.Message{}, nil, ctx.Err()
	}
}
