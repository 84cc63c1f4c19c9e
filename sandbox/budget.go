package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
)

// ReasonBudget is why a sandbox was paused that has used up its budget. Where
// the provider cannot pause it is why it ended.
const ReasonBudget = "budget"

// budgetNear is the share of a budget at which an event warns.
const budgetNear = 0.8

// Budget is the most that a sandbox may use over all its runs; a zero member
// bounds nothing. What is used is measured from time to time, so that a little
// more can be used than is given.
type Budget struct {
	CPU  time.Duration `json:"cpu,omitempty"`
	Wall time.Duration `json:"wall,omitempty"`
	// EgressBytes counts both directions of the connections that it opens.
	EgressBytes int64 `json:"egressBytes,omitempty"`
}

// share returns the member of which used has the greatest part, and that part.
func (b Budget) share(used Budget) (member string, part float64) {
	for _, m := range []struct {
		name       string
		used, most float64
	}{
		{"cpu", float64(used.CPU), float64(b.CPU)},
		{"wall", float64(used.Wall), float64(b.Wall)},
		{"egress", float64(used.EgressBytes), float64(b.EgressBytes)},
	} {
		if m.most > 0 && m.used/m.most > part {
			member, part = m.name, m.used/m.most
		}
	}
	return member, part
}

// within gives members that are not set the server's value, and refuses what is
// above it.
func (b Budget) within(most Budget) (Budget, error) {
	for _, m := range []struct {
		name  string
		value *int64
		most  int64
	}{
		{"budget.cpuSeconds", (*int64)(&b.CPU), int64(most.CPU)},
		{"budget.wallSeconds", (*int64)(&b.Wall), int64(most.Wall)},
		{"budget.egressBytes", &b.EgressBytes, most.EgressBytes},
	} {
		switch {
		case *m.value < 0:
			return b, apierr.Field(m.name, "must not be negative")
		case *m.value == 0:
			*m.value = m.most
		case m.most > 0 && *m.value > m.most:
			return b, apierr.Exceeds(m.name, "budget", "is above the server's limit")
		}
	}
	return b, nil
}

// Spend takes what a running sandbox has used over all its runs, as measured. It
// warns once when little of its budget is left, and pauses the sandbox when all
// is used. It does not wait.
func (m *Manager) Spend(id ID, used Budget) {
	m.mu.Lock()
	e := m.entries[id]
	if e == nil || e.phase != live {
		m.mu.Unlock()
		return
	}
	member, part := e.budget.share(used)
	spent := part >= 1 && !time.Now().Before(e.retryBudget)
	near := part >= budgetNear && !spent && !e.warned
	pause := spent && m.canSave(e.atEnd.kind()) == nil
	switch {
	case pause:
		m.beginSave(e)
	case spent:
		e.why, e.by = ReasonBudget, "system"
		m.markGone(e)
	case near:
		e.warned = true
	}
	m.mu.Unlock()
	switch {
	case pause:
		m.tasks.add(func(ctx context.Context) { m.pauseSpent(ctx, e, member, part) })
	case spent:
		m.tasks.add(func(ctx context.Context) {
			_ = m.finishEnd(ctx, e, audit.Event{Fields: budgetFields(member, part)}, true) // logged there; the sweep retries
		})
	case near:
		m.tasks.add(func(ctx context.Context) {
			err := m.deps.Store.Record(ctx, audit.Event{
				Type: "sandbox.budget_near", Team: string(e.team), Actor: "system", SandboxID: string(e.id), Reason: member, Fields: budgetFields(member, part),
			})
			if err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "budget warning could not be recorded", slog.String("sandbox", string(e.id)), slog.Any("error", err))
			}
		})
	}
}

func budgetFields(member string, part float64) map[string]string {
	return map[string]string{"budget": member, "used": fmt.Sprintf("%.0f%%", 100*part)}
}

// pauseSpent pauses an entry that beginSave marked, and keeps it from being
// resumed with the same budget. One that cannot be paused runs on for a while.
func (m *Manager) pauseSpent(ctx context.Context, e *entry, member string, part float64) {
	_, err := m.deps.Store.Mutate(context.WithoutCancel(ctx), e.id, func(s *Sandbox) (audit.Event, error) {
		s.Lifecycle.Spent = member
		return audit.Event{Type: "sandbox.budget_spent", Actor: "system", Reason: member, Fields: budgetFields(member, part)}, nil
	})
	if err != nil {
		m.log.WarnContext(ctx, "spent budget could not be recorded", slog.String("sandbox", string(e.id)), slog.Any("error", err))
	}
	if err := m.save(ctx, e, e.atEnd.kind(), "system", ReasonBudget); err != nil { // logged there
		m.mu.Lock()
		if again := m.entries[e.id]; again != nil {
			again.retryBudget = time.Now().Add(retryPause)
		}
		m.mu.Unlock()
	}
}

// SetBudget gives a sandbox of the caller's team another budget, for all of its
// life. One that was paused because its budget was spent can be resumed then.
func (m *Manager) SetBudget(ctx context.Context, who identity.Principal, id ID, b Budget) (Sandbox, error) {
	b, err := b.within(m.cfg.Budget)
	if err != nil {
		return Sandbox{}, err
	}
	sb, err := m.deps.Store.Mutate(ctx, id, func(s *Sandbox) (audit.Event, error) {
		if !maySee(who, s.Team) || s.State.Ended() || s.State == Killing {
			return audit.Event{}, notFound(id)
		}
		s.Lifecycle.Budget, s.Lifecycle.Spent = b, ""
		return audit.Event{Type: "sandbox.budget_set", Actor: who.KeyID}, nil
	})
	if err != nil {
		return Sandbox{}, err
	}
	m.mu.Lock()
	if e := m.entries[id]; e != nil {
		e.budget, e.warned = b, false
	}
	m.mu.Unlock()
	if sb.State == Paused {
		m.noteDormant(sb)
	}
	return sb, nil
}

// errSpent refuses to resume a sandbox that would be paused at once.
func errSpent(id ID, member string) error {
	return apierr.New(errdefs.ErrFailedPrecondition,
		"sandbox %q has spent its %s budget: give it another with PUT /native/v1/sandboxes/%s/budget", id, member, id).WithCode("budget_spent")
}
