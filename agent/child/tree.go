package child

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"
)

const (
	// killFor bounds the struggle with a tree that forks while it is killed.
	killFor = 5 * time.Second
	// groupKills is how often the group is killed per search for the rest: a
	// fork that was under way when the signal came may survive it, and a
	// search among a thousand busy processes takes long.
	groupKills = 20
	killPause  = 2 * time.Millisecond
)

// KillTree kills the command's process group, its session and its descendants,
// and returns when none is left, or it gave up after some seconds. It also
// works when the command itself has been reaped and only what it left behind
// runs on. A process that had made itself a session of its own and lost its
// parent is no longer recognisable and escapes.
func (c *Child) KillTree() {
	for end := time.Now().Add(killFor); time.Now().Before(end); {
		for range groupKills {
			err := c.killGroup()
			if errors.Is(err, errOther) {
				return
			}
			if err != nil {
				break // no group any more
			}
			time.Sleep(killPause)
		}
		victims := relatives(c.pid)
		for _, pid := range victims {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(victims) == 0 {
			return
		}
	}
}

// errOther says that a command's pid belongs to another one by now.
var errOther = errors.New("pid was used again")

// killGroup kills the process group, which is most of the tree, at once; the
// error is ESRCH when there is none. The lock excludes forks, so that a recycled
// pid is noticed.
func (c *Child) killGroup() error {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.l.tableMu.Lock()
	other := c.l.children[c.pid]
	c.l.tableMu.Unlock()
	if other != nil && other != c {
		return errOther
	}
	return syscall.Kill(-c.pid, syscall.SIGKILL)
}

type procStat struct {
	pid, parent, session int
	zombie               bool
}

// relatives returns the live members of root's session and its descendants,
// root included.
func relatives(root int) []int {
	all := processTable()
	related := map[int]bool{root: true}
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if !related[p.pid] && (p.session == root || related[p.parent]) {
				related[p.pid], grew = true, true
			}
		}
	}
	var pids []int
	for _, p := range all {
		if related[p.pid] && !p.zombie && p.pid != os.Getpid() {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func processTable() []procStat {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var all []procStat
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := readStat(pid); ok {
			all = append(all, p)
		}
	}
	return all
}

// readStat reads /proc/PID/stat: pid (comm) state ppid pgrp session …; comm may
// hold anything, so fields are counted from its last parenthesis.
func readStat(pid int) (procStat, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	i := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[i+1:])
	if i < 0 || len(f) < 4 {
		return procStat{}, false
	}
	parent, err1 := strconv.Atoi(string(f[1]))
	session, err2 := strconv.Atoi(string(f[3]))
	if err1 != nil || err2 != nil {
		return procStat{}, false
	}
	return procStat{pid: pid, parent: parent, session: session, zombie: f[0][0] == 'Z' || f[0][0] == 'X'}, true
}
