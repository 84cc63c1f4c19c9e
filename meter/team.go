package meter

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// teamWindow is the range of team points unless told otherwise.
const teamWindow = 7 * 24 * time.Hour

// maxTeamPoints bounds the points of a range.
const maxTeamPoints = 10_000

// TeamPoint is what a team had in a step of time.
type TeamPoint struct {
	At time.Time
	// Concurrent is the most sandboxes that ran at once in the step.
	Concurrent int
	// StartRate is how many were created or resumed, a second.
	StartRate float64
}

// TeamPoints returns what a team had, in order of time, one point a step from
// its first run in the range on. It is told from the runs themselves, so it is
// exact and survives anything. The zero Window is the last 7 days.
func (m *Meter) TeamPoints(ctx context.Context, team string, w Window) ([]TeamPoint, error) {
	now := time.Now()
	if w.To.IsZero() {
		w.To = now
	}
	if w.From.IsZero() {
		w.From = w.To.Add(-teamWindow)
	}
	if err := w.check(); err != nil {
		return nil, err
	}
	if w.To.After(now) {
		w.To = now
	}
	if earliest := now.Add(-m.cfg.KeepRuns); w.From.Before(earliest) {
		w.From = earliest
	}
	if w.From.After(w.To) {
		return nil, nil
	}
	spans, err := m.deps.Store.TeamSpans(ctx, team, w.From, w.To)
	if err != nil || len(spans) == 0 {
		return nil, err
	}
	length := w.To.Sub(w.From)
	step := max(Step(length), (length / maxTeamPoints).Truncate(time.Second))
	return teamPoints(spans, w, step), nil
}

func teamPoints(spans []Span, w Window, step time.Duration) []TeamPoint {
	type change struct {
		at    time.Time
		delta int
	}
	changes := make([]change, 0, 2*len(spans))
	for _, s := range spans {
		changes = append(changes, change{s.Start, 1})
		if !s.End.IsZero() {
			changes = append(changes, change{s.End, -1})
		}
	}
	slices.SortFunc(changes, func(a, b change) int {
		// One that ends as another begins does not count with it.
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.delta, b.delta))
	})
	first := w.From
	if changes[0].at.After(first) {
		first = changes[0].at
	}
	var out []TeamPoint
	running, i := 0, 0
	for at := first.Truncate(step); !at.After(w.To); at = at.Add(step) {
		end := at.Add(step)
		// Before the range only how many run is of interest.
		for ; i < len(changes) && changes[i].at.Before(w.From) && changes[i].at.Before(end); i++ {
			running += changes[i].delta
		}
		p := TeamPoint{At: at, Concurrent: running}
		started := 0
		for ; i < len(changes) && changes[i].at.Before(end); i++ {
			running += changes[i].delta
			p.Concurrent = max(p.Concurrent, running)
			if changes[i].delta > 0 {
				started++
			}
		}
		p.StartRate = float64(started) / step.Seconds()
		out = append(out, p)
	}
	return out
}
