package store

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

const (
	// openEnd stands for the end of a run that lasts.
	openEnd        = math.MaxInt64
	runPage        = 1000
	maxSampleRows  = 20_000
	maxSpanRows    = 200_000
	pruneSlice     = 10 * time.Minute
	unwatchedAfter = time.Minute
)

var _ meter.Store = (*Store)(nil)

// Unwritten is what a meter knows of a run and has not written.
type Unwritten interface {
	Unwritten(sandboxID string, runAt time.Time) (meter.Measured, bool)
}

// MeterWith makes the end of a run take the last figures from m, in the same
// transaction. It must be called before the store is used by others.
func (s *Store) MeterWith(m Unwritten) { s.meter = m }

// account begins and ends the runs of a sandbox that goes from a state to the
// one it is in.
func (s *Store) account(ctx context.Context, q *db.Queries, from sandbox.State, sb sandbox.Sandbox) error {
	to := sb.State
	switch {
	case from == to:
		return nil
	case to == sandbox.Running && from != sandbox.Pausing:
		if from == sandbox.Resuming {
			if err := endRun(ctx, q, sb.ID, meter.Saved, sb.StartedAt); err != nil {
				return err
			}
		}
		return beginRun(ctx, q, sb, meter.Ran, sb.StartedAt)
	case to == sandbox.Paused && from == sandbox.Pausing:
		// The end of a paused sandbox is when it was paused.
		at := sb.EndsAt
		if err := s.endMeasured(ctx, q, sb, at); err != nil {
			return err
		}
		return beginRun(ctx, q, sb, meter.Saved, at)
	case to.Ended():
		if err := s.endMeasured(ctx, q, sb, sb.EndedAt); err != nil {
			return err
		}
		return endRun(ctx, q, sb.ID, meter.Saved, sb.EndedAt)
	}
	return nil
}

func beginRun(ctx context.Context, q *db.Queries, sb sandbox.Sandbox, kind meter.Kind, at time.Time) error {
	var p packer
	params := db.BeginRunParams{
		SandboxID: string(sb.ID), Kind: string(kind), StartedAt: millis(at), EndedAt: openEnd,
		TeamID: string(sb.Team), TemplateID: string(sb.Template), Alias: sb.Alias, Labels: p.json(sb.Metadata),
		Cpus: int64(sb.Resources.CPUs), MemoryMib: sb.Resources.MemoryMiB, DiskMib: sb.Resources.DiskMiB,
	}
	if sb.Saved != nil && kind == meter.Saved {
		params.SavedBytes = sb.Saved.SizeBytes
	}
	if p.err != nil {
		return p.err
	}
	if _, err := q.BeginRun(ctx, params); err != nil {
		return fmt.Errorf("begin run: %w", err)
	}
	return nil
}

// openRun returns the row of a run that lasts; false when there is none.
func openRun(ctx context.Context, q *db.Queries, id sandbox.ID, kind meter.Kind) (db.UsageRun, bool, error) {
	rows, err := q.LastRun(ctx, db.LastRunParams{SandboxID: string(id), Kind: string(kind)})
	if err != nil {
		return db.UsageRun{}, false, fmt.Errorf("read run: %w", err)
	}
	if len(rows) == 0 || rows[0].EndedAt != openEnd {
		return db.UsageRun{}, false, nil
	}
	return rows[0], true, nil
}

func endRun(ctx context.Context, q *db.Queries, id sandbox.ID, kind meter.Kind, at time.Time) error {
	row, open, err := openRun(ctx, q, id, kind)
	if err != nil || !open {
		return err
	}
	return closeRun(ctx, q, row, millis(at))
}

func closeRun(ctx context.Context, q *db.Queries, row db.UsageRun, at int64) error {
	err := q.EndRun(ctx, db.EndRunParams{
		EndedAt: max(at, row.StartedAt), SandboxID: row.SandboxID, Kind: row.Kind, StartedAt: row.StartedAt,
	})
	if err != nil {
		return fmt.Errorf("end run: %w", err)
	}
	return nil
}

// endMeasured ends the run of a sandbox with the last figures of the meter.
func (s *Store) endMeasured(ctx context.Context, q *db.Queries, sb sandbox.Sandbox, at time.Time) error {
	row, open, err := openRun(ctx, q, sb.ID, meter.Ran)
	if err != nil || !open {
		return err
	}
	sampled := fromMillis(row.SampledAt)
	if s.meter != nil {
		if last, ok := s.meter.Unwritten(row.SandboxID, fromMillis(row.StartedAt)); ok {
			sampled = last.Figures.SampledAt
			if err := writeMeasured(ctx, q, last); err != nil {
				return err
			}
		}
	}
	return closeRun(ctx, q, row, millis(endOfRun(sb, fromMillis(row.StartedAt), sampled, at)))
}

// endOfRun is when a run ended that is found to have ended at the time given.
// Where the box died by itself while no server watched, that is long after:
// then it is the end of its time, else its last sample.
func endOfRun(sb sandbox.Sandbox, started, sampled, found time.Time) time.Time {
	if sampled.IsZero() {
		sampled = started
	}
	if found.Sub(sampled) <= unwatchedAfter {
		return found
	}
	switch sb.Reason {
	case sandbox.ReasonTimeout:
		if sb.EndsAt.Before(found) {
			return sb.EndsAt
		}
	case provider.ReasonExited, provider.ReasonOOM, provider.ReasonCrashed, provider.ReasonEngineLost:
		return sampled
	}
	return found
}

// OpenRun implements meter.Store. A running sandbox without a run, one from
// before runs were kept, gets one.
func (s *Store) OpenRun(ctx context.Context, sandboxID string) (meter.Run, error) {
	row, open, err := openRun(ctx, s.rq, sandbox.ID(sandboxID), meter.Ran)
	if err != nil {
		return meter.Run{}, err
	}
	if !open {
		err := s.write(ctx, func(q *db.Queries) error {
			stored, err := q.GetSandbox(ctx, sandboxID)
			if err := found(err, "sandbox", sandboxID); err != nil {
				return err
			}
			sb, err := unpackSandbox(stored)
			if err != nil {
				return err
			}
			if sb.State != sandbox.Running {
				return fmt.Errorf("run of sandbox %q: %w", sandboxID, errdefs.ErrNotFound)
			}
			if err := beginRun(ctx, q, sb, meter.Ran, sb.StartedAt); err != nil {
				return err
			}
			row, open, err = openRun(ctx, q, sb.ID, meter.Ran)
			return err
		})
		if err != nil {
			return meter.Run{}, err
		}
		if !open {
			return meter.Run{}, fmt.Errorf("run of sandbox %q: %w", sandboxID, errdefs.ErrNotFound)
		}
	}
	return unpackRun(row)
}

// WriteMeasures implements meter.Store.
func (s *Store) WriteMeasures(ctx context.Context, batch []meter.Measured) error {
	return s.write(ctx, func(q *db.Queries) error {
		for _, m := range batch {
			if err := writeMeasured(ctx, q, m); err != nil {
				return err
			}
		}
		return nil
	})
}

func writeMeasured(ctx context.Context, q *db.Queries, m meter.Measured) error {
	for _, sm := range m.Samples {
		err := q.AddSample(ctx, db.AddSampleParams{
			SandboxID: m.SandboxID, At: millis(sm.At), RunAt: millis(sm.RunAt), Tier: int64(sm.Tier),
			CpuUs: sm.CPU.Microseconds(), Memory: sm.MemoryBytes, Cache: sm.CacheBytes, Disk: sm.DiskBytes,
		})
		if err != nil {
			return fmt.Errorf("write sample: %w", err)
		}
	}
	f := m.Figures
	err := q.GrowRun(ctx, db.GrowRunParams{
		SandboxID: m.SandboxID, StartedAt: millis(m.RunAt), SampledAt: millis(f.SampledAt), CpuUs: f.CPU.Microseconds(),
		MemoryMibMs: f.MemoryMiBMillis, MemoryPeak: f.PeakMemoryBytes, EgressIn: f.EgressIn, EgressOut: f.EgressOut,
	})
	if err != nil {
		return fmt.Errorf("write figures of run: %w", err)
	}
	return nil
}

// SandboxRuns implements meter.Store.
func (s *Store) SandboxRuns(ctx context.Context, team, sandboxID string) ([]meter.Run, error) {
	rows, err := s.rq.SandboxRuns(ctx, db.SandboxRunsParams{SandboxID: sandboxID, TeamID: team})
	if err != nil {
		return nil, fmt.Errorf("read runs: %w", err)
	}
	out := make([]meter.Run, len(rows))
	for i, row := range rows {
		if out[i], err = unpackRun(row); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// EachRun implements meter.Store. It reads page by page.
func (s *Store) EachRun(ctx context.Context, team string, since, before time.Time) iter.Seq2[meter.Run, error] {
	return func(yield func(meter.Run, error) bool) {
		p := db.TeamRunsParams{TeamID: team, Since: millis(since), Before: millis(before), AfterEnd: math.MinInt64, MaxRows: runPage}
		for {
			rows, err := s.rq.TeamRuns(ctx, p)
			if err != nil {
				yield(meter.Run{}, fmt.Errorf("read runs: %w", err))
				return
			}
			for _, row := range rows {
				run, err := unpackRun(row)
				if !yield(run, err) || err != nil {
					return
				}
			}
			if len(rows) < runPage {
				return
			}
			last := rows[len(rows)-1]
			p.AfterEnd, p.AfterID, p.AfterStart = last.EndedAt, last.SandboxID, last.StartedAt
		}
	}
}

// TeamSpans implements meter.Store. Of more than 200,000 the latest count.
func (s *Store) TeamSpans(ctx context.Context, team string, since, before time.Time) ([]meter.Span, error) {
	rows, err := s.rq.TeamSpans(ctx, db.TeamSpansParams{TeamID: team, Since: millis(since), Before: millis(before), MaxRows: maxSpanRows})
	if err != nil {
		return nil, fmt.Errorf("read runs: %w", err)
	}
	out := make([]meter.Span, len(rows))
	for i, r := range rows {
		out[i] = meter.Span{Start: fromMillis(r.StartedAt), End: runEnd(r.EndedAt)}
	}
	return out, nil
}

// Samples implements meter.Store.
func (s *Store) Samples(ctx context.Context, sandboxID string, since, until time.Time) ([]meter.Sample, error) {
	rows, err := s.rq.ListSamples(ctx, db.ListSamplesParams{SandboxID: sandboxID, Since: millis(since), Until: millis(until), MaxRows: maxSampleRows})
	if err != nil {
		return nil, fmt.Errorf("read samples: %w", err)
	}
	return unpackSamples(rows), nil
}

// LastSamples implements meter.Store.
func (s *Store) LastSamples(ctx context.Context, sandboxID string, n int) ([]meter.Sample, error) {
	rows, err := s.rq.LastSamples(ctx, db.LastSamplesParams{SandboxID: sandboxID, MaxRows: int32(min(max(n, 1), maxSampleRows))})
	if err != nil {
		return nil, fmt.Errorf("read samples: %w", err)
	}
	slices.Reverse(rows)
	return unpackSamples(rows), nil
}

// PruneSamples implements meter.Store, in transactions that are over soon.
func (s *Store) PruneSamples(ctx context.Context, tier meter.Tier, before time.Time) error {
	for {
		oldest, err := s.rq.OldestSample(ctx, int64(tier))
		if err != nil {
			return fmt.Errorf("read oldest sample: %w", err)
		}
		if len(oldest) == 0 || oldest[0] >= millis(before) {
			return nil
		}
		upTo := min(oldest[0]+pruneSlice.Milliseconds(), millis(before))
		err = s.write(ctx, func(q *db.Queries) error {
			_, err := q.DeleteSamplesBefore(ctx, db.DeleteSamplesBeforeParams{Tier: int64(tier), Before: upTo})
			return err
		})
		if err != nil {
			return fmt.Errorf("delete samples: %w", err)
		}
	}
}

// PruneRuns implements meter.Store.
func (s *Store) PruneRuns(ctx context.Context, before time.Time) error {
	return s.write(ctx, func(q *db.Queries) error {
		_, err := q.DeleteRunsBefore(ctx, millis(before))
		return err
	})
}

func runEnd(ms int64) time.Time {
	if ms == openEnd {
		return time.Time{}
	}
	return fromMillis(ms)
}

func unpackRun(r db.UsageRun) (meter.Run, error) {
	var p packer
	run := meter.Run{
		SandboxID: r.SandboxID, Kind: meter.Kind(r.Kind), Team: r.TeamID, Template: r.TemplateID, Alias: r.Alias,
		CPUs: int(r.Cpus), MemoryMiB: r.MemoryMib, DiskMiB: r.DiskMib,
		StartedAt: fromMillis(r.StartedAt), EndedAt: runEnd(r.EndedAt), SavedBytes: r.SavedBytes,
		Figures: meter.Figures{
			SampledAt: fromMillis(r.SampledAt), CPU: time.Duration(r.CpuUs) * time.Microsecond,
			MemoryMiBMillis: r.MemoryMibMs, PeakMemoryBytes: r.MemoryPeak, EgressIn: r.EgressIn, EgressOut: r.EgressOut,
		},
	}
	p.parse(r.Labels, &run.Labels)
	return run, p.err
}

func unpackSamples(rows []db.UsageSample) []meter.Sample {
	out := make([]meter.Sample, len(rows))
	for i, r := range rows {
		out[i] = meter.Sample{
			At: fromMillis(r.At), RunAt: fromMillis(r.RunAt), Tier: meter.Tier(r.Tier), CPU: time.Duration(r.CpuUs) * time.Microsecond,
			MemoryBytes: r.Memory, CacheBytes: r.Cache, DiskBytes: r.Disk,
		}
	}
	return out
}
