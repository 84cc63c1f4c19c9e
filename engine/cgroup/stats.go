package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stats is a sample of a group.
type Stats struct {
	CPUNanos       int64
	MemoryBytes    int64
	CacheBytes     int64
	MemoryMaxBytes int64 // zero when unlimited
	Processes      int
}

// Stats reads the group. Memory leaves out page cache that the kernel can drop
// at once, which is Cache. What the host does not account stays zero.
func (g *Group) Stats() Stats {
	s := Stats{MemoryMaxBytes: g.limits.MemoryBytes}
	switch {
	case g.v2 != "":
		s.CPUNanos = keyed(g.v2, "cpu.stat", "usage_usec") * 1000
		s.CacheBytes = keyed(g.v2, "memory.stat", "inactive_file")
		s.MemoryBytes = max(number(g.v2, "memory.current")-s.CacheBytes, 0)
	default:
		if g.acct != "" {
			s.CPUNanos = number(g.acct, "cpuacct.usage")
		}
		if g.memory != "" {
			s.CacheBytes = keyed(g.memory, "memory.stat", "total_inactive_file")
			s.MemoryBytes = max(number(g.memory, "memory.usage_in_bytes")-s.CacheBytes, 0)
		}
	}
	if dirs := g.Dirs(); len(dirs) > 0 {
		if b, err := os.ReadFile(filepath.Join(dirs[0], "cgroup.procs")); err == nil {
			s.Processes = bytes.Count(b, []byte{'\n'})
		}
	}
	return s
}

// OOMKills is how many processes of the group the kernel has killed for lack of
// memory.
func (g *Group) OOMKills() int64 {
	if g.v2 != "" {
		return keyed(g.v2, "memory.events", "oom_kill")
	}
	if g.memory != "" {
		return keyed(g.memory, "memory.oom_control", "oom_kill")
	}
	return 0
}

// number reads a file that holds one number; zero when it cannot.
func number(dir, file string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// keyed reads one line "key number" of a file; zero when it is absent.
func keyed(dir, file, key string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}
