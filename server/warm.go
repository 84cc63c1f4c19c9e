package server

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/api/native"
	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/telemetry"
)

// warmth is what is kept warm, and how often that served a create.
type warmth struct {
	pool          sandbox.Pool
	most          int // that the plans ever keep
	hits, creates atomic.Int64
}

// newWarmth translates the configuration of warm sandboxes. A plan that the
// memory for it can never hold is an error.
func newWarmth(c config.Pool, m *telemetry.Metrics) (*warmth, error) {
	w := &warmth{}
	w.pool = sandbox.Pool{
		Plans: map[string]pool.Plan{}, MaxDemand: c.Demand, Booted: c.Prebooted,
		MaxBytes: int64(c.MemoryMiB) << 20, Parallel: c.Parallel, Spawners: runtime.NumCPU(), // as many as the engine has
		Metrics: pool.Metrics{
			Taken: func(t pool.Tier, hit bool) {
				if t == pool.Booted {
					m.PrebootedTaken(hit)
					return
				}
				m.PoolTaken(hit)
				w.taken(hit)
			},
			Made: func(t pool.Tier, took time.Duration, err error) {
				if t == pool.Hot || err != nil { // the histogram is of hot ones
					m.PoolMade(took, err)
				}
			},
			Change: func(t pool.Tier, n int) {
				if t == pool.Booted {
					m.SetPrebooted(n)
					return
				}
				m.SetPool(n)
			},
		},
	}
	if w.pool.MaxBytes == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, fmt.Errorf("read the host's memory: %w", err)
		}
		w.pool.MaxBytes = int64(info.Totalram) * int64(info.Unit) / 4
	}
	for ref, text := range c.Templates {
		plan, err := pool.ParsePlan(text)
		if err != nil {
			return nil, fmt.Errorf("pool.templates: %s: %w", ref, err)
		}
		w.pool.Plans[ref] = plan
		w.most += plan.Most()
	}
	if need := int64(w.most) * pool.LeastBytes; need > w.pool.MaxBytes {
		return nil, fmt.Errorf("pool.templates: %d warm sandboxes need at least %d MiB, and pool.memory_mib allows %d MiB: keep fewer or allow more",
			w.most, need>>20, w.pool.MaxBytes>>20)
	}
	return w, nil
}

func (w *warmth) taken(hit bool) {
	w.creates.Add(1) // first, so that counts never has more hits
	if hit {
		w.hits.Add(1)
	}
}

// counts are the hits among the creates since the server started.
func (w *warmth) counts() (hits, creates int64) {
	hits = w.hits.Load()
	return hits, w.creates.Load()
}

// off reports whether nothing is ever kept warm.
func (w *warmth) off() bool { return w.most == 0 && w.pool.MaxDemand == 0 && w.pool.Booted == 0 }

// poolStatus is what the API shows of warm sandboxes.
func (n *node) poolStatus() native.Pool {
	if can := n.prov.Capabilities(); n.warm.off() || !can.Claim && !can.Preboot {
		return native.Pool{}
	}
	return native.Pool{
		Status: n.manager.PoolStatus, Taken: n.warm.counts, MaxBytes: n.warm.pool.MaxBytes,
		Planned: slices.Sorted(maps.Keys(n.warm.pool.Plans)),
	}
}
