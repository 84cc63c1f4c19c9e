package storetest

import (
	"net/netip"
	"sync"
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
	"github.com/caisson-dev/caisson/template"
)

// teamBudgets checks what a team may use and what it has used in a period.
func teamBudgets(t *testing.T, s *store.Store) {
	team := identity.DefaultTeam
	if _, own, err := s.TeamBudget(t.Context(), team); err != nil || own {
		t.Errorf("TeamBudget() of one without = %v, %v", own, err)
	}
	want := sandbox.TeamBudget{Budget: sandbox.Budget{CPU: time.Hour, Wall: 2 * time.Hour, EgressBytes: 7}, Period: sandbox.Daily}
	if err := s.SetTeamBudget(t.Context(), team, &want, "test"); err != nil {
		t.Fatal(err)
	}
	if got, own, err := s.TeamBudget(t.Context(), team); err != nil || !own || got != want {
		t.Errorf("TeamBudget() = %+v, %v, %v, want %+v", got, own, err, want)
	}
	if err := s.SetTeamBudget(t.Context(), team, &sandbox.TeamBudget{Period: "week"}, "test"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("SetTeamBudget(bad period) = %v", err)
	}
	if err := s.SetTeamBudget(t.Context(), "nobody", &want, "test"); !errdefs.IsNotFound(err) {
		t.Errorf("SetTeamBudget(no such team) = %v", err)
	}
	if err := s.SetTeamBudget(t.Context(), team, nil, "test"); err != nil {
		t.Fatal(err)
	}
	if _, own, err := s.TeamBudget(t.Context(), team); err != nil || own {
		t.Errorf("TeamBudget() after it was taken away = %v, %v", own, err)
	}
	// A run that began an hour before the period and lasts two: half of it counts.
	since := time.Now().UTC().Truncate(time.Second).Add(-5 * time.Hour)
	put := func(id string, from, to time.Time, cpu time.Duration, bytes int64) {
		t.Helper()
		sb := Sandbox()
		sb.ID, sb.Team, sb.CreatedAt = sandbox.ID(id), team, from
		if err := s.Insert(t.Context(), sb, 0, audit.Event{Type: "sandbox.created", Team: string(team)}); err != nil {
			t.Fatal(err)
		}
		change(t, s, sb.ID, sandbox.Running, from, "")
		err := s.WriteMeasures(t.Context(), []meter.Measured{{SandboxID: id, RunAt: from, Figures: meter.Figures{SampledAt: from.Add(time.Minute), CPU: cpu, EgressIn: bytes}}})
		if err != nil {
			t.Fatal(err)
		}
		if !to.IsZero() {
			change(t, s, sb.ID, sandbox.Killed, to, "killed")
		}
	}
	put("iacross", since.Add(-time.Hour), since.Add(time.Hour), 10*time.Minute, 100)
	put("iinside", since.Add(time.Hour), since.Add(90*time.Minute), 3*time.Minute, 10)
	put("iopen", since.Add(4*time.Hour), time.Time{}, time.Minute, 1)
	put("iearlier", since.Add(-3*time.Hour), since.Add(-2*time.Hour), time.Hour, 1000)
	used, err := s.TeamUsed(t.Context(), team, since, since.Add(5*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sandbox.Budget{CPU: 9 * time.Minute, Wall: 2*time.Hour + 30*time.Minute, EgressBytes: 61}, used); diff != "" {
		t.Errorf("TeamUsed() (-want +got):\n%s", diff)
	}
	if used, err := s.TeamUsed(t.Context(), "other", since, time.Now()); err != nil || used != (sandbox.Budget{}) {
		t.Errorf("TeamUsed() of another team = %+v, %v", used, err)
	}
	for range 2 {
		if err := s.WarnTeam(t.Context(), team, "mark", audit.Event{Type: "team.budget_near", Team: string(team), Actor: "system"}); err != nil {
			t.Fatal(err)
		}
	}
}

// snapshotQuota checks that counting and adding are one step.
func snapshotQuota(t *testing.T, s *store.Store) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range 8 {
		wg.Go(func() {
			snap := saved(template.ID("snapq"+string(rune(0x61+i))), "", template.DefaultTag, i+50)
			_, _, err := s.PutSnapshot(t.Context(), snap, sandbox.SnapshotQuota{Count: 3}, audit.Event{Type: "snapshot.created", Team: string(snap.Team)})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case !errdefs.IsResourceExhausted(err):
				t.Errorf("PutSnapshot() = %v", err)
			}
		})
	}
	wg.Wait()
	if made != 3 {
		t.Errorf("%d snapshots were made with a quota of 3", made)
	}
	used, err := s.SnapshotsUsed(t.Context(), template.Snapshot{Team: identity.DefaultTeam})
	if err != nil || used != (sandbox.SnapshotQuota{Count: 3, Bytes: 21}) {
		t.Errorf("SnapshotsUsed() = %+v, %v", used, err)
	}
}

// swappedNames checks names that a sandbox has for a while.
func swappedNames(t *testing.T, s *store.Store) {
	const id, kept = sandbox.ID("iswap"), snapshot.ID("abcdefghijklmnopqrstuvwxyz")
	name := func(of, name, addr string) {
		t.Helper()
		if err := s.PutName(t.Context(), of, name, netip.MustParseAddr(addr)); err != nil {
			t.Fatal(err)
		}
	}
	names := func() []string {
		t.Helper()
		all, err := s.Names(t.Context(), string(id))
		if err != nil {
			t.Fatal(err)
		}
		out := []string{}
		for n, a := range all {
			out = append(out, n+" "+a.String())
		}
		return out
	}
	name("ifrom", "other.test", "198.18.0.1")
	for _, mine := range []bool{false, true} {
		var own []string
		if mine {
			name(string(id), "mine.test", "198.18.0.1")
		}
		own = names()
		for _, back := range []bool{true, false} {
			if err := s.SwapNames(t.Context(), id, "ifrom", kept); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"other.test 198.18.0.1"}, names()); diff != "" {
				t.Errorf("swapped (-want +got):\n%s", diff)
			}
			for range 2 {
				if err := s.SettleNames(t.Context(), id, kept, back); err != nil {
					t.Fatal(err)
				}
			}
			want := own
			if !back {
				want = []string{"other.test 198.18.0.1"}
			}
			if diff := cmp.Diff(want, names()); diff != "" {
				t.Errorf("settled (back %v, had names %v; -want +got):\n%s", back, mine, diff)
			}
		}
		if err := s.SwapNames(t.Context(), id, "inothing", "gone"); err != nil {
			t.Fatal(err)
		}
		if err := s.SettleNames(t.Context(), id, "gone", false); err != nil || len(names()) != 0 {
			t.Errorf("names of none are %v (%v)", names(), err)
		}
	}
}
