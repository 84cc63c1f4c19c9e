package codeinterp

import (
	"context"
	"log/slog"
	"time"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

const (
	// guardPause is how often memory is looked at while a cell runs. What a
	// cell can take between two looks must be less than the reserve.
	guardPause = 50 * time.Millisecond
	// guardReserve is the memory that is left when a kernel is ended; a small
	// sandbox keeps an eighth.
	guardReserve = 192 << 20
)

// guard ends the largest kernel before the sandbox has no memory left, for then
// all of the sandbox would end. It looks while the cell of c runs.
func (s *Server) guard(ctx context.Context, c *Context, over <-chan struct{}) {
	tick := time.NewTicker(guardPause)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
		}
		total, available, ok := kernel.Memory()
		if !ok || available > min(guardReserve, total/8) {
			continue
		}
		var largest *Context
		var most int64
		for _, x := range s.list() {
			if n := x.resident(); n > most {
				largest, most = x, n
			}
		}
		// What else runs in the sandbox is not ours to end.
		if largest == nil || most < total/4 {
			continue
		}
		s.cfg.Log.WarnContext(ctx, "a kernel is ended because memory runs out", slog.String("context", largest.ID),
			slog.Int64("bytes", most), slog.String("during", c.ID))
		largest.end(errOutOfMemory)
	}
}

// resident is the memory of the context's kernel and all that it started.
func (c *Context) resident() int64 {
	c.mu.Lock()
	k := c.kernel
	c.mu.Unlock()
	if k == nil {
		return 0
	}
	return k.Resident()
}
