package meter

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/caisson-dev/caisson/provider"
)

// ticks is how many times in an interval the Meter looks for sandboxes whose
// time has come, and for new ones.
const ticks = 10

// Run measures until ctx ends, then writes what is left.
func (m *Meter) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.sampleAll(ctx) })
	g.Go(func() error { return m.writeAll(ctx) })
	return g.Wait()
}

// sampleAll measures each sandbox once in an interval. Their turns are spread
// over it by chance, so that many that began together do not stay together.
func (m *Meter) sampleAll(ctx context.Context) error {
	tick := time.NewTicker(m.cfg.Interval / ticks)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		due := m.due(time.Now())
		var g errgroup.Group
		g.SetLimit(m.cfg.AtOnce)
		for id, gone := range due {
			g.Go(func() error {
				m.sampleOne(ctx, id, gone)
				return nil
			})
		}
		_ = g.Wait()
	}
}

// due returns the running sandboxes whose turn it is and forgets the tracks of
// those long gone.
func (m *Meter) due(now time.Time) map[string]<-chan struct{} {
	running := map[string]<-chan struct{}{}
	for id, gone := range m.deps.Boxes {
		running[id] = gone
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, t := range m.tracks {
		gone, runs := running[id]
		if runs && gone == t.gone {
			t.goneSince = time.Time{}
			if now.Before(t.due) {
				delete(running, id)
			}
			continue
		}
		if t.goneSince.IsZero() {
			t.goneSince = now
		}
		if !runs && now.Sub(t.goneSince) > linger {
			delete(m.tracks, id)
		}
	}
	return running
}

// sampleOne measures one sandbox and sets its next turn.
func (m *Meter) sampleOne(ctx context.Context, id string, gone <-chan struct{}) {
	err := m.measure(ctx, id, gone, m.cfg.Timeout, false, func(ctx context.Context) (provider.Stats, error) {
		return m.deps.Stats(ctx, id)
	})
	now := time.Now()
	m.mu.Lock()
	if t := m.tracks[id]; t != nil && t.gone == gone {
		if t.due.IsZero() {
			// The second turn comes at any time of the interval's later half.
			t.due = now.Add(-rand.N(m.cfg.Interval / 2))
		}
		if t.due = t.due.Add(m.cfg.Interval); t.due.Before(now) {
			t.due = now.Add(m.cfg.Interval)
		}
	}
	m.mu.Unlock()
	select {
	case <-gone: // it is no wonder then
	default:
		if err != nil && ctx.Err() == nil && !errdefs.IsNotFound(err) {
			m.log.WarnContext(ctx, "sandbox could not be measured", slog.String("sandbox", id), slog.Any("error", err))
		}
	}
}

// Last takes the last sample of a run, from a box that is about to be saved or
// destroyed and still answers. It waits for it a moment at most; a box that has
// died already leaves the figures as they were.
func (m *Meter) Last(ctx context.Context, id string, gone <-chan struct{}, box provider.Box) {
	const moment = 500 * time.Millisecond
	err := m.measure(ctx, id, gone, min(moment, m.cfg.Timeout), true, box.Stats)
	if err != nil {
		m.log.DebugContext(ctx, "no last sample", slog.String("sandbox", id), slog.Any("error", err))
	}
}

// measure takes one sample and the traffic of a sandbox.
func (m *Meter) measure(ctx context.Context, id string, gone <-chan struct{}, limit time.Duration, final bool, stats func(context.Context) (provider.Stats, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not measured within %s: %w", limit, errdefs.ErrUnavailable))
	defer cancel()
	t, err := m.track(ctx, id, gone)
	if err != nil {
		return err
	}
	st, err := stats(ctx)
	in, out, attached := m.deps.Traffic(id)
	m.mu.Lock()
	if m.tracks[id] != t {
		m.mu.Unlock()
		return nil // another run has begun
	}
	if attached {
		t.traffic(in, out)
	}
	if err == nil {
		t.add(st, final)
	}
	total := t.earlier.plus(t.run, time.Now())
	m.mu.Unlock()
	if f := m.deps.Measured; f != nil && !final {
		f(id, total)
	}
	return err
}

// track returns what is remembered of a sandbox, read from the store when it is
// new here.
func (m *Meter) track(ctx context.Context, id string, gone <-chan struct{}) (*track, error) {
	m.mu.Lock()
	t := m.tracks[id]
	m.mu.Unlock()
	if t != nil && t.gone == gone {
		return t, nil
	}
	run, err := m.deps.Store.OpenRun(ctx, id)
	if err != nil {
		return nil, err
	}
	earlier, err := m.earlier(ctx, run)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t = m.tracks[id]
	switch {
	case t != nil && t.gone == gone:
	case t != nil && t.run.StartedAt.Equal(run.StartedAt):
		t.gone = gone // it runs on after a pause that failed
	default:
		t = &track{gone: gone, run: run, baseIn: run.EgressIn, baseOut: run.EgressOut, earlier: earlier}
		m.tracks[id] = t
	}
	return t, nil
}

// earlier adds up the runs of a sandbox before the given one.
func (m *Meter) earlier(ctx context.Context, run Run) (Total, error) {
	var t Total
	if m.deps.Measured == nil {
		return t, nil
	}
	runs, err := m.deps.Store.SandboxRuns(ctx, run.Team, run.SandboxID)
	if err != nil {
		return t, err
	}
	for _, r := range runs {
		if r.StartedAt.Before(run.StartedAt) && !r.EndedAt.IsZero() {
			t = t.plus(r, r.EndedAt)
		}
	}
	return t, nil
}

// writeAll writes what was measured, once in an interval, and deletes what is
// old.
func (m *Meter) writeAll(ctx context.Context) error {
	flush := time.NewTicker(m.cfg.Interval)
	defer flush.Stop()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case <-flush.C:
			if err := m.flush(ctx); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "samples cannot be written; will retry", slog.Any("error", err))
			}
		case now := <-prune.C:
			if err := m.prune(ctx, now); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "old samples cannot be deleted", slog.Any("error", err))
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
			defer cancel()
			if err := m.flush(last); err != nil {
				m.log.WarnContext(last, "last samples cannot be written", slog.Any("error", err))
			}
			return context.Cause(ctx)
		}
	}
}

// flush writes everything that waits.
func (m *Meter) flush(ctx context.Context) error {
	m.mu.Lock()
	var batch []Measured
	for _, t := range m.tracks {
		if t.written < len(t.samples) {
			batch = append(batch, t.waiting())
		}
	}
	m.mu.Unlock()
	for chunk := range slices.Chunk(batch, flushChunk) {
		if err := m.deps.Store.WriteMeasures(ctx, chunk); err != nil {
			return err
		}
		m.mu.Lock()
		for _, b := range chunk {
			if t := m.tracks[b.SandboxID]; t != nil && t.run.StartedAt.Equal(b.RunAt) {
				t.wrote(b.Samples[len(b.Samples)-1].At)
			}
		}
		m.mu.Unlock()
	}
	return nil
}

// Unwritten returns what is known of a run and not yet in the store. The store
// asks when it ends the run, to write both in one transaction.
func (m *Meter) Unwritten(sandboxID string, runAt time.Time) (Measured, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tracks[sandboxID]
	if t == nil || !t.run.StartedAt.Equal(runAt) {
		return Measured{}, false
	}
	return t.waiting(), true
}

func (m *Meter) prune(ctx context.Context, now time.Time) error {
	for _, p := range []struct {
		tier Tier
		keep time.Duration
	}{
		{Fine, min(keepFine, m.cfg.KeepSamples)},
		{Medium, min(keepMedium, m.cfg.KeepSamples)},
		{Coarse, m.cfg.KeepSamples},
	} {
		if err := m.deps.Store.PruneSamples(ctx, p.tier, now.Add(-p.keep)); err != nil {
			return err
		}
	}
	return m.deps.Store.PruneRuns(ctx, now.Add(-m.cfg.KeepRuns))
}
