package server

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
)

// freeMemory is the host's MemAvailable in bytes.
func freeMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the host's memory: %w", err)
	}
	return memAvailable(text)
}

// memAvailable finds the line of a /proc/meminfo.
func memAvailable(text []byte) (int64, error) {
	for line := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(line, []byte("MemAvailable:"))
		if !ok {
			continue
		}
		number, _ := bytes.CutSuffix(bytes.TrimSpace(rest), []byte(" kB"))
		kib, err := strconv.ParseInt(string(number), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the host's memory: %w", err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("the host does not tell its available memory: %w", errdefs.ErrNotFound)
}
