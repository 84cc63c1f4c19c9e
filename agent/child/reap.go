package child

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reapAll waits for every child of this process, started or inherited, until
// ctx has ended and none is left. A child that this process inherits while it
// has none, which only one that was not started through it can leave behind,
// stays a zombie until the next Start.
func (l *Launcher) reapAll(ctx context.Context) {
	for {
		if err := waitNoReap(unix.P_ALL, 0); err == nil && l.collect() {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-l.started:
		case <-ctx.Done():
		}
	}
}

// collect reaps all that has ended and reports whether children are left.
func (l *Launcher) collect() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			// No Start is in progress: the token is of a child that has ended.
			select {
			case <-l.started:
			default:
			}
			return false
		}
		if pid <= 0 {
			return true
		}
		l.ended(pid, status)
	}
}

// dropSIGCHLD makes the kernel drop SIGCHLD for this process: exits are waited
// for, and each delivery would interrupt a thread. The runtime has no use for it.
func dropSIGCHLD() error {
	var act struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&act)), 0,
		unsafe.Sizeof(act.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("reset the handler of SIGCHLD: %w", errno)
	}
	return nil
}

// reapOne waits for c alone.
func (l *Launcher) reapOne(c *Child) {
	_ = waitNoReap(unix.P_PID, c.pid)
	l.mu.Lock()
	defer l.mu.Unlock()
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(c.pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	l.ended(c.pid, status)
}

// ended records an exit. The caller holds mu for writing.
func (l *Launcher) ended(pid int, status syscall.WaitStatus) {
	l.tableMu.Lock()
	c := l.children[pid]
	delete(l.children, pid)
	l.tableMu.Unlock()
	if c != nil {
		c.status = status
		close(c.done)
	}
}

// waitNoReap blocks until a child has ended and leaves it a zombie, so that it
// can be reaped under the lock.
func waitNoReap(idType, id int) error {
	for {
		err := unix.Waitid(idType, id, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
