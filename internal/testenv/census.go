package testenv

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Census counts what a server, its engine and their sandboxes have on the host:
// what a leak would raise.
type Census struct {
	Processes, ServerFDs, EngineFDs, MemFDs int
	Mounts, Cgroups, NetNamespaces, Sockets int
	Files, Goroutines                       int
	// ServerMB and EngineMB are resident memory.
	ServerMB, EngineMB int
}

// Count takes a census of the server's own things; other programs of the
// machine do not matter to it.
func (s *Server) Count(ctx context.Context) (c Census, err error) {
	pids := append(s.Processes(""), s.PID())
	c.Processes = len(pids)
	namespaces := map[string]bool{}
	for _, pid := range pids {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil {
			namespaces[ns] = true
		}
		_, mem := descriptors(pid)
		c.MemFDs += mem
	}
	c.NetNamespaces = len(namespaces)
	c.ServerFDs, _ = descriptors(s.PID())
	c.ServerMB = rss(s.PID())
	for _, pid := range s.Processes("daemon") {
		fds, _ := descriptors(pid)
		c.EngineFDs += fds
		c.EngineMB += rss(pid)
		c.Mounts += lines(fmt.Sprintf("/proc/%d/mountinfo", pid), "")
	}
	c.Mounts += lines("/proc/self/mountinfo", s.Data)
	c.Sockets = lines("/proc/net/unix", s.Data)
	groups, err := s.Cgroups()
	if err != nil {
		return c, err
	}
	c.Cgroups = len(groups)
	if c.Files, err = s.files(); err != nil {
		return c, err
	}
	n, err := s.Metric(ctx, "go_goroutines")
	c.Goroutines = int(n)
	return c, err
}

// Grown names what is larger in now than in c, beyond what may differ: a
// keep-alive connection more or less is two goroutines and one descriptor, and
// memory is returned late.
func (c Census) Grown(now Census) (grown []string) {
	for _, x := range []struct {
		name           string
		was, is, slack int
	}{
		{"processes", c.Processes, now.Processes, 0},
		{"server descriptors", c.ServerFDs, now.ServerFDs, 4},
		{"engine descriptors", c.EngineFDs, now.EngineFDs, 2},
		{"memfds", c.MemFDs, now.MemFDs, 0},
		{"mounts", c.Mounts, now.Mounts, 0},
		{"cgroups", c.Cgroups, now.Cgroups, 0},
		{"network namespaces", c.NetNamespaces, now.NetNamespaces, 0},
		{"unix sockets", c.Sockets, now.Sockets, 1},
		{"files", c.Files, now.Files, 0},
		{"goroutines", c.Goroutines, now.Goroutines, 10},
		{"MB of the server", c.ServerMB, now.ServerMB, 50},
		{"MB of the engine", c.EngineMB, now.EngineMB, 50},
	} {
		if x.is > x.was+x.slack {
			grown = append(grown, fmt.Sprintf("%s: %d, before %d", x.name, x.is, x.was))
		}
	}
	return grown
}

// Processes lists the processes of the server's directory, without the server,
// whose command line contains word.
func (s *Server) Processes(word string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
	for _, p := range all {
		b, err := os.ReadFile(p) // may have ended meanwhile
		if err != nil || !strings.Contains(string(b), s.Data+"/") || !strings.Contains(string(b), word) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil && pid != s.PID() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Cgroups lists the control groups of the server's sandboxes.
func (s *Server) Cgroups() ([]string, error) {
	sum := sha256.Sum256([]byte(filepath.Join(s.Data, "engine", "engine")))
	name := "caisson-" + hex.EncodeToString(sum[:4])
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name, "/sys/fs/cgroup/*/*/" + name} {
		groups, err := filepath.Glob(pattern + "/*/cgroup.procs")
		if err != nil {
			return nil, err
		}
		all = append(all, groups...)
	}
	return all, nil
}

// files counts what is in the data directory, but for databases and logs, which
// come and go by themselves.
func (s *Server) files() (n int, err error) {
	err = filepath.WalkDir(s.Data, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone while it is walked
		}
		base := filepath.Base(path)
		if err == nil && !strings.Contains(base, ".log") && !strings.HasPrefix(base, "caisson.db") {
			n++
		}
		return err
	})
	return n, err
}

func descriptors(pid int) (all, mem int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "/memfd:") {
			mem++
		}
	}
	return len(entries), mem
}

func rss(pid int) int {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) == 3 && fields[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(fields[1])
			return kb >> 10
		}
	}
	return 0
}

// lines counts the lines of a file that contain text.
func lines(path, text string) (n int) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// ChildrenOf lists the processes whose parent is one of the given.
func ChildrenOf(parents []int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is good
	for _, path := range stats {
		raw, err := os.ReadFile(path) // may have ended meanwhile
		if err != nil {
			continue
		}
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		pid, err1 := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, err2 := strconv.Atoi(fields[1])
		if err1 == nil && err2 == nil && slices.Contains(parents, parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}
