package sandbox

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/provider"
	"golang.org/x/time/rate"
)

const (
	waitRetry = time.Second
	// eventRate and eventBurst bound the audit events that one guest can cause.
	eventRate  = 1
	eventBurst = 20
	maxDetail  = 512
)

// watch follows a live box: its end, and what its agent tells.
func (m *Manager) watch(e *entry, box provider.Box) {
	m.tasks.add(func(ctx context.Context) { m.awaitExit(ctx, e, box) })
	if ctl := box.Control(); ctl != nil {
		m.tasks.add(func(ctx context.Context) { m.followEvents(ctx, e, ctl) })
	}
}

// awaitExit ends the sandbox when its box has ended by itself.
func (m *Manager) awaitExit(ctx context.Context, e *entry, box provider.Box) {
	for {
		exit, err := box.Wait(ctx)
		if err == nil {
			m.boxExited(ctx, e, exit)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-e.gone:
			return
		case <-time.After(waitRetry):
			// The provider lost sight of the box, for example because its engine
			// restarts. The sweep ends boxes that do not come back.
			m.log.WarnContext(ctx, "box cannot be watched; will retry", slog.String("sandbox", string(e.id)), slog.Any("error", err))
		}
	}
}

func (m *Manager) boxExited(ctx context.Context, e *entry, exit provider.Exit) {
	m.mu.RLock()
	saving := e.phase == pausing
	m.mu.RUnlock()
	if saving {
		return // whoever saves it destroys the box, and sees when it died before
	}
	if _, asked := m.askEnd(e, exitReason(exit), "system"); !asked {
		return
	}
	_ = m.finishEnd(ctx, e, audit.Event{Fields: map[string]string{ // logged there; the sweep retries
		"status": strconv.Itoa(exit.Status), "detail": clip(exit.Detail, maxDetail),
	}}, false)
}

// exitReason maps the provider's word to one of the fixed set.
func exitReason(exit provider.Exit) string {
	switch exit.Reason {
	case provider.ReasonExited, provider.ReasonOOM, provider.ReasonDeadline,
		provider.ReasonEngineLost, provider.ReasonDestroyed:
		return exit.Reason
	default:
		return provider.ReasonCrashed
	}
}

// followEvents turns limit hits into audit events. The guest's root can forge
// them, so they are few and short, and nothing is decided by them.
func (m *Manager) followEvents(ctx context.Context, e *entry, ctl *control.Client) {
	quota := rate.NewLimiter(eventRate, eventBurst)
	for {
		select {
		case ev := <-ctl.Events():
			if ev.Type == "limit" && quota.Allow() {
				m.recordLimit(ctx, e, ev)
			}
		case <-e.gone:
			return
		case <-ctl.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) recordLimit(ctx context.Context, e *entry, ev control.Event) {
	limit := ev.Limit
	switch limit {
	case "wall_time", "output", "processes":
	default:
		limit = "unknown"
	}
	if f := m.deps.Metrics.LimitHit; f != nil {
		f(limit)
	}
	m.log.InfoContext(ctx, "command hit a limit", slog.String("sandbox", string(e.id)), slog.String("limit", limit))
	err := m.deps.Store.Record(ctx, audit.Event{
		Type: "sandbox.limit_hit", Team: string(e.team), Actor: "agent", SandboxID: string(e.id), Reason: limit,
		Fields: map[string]string{"pid": strconv.FormatUint(uint64(ev.PID), 10), "cmd": clip(ev.Cmd, 256)},
	})
	if err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "limit hit could not be recorded", slog.String("sandbox", string(e.id)), slog.Any("error", err))
	}
}

// clip cuts untrusted text and keeps it valid UTF-8.
func clip(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "")
}
