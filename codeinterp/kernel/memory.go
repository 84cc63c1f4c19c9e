package kernel

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// Memory returns the sandbox's memory and what of it can still be had, in
// bytes; false when the system does not tell.
func Memory() (total, available int64, ok bool) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, false
	}
	total, ok = field(b, "MemTotal:")
	if !ok {
		return 0, 0, false
	}
	available, ok = field(b, "MemAvailable:")
	return total, available, ok
}

func field(b []byte, name string) (int64, bool) {
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte(name))
		if !ok {
			continue
		}
		f := bytes.Fields(rest)
		if len(f) == 0 {
			return 0, false
		}
		kb, err := strconv.ParseInt(string(f[0]), 10, 64)
		return kb << 10, err == nil
	}
	return 0, false
}

// Resident implements Kernel: the memory of the process group.
func (p *process) Resident() int64 {
	select {
	case <-p.done:
		return 0
	default:
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	group := strconv.Itoa(p.cmd.Process.Pid)
	var pages int64
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// The name of the program, in brackets, may hold anything.
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) < 22 || string(f[2]) != group {
			continue
		}
		if n, err := strconv.ParseInt(string(f[21]), 10, 64); err == nil {
			pages += n
		}
	}
	return pages * int64(os.Getpagesize())
}
