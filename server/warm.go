package server

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/telemetry"
)

// warmPool translates the configuration of warm sandboxes. A plan that the
// memory for it can never hold is an error.
func warmPool(c config.Pool, m *telemetry.Metrics) (sandbox.Pool, error) {
	out := sandbox.Pool{
		Plans: map[string]pool.Plan{}, MaxDemand: c.Demand, MaxBytes: int64(c.MemoryMiB) << 20, Parallel: c.Parallel,
		Metrics: pool.Metrics{Taken: m.PoolTaken, Made: m.PoolMade, Change: m.SetPool},
	}
	if out.MaxBytes == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return sandbox.Pool{}, fmt.Errorf("read the host's memory: %w", err)
		}
		out.MaxBytes = int64(info.Totalram) * int64(info.Unit) / 4
	}
	most := 0
	for ref, text := range c.Templates {
		plan, err := pool.ParsePlan(text)
		if err != nil {
			return sandbox.Pool{}, fmt.Errorf("pool.templates: %s: %w", ref, err)
		}
		out.Plans[ref] = plan
		most += plan.Most()
	}
	if need := int64(most) * pool.LeastBytes; need > out.MaxBytes {
		return sandbox.Pool{}, fmt.Errorf("pool.templates: %d warm sandboxes need at least %d MiB, and pool.memory_mib allows %d MiB: keep fewer or allow more",
			most, need>>20, out.MaxBytes>>20)
	}
	return out, nil
}
