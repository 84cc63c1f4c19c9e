package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
)

// lastWord is a meter that knows the figures given of every run.
type lastWord meter.Measured

func (l lastWord) Unwritten(id string, runAt time.Time) (meter.Measured, bool) {
	m := meter.Measured(l)
	m.SandboxID, m.RunAt = id, runAt
	for i := range m.Samples {
		m.Samples[i].RunAt = runAt
	}
	return m, true
}

// change mutates a sandbox as the Manager does, at a time.
func change(t *testing.T, s *store.Store, id sandbox.ID, st sandbox.State, at time.Time, reason string) sandbox.Sandbox {
	t.Helper()
	sb, err := s.Mutate(t.Context(), id, func(sb *sandbox.Sandbox) (audit.Event, error) {
		from := sb.State
		sb.State, sb.Reason = st, reason
		switch {
		case st == sandbox.Running && from != sandbox.Pausing:
			sb.StartedAt, sb.EndsAt, sb.Saved = at, at.Add(time.Minute), nil
		case st == sandbox.Paused:
			sb.EndsAt, sb.Saved = at, &snapshot.Artifact{ID: "a1", Kind: snapshot.Memory, SizeBytes: 4096}
		case st.Ended():
			sb.EndedAt = at
		}
		return audit.Event{Type: "sandbox." + string(st), Actor: "test"}, nil
	})
	if err != nil {
		t.Fatalf("Mutate(%s) = %v", st, err)
	}
	return sb
}

func allRuns(t *testing.T, s *store.Store, team identity.TeamID, since, before time.Time) []meter.Run {
	t.Helper()
	var out []meter.Run
	for r, err := range s.EachRun(t.Context(), string(team), since, before) {
		if err != nil {
			t.Fatalf("EachRun() = %v", err)
		}
		out = append(out, r)
	}
	return out
}

// runs begin and end with the states of their sandbox, and take the last
// figures in the same transaction.
func runs(t *testing.T, s *store.Store) {
	figures := meter.Figures{
		SampledAt: now(), CPU: 1500 * time.Microsecond, MemoryMiBMillis: 1 << 40, PeakMemoryBytes: 1 << 33, EgressIn: 7, EgressOut: 8,
	}
	s.MeterWith(lastWord{Figures: figures, Samples: []meter.Sample{{At: now(), CPU: time.Second, Tier: meter.Coarse}}})
	sb := insert(t, s, Sandbox())
	if _, err := s.OpenRun(t.Context(), string(sb.ID)); !errdefs.IsNotFound(err) {
		t.Errorf("OpenRun() before the start = %v, want not found", err)
	}
	zero := now().Add(-time.Hour)
	at := func(minutes int) time.Time { return zero.Add(time.Duration(minutes) * time.Minute) }
	change(t, s, sb.ID, sandbox.Running, at(0), "")
	open := meter.Run{
		SandboxID: string(sb.ID), Kind: meter.Ran, Team: string(sb.Team), Template: string(sb.Template), Alias: sb.Alias,
		Labels: sb.Metadata, CPUs: 2, MemoryMiB: 512, DiskMiB: 1024, StartedAt: at(0),
	}
	if got, err := s.OpenRun(t.Context(), string(sb.ID)); err != nil || !cmp.Equal(open, got) {
		t.Errorf("OpenRun() = %v (-want +got):\n%s", err, cmp.Diff(open, got))
	}
	// A pause that fails changes nothing; one that succeeds ends the run.
	change(t, s, sb.ID, sandbox.Pausing, at(1), "")
	change(t, s, sb.ID, sandbox.Running, at(2), "")
	change(t, s, sb.ID, sandbox.Pausing, at(3), "")
	change(t, s, sb.ID, sandbox.Paused, at(4), "")
	if _, err := s.OpenRun(t.Context(), string(sb.ID)); !errdefs.IsNotFound(err) {
		t.Errorf("OpenRun() of a paused one = %v, want not found", err)
	}
	// So does a resume that fails.
	change(t, s, sb.ID, sandbox.Resuming, at(5), "")
	change(t, s, sb.ID, sandbox.Paused, at(4), "")
	change(t, s, sb.ID, sandbox.Resuming, at(6), "")
	change(t, s, sb.ID, sandbox.Running, at(7), "")
	change(t, s, sb.ID, sandbox.Killing, at(8), sandbox.ReasonKilled)
	change(t, s, sb.ID, sandbox.Killed, at(9), sandbox.ReasonKilled)

	first, saved, second := open, open, open
	first.EndedAt, first.Figures = at(4), figures
	saved.Kind, saved.StartedAt, saved.EndedAt, saved.SavedBytes = meter.Saved, at(4), at(7), 4096
	second.StartedAt, second.EndedAt, second.Figures = at(7), at(9), figures
	got := allRuns(t, s, sb.Team, at(0), now())
	if diff := cmp.Diff([]meter.Run{first, saved, second}, got); diff != "" {
		t.Errorf("EachRun() (-want +got):\n%s", diff)
	}
	if mine, err := s.SandboxRuns(t.Context(), string(sb.Team), string(sb.ID)); err != nil || !cmp.Equal([]meter.Run{first, second}, mine) {
		t.Errorf("SandboxRuns() = %v, %v", mine, err)
	}
	if theirs, err := s.SandboxRuns(t.Context(), "other", string(sb.ID)); err != nil || len(theirs) != 0 {
		t.Errorf("SandboxRuns() of another team = %v, %v", theirs, err)
	}
	if theirs := allRuns(t, s, "other", at(0), now()); len(theirs) != 0 {
		t.Errorf("EachRun() of another team = %v", theirs)
	}
	if n := len(allRuns(t, s, sb.Team, at(8), now())); n != 1 {
		t.Errorf("%d runs overlap with the last minutes, want 1", n)
	}
	if n := len(allRuns(t, s, sb.Team, at(0), at(4))); n != 1 {
		t.Errorf("%d runs overlap with the first minutes, want 1", n)
	}
	spans, err := s.TeamSpans(t.Context(), string(sb.Team), at(0), now())
	if err != nil || len(spans) != 2 {
		t.Errorf("TeamSpans() = %v, %v", spans, err)
	}
	if last, err := s.LastSamples(t.Context(), string(sb.ID), 5); err != nil || len(last) != 1 || last[0].CPU != time.Second {
		t.Errorf("LastSamples() = %v, %v", last, err)
	}
	// What was used outlives the record.
	if _, err := s.Prune(t.Context(), now()); err != nil {
		t.Fatal(err)
	}
	if n := len(allRuns(t, s, sb.Team, at(0), now())); n != 3 {
		t.Errorf("%d runs after the record is gone, want 3", n)
	}
	if err := s.PruneRuns(t.Context(), at(8)); err != nil {
		t.Fatal(err)
	}
	if n := len(allRuns(t, s, sb.Team, at(0), now())); n != 1 {
		t.Errorf("%d runs after pruning, want 1", n)
	}
}

// runsEnd: a box that died unwatched is not billed until it was found dead.
func runsEnd(t *testing.T, s *store.Store) {
	zero := now().Add(-10 * time.Hour)
	found := zero.Add(9 * time.Hour)
	sampled := zero.Add(time.Hour)
	for _, c := range []struct {
		reason string
		want   time.Time
	}{
		{sandbox.ReasonKilled, found},
		{sandbox.ReasonTimeout, zero.Add(time.Minute)}, // its EndsAt
		{"crashed", sampled},
		{"engine_lost", sampled},
		{"oom", sampled},
	} {
		sb := insert(t, s, Sandbox())
		change(t, s, sb.ID, sandbox.Running, zero, "")
		err := s.WriteMeasures(t.Context(), []meter.Measured{{SandboxID: string(sb.ID), RunAt: zero, Figures: meter.Figures{SampledAt: sampled}}})
		if err != nil {
			t.Fatal(err)
		}
		change(t, s, sb.ID, sandbox.Killed, found, c.reason)
		got, err := s.SandboxRuns(t.Context(), string(sb.Team), string(sb.ID))
		if err != nil || len(got) != 1 || !got[0].EndedAt.Equal(c.want) {
			t.Errorf("run that ended by %s: %v, %v, want it to end at %s", c.reason, got, err, c.want)
		}
	}
}

// lateFigures are those of a batch that was put together before a run ended, and
// is written after it.
func lateFigures(t *testing.T, s *store.Store) {
	zero := now().Add(-time.Hour)
	sb := insert(t, s, Sandbox())
	change(t, s, sb.ID, sandbox.Running, zero, "")
	figures := func(after time.Duration, cpu time.Duration) meter.Measured {
		return meter.Measured{SandboxID: string(sb.ID), RunAt: zero, Figures: meter.Figures{SampledAt: zero.Add(after), CPU: cpu}}
	}
	for _, m := range []meter.Measured{figures(time.Minute, time.Second), figures(2*time.Minute, 5*time.Second), figures(time.Minute, time.Second)} {
		if err := s.WriteMeasures(t.Context(), []meter.Measured{m}); err != nil {
			t.Fatal(err)
		}
	}
	run, err := s.OpenRun(t.Context(), string(sb.ID))
	if err != nil || run.CPU != 5*time.Second || !run.SampledAt.Equal(zero.Add(2*time.Minute)) {
		t.Errorf("after a late write the run has %s of CPU at %s (%v), want what was known last", run.CPU, run.SampledAt, err)
	}
}

func samples(t *testing.T, s *store.Store) {
	zero := now().Add(-time.Hour)
	var all []meter.Sample
	for i := range 20 {
		all = append(all, meter.Sample{
			At: zero.Add(time.Duration(i) * time.Minute), RunAt: zero, Tier: meter.Tier(i % 3), CPU: time.Duration(i) * time.Millisecond,
			MemoryBytes: 1 << 40, CacheBytes: 2, DiskBytes: int64(i),
		})
	}
	batch := []meter.Measured{{SandboxID: "ia", RunAt: zero, Samples: all}, {SandboxID: "ib", RunAt: zero, Samples: all[:1]}}
	for range 2 { // again changes nothing
		if err := s.WriteMeasures(t.Context(), batch); err != nil {
			t.Fatalf("WriteMeasures() = %v", err)
		}
	}
	got, err := s.Samples(t.Context(), "ia", zero.Add(time.Minute), zero.Add(4*time.Minute))
	if diff := cmp.Diff(all[1:5], got); diff != "" || err != nil {
		t.Errorf("Samples() = %v (-want +got):\n%s", err, diff)
	}
	if last, err := s.LastSamples(t.Context(), "ia", 2); err != nil || !cmp.Equal(all[18:], last) {
		t.Errorf("LastSamples() = %v, %v", last, err)
	}
	if err := s.PruneSamples(t.Context(), meter.Fine, zero.Add(18*time.Minute)); err != nil {
		t.Fatal(err)
	}
	left, err := s.Samples(t.Context(), "ia", zero, now())
	if err != nil || len(left) != 14 {
		t.Fatalf("%d samples are left, %v, want 14", len(left), err)
	}
	for _, sm := range left {
		if sm.Tier == meter.Fine && sm.At.Before(zero.Add(18*time.Minute)) {
			t.Errorf("sample %v was to be deleted", sm)
		}
	}
	// Pages of runs join without a gap.
	const many = 1005
	for i := range many {
		sb := Sandbox()
		sb.ID = sandbox.ID(fmt.Sprintf("i%020d", i))
		insert(t, s, sb)
		change(t, s, sb.ID, sandbox.Running, zero, "")
		if i == many/2 {
			change(t, s, sb.ID, sandbox.Killed, zero.Add(time.Minute), "killed")
		}
	}
	seen := map[string]bool{}
	for _, r := range allRuns(t, s, Sandbox().Team, zero, now()) {
		seen[r.SandboxID] = true
	}
	if len(seen) != many {
		t.Errorf("EachRun() yields %d of %d runs", len(seen), many)
	}
}
