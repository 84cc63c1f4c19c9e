package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// OOMWatch tells of out-of-memory kills in one group.
type OOMWatch struct {
	f     *os.File
	group *Group
}

// WatchOOM starts watching where it is needed: on cgroup v1 the kernel may kill
// one process of the box and leave the rest. On v2 it kills the whole group,
// and without a memory controller it kills nothing; then WatchOOM returns nil
// and no error.
func (g *Group) WatchOOM() (*OOMWatch, error) {
	if g.v2 != "" || g.memory == "" {
		return nil, nil
	}
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch memory events: %w", err)
	}
	f := os.NewFile(uintptr(efd), "oom events")
	ctl, err := os.Open(filepath.Join(g.memory, "memory.oom_control"))
	if err != nil {
		return nil, fmt.Errorf("watch memory events: %w", errors.Join(err, f.Close()))
	}
	defer ctl.Close()
	if err := Write(g.memory, "cgroup.event_control", fmt.Sprintf("%d %d", efd, ctl.Fd())); err != nil {
		return nil, fmt.Errorf("watch memory events: %w", errors.Join(err, f.Close()))
	}
	return &OOMWatch{f: f, group: g}, nil
}

// Wait returns true when the kernel has killed a process of the group, and
// false when the watch was closed or the group removed.
func (w *OOMWatch) Wait() bool {
	buf := make([]byte, 8)
	for {
		if _, err := w.f.Read(buf); err != nil {
			return false
		}
		// The event announces the kill; the count follows it.
		for range 50 {
			if w.group.OOMKills() > 0 {
				return true
			}
			if _, err := os.Stat(w.group.memory); err != nil {
				return false
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// Close ends the watch.
func (w *OOMWatch) Close() error { return w.f.Close() }
