package meter

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxGroups bounds the lines of one report.
const maxGroups = 10_000

// usageWindow is the range of a report unless told otherwise.
const usageWindow = 30 * 24 * time.Hour

// Usage is one line of a report.
type Usage struct {
	// Group is the sandbox, team, template or label value; empty for sandboxes
	// without the label.
	Group string
	// Runs is how many runs had a part in it, Sandboxes of how many sandboxes.
	Runs, Sandboxes int
	// Wall is the time that sandboxes ran.
	Wall time.Duration
	// CPU is CPU time used; CPULimit the time of all CPUs that were reserved.
	CPU, CPULimit time.Duration
	// MemoryMiBSeconds is memory used over time; MemoryLimitMiBSeconds memory
	// that was reserved.
	MemoryMiBSeconds, MemoryLimitMiBSeconds float64
	PeakMemoryBytes                         int64
	EgressIn, EgressOut                     int64
	// SavedMiBHours is what paused sandboxes lay on disk.
	SavedMiBHours float64
}

// Report is the usage of a team in a time.
type Report struct {
	From, To time.Time
	Lines    []Usage // the most CPU time first
	Total    Usage
}

// Grouping says how a report is divided.
type Grouping struct {
	By    string // one of the By constants
	Label string // the key, with ByLabel
}

// What a report can be divided by.
const (
	BySandbox  = "sandbox"
	ByTeam     = "team"
	ByTemplate = "template"
	ByLabel    = "label"
)

// ParseGrouping reads sandbox, team, template or label:KEY; "" means sandbox.
func ParseGrouping(s string) (Grouping, error) {
	by, key, hasKey := strings.Cut(cmp.Or(s, BySandbox), ":")
	switch by {
	case BySandbox, ByTeam, ByTemplate:
		if !hasKey {
			return Grouping{By: by}, nil
		}
	case ByLabel:
		if key != "" {
			return Grouping{By: by, Label: key}, nil
		}
	}
	return Grouping{}, fmt.Errorf("%q is not sandbox, team, template or label:KEY: %w", s, errdefs.ErrInvalidArgument)
}

func (g Grouping) of(r Run) string {
	switch g.By {
	case ByTeam:
		return r.Team
	case ByTemplate:
		return cmp.Or(r.Alias, r.Template)
	case ByLabel:
		return r.Labels[g.Label]
	default:
		return r.SandboxID
	}
}

// Report adds up the runs of a team. A run that lies in the range partly counts
// with the share of its time that does. The zero Window is the last 30 days. It
// is errdefs.ErrResourceExhausted when there are more than 10,000 groups.
func (m *Meter) Report(ctx context.Context, team string, w Window, g Grouping) (Report, error) {
	now := time.Now()
	if w.To.IsZero() || w.To.After(now) {
		w.To = now
	}
	if w.From.IsZero() {
		w.From = w.To.Add(-usageWindow)
	}
	if err := w.check(); err != nil {
		return Report{}, err
	}
	lines := map[string]*tally{}
	total := newTally("")
	for r, err := range m.deps.Store.EachRun(ctx, team, w.From, w.To) {
		if err != nil {
			return Report{}, err
		}
		if r.EndedAt.IsZero() {
			r = m.fresh(r)
		}
		name := g.of(r)
		line := lines[name]
		if line == nil {
			if len(lines) == maxGroups {
				return Report{}, fmt.Errorf("more than %d lines: choose a shorter time or another grouping: %w", maxGroups, errdefs.ErrResourceExhausted)
			}
			line = newTally(name)
			lines[name] = line
		}
		line.add(r, w, now)
		total.add(r, w, now)
	}
	out := Report{From: w.From, To: w.To, Lines: make([]Usage, 0, len(lines)), Total: total.done()}
	for _, t := range lines {
		out.Lines = append(out.Lines, t.done())
	}
	slices.SortFunc(out.Lines, func(a, b Usage) int {
		return cmp.Or(cmp.Compare(b.CPU, a.CPU), cmp.Compare(b.Wall, a.Wall), cmp.Compare(a.Group, b.Group))
	})
	return out, nil
}

// fresh gives a run that lasts the figures that are not written yet.
func (m *Meter) fresh(r Run) Run {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tracks[r.SandboxID]; t != nil && r.Kind == Ran && t.run.StartedAt.Equal(r.StartedAt) {
		r.Figures = t.run.Figures
	}
	return r
}

// tally adds up one line.
type tally struct {
	Usage
	sandboxes map[string]struct{}
}

func newTally(group string) *tally {
	return &tally{Usage: Usage{Group: group}, sandboxes: map[string]struct{}{}}
}

func (t *tally) done() Usage {
	t.Sandboxes = len(t.sandboxes)
	return t.Usage
}

func (t *tally) add(r Run, w Window, now time.Time) {
	end := r.EndedAt
	if end.IsZero() {
		end = now
	}
	whole := end.Sub(r.StartedAt)
	from, to := r.StartedAt, end
	if from.Before(w.From) {
		from = w.From
	}
	if to.After(w.To) {
		to = w.To
	}
	inside := max(to.Sub(from), 0)
	t.sandboxes[r.SandboxID] = struct{}{}
	const mebibyte = 1 << 20
	if r.Kind == Saved {
		t.SavedMiBHours += float64(r.SavedBytes) / mebibyte * inside.Hours()
		return
	}
	share := 1.0
	if inside < whole {
		share = float64(inside) / float64(whole)
	}
	t.Runs++
	t.Wall += inside
	t.CPU += time.Duration(float64(r.CPU) * share)
	t.CPULimit += time.Duration(r.CPUs) * inside
	t.MemoryMiBSeconds += float64(r.MemoryMiBMillis) / 1000 * share
	t.MemoryLimitMiBSeconds += float64(r.MemoryMiB) * inside.Seconds()
	t.PeakMemoryBytes = max(t.PeakMemoryBytes, r.PeakMemoryBytes)
	t.EgressIn += int64(float64(r.EgressIn) * share)
	t.EgressOut += int64(float64(r.EgressOut) * share)
}
