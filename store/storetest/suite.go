package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// Run runs the suite; newStore returns an empty, filled store each time.
func Run(t *testing.T, newStore func(t *testing.T) *store.Store) {
	for name, test := range map[string]func(*testing.T, *store.Store){
		"round trip":          roundTrip,
		"insert refusals":     insertRefusals,
		"limit is exact":      limitIsExact,
		"keys of creates":     idempotencyKeys,
		"race for a key":      idempotencyKeyRace,
		"prune with a key":    idempotencyKeyPrune,
		"mutate":              mutate,
		"mutate concurrently": mutateConcurrently,
		"list order":          listOrder,
		"list filters":        listFilters,
		"expired":             expired,
		"prune":               prune,
		"audit":               auditLog,
		"names":               names,
		"flow log":            flowLog,
		"flow log flood":      flowLogFlood,
		"followers":           followers,
		"templates":           templates,
		"template deletion":   templateDeletion,
		"builds":              buildLife,
		"cancelled builds":    cancelledBuilds,
		"renewals":            renewals,
		"discarded builds":    discarded,
		"build logs":          buildLogs,
		"build tags":          buildTags,
		"build order":         buildOrder,
		"upload uses":         uploadUses,
		"snapshots":           snapshots,
		"snapshot quota":      snapshotQuota,
		"swapped names":       swappedNames,
		"team budgets":        teamBudgets,
		"snapshot deletion":   snapshotDeletion,
		"keys":                keys,
		"teams":               teams,
		"metadata":            metadata,
		"runs":                runs,
		"runs end":            runsEnd,
		"samples":             samples,
		"late figures":        lateFigures,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newStore(t))
		})
	}
}

func insert(t *testing.T, s *store.Store, sb sandbox.Sandbox) sandbox.Sandbox {
	t.Helper()
	if err := s.Insert(t.Context(), sb, 0, Created()); err != nil {
		t.Fatalf("Insert() = %v", err)
	}
	return sb
}

func become(t *testing.T, s *store.Store, id sandbox.ID, states ...sandbox.State) sandbox.Sandbox {
	t.Helper()
	var sb sandbox.Sandbox
	var err error
	for _, st := range states {
		if sb, err = s.Mutate(t.Context(), id, Become(st)); err != nil {
			t.Fatalf("Mutate(%s) = %v", st, err)
		}
	}
	return sb
}

func roundTrip(t *testing.T, s *store.Store) {
	want := insert(t, s, Sandbox())
	got, err := s.Get(t.Context(), want.ID)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("Get() = %v (-want +got):\n%s", err, diff)
	}
	bare := Sandbox()
	bare.Network, bare.Egress, bare.Metadata, bare.Name = sandbox.Network{}, egress.Policy{}, nil, ""
	insert(t, s, bare)
	got, err = s.Get(t.Context(), bare.ID)
	if diff := cmp.Diff(bare, got); diff != "" || err != nil {
		t.Errorf("Get() of a bare record = %v (-want +got):\n%s", err, diff)
	}
	if _, err := s.Get(t.Context(), "inone"); !errdefs.IsNotFound(err) {
		t.Errorf("Get(unknown) = %v, want not found", err)
	}
}

func insertRefusals(t *testing.T, s *store.Store) {
	sb := insert(t, s, Sandbox())
	if err := s.Insert(t.Context(), sb, 0, Created()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Insert(same id) = %v, want already exists", err)
	}
	orphan := Sandbox()
	orphan.Template = "nosuch"
	if err := s.Insert(t.Context(), orphan, 0, Created()); !errdefs.IsNotFound(err) {
		t.Errorf("Insert(unknown template) = %v, want not found", err)
	}
	orphan = Sandbox()
	orphan.Team = "nosuch"
	if err := s.Insert(t.Context(), orphan, 0, Created()); !errdefs.IsNotFound(err) {
		t.Errorf("Insert(unknown team) = %v, want not found", err)
	}
	events, err := s.Events(t.Context(), audit.Filter{SandboxID: string(orphan.ID)})
	if err != nil || len(events) != 0 {
		t.Errorf("Events() after refusal = %v, %v, want none", events, err)
	}
}

func limitIsExact(t *testing.T, s *store.Store) {
	const limit = 5
	var ok, refused atomic.Int64
	var wg sync.WaitGroup
	for range 4 * limit {
		wg.Go(func() {
			err := s.Insert(t.Context(), Sandbox(), limit, Created())
			switch {
			case err == nil:
				ok.Add(1)
			case errdefs.IsResourceExhausted(err):
				refused.Add(1)
			default:
				t.Errorf("Insert() = %v", err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != limit || refused.Load() != 3*limit {
		t.Errorf("%d inserted and %d refused, want %d and %d", ok.Load(), refused.Load(), limit, 3*limit)
	}
	page, _, _, err := s.List(t.Context(), sandbox.Filter{Team: identity.DefaultTeam, Limit: 100})
	if len(page) != limit || err != nil {
		t.Errorf("List() = %d records, %v, want %d", len(page), err, limit)
	}
	// A team's own limit goes before the default; ended records do not count.
	if err := s.SetTeamLimit(t.Context(), identity.DefaultTeam, limit+1, "test"); err != nil {
		t.Fatal(err)
	}
	sb := Sandbox()
	if err := s.Insert(t.Context(), sb, limit, Created()); err != nil {
		t.Errorf("Insert() under the team's own limit = %v", err)
	}
	if err := s.Insert(t.Context(), Sandbox(), 100, Created()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Insert() over the team's own limit = %v, want exhausted", err)
	}
	become(t, s, sb.ID, sandbox.Failed)
	if err := s.Insert(t.Context(), Sandbox(), 100, Created()); err != nil {
		t.Errorf("Insert() after one ended = %v", err)
	}
	other := Sandbox()
	other.Team = "other"
	if err := s.Insert(t.Context(), other, 1, Created()); err != nil {
		t.Errorf("Insert() of another team = %v", err)
	}
}

func mutate(t *testing.T, s *store.Store) {
	sb := insert(t, s, Sandbox())
	got := become(t, s, sb.ID, sandbox.Running)
	stored, err := s.Get(t.Context(), sb.ID)
	if diff := cmp.Diff(stored, got); diff != "" || err != nil {
		t.Errorf("Mutate() and Get() differ (%v):\n%s", err, diff)
	}
	if got.Version != 2 || got.Handle.ID != string(sb.ID) {
		t.Errorf("Mutate() = version %d, handle %q", got.Version, got.Handle.ID)
	}
	boom := errors.New("boom")
	_, err = s.Mutate(t.Context(), sb.ID, func(s *sandbox.Sandbox) (audit.Event, error) {
		s.Reason = "changed"
		return audit.Event{Type: "x"}, boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("Mutate() = %v, want fn's error", err)
	}
	for _, st := range []sandbox.State{sandbox.Pending, sandbox.Failed, sandbox.Resuming} {
		if _, err := s.Mutate(t.Context(), sb.ID, Become(st)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Mutate(running to %s) = %v, want failed precondition", st, err)
		}
	}
	if _, err := s.Mutate(t.Context(), "inone", Become(sandbox.Killed)); !errdefs.IsNotFound(err) {
		t.Errorf("Mutate(unknown) = %v, want not found", err)
	}
	if again, err := s.Get(t.Context(), sb.ID); err != nil || again.Version != 2 || again.Reason != "" {
		t.Errorf("refused changes left version %d, reason %q (%v)", again.Version, again.Reason, err)
	}
	become(t, s, sb.ID, sandbox.Killing, sandbox.Killed)
	for _, st := range []sandbox.State{sandbox.Killed, sandbox.Running} {
		if _, err := s.Mutate(t.Context(), sb.ID, Become(st)); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("Mutate(killed to %s) = %v, want failed precondition", st, err)
		}
	}
	events, err := s.Events(t.Context(), audit.Filter{SandboxID: string(sb.ID)})
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, ev := range events {
		types = append(types, ev.Type)
		if ev.Team != string(identity.DefaultTeam) || ev.At.IsZero() || ev.Actor != "test" {
			t.Errorf("event %+v lacks team, time or actor", ev)
		}
	}
	want := []string{"sandbox.created", "sandbox.running", "sandbox.killing", "sandbox.killed"}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func mutateConcurrently(t *testing.T, s *store.Store) {
	sb := Sandbox()
	sb.Metadata = map[string]string{"n": "0"}
	insert(t, s, sb)
	const writers, each = 4, 5
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				// Losing a race is allowed to surface, losing a write is not.
				for {
					_, err := s.Mutate(t.Context(), sb.ID, func(s *sandbox.Sandbox) (audit.Event, error) {
						n, err := strconv.Atoi(s.Metadata["n"])
						s.Metadata["n"] = strconv.Itoa(n + 1)
						return audit.Event{Type: "n"}, err
					})
					if err == nil {
						break
					}
					if !errdefs.IsConflict(err) {
						t.Errorf("Mutate() = %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Get(t.Context(), sb.ID)
	if err != nil || got.Metadata["n"] != strconv.Itoa(writers*each) || got.Version != 1+writers*each {
		t.Errorf("after %d increments: n = %s, version %d (%v)", writers*each, got.Metadata["n"], got.Version, err)
	}
}

func listOrder(t *testing.T, s *store.Store) {
	base := now().Add(-time.Hour)
	var want []sandbox.ID
	for i := range 7 {
		sb := Sandbox()
		sb.StartedAt = base.Add(time.Duration(i/2) * time.Second) // ties in pairs
		sb.Team = []identity.TeamID{identity.DefaultTeam, "other"}[i%2]
		insert(t, s, sb)
		want = append(want, sb.ID)
	}
	for i := 0; i+1 < len(want); i += 2 {
		slices.Sort(want[i : i+2])
	}
	walk := func(f sandbox.Filter) (ids []sandbox.ID) {
		for range 20 {
			page, next, _, err := s.List(t.Context(), f)
			if err != nil || len(page) > f.Limit {
				t.Fatalf("List(%+v) = %d rows, %v", f, len(page), err)
			}
			for _, sb := range page {
				ids = append(ids, sb.ID)
			}
			if next == "" {
				return ids
			}
			f.Cursor = next
		}
		t.Fatalf("List(%+v) does not end", f)
		return nil
	}
	for limit := 1; limit <= 8; limit++ {
		if diff := cmp.Diff(want, walk(sandbox.Filter{Ascending: true, Limit: limit})); diff != "" {
			t.Errorf("ascending by %d (-want +got):\n%s", limit, diff)
		}
		down := slices.Clone(want)
		slices.Reverse(down)
		if diff := cmp.Diff(down, walk(sandbox.Filter{Limit: limit})); diff != "" {
			t.Errorf("descending by %d (-want +got):\n%s", limit, diff)
		}
	}
	if got := walk(sandbox.Filter{Team: "other", Limit: 2}); len(got) != 3 {
		t.Errorf("team other has %d rows, want 3", len(got))
	}
	_, next, _, err := s.List(t.Context(), sandbox.Filter{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []sandbox.Filter{{Cursor: "!"}, {Cursor: "aaaa"}, {Cursor: next, Ascending: true}} {
		if _, _, _, err := s.List(t.Context(), f); !errdefs.IsInvalidArgument(err) {
			t.Errorf("List(cursor %q) = %v, want invalid argument", f.Cursor, err)
		}
	}
}

func listFilters(t *testing.T, s *store.Store) {
	base := now().Add(-time.Hour)
	add := func(i int, meta map[string]string, states ...sandbox.State) sandbox.ID {
		sb := Sandbox()
		sb.Metadata, sb.CreatedAt, sb.StartedAt = meta, base.Add(time.Duration(i)*time.Second), base.Add(time.Duration(i)*time.Second)
		insert(t, s, sb)
		for _, st := range states {
			if _, err := s.Mutate(t.Context(), sb.ID, func(s *sandbox.Sandbox) (audit.Event, error) {
				s.State = st
				return audit.Event{Type: "x"}, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		return sb.ID
	}
	a := add(1, map[string]string{"x": "1", "y": "2"}, sandbox.Running)
	b := add(2, map[string]string{"x": "1"}, sandbox.Running)
	c := add(3, nil, sandbox.Running, sandbox.Killing)
	d := add(4, map[string]string{"x": "1", "y": "2"})
	add(5, map[string]string{"x": "1"}, sandbox.Failed)
	for name, test := range map[string]struct {
		f       sandbox.Filter
		want    []sandbox.ID
		running int
	}{
		"all unfinished":          {sandbox.Filter{}, []sandbox.ID{a, b, c, d}, 2},
		"running":                 {sandbox.Filter{States: []sandbox.State{sandbox.Running}}, []sandbox.ID{a, b}, 2},
		"two states":              {sandbox.Filter{States: []sandbox.State{sandbox.Killing, sandbox.Pending}}, []sandbox.ID{c, d}, 0},
		"metadata":                {sandbox.Filter{Metadata: map[string]string{"x": "1"}}, []sandbox.ID{a, b, d}, 2},
		"metadata and":            {sandbox.Filter{Metadata: map[string]string{"x": "1", "y": "2"}}, []sandbox.ID{a, d}, 1},
		"metadata other value":    {sandbox.Filter{Metadata: map[string]string{"x": "2"}}, nil, 0},
		"started after inclusive": {sandbox.Filter{StartedAfter: base.Add(2 * time.Second)}, []sandbox.ID{b, c, d}, 1},
		"template":                {sandbox.Filter{Template: TemplateID}, []sandbox.ID{a, b, c, d}, 2},
		"other template":          {sandbox.Filter{Template: "x"}, nil, 0},
		"other team":              {sandbox.Filter{Team: "other"}, nil, 0},
		"first page counts all":   {sandbox.Filter{Limit: 1}, []sandbox.ID{a}, 2},
		"metadata, small page":    {sandbox.Filter{Limit: 2, Metadata: map[string]string{"x": "1"}}, []sandbox.ID{a, b}, 2},
	} {
		test.f.Ascending = true
		page, _, running, err := s.List(t.Context(), test.f)
		var got []sandbox.ID
		for _, sb := range page {
			got = append(got, sb.ID)
		}
		if diff := cmp.Diff(test.want, got); diff != "" || running != test.running || err != nil {
			t.Errorf("%s: running %d, want %d; %v (-want +got):\n%s", name, running, test.running, err, diff)
		}
	}
}

func expired(t *testing.T, s *store.Store) {
	at := now()
	var due []sandbox.ID
	for i := range 6 {
		sb := Sandbox()
		sb.EndsAt = at.Add(time.Duration(i-3) * time.Minute)
		insert(t, s, sb)
		become(t, s, sb.ID, sandbox.Running)
		if !sb.EndsAt.After(at) {
			due = append(due, sb.ID)
		}
	}
	pending := Sandbox()
	pending.EndsAt = at.Add(-time.Hour)
	insert(t, s, pending)
	if next, err := s.NextDeadline(t.Context(), "node1"); err != nil || !next.Equal(at.Add(-3*time.Minute)) {
		t.Errorf("NextDeadline() = %v, %v, want %v", next, err, at.Add(-3*time.Minute))
	}
	if next, err := s.NextDeadline(t.Context(), "nobody"); err != nil || !next.IsZero() {
		t.Errorf("NextDeadline(nobody) = %v, %v, want zero", next, err)
	}
	var mu sync.Mutex
	var got []sandbox.ID
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			sbs, err := s.ClaimExpired(t.Context(), fmt.Sprint("claimer", n), at, 10)
			if err != nil {
				t.Errorf("ClaimExpired() = %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, sb := range sbs {
				got = append(got, sb.ID)
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	slices.Sort(due)
	if diff := cmp.Diff(due, got); diff != "" {
		t.Errorf("claimed by three nodes (-want +got):\n%s", diff)
	}
	if sbs, err := s.ClaimExpired(t.Context(), "late", at.Add(10*time.Second), 10); err != nil || len(sbs) != 0 {
		t.Errorf("ClaimExpired() under a lease = %d, %v, want none", len(sbs), err)
	}
	if sbs, err := s.ClaimExpired(t.Context(), "late", at.Add(time.Hour), 2); err != nil || len(sbs) != 2 {
		t.Errorf("ClaimExpired() after the leases = %d, %v, want 2", len(sbs), err)
	}
}

func prune(t *testing.T, s *store.Store) {
	old, fresh, alive := insert(t, s, Sandbox()), insert(t, s, Sandbox()), insert(t, s, Sandbox())
	become(t, s, fresh.ID, sandbox.Failed)
	if _, err := s.Mutate(t.Context(), old.ID, func(s *sandbox.Sandbox) (audit.Event, error) {
		s.State, s.EndedAt = sandbox.Failed, now().Add(-time.Hour)
		return audit.Event{Type: "x"}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.PutName(t.Context(), string(old.ID), "a.example", netip.MustParseAddr("198.18.0.1")); err != nil {
		t.Fatal(err)
	}
	n, err := s.Prune(t.Context(), now().Add(-time.Minute))
	if n != 1 || err != nil {
		t.Errorf("Prune() = %d, %v, want 1", n, err)
	}
	if _, err := s.Get(t.Context(), old.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Get(pruned) = %v, want not found", err)
	}
	for _, id := range []sandbox.ID{fresh.ID, alive.ID} {
		if _, err := s.Get(t.Context(), id); err != nil {
			t.Errorf("Get(kept) = %v", err)
		}
	}
	if left, err := s.Names(t.Context(), string(old.ID)); len(left) != 0 || err != nil {
		t.Errorf("Names(pruned) = %v, %v, want none", left, err)
	}
	if events, err := s.Events(t.Context(), audit.Filter{SandboxID: string(old.ID)}); len(events) != 2 || err != nil {
		t.Errorf("Events(pruned) = %d, %v, want 2", len(events), err)
	}
}

func auditLog(t *testing.T, s *store.Store) {
	before, err := s.Events(t.Context(), audit.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range each {
				ev := audit.Event{Type: "test", Team: fmt.Sprint("team", w%2), Actor: "a", Reason: "bad \x00\xff text", Fields: map[string]string{"k": "v\x00"}}
				if err := s.Record(t.Context(), ev); err != nil {
					t.Errorf("Record() = %v", err)
				}
			}
		})
	}
	wg.Wait()
	var seen []int64
	f := audit.Filter{Limit: 7, After: int64(len(before))}
	for {
		page, err := s.Events(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range page {
			seen = append(seen, ev.Seq)
			if ev.Reason != "bad  text" || ev.Fields["k"] != "v\x00" {
				t.Errorf("event %+v was not kept as text", ev)
			}
		}
		if len(page) < f.Limit {
			break
		}
		f.After = page[len(page)-1].Seq
	}
	for i, seq := range seen {
		if seq != int64(len(before)+i+1) {
			t.Fatalf("event %d has number %d: not gapless", i, seq)
		}
	}
	if len(seen) != writers*each {
		t.Errorf("%d events, want %d", len(seen), writers*each)
	}
	team, err := s.Events(t.Context(), audit.Filter{Team: "team1"})
	if err != nil || len(team) != writers*each/2 {
		t.Errorf("Events(team1) = %d, %v, want %d", len(team), err, writers*each/2)
	}
	if n, err := s.PruneEvents(t.Context(), now().Add(time.Hour)); err != nil || n != len(before)+writers*each {
		t.Errorf("PruneEvents() = %d, %v, want all", n, err)
	}
	if err := s.Record(t.Context(), audit.Event{Type: "after"}); err != nil {
		t.Fatal(err)
	}
	if last, err := s.Events(t.Context(), audit.Filter{}); err != nil || len(last) != 1 || last[0].Seq != int64(len(before)+writers*each+1) {
		t.Errorf("numbers start over after pruning: %+v, %v", last, err)
	}
}
