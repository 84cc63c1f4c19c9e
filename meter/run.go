package meter

import "time"

// Kind tells runs from times without a box.
type Kind string

// The kinds of Run.
const (
	// Ran is a run: the sandbox had a box.
	Ran Kind = "run"
	// Saved is a time that a paused sandbox lay on disk.
	Saved Kind = "saved"
)

// Run is one stretch of a sandbox's life and what it used.
type Run struct {
	SandboxID string
	Kind      Kind
	Team      string
	Template  string
	// Alias is the template's name when the sandbox was created.
	Alias string
	// Labels are the sandbox's metadata when the run began.
	Labels map[string]string
	// CPUs, MemoryMiB and DiskMiB are its limits; zero means none.
	CPUs      int
	MemoryMiB int64
	DiskMiB   int64
	StartedAt time.Time
	// EndedAt is zero while it lasts.
	EndedAt time.Time
	// SavedBytes is the size of what was saved, for Saved.
	SavedBytes int64
	Figures
}

// Figures are what a run has used up to SampledAt, its last sample.
type Figures struct {
	SampledAt time.Time
	CPU       time.Duration
	// MemoryMiBMillis is the memory used, integrated over time: MiB times
	// milliseconds.
	MemoryMiBMillis int64
	// PeakMemoryBytes is the most memory of any sample.
	PeakMemoryBytes int64
	// EgressIn and EgressOut are bytes through the gateway to and from the
	// guest.
	EgressIn, EgressOut int64
}

// Total is what a sandbox has used over all its runs.
type Total struct {
	CPU, Wall time.Duration
	// EgressBytes is of both directions.
	EgressBytes int64
}

func (t Total) plus(r Run, end time.Time) Total {
	t.CPU += r.CPU
	t.Wall += end.Sub(r.StartedAt)
	t.EgressBytes += r.EgressIn + r.EgressOut
	return t
}

// Tier says how long a sample is kept: a finer one is thinned out earlier.
type Tier int

// The tiers, and how far apart samples of a tier are.
const (
	Fine   Tier = iota // every sample, kept for keepFine
	Medium             // mediumStep apart, kept for keepMedium
	Coarse             // coarseStep apart, kept for Config.KeepSamples
)

const (
	keepFine   = 2 * time.Hour
	keepMedium = 24 * time.Hour
	mediumStep = 30 * time.Second
	coarseStep = 5 * time.Minute
)

// Sample is one measure of a running sandbox.
type Sample struct {
	At time.Time
	// RunAt is Run.StartedAt of its run.
	RunAt time.Time
	Tier  Tier
	// CPU is the CPU time of the run up to here: the share used between any two
	// samples of a run is exact, however many were thinned out between.
	CPU time.Duration
	// MemoryBytes counts against the limit; CacheBytes is page cache that does
	// not stand in its way.
	MemoryBytes int64
	CacheBytes  int64
	// DiskBytes is what the changes to the file system take on the host.
	DiskBytes int64
}

// Measured is a run with new figures, and new samples of it.
type Measured struct {
	SandboxID string
	// RunAt is Run.StartedAt.
	RunAt   time.Time
	Figures Figures
	Samples []Sample
}

// Span is the time of a run; End is zero while it lasts.
type Span struct{ Start, End time.Time }
