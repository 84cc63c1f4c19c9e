package meter_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/provider"
)

const mebibyte = 1 << 20

// world is a host with sandboxes that use what the test says, and a store in
// memory.
type world struct {
	mu      sync.Mutex
	live    map[string]chan struct{}
	use     map[string]func(sinceStart time.Duration) provider.Stats
	traffic map[string]int64
	runs    []meter.Run
	samples map[string][]meter.Sample
	asked   int
	busy    int
	most    int
	hang    bool
	broken  error // of the store
}

func newWorld() *world {
	return &world{
		live: map[string]chan struct{}{}, use: map[string]func(time.Duration) provider.Stats{},
		traffic: map[string]int64{}, samples: map[string][]meter.Sample{},
	}
}

// start begins a run that uses half a CPU, and memory as given.
func (w *world) start(id string, memory func(time.Duration) int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live[id] = make(chan struct{})
	w.use[id] = func(d time.Duration) provider.Stats {
		return provider.Stats{At: time.Now(), CPUUsage: d / 2, MemoryBytes: memory(d), CacheBytes: 1, DiskBytes: 2}
	}
	w.runs = append(w.runs, meter.Run{
		SandboxID: id, Kind: meter.Ran, Team: "default", Template: "t", Alias: "base", Labels: map[string]string{"job": "j-" + id},
		CPUs: 2, MemoryMiB: 512, DiskMiB: 1024, StartedAt: time.Now().Truncate(time.Millisecond),
	})
}

// stop ends the run as the store does: with the figures that the meter has.
func (w *world) stop(m *meter.Meter, id string) {
	last, ok := m.Unwritten(id, w.run(id).StartedAt)
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.live[id])
	delete(w.live, id)
	r := w.open(id)
	r.EndedAt = time.Now()
	if ok {
		r.Figures = last.Figures
		w.keep(id, last.Samples)
	}
}

func (w *world) open(id string) *meter.Run {
	for i := range w.runs {
		if w.runs[i].SandboxID == id && w.runs[i].EndedAt.IsZero() {
			return &w.runs[i]
		}
	}
	return nil
}

func (w *world) run(id string) meter.Run {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.open(id)
}

func (w *world) keep(id string, add []meter.Sample) {
	for _, s := range add {
		have := w.samples[id]
		if len(have) == 0 || s.At.After(have[len(have)-1].At) {
			w.samples[id] = append(w.samples[id], s)
		}
	}
}

func (w *world) boxes(yield func(string, <-chan struct{}) bool) {
	w.mu.Lock()
	all := maps.Clone(w.live)
	w.mu.Unlock()
	for id, gone := range all {
		if !yield(id, gone) {
			return
		}
	}
}

func (w *world) stats(ctx context.Context, id string) (provider.Stats, error) {
	w.mu.Lock()
	w.asked++
	w.busy++
	w.most = max(w.most, w.busy)
	hang := w.hang
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.busy--
		w.mu.Unlock()
	}()
	if hang {
		<-ctx.Done()
		return provider.Stats{}, context.Cause(ctx)
	}
	time.Sleep(time.Millisecond) // as the engine does
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.open(id)
	if r == nil {
		return provider.Stats{}, errdefs.ErrNotFound
	}
	return w.use[id](time.Since(r.StartedAt)), nil
}

func (w *world) OpenRun(_ context.Context, id string) (meter.Run, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.open(id); r != nil {
		return *r, nil
	}
	return meter.Run{}, errdefs.ErrNotFound
}

func (w *world) WriteMeasures(_ context.Context, batch []meter.Measured) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range batch {
		if w.broken != nil {
			return w.broken
		}
		for i := range w.runs {
			if w.runs[i].SandboxID == b.SandboxID && w.runs[i].StartedAt.Equal(b.RunAt) {
				w.runs[i].Figures = b.Figures
			}
		}
		w.keep(b.SandboxID, b.Samples)
	}
	return nil
}

func (w *world) SandboxRuns(_ context.Context, team, id string) ([]meter.Run, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []meter.Run
	for _, r := range w.runs {
		if r.Team == team && r.SandboxID == id && r.Kind == meter.Ran {
			out = append(out, r)
		}
	}
	return out, nil
}

func (w *world) Samples(_ context.Context, id string, since, until time.Time) ([]meter.Sample, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []meter.Sample
	for _, s := range w.samples[id] {
		if !s.At.Before(since) && !s.At.After(until) {
			out = append(out, s)
		}
	}
	return out, nil
}

func (w *world) LastSamples(_ context.Context, id string, n int) ([]meter.Sample, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.samples[id]
	return slices.Clone(all[max(len(all)-n, 0):]), nil
}

func (w *world) EachRun(_ context.Context, team string, since, before time.Time) iter.Seq2[meter.Run, error] {
	w.mu.Lock()
	all := slices.Clone(w.runs)
	w.mu.Unlock()
	return func(yield func(meter.Run, error) bool) {
		for _, r := range all {
			if r.Team == team && r.StartedAt.Before(before) && (r.EndedAt.IsZero() || r.EndedAt.After(since)) && !yield(r, nil) {
				return
			}
		}
	}
}

func (w *world) TeamSpans(ctx context.Context, team string, since, before time.Time) ([]meter.Span, error) {
	var out []meter.Span
	for r := range w.EachRun(ctx, team, since, before) {
		out = append(out, meter.Span{Start: r.StartedAt, End: r.EndedAt})
	}
	return out, nil
}

func (w *world) PruneSamples(_ context.Context, tier meter.Tier, before time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.samples {
		w.samples[id] = slices.DeleteFunc(w.samples[id], func(s meter.Sample) bool { return s.Tier == tier && s.At.Before(before) })
	}
	return nil
}

func (w *world) PruneRuns(context.Context, time.Time) error { return nil }

// measured runs a meter over w until the test ends.
func measured(t *testing.T, w *world, cfg meter.Config) *meter.Meter {
	t.Helper()
	m, stop := begin(t, w, cfg)
	t.Cleanup(stop)
	return m
}

// begin runs a meter over w until stop is called.
func begin(t *testing.T, w *world, cfg meter.Config) (_ *meter.Meter, stop func()) {
	t.Helper()
	m, err := meter.New(cfg, meter.Deps{
		Store: w, Boxes: w.boxes, Stats: w.stats, Log: slog.New(slog.DiscardHandler),
		Traffic: func(id string) (in, out int64, ok bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			n, ok := w.traffic[id]
			return n, 2 * n, ok
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run() = %v", err)
		}
	}()
	return m, func() { cancel(); <-done }
}

func flat(n int64) func(time.Duration) int64 { return func(time.Duration) int64 { return n } }

// box is a provider.Box of which only Stats is asked.
type box struct {
	provider.Box
	stats func(context.Context) (provider.Stats, error)
}

func (b box) Stats(ctx context.Context) (provider.Stats, error) { return b.stats(ctx) }

func TestPoints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.start("ia", flat(100*mebibyte))
		m := measured(t, w, meter.Config{})
		time.Sleep(time.Minute)
		got, err := m.Points(t.Context(), "default", "ia", meter.Window{})
		if err != nil || len(got) < 10 || len(got) > 13 {
			t.Fatalf("Points() after a minute = %d, %v", len(got), err)
		}
		for i, p := range got {
			want := meter.Point{
				At: p.At, CPUs: 2, CPUPercent: 25, MemoryBytes: 100 * mebibyte, MemoryTotal: 512 * mebibyte,
				CacheBytes: 1, DiskBytes: 2, DiskTotal: 1024 * mebibyte,
			}
			if diff := cmp.Diff(want, p, cmpopts.EquateApprox(0, 0.1)); diff != "" {
				t.Errorf("point %d (-want +got):\n%s", i, diff)
			}
		}
		if other, err := m.Points(t.Context(), "other", "ia", meter.Window{}); err != nil || len(other) != 0 {
			t.Errorf("Points() of another team = %v, %v", other, err)
		}
		later, err := m.Points(t.Context(), "default", "ia", meter.Window{From: time.Now().Add(-20 * time.Second)})
		if err != nil || len(later) < 3 || len(later) > 5 || later[0].CPUPercent < 24 || later[0].CPUPercent > 26 {
			t.Errorf("Points(last 20 s) = %v, %v", later, err)
		}
		if _, err := m.Points(t.Context(), "default", "ia", meter.Window{From: time.Now(), To: time.Now().Add(-1)}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Points(backwards) = %v, want invalid argument", err)
		}
		// A day later a long range has the mean of what is left.
		time.Sleep(24 * time.Hour)
		day, err := m.Points(t.Context(), "default", "ia", meter.Window{})
		if err != nil || len(day) < 280 || len(day) > 295 {
			t.Errorf("Points(a day) = %d, %v", len(day), err)
		}
		for _, p := range day {
			if p.CPUPercent < 24.9 || p.CPUPercent > 25.1 {
				t.Errorf("thinned point %v", p)
			}
		}
		w.mu.Lock()
		kept := len(w.samples["ia"])
		w.mu.Unlock()
		if kept > 4800 {
			t.Errorf("%d samples are kept of a day", kept)
		}
		w.stop(m, "ia")
		time.Sleep(time.Hour)
		latest, err := m.Latest(t.Context(), "default", []string{"ia", "inone"})
		if err != nil || len(latest) != 1 || time.Since(latest["ia"].At) > 2*time.Hour {
			t.Errorf("Latest() after the end = %v, %v", latest, err)
		}
	})
}

// A run that is shorter than an interval is measured by its last sample alone.
func TestLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		m := measured(t, w, meter.Config{})
		time.Sleep(2 * time.Millisecond)
		w.start("ia", flat(64*mebibyte))
		w.traffic["ia"] = 1000
		time.Sleep(200 * time.Millisecond)
		ask := box{stats: func(ctx context.Context) (provider.Stats, error) { return w.stats(ctx, "ia") }}
		w.mu.Lock()
		gone := w.live["ia"]
		w.mu.Unlock()
		m.Last(t.Context(), "ia", gone, ask)
		w.stop(m, "ia")
		rep, err := m.Report(t.Context(), "default", meter.Window{}, meter.Grouping{By: meter.BySandbox})
		if err != nil || len(rep.Lines) != 1 {
			t.Fatalf("Report() = %+v, %v", rep, err)
		}
		u := rep.Lines[0]
		if u.CPU != 100*time.Millisecond+500*time.Microsecond || u.EgressIn != 1000 || u.EgressOut != 2000 || u.MemoryMiBSeconds < 12 {
			t.Errorf("usage of a short run is %+v", u)
		}
		// One whose box answers no more keeps the kill waiting a moment only.
		w.start("ib", flat(1))
		w.hang = true
		began := time.Now()
		m.Last(t.Context(), "ib", w.live["ib"], ask)
		if took := time.Since(began); took > time.Second {
			t.Errorf("Last() of a box that hangs took %s", took)
		}
		w.mu.Lock()
		w.hang = false
		w.mu.Unlock()
	})
}

// Five hundred sandboxes are measured once an interval each, a few at a time,
// and not all together.
func TestSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		const n = 500
		for i := range n {
			w.start(fmt.Sprint("i", i), flat(1))
		}
		measured(t, w, meter.Config{Interval: 5 * time.Second, AtOnce: 4})
		time.Sleep(30 * time.Second)
		w.mu.Lock()
		w.asked = 0
		w.mu.Unlock()
		most := 0
		for range 20 { // a minute in ticks of 500 ms would be 120; one sixth is enough
			w.mu.Lock()
			before := w.asked
			w.mu.Unlock()
			time.Sleep(500 * time.Millisecond)
			w.mu.Lock()
			most = max(most, w.asked-before)
			w.mu.Unlock()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.asked < 2*n*8/10 || w.asked > 2*n*11/10 {
			t.Errorf("%d sandboxes were asked %d times in two intervals", n, w.asked)
		}
		if most > n/3 {
			t.Errorf("%d of %d sandboxes were asked in one tick", most, n)
		}
		if w.most > 4 {
			t.Errorf("%d were asked at once, want at most 4", w.most)
		}
	})
}

// One provider that does not answer, and a database that is away, cost samples
// and nothing else; memory stays bounded.
func TestTrouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.start("ia", flat(mebibyte))
		m := measured(t, w, meter.Config{})
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		w.hang = true
		w.mu.Unlock()
		time.Sleep(20 * time.Second)
		w.mu.Lock()
		w.hang, w.broken = false, errors.New("disk is full")
		w.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if waiting, ok := m.Unwritten("ia", w.run("ia").StartedAt); !ok || len(waiting.Samples) > 120 {
			t.Errorf("%d samples wait, %t", len(waiting.Samples), ok)
		}
		w.mu.Lock()
		w.broken = nil
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		// CPU is a counter, memory was integrated all the while: nothing is lost.
		r := w.run("ia")
		if lived := time.Since(r.StartedAt); r.CPU < lived/2-6*time.Second || r.MemoryMiBMillis < (lived-12*time.Second).Milliseconds() {
			t.Errorf("figures after %s are %+v", lived, r.Figures)
		}
	})
}

// A new process goes on from what was written, also with the bytes, which the
// gateway then counts from zero.
func TestRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.start("ia", flat(10*mebibyte))
		w.traffic["ia"] = 500
		_, stop := begin(t, w, meter.Config{})
		time.Sleep(30 * time.Second)
		stop()
		before := w.run("ia").Figures
		w.traffic["ia"] = 7
		measured(t, w, meter.Config{})
		time.Sleep(30 * time.Second)
		after := w.run("ia").Figures
		if before.EgressIn != 500 || after.EgressIn != 507 || after.EgressOut != 1014 {
			t.Errorf("egress went from %+v to %+v", before, after)
		}
		if after.MemoryMiBMillis < 10*50_000 || after.MemoryMiBMillis > 10*60_100 {
			t.Errorf("10 MiB for a minute are %d MiB ms", after.MemoryMiBMillis)
		}
	})
}

// A pause that fails gives the sandbox a new channel and the same run.
func TestRunsOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.start("ia", flat(mebibyte))
		w.traffic["ia"] = 100
		m := measured(t, w, meter.Config{})
		time.Sleep(12 * time.Second)
		w.mu.Lock()
		close(w.live["ia"])
		delete(w.live, "ia")
		w.mu.Unlock()
		time.Sleep(30 * time.Second)
		w.mu.Lock()
		w.live["ia"] = make(chan struct{})
		w.mu.Unlock()
		time.Sleep(12 * time.Second)
		rep, err := m.Report(t.Context(), "default", meter.Window{}, meter.Grouping{By: meter.ByTeam})
		if err != nil || rep.Total.Runs != 1 || rep.Total.EgressIn != 100 || rep.Total.CPU < 24*time.Second {
			t.Errorf("Report() = %+v, %v", rep.Total, err)
		}
	})
}
