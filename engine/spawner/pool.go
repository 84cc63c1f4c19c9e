package spawner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
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
	// children lists the children of this process, the engine.
	children func() []int

	// starting is held while a spawner is started and not yet in workers, so
	// that nobody takes it for an orphan. It comes before mu.
	starting sync.Mutex

	mu      sync.Mutex // guards what follows
	workers map[*worker]bool
	// sentries counts, by process, sandboxes announced and not reaped: a number
	// may be another's before its reaping has been noted.
	sentries map[int]int
	closed   bool
	wg       sync.WaitGroup
}

// Sentry is a started sandbox process.
type Sentry struct {
	PID int
	// PIDFD refers to the process; it is the caller's.
	PIDFD *os.File
	p     *Pool
	w     *worker
}

// NewPool starts n spawners. children lists the children of this process: a
// spawner that dies in the middle of a start leaves one, which is killed.
func NewPool(n int, o Options, log *slog.Logger, children func() []int) (*Pool, error) {
	p := &Pool{
		o: o, log: log, free: make(chan *worker, n), children: children,
		workers: make(map[*worker]bool), sentries: make(map[int]int),
	}
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

// Spawn starts the sandbox of the bundle in dir. The files, in the order of
// spawnRequest, stay the caller's. When it fails, no process is left.
// The sandbox starts inside group.
func (p *Pool) Spawn(ctx context.Context, c wire.Create, dir string, group *cgroup.Group, files []*os.File) (*Sentry, error) {
	req := spawnRequest{Create: c, Bundle: dir, Cgroups: group.Dirs(), V2: group.V2()}
	var w *worker
	var m wire.Message
	var got []*os.File
	err := errUnsent
	for errors.Is(err, errUnsent) { // that spawner is dying; another one does it
		if w, err = p.take(ctx); err != nil {
			return nil, err
		}
		// A start that has begun is finished even if the caller has gone; only
		// then is it known what to clean up.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), spawnTimeout)
		m, got, err = w.call(call, opSpawn, req, files...)
		cancel()
		if errors.Is(err, errUnsent) {
			_ = w.cmd.Process.Kill() // watch replaces it
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		p.log.Error("spawner does not answer", slog.String("box", c.ID))
		_ = w.cmd.Process.Kill()
		return nil, &wire.Error{Code: wire.CodeUnavailable, Message: "the sandbox process did not start in time"}
	}
	p.release(w)
	if err != nil {
		closeFiles(got)
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	var r spawnReply
	if err := json.Unmarshal(m.Body, &r); err != nil || len(got) != 1 {
		closeFiles(got)
		p.forget(r.PID)
		return nil, fmt.Errorf("start sandbox: bad reply of spawner: %w", err)
	}
	return &Sentry{PID: r.PID, PIDFD: got[0], p: p, w: w}, nil
}

// take waits for a spawner that lives.
func (p *Pool) take(ctx context.Context) (*worker, error) {
	for {
		select {
		case w := <-p.free:
			if !w.dead() { // one that has just died was not dropped yet
				return w, nil
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Reap collects the status of a sandbox that has ended. It is called once.
func (s *Sentry) Reap(ctx context.Context) (unix.WaitStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, spawnTimeout)
	defer cancel()
	defer s.p.forget(s.PID)
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
	p.starting.Lock()
	defer p.starting.Unlock()
	p.mu.Lock()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return nil
	}
	w, err := startWorker(p.o, p.announce)
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

// announce notes a started sandbox. A worker calls it for every one before it is
// known to have died.
func (p *Pool) announce(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sentries[pid]++
}

func (p *Pool) forget(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sentries[pid]--; p.sentries[pid] <= 0 {
		delete(p.sentries, pid)
	}
}

// release makes a spawner available again, unless it has died: watch drops a
// dead one only once, so none may follow.
func (p *Pool) release(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.workers[w] {
		p.free <- w // has room for all of them
	}
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
	p.killOrphans()
	if time.Since(started) < time.Second {
		time.Sleep(time.Second) // it cannot start; do not spin
	}
	for {
		err := p.add()
		if err == nil {
			return
		}
		p.log.Error("replace spawner; will retry", slog.Any("error", err))
		time.Sleep(time.Second)
	}
}

// killOrphans kills children of this process that are neither spawners nor
// announced sandboxes. While another spawner is dead and its last words are
// unread, a child may be one that it announces there; the look that follows that
// spawner's end finds what is left.
func (p *Pool) killOrphans() {
	p.starting.Lock()
	defer p.starting.Unlock()
	for _, pid := range p.orphans(p.children()) {
		p.log.Warn("kill orphaned process", slog.Int("pid", pid))
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
}

func (p *Pool) orphans(children []int) []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	spawners := make(map[int]bool, len(p.workers))
	for w := range p.workers {
		if hasEnded(w.cmd.Process.Pid) {
			return nil
		}
		spawners[w.cmd.Process.Pid] = true
	}
	return slices.DeleteFunc(children, func(pid int) bool { return spawners[pid] || p.sentries[pid] > 0 })
}

// hasEnded reports whether a child has ended, without reaping it; true also when
// it has been reaped.
func hasEnded(pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || info.Signo != 0
		}
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
