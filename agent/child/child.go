// Package child starts commands and reaps every process that ends. Commands
// are forked straight into their executable, without a shell or helper. In a
// guest the agent's capability bounding set lacks what would exempt a command
// from RLIMIT_NPROC, while its own effective set keeps it, so that it can
// always fork (decisions.md 5). It knows nothing of streams or the wire.
package child

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
)

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
	mode    Mode
	running chan struct{} // closed when commands may start
	started chan struct{} // one token: a child was started since ECHILD

	// mu is held for reading between fork and registration and while
	// signalling, and for writing while reaping: so no exit goes to the wrong
	// child and no signal to a recycled pid.
	mu sync.RWMutex

	tableMu   sync.Mutex // guards what follows
	children  map[int]*Child
	processes uint64 // RLIMIT_NPROC of commands, 0 for none of ours
	stopped   bool
}

// New returns a launcher; Run makes it work.
func New(mode Mode) *Launcher {
	return &Launcher{
		mode:     mode,
		running:  make(chan struct{}),
		started:  make(chan struct{}, 1),
		children: make(map[int]*Child),
	}
}

// Run lets commands start until ctx ends, then kills what still runs and
// returns when all of it is reaped. In Guest mode it fails at once if commands
// could not be confined.
func (l *Launcher) Run(ctx context.Context) error {
	var reaper sync.WaitGroup
	if l.mode == Guest {
		if err := confine(); err != nil {
			return err
		}
		if err := dropSIGCHLD(); err != nil {
			return err
		}
		reaper.Go(func() { l.reapAll(ctx) })
	}
	close(l.running)
	<-ctx.Done()
	l.mu.Lock() // no fork is in progress then
	l.tableMu.Lock()
	l.stopped = true
	l.tableMu.Unlock()
	l.mu.Unlock()
	l.killAll()
	reaper.Wait()
	return nil
}

// Start forks and executes spec as leader of a session of its own. The error
// wraps the syscall.Errno of what went wrong.
func (l *Launcher) Start(ctx context.Context, spec Spec) (*Child, error) {
	select {
	case <-l.running:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return l.fork(spec)
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

func (l *Launcher) fork(s Spec) (*Child, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	l.tableMu.Lock()
	stopped := l.stopped
	l.tableMu.Unlock()
	if stopped {
		return nil, ErrStopped
	}
	pid, err := vforkExec(s)
	if errors.Is(err, errNoVfork) {
		pid, err = forkExec(s)
	}
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

// forkExec is the slow way, for kernels and confinements without the other.
func forkExec(s Spec) (int, error) {
	attr := &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{s.Stdin, s.Stdout, s.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: s.TTY, Ctty: 0},
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: s.User.UID, Gid: s.User.GID, Groups: s.User.Groups}
	}
	return syscall.ForkExec(s.Path, s.Args, attr)
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
