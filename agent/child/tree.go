package child

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// treeRounds bounds the search for processes forked while others were killed.
const treeRounds = 8

// KillTree kills the command's process group, its session and its descendants.
// It also works when the command itself has been reaped and only what it left
// behind runs on. A process that had made itself a session of its own and lost
// its parent is no longer recognisable and escapes.
func (c *Child) KillTree() {
	// The lock excludes forks, so that a recycled pid is noticed.
	c.l.mu.Lock()
	c.l.tableMu.Lock()
	other := c.l.children[c.pid]
	c.l.tableMu.Unlock()
	if other != nil && other != c {
		c.l.mu.Unlock()
		return
	}
	for range treeRounds {
		victims := relatives(c.pid)
		err := syscall.Kill(-c.pid, syscall.SIGKILL)
		for _, pid := range victims {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(victims) == 0 && err != nil {
			break
		}
		if onlyZombies(victims) {
			break
		}
	}
	c.l.mu.Unlock()
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

func onlyZombies(pids []int) bool {
	for _, pid := range pids {
		if p, ok := readStat(pid); ok && !p.zombie {
			return false
		}
	}
	return true
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
