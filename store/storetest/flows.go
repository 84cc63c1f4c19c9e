package storetest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func names(t *testing.T, s *store.Store) {
	one, two := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	for range 2 {
		if err := s.PutName(t.Context(), "ia", "a.example", one); err != nil {
			t.Errorf("PutName() = %v", err)
		}
	}
	if err := s.PutName(t.Context(), "ia", "a.example", two); !errdefs.IsAlreadyExists(err) {
		t.Errorf("PutName(other address) = %v, want already exists", err)
	}
	if err := s.PutName(t.Context(), "ia", "b.example", one); !errdefs.IsAlreadyExists(err) {
		t.Errorf("PutName(used address) = %v, want already exists", err)
	}
	if err := s.PutName(t.Context(), "ib", "b.example", one); err != nil {
		t.Errorf("PutName(other sandbox) = %v", err)
	}
	if err := s.CopyNames(t.Context(), "ia", "ic"); err != nil {
		t.Errorf("CopyNames() = %v", err)
	}
	got, err := s.Names(t.Context(), "ic")
	if err != nil || len(got) != 1 || got["a.example"] != one {
		t.Errorf("Names(copy) = %v, %v", got, err)
	}
}

func runFlowLog(t *testing.T, s *store.Store, keep int) *store.FlowLog {
	t.Helper()
	l := store.NewFlowLog(s, keep, 0, slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l
}

func flowLog(t *testing.T, s *store.Store) {
	const keep = 10
	l := runFlowLog(t, s, keep)
	want := egress.Record{
		SandboxID: "ia", At: now(), Kind: "tcp", Host: "pypi.org", Addr: netip.MustParseAddr("2001:db8::1"), Port: 443,
		Verdict: egress.Deny, Reason: "default", Hint: "allow pypi.org", BytesIn: 1 << 40, BytesOut: 2, Duration: 1500 * time.Microsecond,
	}
	l.Add(want)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	want.Seq = 1
	got, err := s.Records(t.Context(), "ia", 0, 0)
	if diff := cmp.Diff([]egress.Record{want}, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("Records() = %v (-want +got):\n%s", err, diff)
	}
	for i := range 2 * keep {
		l.Add(egress.Record{SandboxID: "ia", At: now(), Kind: "dns", Host: fmt.Sprint("h\x00\xff", i), Verdict: egress.Allow})
	}
	l.Add(egress.Record{SandboxID: "ib", At: now(), Kind: "dns"})
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err = s.Records(t.Context(), "ia", 0, 0)
	if err != nil || len(got) != keep || got[0].Seq != 2*keep+1-keep+1 || got[keep-1].Host != fmt.Sprint("h", 2*keep-1) {
		t.Errorf("Records() after the cap = %d from %d, %v", len(got), got[0].Seq, err)
	}
	if page, err := s.Records(t.Context(), "ia", got[3].Seq, 2); err != nil || len(page) != 2 || page[0].Seq != got[4].Seq {
		t.Errorf("Records(after) = %v, %v", page, err)
	}
	if other, err := s.Records(t.Context(), "ib", 0, 0); err != nil || len(other) != 1 {
		t.Errorf("Records(other) = %v, %v", other, err)
	}
	// A new log, as after a restart, goes on counting.
	again := runFlowLog(t, s, keep)
	again.Add(egress.Record{SandboxID: "ia", At: now(), Kind: "dns"})
	if err := again.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	last, err := s.Records(t.Context(), "ia", got[keep-1].Seq, 0)
	if err != nil || len(last) != 1 || last[0].Seq != got[keep-1].Seq+1 {
		t.Errorf("Records() of a new log = %v, %v", last, err)
	}
	if err := s.PruneRecords(t.Context(), now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if left, err := s.Records(t.Context(), "ia", 0, 0); err != nil || len(left) != 0 {
		t.Errorf("Records() after pruning = %v, %v", left, err)
	}
}

func flowLogFlood(t *testing.T, s *store.Store) {
	l := store.NewFlowLog(s, 0, 0, slog.New(slog.NewTextHandler(io.Discard, nil)))
	const flood = 3000
	for range flood {
		l.Add(egress.Record{SandboxID: "iloud", At: now(), Kind: "dns"})
	}
	l.Add(egress.Record{SandboxID: "iquiet", At: now(), Kind: "dns"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil { // writes what is left, then returns
		t.Fatal(err)
	}
	if quiet, err := s.Records(t.Context(), "iquiet", 0, 0); err != nil || len(quiet) != 1 {
		t.Errorf("a flood took another sandbox's record: %v, %v", quiet, err)
	}
	loud, err := s.Records(t.Context(), "iloud", 0, 0)
	if err != nil || len(loud) == 0 || len(loud) >= flood {
		t.Fatalf("a flood left %d records, %v", len(loud), err)
	}
	last := loud[len(loud)-1]
	if want := fmt.Sprintf("%d records dropped: too many at once", flood-len(loud)+1); last.Kind != "dropped" || last.Reason != want {
		t.Errorf("last record is %s %q, want %q", last.Kind, last.Reason, want)
	}
}

// followers checks that every committed row about a sandbox, and nothing else,
// wakes those who follow its log.
func followers(t *testing.T, s *store.Store) {
	sb, other := Sandbox(), Sandbox()
	told := func(what string, c <-chan struct{}, want bool) {
		t.Helper()
		select {
		case <-c:
			if !want {
				t.Errorf("%s woke a follower", what)
			}
		default:
			if want {
				t.Errorf("%s woke no follower", what)
			}
		}
	}
	events, cancel := s.SubscribeEvents(string(sb.ID))
	defer cancel()
	insert(t, s, sb)
	told("Insert()", events, true)
	become(t, s, sb.ID, sandbox.Running)
	told("Mutate()", events, true)
	if err := s.Record(t.Context(), audit.Event{Type: "sandbox.limit_hit", SandboxID: string(sb.ID)}); err != nil {
		t.Fatal(err)
	}
	told("Record()", events, true)
	if _, err := s.Mutate(t.Context(), sb.ID, Become(sandbox.Pending)); err == nil {
		t.Error("Mutate(back to pending) = nil")
	}
	told("a refused Mutate()", events, false)
	insert(t, s, other)
	told("Insert(other)", events, false)

	l := runFlowLog(t, s, 0)
	flows, cancelFlows := l.SubscribeRecords(string(sb.ID))
	defer cancelFlows()
	l.Add(egress.Record{SandboxID: string(other.ID), At: now(), Kind: "dns"})
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	told("another sandbox's record", flows, false)
	l.Add(egress.Record{SandboxID: string(sb.ID), At: now(), Kind: "dns"})
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	told("Flush()", flows, true)
	if rows, err := l.Records(t.Context(), string(sb.ID), 0, 0); err != nil || len(rows) != 1 {
		t.Errorf("Records() = %v, %v", rows, err)
	}
	told("egress records", events, false)
}
