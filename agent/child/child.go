// Package child starts commands and reaps every process that ends. Commands
// are forked straight into their executable, without a shell or helper, from
// threads whose capability bounding set lacks what would exempt them from
// RLIMIT_NPROC; the agent itself keeps those capabilities and therefore can
// always fork (decisions.md 5). It knows nothing of streams or the wire.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
)

// forkThreads is how many commands may be between fork and exec at once, so
// that one slow exec does not hold up the next command.
const forkThreads = 2

// ErrStopped says that the launcher no longer runs.
var ErrStopped = errors.New("launcher is stopped")

// Mode says what this process is.
type Mode int

const (
	// Embedded is an agent inside a process that has children of its own and
	// must not be limited: a test, provider/fake. Only started commands are
	// reaped, and RLIMIT_NPROC is set on each right after its start, which a
	// hostile command can outrun.
	Embedded Mode = iota
	// Guest is pid 1 of a sandbox: all orphans are reaped, and RLIMIT_NPROC is
	// this process's own, inherited by every command from its first
	// instruction.
	Guest
)

// Spec is one command to start. Files are descriptors of this process, which
// stay open.
type Spec struct {
	Path string
	Args []string // with Args[0]
	Env  []string
	Dir  string
	User account.User
	// Stdin, Stdout and Stderr become 0, 1 and 2.
	Stdin, Stdout, Stderr uintptr
	// TTY makes Stdin the controlling terminal.
	TTY bool
}

// Launcher starts commands. Safe for concurrent use.
type Launcher struct {
	mode     Mode
	requests chan request
	stopped  chan struct{}
	started  chan struct{} // one token: a child was started since ECHILD

	// mu is held for reading between fork and registration and while
	// signalling, and for writing while reaping: so no exit goes to the wrong
	// child and no signal to a recycled pid.
	mu sync.RWMutex

	tableMu   sync.Mutex // guards children and processes
	children  map[int]*Child
	processes uint64 // RLIMIT_NPROC of commands, 0 for none of ours
}

type request struct {
	spec  Spec
	reply chan<- result
}

type result struct {
	child *Child
	err   error
}

// New returns a launcher; Run makes it work.
func New(mode Mode) *Launcher {
	return &Launcher{
		mode:     mode,
		requests: make(chan request),
		stopped:  make(chan struct{}),
		started:  make(chan struct{}, 1),
		children: make(map[int]*Child),
	}
}

// Run serves Start until parent ends, then kills what still runs and returns when
// all of it is reaped. In Guest mode it fails at once if commands could not be
// confined.
func (l *Launcher) Run(parent context.Context) error {
	defer close(l.stopped)
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var forks, reaper sync.WaitGroup
	for range forkThreads {
		forks.Go(func() { l.forkLoop(ctx, cancel) })
	}
	if l.mode == Guest {
		reaper.Go(func() { l.reapAll(ctx) })
	}
	forks.Wait()
	l.killAll()
	reaper.Wait()
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// Start forks and executes spec as leader of a session of its own. The error
// wraps the syscall.Errno of what went wrong.
func (l *Launcher) Start(ctx context.Context, spec Spec) (*Child, error) {
	reply := make(chan result, 1)
	select {
	case l.requests <- request{spec: spec, reply: reply}:
	case <-l.stopped:
		return nil, ErrStopped
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r := <-reply
	return r.child, r.err
}

// LimitProcesses sets RLIMIT_NPROC of commands started from now on; 0 leaves
// the limit that the box has.
func (l *Launcher) LimitProcesses(n int64) error {
	if n <= 0 {
		return nil
	}
	l.tableMu.Lock()
	l.processes = uint64(n)
	l.tableMu.Unlock()
	if l.mode != Guest {
		return nil
	}
	lim := unix.Rlimit{Cur: uint64(n), Max: uint64(n)}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &lim); err != nil {
		return fmt.Errorf("limit processes to %d: %w", n, err)
	}
	return nil
}

// forkLoop serves requests on a thread of its own, which ends with it: the
// goroutine never unlocks a thread whose capabilities and priority were changed.
func (l *Launcher) forkLoop(ctx context.Context, fail context.CancelCauseFunc) {
	runtime.LockOSThread()
	if err := confineThread(); err != nil && l.mode == Guest {
		fail(err)
		return
	}
	for {
		select {
		case r := <-l.requests:
			c, err := l.fork(r.spec)
			r.reply <- result{c, err}
		case <-ctx.Done():
			return
		}
	}
}

func (l *Launcher) fork(s Spec) (*Child, error) {
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{s.Stdin, s.Stdout, s.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: s.TTY, Ctty: 0},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: s.User.UID, Gid: s.User.GID, Groups: s.User.Groups}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	pid, err := syscall.ForkExec(s.Path, s.Args, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	c := &Child{pid: pid, l: l, done: make(chan struct{})}
	l.tableMu.Lock()
	l.children[pid] = c
	limit := l.processes
	l.tableMu.Unlock()
	if l.mode == Guest {
		select {
		case l.started <- struct{}{}:
		default:
		}
		return c, nil
	}
	if limit > 0 {
		// Best effort, see Embedded.
		_ = unix.Prlimit(pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: limit, Max: limit}, nil)
	}
	go l.reapOne(c) // ends with the child, which Run kills and waits for
	return c, nil
}

// killAll kills every child and what it started, or as pid 1 every process,
// and waits until all children are reaped.
func (l *Launcher) killAll() {
	if l.mode == Guest && os.Getpid() == 1 {
		_ = syscall.Kill(-1, syscall.SIGKILL)
	}
	for _, c := range l.snapshot() {
		c.KillTree()
		<-c.done
	}
}

func (l *Launcher) snapshot() []*Child {
	l.tableMu.Lock()
	defer l.tableMu.Unlock()
	all := make([]*Child, 0, len(l.children))
	for _, c := range l.children {
		all = append(all, c)
	}
	return all
}

// Child is one started command.
type Child struct {
	pid    int
	l      *Launcher
	done   chan struct{}
	status syscall.WaitStatus // valid after done
}

// PID is its process id.
func (c *Child) PID() int { return c.pid }

// Done is closed when the process has been reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status is how it ended; valid after Done.
func (c *Child) Status() syscall.WaitStatus { return c.status }

// Signal sends sig to this process alone; nothing happens, and nil is returned,
// when it has been reaped.
func (c *Child) Signal(sig syscall.Signal) error {
	c.l.mu.RLock()
	defer c.l.mu.RUnlock()
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := syscall.Kill(c.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", c.pid, err)
	}
	return nil
}
