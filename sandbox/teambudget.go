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

// ReasonTeamBudget is why a sandbox was paused, or ended where it cannot be
// paused, whose team has used up its budget.
const ReasonTeamBudget = "team_budget"

// Period is how long a team's budget lasts: a calendar day or month, UTC.
type Period string

// The periods of a TeamBudget.
const (
	Daily   Period = "day"
	Monthly Period = "month"
)

// Bounds are the begin and the end of the period that t lies in.
func (p Period) Bounds(t time.Time) (since, until time.Time) {
	t = t.UTC()
	if p == Daily {
		since = time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
		return since, since.AddDate(0, 0, 1)
	}
	since = time.Date(t.Year(), t.Month(), 1, 0, 0, 0, 0, time.UTC)
	return since, since.AddDate(0, 1, 0)
}

// TeamBudget is the most that all sandboxes of a team together may use in each
// period; a zero member bounds nothing.
type TeamBudget struct {
	Budget
	Period Period
}

// Check refuses what is no budget.
func (b TeamBudget) Check() error {
	if b.Period != Daily && b.Period != Monthly {
		return apierr.Field("period", "must be %s or %s, is %.50q", Daily, Monthly, b.Period)
	}
	_, err := b.Budget.within(Budget{})
	return err
}

// TeamBudgets keeps the budgets of teams and knows what they have used.
// Implemented by package store, checked by store/storetest.
type TeamBudgets interface {
	// TeamBudget is a team's own budget; false when it has none.
	TeamBudget(ctx context.Context, team identity.TeamID) (TeamBudget, bool, error)
	// TeamUsed is what the sandboxes of a team used from since to now, as far as
	// it was measured. Of a run that began before, the share that lies within.
	TeamUsed(ctx context.Context, team identity.TeamID, since, now time.Time) (Budget, error)
	// WarnTeam records an event, once for each team and mark.
	WarnTeam(ctx context.Context, team identity.TeamID, mark string, ev audit.Event) error
}

// TeamStatus is how a team stands in its period.
type TeamStatus struct {
	TeamBudget
	// Own says that the budget was set for this team and is not the server's.
	Own          bool
	Used         Budget
	Since, Until time.Time
	// Spent names the member that is used up, "" for none.
	Spent string
}

// teamState is a TeamStatus as it was found at a time.
type teamState struct {
	TeamStatus
	at time.Time
}

// TeamBudget tells how the caller's team stands.
func (m *Manager) TeamBudget(ctx context.Context, who identity.Principal) (TeamStatus, error) {
	if who.Team == "" {
		return TeamStatus{}, fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
	}
	if m.deps.Teams == nil {
		return TeamStatus{}, fmt.Errorf("budgets of teams: %w", errdefs.ErrNotImplemented)
	}
	s, err := m.lookAtTeam(ctx, who.Team)
	return s.TeamStatus, err
}

// lookAtTeam finds out how a team stands and remembers it.
func (m *Manager) lookAtTeam(ctx context.Context, team identity.TeamID) (teamState, error) {
	now := clock()
	s := teamState{at: now}
	b, own, err := m.deps.Teams.TeamBudget(ctx, team)
	if err != nil {
		return s, err
	}
	if !own {
		b = m.cfg.TeamBudget
	}
	if b.Period == "" {
		b.Period = Monthly
	}
	s.TeamBudget, s.Own = b, own
	s.Since, s.Until = b.Period.Bounds(now)
	if s.Used, err = m.deps.Teams.TeamUsed(ctx, team, s.Since, now); err != nil {
		return s, err
	}
	if member, part := b.share(s.Used); part >= 1 {
		s.Spent = member
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.teams[team] = s
	return s, nil
}

// mayUse refuses to start a sandbox of a team that has used up its budget. What
// was found a moment ago is good enough, and costs no query.
func (m *Manager) mayUse(ctx context.Context, team identity.TeamID) error {
	if m.deps.Teams == nil {
		return nil
	}
	m.mu.RLock()
	s, ok := m.teams[team]
	m.mu.RUnlock()
	now := time.Now()
	if age := now.Sub(s.at); !ok || age < 0 || age > 2*m.cfg.TeamInterval || !now.Before(s.Until) {
		var err error
		if s, err = m.lookAtTeam(ctx, team); err != nil {
			return fmt.Errorf("budget of team %s: %w", team, err)
		}
	}
	if s.Spent == "" {
		return nil
	}
	e := apierr.New(errdefs.ErrResourceExhausted,
		"team %s has used up its %s budget of this %s, which ends at %s; an administrator can raise it: `caisson budget set --team %s`",
		team, s.Spent, s.Period, s.Until.Format(time.RFC3339), team)
	e.Limit = "team_budget." + s.Spent
	return e.WithCode("team_budget_spent")
}

// watchTeams looks after the teams that have running sandboxes.
func (m *Manager) watchTeams(ctx context.Context) {
	if m.deps.Teams == nil {
		return
	}
	tick := time.NewTicker(m.cfg.TeamInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		teams := map[identity.TeamID]bool{}
		m.EachLive(func(l *Live) bool { teams[l.Team] = true; return true })
		for team := range teams {
			if err := m.checkTeam(ctx, team); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "budget of a team cannot be checked", slog.String("team", string(team)), slog.Any("error", err))
			}
		}
	}
}

// checkTeam warns when little of a team's budget is left, and pauses all its
// sandboxes when it is used up.
func (m *Manager) checkTeam(ctx context.Context, team identity.TeamID) error {
	s, err := m.lookAtTeam(ctx, team)
	if err != nil {
		return err
	}
	member, part := s.share(s.Used)
	what := ""
	switch {
	case part >= 1:
		what = "team.budget_spent"
	case part >= budgetNear:
		what = "team.budget_near"
	default:
		return nil
	}
	fields := budgetFields(member, part)
	fields["period"], fields["until"] = string(s.Period), s.Until.Format(time.RFC3339)
	// A budget that was changed warns anew.
	mark := fmt.Sprintf("%s %s %d %d %d", what, s.Since.Format(time.RFC3339), s.CPU, s.Wall, s.EgressBytes)
	err = m.deps.Teams.WarnTeam(ctx, team, mark, audit.Event{
		Type: what, At: clock(), Team: string(team), Actor: "system", Reason: member, Fields: fields,
	})
	if part >= 1 {
		m.pauseTeam(team)
	}
	return err
}

// pauseTeam pauses every running sandbox of a team; those that cannot be paused
// end.
func (m *Manager) pauseTeam(team identity.TeamID) {
	var save, end []*entry
	now := time.Now()
	m.mu.Lock()
	for _, e := range m.entries {
		if e.phase != live || e.team != team || now.Before(e.retryBudget) {
			continue
		}
		if m.canSave(e.atEnd.kind()) == nil {
			m.beginSave(e)
			save = append(save, e)
			continue
		}
		e.why, e.by = ReasonTeamBudget, "system"
		m.markGone(e)
		end = append(end, e)
	}
	m.mu.Unlock()
	turns := make(chan struct{}, endsAtOnce)
	for _, e := range save {
		m.tasks.add(func(ctx context.Context) {
			select {
			case turns <- struct{}{}:
				defer func() { <-turns }()
			case <-ctx.Done():
				return // the next server finds it running
			}
			if err := m.save(ctx, e, e.atEnd.kind(), "system", ReasonTeamBudget); err != nil { // logged there
				m.mu.Lock()
				if again := m.entries[e.id]; again != nil {
					again.retryBudget = time.Now().Add(retryPause)
				}
				m.mu.Unlock()
			}
		})
	}
	for _, e := range end {
		m.tasks.add(func(ctx context.Context) {
			_ = m.finishEnd(ctx, e, audit.Event{}, true) // logged there; the sweep retries
		})
	}
}
