package store

import (
	"context"
	"fmt"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

var _ sandbox.TeamBudgets = (*Store)(nil)

// TeamBudget implements sandbox.TeamBudgets.
func (s *Store) TeamBudget(ctx context.Context, team identity.TeamID) (sandbox.TeamBudget, bool, error) {
	rows, err := s.rq.TeamBudget(ctx, string(team))
	if err != nil || len(rows) == 0 {
		return sandbox.TeamBudget{}, false, err
	}
	r := rows[0]
	return sandbox.TeamBudget{
		Budget: sandbox.Budget{
			CPU: time.Duration(r.CpuUs) * time.Microsecond, Wall: time.Duration(r.WallUs) * time.Microsecond, EgressBytes: r.EgressBytes,
		},
		Period: sandbox.Period(r.Period),
	}, true, nil
}

// SetTeamBudget gives a team a budget of its own; nil takes it away, so that the
// server's holds again. errdefs.ErrNotFound for a team that does not exist.
func (s *Store) SetTeamBudget(ctx context.Context, team identity.TeamID, b *sandbox.TeamBudget, actor string) error {
	return s.write(ctx, func(q *db.Queries) error {
		_, err := q.GetTeam(ctx, string(team))
		if err := found(err, "team", string(team)); err != nil {
			return err
		}
		ev := audit.Event{Type: "team.budget_set", Team: string(team), Actor: actor}
		if b == nil {
			if err := q.DeleteTeamBudget(ctx, string(team)); err != nil {
				return fmt.Errorf("delete budget: %w", err)
			}
			ev.Reason = "default"
			return appendEvent(ctx, q, ev)
		}
		if err := b.Check(); err != nil {
			return err
		}
		err = q.PutTeamBudget(ctx, db.PutTeamBudgetParams{
			TeamID: string(team), CpuUs: b.CPU.Microseconds(), WallUs: b.Wall.Microseconds(), EgressBytes: b.EgressBytes, Period: string(b.Period),
		})
		if err != nil {
			return fmt.Errorf("write budget: %w", err)
		}
		ev.Fields = map[string]string{
			"cpu": b.CPU.String(), "wall": b.Wall.String(), "egressBytes": fmt.Sprint(b.EgressBytes), "period": string(b.Period),
		}
		return appendEvent(ctx, q, ev)
	})
}

// TeamUsed implements sandbox.TeamBudgets.
func (s *Store) TeamUsed(ctx context.Context, team identity.TeamID, since, now time.Time) (sandbox.Budget, error) {
	var used sandbox.Budget
	from, to := millis(since), millis(now)
	ended, err := s.rq.TeamUsedEnded(ctx, db.TeamUsedEndedParams{TeamID: string(team), Since: from, OpenEnd: openEnd})
	if err != nil {
		return used, fmt.Errorf("read usage: %w", err)
	}
	running, err := s.rq.TeamUsedOpen(ctx, db.TeamUsedOpenParams{TeamID: string(team), Since: from, OpenEnd: openEnd})
	if err != nil {
		return used, fmt.Errorf("read usage: %w", err)
	}
	across, err := s.rq.TeamRunsAcross(ctx, db.TeamRunsAcrossParams{TeamID: string(team), Since: from})
	if err != nil {
		return used, fmt.Errorf("read usage: %w", err)
	}
	cpuUs, wall, bytes := ended.CpuUs+running.CpuUs, ended.WallMs+max(running.Runs*to-running.Started, 0), ended.Egress+running.Egress
	for _, r := range across {
		end := min(r.EndedAt, to)
		if end <= from || end <= r.StartedAt {
			continue
		}
		part := float64(end-from) / float64(end-r.StartedAt)
		cpuUs += int64(part * float64(r.CpuUs))
		bytes += int64(part * float64(r.EgressIn+r.EgressOut))
		wall += end - from
	}
	return sandbox.Budget{CPU: time.Duration(cpuUs) * time.Microsecond, Wall: time.Duration(wall) * time.Millisecond, EgressBytes: bytes}, nil
}

// WarnTeam implements sandbox.TeamBudgets. Marks are few: one for each team and
// kind of event.
func (s *Store) WarnTeam(ctx context.Context, team identity.TeamID, mark string, ev audit.Event) error {
	name := "warned/" + ev.Type + "/" + string(team)
	if last, err := s.GetMeta(ctx, name); err == nil && last == mark || err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return s.write(ctx, func(q *db.Queries) error {
		if err := q.PutMeta(ctx, db.PutMetaParams{Name: name, Value: mark}); err != nil {
			return fmt.Errorf("write mark: %w", err)
		}
		return appendEvent(ctx, q, ev)
	})
}
