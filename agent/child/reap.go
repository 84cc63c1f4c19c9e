package child

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// reapAll waits for every child of this process, started or inherited, until
// ctx has ended and none is left.
func (l *Launcher) reapAll(ctx context.Context) {
	// Orphans arrive without a Start; their SIGCHLD wakes the loop when it
	// sleeps for want of children.
	sigchld := make(chan os.Signal, 1)
	signal.Notify(sigchld, syscall.SIGCHLD)
	defer signal.Stop(sigchld)
	for {
		err := waitNoReap(unix.P_ALL, 0)
		if err == nil {
			l.collect()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-l.started:
		case <-sigchld:
		case <-ctx.Done():
		}
	}
}

// collect reaps all that has ended.
func (l *Launcher) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		l.ended(pid, status)
	}
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
