package server

import (
	"strings"
	"sync"
	"testing"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/telemetry"
)

func TestNewWarmth(t *testing.T) {
	t.Parallel()
	type plans = map[string]string
	for name, tt := range map[string]struct {
		in      config.Pool
		off     bool
		bytes   int64 // 0: some of the host's
		problem string
	}{
		"plan":                 {in: config.Pool{Templates: plans{"base": "2"}, MemoryMiB: 100}, bytes: 100 << 20},
		"window":               {in: config.Pool{Templates: plans{"base": "0; mon 08:00-09:00 1"}}},
		"demand":               {in: config.Pool{Demand: 1, MemoryMiB: 100}, bytes: 100 << 20},
		"prebooted":            {in: config.Pool{Prebooted: 1}},
		"nothing":              {in: config.Pool{Parallel: 1}, off: true},
		"plans of nothing":     {in: config.Pool{Templates: plans{"base": "0"}}, off: true},
		"fits just":            {in: config.Pool{Templates: plans{"base": "2", "mine": "1; mon 08:00-09:00 6"}, MemoryMiB: 96}, bytes: 96 << 20},
		"fits never":           {in: config.Pool{Templates: plans{"base": "2", "mine": "1; mon 08:00-09:00 7"}, MemoryMiB: 96}, problem: "pool.templates: 9 warm sandboxes need at least 108 MiB, and pool.memory_mib allows 96 MiB: keep fewer or allow more"},
		"more than the host's": {in: config.Pool{Templates: plans{"base": "10000", "b": "10000", "c": "10000", "d": "10000", "e": "10000", "f": "10000", "g": "10000"}}, problem: "pool.memory_mib allows"},
		"no plan":              {in: config.Pool{Templates: plans{"base": "x"}}, problem: `pool.templates: base: "x" is no number`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, err := newWarmth(tt.in, telemetry.NewMetrics("test"))
			if tt.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Errorf("newWarmth() = %v, want %q", err, tt.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if w.off() != tt.off || w.pool.MaxBytes <= 0 || (tt.bytes != 0 && w.pool.MaxBytes != tt.bytes) {
				t.Errorf("off %t with %d bytes, want %t with %d", w.off(), w.pool.MaxBytes, tt.off, tt.bytes)
			}
		})
	}
}

func TestWarmthCounts(t *testing.T) {
	t.Parallel()
	w, err := newWarmth(config.Pool{Demand: 1}, telemetry.NewMetrics("test"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { w.pool.Metrics.Taken(pool.Hot, i%4 != 0) })
		if hits, creates := w.counts(); hits > creates {
			t.Errorf("counts() = %d hits of %d creates", hits, creates)
		}
	}
	wg.Wait()
	if hits, creates := w.counts(); hits != 75 || creates != 100 {
		t.Errorf("counts() = %d hits of %d creates, want 75 of 100", hits, creates)
	}
}
