package agent

import (
	"bufio"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const mebibyte = 1 << 20

// metricsBody is the answer of GET /metrics; sizes are bytes unless they say
// MiB.
type metricsBody struct {
	Timestamp   int64   `json:"ts"`
	CPUCount    int     `json:"cpu_count"`
	CPUUsedPct  float64 `json:"cpu_used_pct"`
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

// cpuMeter tells the share of CPU time used since it was last asked.
type cpuMeter struct {
	mu          sync.Mutex // guards what follows
	busy, total uint64
}

func (a *Agent) metrics(w http.ResponseWriter, _ *http.Request) {
	m := metricsBody{Timestamp: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsedPct: a.cpu.percent()}
	mem := memInfo()
	m.MemTotal = mem["MemTotal"]
	m.MemCache = mem["Cached"] + mem["Buffers"]
	available := mem["MemAvailable"]
	if available == 0 {
		available = mem["MemFree"] + m.MemCache
	}
	m.MemUsed = m.MemTotal - min(available, m.MemTotal)
	m.MemTotalMiB, m.MemUsedMiB = m.MemTotal/mebibyte, m.MemUsed/mebibyte
	var st unix.Statfs_t
	if unix.Statfs("/", &st) == nil {
		unit := uint64(st.Bsize)
		m.DiskTotal = st.Blocks * unit
		m.DiskUsed = (st.Blocks - min(st.Bfree, st.Blocks)) * unit
	}
	w.Header().Set("Cache-Control", "no-store")
	reply(w, http.StatusOK, m)
}

// percent is 0 where the kernel does not account CPU time, and when first
// asked covers the time since boot.
func (c *cpuMeter) percent() float64 {
	busy, total := cpuTime()
	c.mu.Lock()
	defer c.mu.Unlock()
	used, passed := busy-min(c.busy, busy), total-min(c.total, total)
	c.busy, c.total = busy, total
	if passed == 0 {
		return 0
	}
	return float64(int(10000*float64(used)/float64(passed))) / 100
}

// cpuTime reads the first line of /proc/stat: user, nice, system, idle, iowait,
// and more, in ticks.
func cpuTime() (busy, total uint64) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	for i, f := range fields[min(1, len(fields)):] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil || i >= 8 { // guest time is part of user time
			break
		}
		total += n
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return busy, total
}

func memInfo() map[string]uint64 {
	m := make(map[string]uint64)
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return m
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		value := strings.Fields(rest)
		if !ok || len(value) == 0 {
			continue
		}
		if n, err := strconv.ParseUint(value[0], 10, 64); err == nil {
			m[name] = n << 10
		}
	}
	return m
}
