package sandbox_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

func (s faultyStore) PutSnapshot(ctx context.Context, snap template.Snapshot, most sandbox.SnapshotQuota, ev audit.Event) (template.Snapshot, []snapshot.ID, error) {
	if err := s.p.step("put snapshot"); err != nil {
		return snap, nil, err
	}
	return s.Store.PutSnapshot(ctx, snap, most, ev)
}

func (s faultyStore) DeleteSnapshot(ctx context.Context, id template.ID, tag, actor string) ([]snapshot.ID, error) {
	if err := s.p.step("delete snapshot"); err != nil {
		return nil, err
	}
	return s.Store.DeleteSnapshot(ctx, id, tag, actor)
}

func (s faultyStore) CopyNames(ctx context.Context, from, to string) error {
	if err := s.p.step("copy names"); err != nil {
		return err
	}
	return s.Store.CopyNames(ctx, from, to)
}

func (s faultyStore) SwapNames(ctx context.Context, id sandbox.ID, from string, kept snapshot.ID) error {
	if err := s.p.step("swap names"); err != nil {
		return err
	}
	return s.Store.SwapNames(ctx, id, from, kept)
}

func (s faultyStore) SettleNames(ctx context.Context, id sandbox.ID, kept snapshot.ID, back bool) error {
	if err := s.p.step("settle names"); err != nil {
		return err
	}
	return s.Store.SettleNames(ctx, id, kept, back)
}

func (s faultyStore) Artifacts(ctx context.Context) ([]snapshot.Artifact, error) {
	if s.p.dead.Load() {
		return nil, errDead
	}
	return s.Store.Artifacts(ctx)
}

// recorded returns the artifacts that records refer to, sorted.
func (w *world) recorded(t testing.TB) []snapshot.ID {
	t.Helper()
	all, err := w.db.Artifacts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ids []snapshot.ID
	for _, a := range all {
		ids = append(ids, a.ID)
	}
	slices.Sort(ids)
	return ids
}

func save(t testing.TB, p *process, id sandbox.ID, name string) template.Snapshot {
	t.Helper()
	snap, err := p.Snapshot(t.Context(), alice, id, name)
	if err != nil {
		t.Fatalf("Snapshot(%q) = %v", name, err)
	}
	return snap
}

func remove(t testing.TB, p *process, snap template.Snapshot, tag string) error {
	t.Helper()
	tmpl, err := p.w.db.GetTemplate(t.Context(), alice.Team, string(snap.Template))
	if err != nil {
		return err
	}
	return p.DeleteSnapshot(t.Context(), alice, tmpl, tag)
}

func startFrom(ref string) sandbox.CreateRequest {
	return sandbox.CreateRequest{Template: ref, Timeout: time.Hour}
}

// runsOn checks that a source is as reachable as before and knows who it is.
func runsOn(t *testing.T, p *process, before *sandbox.Live) {
	t.Helper()
	now, ok := p.Live(before.ID)
	if !ok || now != before {
		t.Fatalf("source is live %v, the same %v", ok, now == before)
	}
	select {
	case <-before.Gone:
		t.Error("streams of the source were broken")
	default:
	}
	now.Enter(t.Context())()
	x := p.w.boxes.get(before.ID)
	if x == nil || x.init.AccessToken != before.AgentToken.Reveal() {
		t.Error("the agent of the source does not know its token")
	}
	row, err := p.w.db.Get(t.Context(), before.ID)
	if err != nil || row.State != sandbox.Running {
		t.Errorf("record of the source is %s (%v)", row.State, err)
	}
}
