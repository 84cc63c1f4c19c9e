package meter

import (
	"slices"
	"time"

	"github.com/caisson-dev/caisson/provider"
)

// track is what the Meter remembers of a running sandbox. Meter.mu guards it.
type track struct {
	gone <-chan struct{}
	run  Run
	// baseIn and baseOut are the bytes of the run that an earlier process
	// counted: the gateway's own counters begin at zero.
	baseIn, baseOut int64
	// earlier is what the runs before used, where somebody wants to know.
	earlier Total
	// samples are those that wait to be written, after up to keepWritten that
	// are.
	samples []Sample
	written int
	// nextMedium and nextCoarse are when a sample of that tier is due.
	nextMedium, nextCoarse time.Time
	due                    time.Time
	// goneSince is when it was first seen not to run.
	goneSince time.Time
}

// keepWritten is how many written samples stay in memory: what the share of CPU
// of the last sample is told from.
const keepWritten = 2

// add takes a sample. final marks the last of its run, which is kept long.
func (t *track) add(st provider.Stats, final bool) {
	at := st.At.Truncate(time.Millisecond)
	from := t.run.SampledAt
	if from.IsZero() {
		from = t.run.StartedAt
	}
	if !at.After(from) {
		return
	}
	before := st.MemoryBytes
	if n := len(t.samples); n > 0 {
		before = t.samples[n-1].MemoryBytes
	}
	const mebibyte = 1 << 20
	t.run.MemoryMiBMillis += int64((float64(before) + float64(st.MemoryBytes)) / 2 / mebibyte * float64(at.Sub(from).Milliseconds()))
	// In the store's unit, so that what is shown never shrinks by writing it.
	t.run.CPU = max(t.run.CPU, st.CPUUsage.Truncate(time.Microsecond))
	t.run.PeakMemoryBytes = max(t.run.PeakMemoryBytes, st.MemoryBytes)
	t.run.SampledAt = at

	s := Sample{
		At: at, RunAt: t.run.StartedAt, CPU: t.run.CPU,
		MemoryBytes: st.MemoryBytes, CacheBytes: st.CacheBytes, DiskBytes: st.DiskBytes,
	}
	switch {
	case final:
		s.Tier = Coarse
	case !at.Before(t.nextCoarse):
		s.Tier, t.nextCoarse, t.nextMedium = Coarse, at.Add(coarseStep), at.Add(mediumStep)
	case !at.Before(t.nextMedium):
		s.Tier, t.nextMedium = Medium, at.Add(mediumStep)
	}
	t.samples = append(t.samples, s)
	if over := len(t.samples) - maxWaiting; over > 0 {
		t.samples = slices.Delete(t.samples, 0, over)
		t.written = max(t.written-over, 0)
	}
}

// traffic takes the gateway's counters.
func (t *track) traffic(in, out int64) {
	t.run.EgressIn = max(t.run.EgressIn, t.baseIn+in)
	t.run.EgressOut = max(t.run.EgressOut, t.baseOut+out)
}

// waiting is what is to be written.
func (t *track) waiting() Measured {
	return Measured{
		SandboxID: t.run.SandboxID, RunAt: t.run.StartedAt, Figures: t.run.Figures,
		Samples: slices.Clone(t.samples[t.written:]),
	}
}

// wrote notes that all samples up to at are in the store.
func (t *track) wrote(at time.Time) {
	for t.written < len(t.samples) && !t.samples[t.written].At.After(at) {
		t.written++
	}
	if over := t.written - keepWritten; over > 0 {
		t.samples = slices.Delete(t.samples, 0, over)
		t.written -= over
	}
}
