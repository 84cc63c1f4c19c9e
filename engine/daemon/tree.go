package daemon

import (
	"bytes"
	"os"
	"strconv"

	"github.com/caisson-dev/caisson/engine/cgroup"
)

// treeStats adds up a process and its descendants, for hosts without writable
// control groups.
func treeStats(root int) cgroup.Stats {
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on
	var s cgroup.Stats
	byParent := make(map[int][]int)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return s
	}
	for _, ent := range entries {
		pid, err := strconv.Atoi(ent.Name())
		if err != nil {
			continue
		}
		if f, err := stat(pid); err == nil {
			parent, _ := strconv.Atoi(string(f[1]))
			byParent[parent] = append(byParent[parent], pid)
		}
	}
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		pid := queue[0]
		queue = append(queue, byParent[pid]...)
		f, err := stat(pid)
		if err != nil {
			continue
		}
		user, _ := strconv.ParseInt(string(f[11]), 10, 64)
		system, _ := strconv.ParseInt(string(f[12]), 10, 64)
		s.CPUNanos += (user + system) * (1e9 / ticksPerSecond)
		s.Processes++
		if pid == root {
			s.MemoryBytes = resident(pid) // the others map the same memory
		}
	}
	return s
}

// resident is the resident set of a process in bytes.
func resident(pid int) int64 {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	f := bytes.Fields(raw)
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(string(f[1]), 10, 64)
	return pages * int64(os.Getpagesize())
}
