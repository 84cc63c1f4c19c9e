package meter

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
)

// Point is what is shown of a sandbox at a time: one sample, or the mean of
// those in a step.
type Point struct {
	At   time.Time
	CPUs int
	// CPUPercent is the share used of all CPUs together, 0 to 100.
	CPUPercent  float64
	MemoryBytes int64
	// MemoryTotal and DiskTotal are the limits, zero without one.
	MemoryTotal int64
	CacheBytes  int64
	DiskBytes   int64
	DiskTotal   int64
}

// Window is a range of time; zero members leave the choice to what is asked.
type Window struct{ From, To time.Time }

func (w Window) check() error {
	if !w.From.IsZero() && !w.To.IsZero() && w.From.After(w.To) {
		return fmt.Errorf("start is after end: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// Step is how far apart the points of a range are.
func Step(length time.Duration) time.Duration {
	const day = 24 * time.Hour
	switch {
	case length < time.Hour:
		return 5 * time.Second
	case length < 6*time.Hour:
		return 30 * time.Second
	case length < 12*time.Hour:
		return time.Minute
	case length < day:
		return 2 * time.Minute
	case length < 7*day:
		return 5 * time.Minute
	default:
		return 15 * time.Minute
	}
}

// Points returns what a sandbox of that team used, in order of time; also after
// its end. A sandbox that the team never had has none. The zero Window is its
// whole life, as far as samples are kept.
func (m *Meter) Points(ctx context.Context, team, sandboxID string, w Window) ([]Point, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	runs, err := m.deps.Store.SandboxRuns(ctx, team, sandboxID)
	if err != nil || len(runs) == 0 {
		return nil, err
	}
	now := time.Now()
	if w.To.IsZero() || w.To.After(now) {
		w.To = now
	}
	earliest := now.Add(-m.cfg.KeepSamples)
	if runs[0].StartedAt.After(earliest) {
		earliest = runs[0].StartedAt
	}
	if w.From.Before(earliest) {
		w.From = earliest
	}
	if w.From.After(w.To) {
		return nil, nil
	}
	// The sample before the range tells the share of CPU of the first in it.
	samples, err := m.samples(ctx, sandboxID, w.From.Add(-coarseStep-m.cfg.Interval), w.To)
	if err != nil {
		return nil, err
	}
	return thin(points(runs, samples, w.From), Step(w.To.Sub(w.From))), nil
}

// Latest returns the newest point of each sandbox that the team has or had, as
// long as it is kept.
func (m *Meter) Latest(ctx context.Context, team string, sandboxIDs []string) (map[string]Point, error) {
	out := map[string]Point{}
	for _, id := range sandboxIDs {
		runs, err := m.deps.Store.SandboxRuns(ctx, team, id)
		if err != nil {
			return nil, err
		}
		if len(runs) == 0 {
			continue
		}
		samples, err := m.deps.Store.LastSamples(ctx, id, keepWritten)
		if err != nil {
			return nil, err
		}
		if all := points(runs, m.withUnwritten(id, samples, time.Now()), time.Time{}); len(all) > 0 {
			out[id] = all[len(all)-1]
		}
	}
	return out, nil
}

// samples reads what is stored and what waits to be.
func (m *Meter) samples(ctx context.Context, sandboxID string, since, until time.Time) ([]Sample, error) {
	stored, err := m.deps.Store.Samples(ctx, sandboxID, since, until)
	if err != nil {
		return nil, err
	}
	return m.withUnwritten(sandboxID, stored, until), nil
}

func (m *Meter) withUnwritten(sandboxID string, stored []Sample, until time.Time) []Sample {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tracks[sandboxID]
	if t == nil {
		return stored
	}
	var last time.Time
	if n := len(stored); n > 0 {
		last = stored[n-1].At
	}
	for _, s := range t.samples {
		if s.At.After(last) && !s.At.After(until) {
			stored = append(stored, s)
		}
	}
	return stored
}

// points turns samples in order of time into points, and leaves out those
// before since.
func points(runs []Run, samples []Sample, since time.Time) []Point {
	byStart := make(map[int64]Run, len(runs))
	for _, r := range runs {
		byStart[r.StartedAt.UnixMilli()] = r
	}
	var out []Point
	var before Sample
	for _, s := range samples {
		r, ok := byStart[s.RunAt.UnixMilli()]
		if !ok {
			continue
		}
		if !before.RunAt.Equal(s.RunAt) {
			before = Sample{RunAt: s.RunAt, At: s.RunAt}
		}
		if !s.At.Before(since) {
			out = append(out, point(r, before, s))
		}
		before = s
	}
	return out
}

func point(r Run, before, s Sample) Point {
	p := Point{
		At: s.At, CPUs: r.CPUs, MemoryBytes: s.MemoryBytes, CacheBytes: s.CacheBytes, DiskBytes: s.DiskBytes,
		MemoryTotal: r.MemoryMiB << 20, DiskTotal: r.DiskMiB << 20,
	}
	if p.CPUs <= 0 {
		p.CPUs = runtime.NumCPU()
	}
	if passed := s.At.Sub(before.At); passed > 0 {
		share := float64(s.CPU-before.CPU) / float64(passed) / float64(p.CPUs)
		p.CPUPercent = min(max(share, 0), 1) * 100
	}
	return p
}

// thin gives each step that has points one: the mean of its points, at the time
// of the first. All points of a step have the same length, near enough.
func thin(in []Point, step time.Duration) []Point {
	var out []Point
	for len(in) > 0 {
		slot := in[0].At.Truncate(step)
		n := 1
		for n < len(in) && in[n].At.Truncate(step).Equal(slot) {
			n++
		}
		out = append(out, mean(in[:n]))
		in = in[n:]
	}
	return out
}

func mean(in []Point) Point {
	p := in[0]
	n := int64(len(in))
	for _, q := range in[1:] {
		p.CPUPercent += q.CPUPercent
		p.MemoryBytes += q.MemoryBytes
		p.CacheBytes += q.CacheBytes
		p.DiskBytes += q.DiskBytes
	}
	p.CPUPercent /= float64(n)
	p.MemoryBytes, p.CacheBytes, p.DiskBytes = p.MemoryBytes/n, p.CacheBytes/n, p.DiskBytes/n
	return p
}
