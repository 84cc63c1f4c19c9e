package storetest

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// saved returns a snapshot with every field set; n tells several apart.
func saved(id template.ID, name, tag string, n int) template.Snapshot {
	at := now().Add(time.Duration(n) * time.Second)
	return template.Snapshot{
		Template: id, Team: identity.DefaultTeam, Name: name, Tag: tag, TaggedAt: at,
		Build: template.Build{
			ID: template.BuildID("00000000-0000-4000-8000-" + strconv.Itoa(100_000_000_000+n)), Template: id, Status: template.Ready,
			Source: "snapshot", Rootfs: Build().Rootfs, Resources: provider.Resources{MemoryMiB: 256, CPUs: 1, DiskMiB: 512, Processes: 9},
			User: "user", Workdir: "/w", CreatedAt: at, FinishedAt: at, Sealed: "sealed", Sandbox: "isource" + strconv.Itoa(n%2),
			Artifact: &snapshot.Artifact{ID: snapshot.ID("artifact" + strconv.Itoa(n)), Kind: snapshot.Memory, ABI: "abi", RootfsDigest: Build().Rootfs.Digest, SizeBytes: 7},
		},
	}
}

func put(t *testing.T, s *store.Store, snap template.Snapshot) []snapshot.ID {
	t.Helper()
	_, released, err := s.PutSnapshot(t.Context(), snap, sandbox.SnapshotQuota{}, audit.Event{Type: "snapshot.created", Team: string(snap.Team), Actor: "test"})
	if err != nil {
		t.Fatalf("PutSnapshot(%s) = %v", snap.Reference(), err)
	}
	return released
}

func wantArtifacts(t *testing.T, s *store.Store, want ...snapshot.ID) {
	t.Helper()
	all, err := s.Artifacts(t.Context())
	var got []snapshot.ID
	for _, a := range all {
		got = append(got, a.ID)
	}
	slices.Sort(got)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Artifacts() = %v, %v, want %v", got, err, want)
	}
}

const (
	snapA template.ID = "snapa000000000000000"
	snapB template.ID = "snapb000000000000000"
)

func snapshots(t *testing.T, s *store.Store) {
	if err := s.PutName(t.Context(), "isource1", "pypi.org", netip.MustParseAddr("198.18.0.1")); err != nil {
		t.Fatal(err)
	}
	first := saved(snapA, "named", template.DefaultTag, 1)
	put(t, s, first)
	got, _, err := s.ListSnapshots(t.Context(), template.SnapshotFilter{Team: identity.DefaultTeam})
	if diff := cmp.Diff([]template.Snapshot{first}, got); diff != "" || err != nil {
		t.Errorf("ListSnapshots() = %v (-want +got):\n%s", err, diff)
	}
	if names, err := s.Names(t.Context(), string(first.Build.ID)); err != nil || len(names) != 1 {
		t.Errorf("names of the build are %v, %v, want its source's", names, err)
	}
	tmpl, err := s.GetTemplate(t.Context(), identity.DefaultTeam, "named")
	if err != nil || tmpl.ID != snapA || tmpl.Kind != template.KindSnapshot || tmpl.Current != first.Build.ID || tmpl.Public {
		t.Errorf("GetTemplate() = %+v, %v", tmpl, err)
	}
	if _, err := s.GetTemplate(t.Context(), "other", "named"); !errdefs.IsNotFound(err) {
		t.Errorf("GetTemplate() of another team = %v, want not found", err)
	}
	if all, err := s.ListTemplates(t.Context(), identity.DefaultTeam); err != nil || len(all) != 1 {
		t.Errorf("ListTemplates() = %d, %v, want the base template only", len(all), err)
	}

	// A tag moves: the artifact that it leaves is released.
	second := saved(snapA, "named", template.DefaultTag, 2)
	if released := put(t, s, second); !slices.Equal(released, []snapshot.ID{"artifact1"}) {
		t.Errorf("released %v, want the first", released)
	}
	tagged := saved(snapA, "named", "v1", 3)
	put(t, s, tagged)
	put(t, s, saved(snapB, "", template.DefaultTag, 4))
	wantArtifacts(t, s, "artifact2", "artifact3", "artifact4")
	if tmpl, err := s.GetTemplate(t.Context(), "", string(snapA)); err != nil || tmpl.Current != second.Build.ID {
		t.Errorf("another tag changed the default: %+v, %v", tmpl, err)
	}
	if id, err := s.TaggedBuild(t.Context(), snapA, "v1"); err != nil || id != tagged.Build.ID {
		t.Errorf("TaggedBuild() = %q, %v", id, err)
	}
	if _, err := s.TaggedBuild(t.Context(), snapA, "v2"); !errdefs.IsNotFound(err) {
		t.Errorf("TaggedBuild(unknown) = %v, want not found", err)
	}
	if n, err := s.PruneBuilds(t.Context(), now().Add(time.Hour)); err != nil || n != 1 {
		t.Errorf("PruneBuilds() = %d, %v, want the one without a tag", n, err)
	}

	// Names of others are refused, and nothing is written.
	for name, snap := range map[string]template.Snapshot{
		"a template's id":    saved(TemplateID, "", template.DefaultTag, 5),
		"a template's name":  saved("fresh000000000000000", "base", template.DefaultTag, 5),
		"a snapshot's name":  saved("fresh000000000000000", "named", template.DefaultTag, 5),
		"another team's own": func() template.Snapshot { x := saved(snapA, "", "v1", 5); x.Team = "other"; return x }(),
	} {
		if _, _, err := s.PutSnapshot(t.Context(), snap, sandbox.SnapshotQuota{}, audit.Event{Type: "x"}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("PutSnapshot(%s) = %v, want already exists", name, err)
		}
	}
	wantArtifacts(t, s, "artifact2", "artifact3", "artifact4")
	listSnapshots(t, s)
}

func listSnapshots(t *testing.T, s *store.Store) {
	for name, c := range map[string]struct {
		f    template.SnapshotFilter
		want []string
	}{
		"all":       {template.SnapshotFilter{}, []string{"artifact4", "artifact3", "artifact2"}},
		"newest":    {template.SnapshotFilter{NewestTag: true}, []string{"artifact4", "artifact3"}},
		"by tag":    {template.SnapshotFilter{Template: snapA, Tag: "default"}, []string{"artifact2"}},
		"of source": {template.SnapshotFilter{Sandbox: "isource1"}, []string{"artifact3"}},
		"none":      {template.SnapshotFilter{Sandbox: "inobody"}, nil},
	} {
		for limit := 1; limit <= 3; limit++ {
			f, got := c.f, []string(nil)
			f.Team, f.Limit = identity.DefaultTeam, limit
			for range 5 {
				page, next, err := s.ListSnapshots(t.Context(), f)
				if err != nil || len(page) > limit {
					t.Fatalf("%s: ListSnapshots() = %d rows, %v", name, len(page), err)
				}
				for _, snap := range page {
					got = append(got, string(snap.Build.Artifact.ID))
				}
				if f.Cursor = next; next == "" {
					break
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s: pages of %d = %v, want %v", name, limit, got, c.want)
			}
		}
	}
	if page, _, err := s.ListSnapshots(t.Context(), template.SnapshotFilter{Team: "other"}); err != nil || len(page) != 0 {
		t.Errorf("ListSnapshots(other) = %v, %v", page, err)
	}
	if _, _, err := s.ListSnapshots(t.Context(), template.SnapshotFilter{Team: "other", Cursor: "x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ListSnapshots(bad cursor) = %v, want invalid argument", err)
	}
}

func snapshotDeletion(t *testing.T, s *store.Store) {
	first := saved(snapA, "named", template.DefaultTag, 1)
	put(t, s, first)
	sb := Sandbox()
	sb.Template, sb.Build, sb.Origin = snapA, first.Build.ID, sandbox.Origin{Sandbox: "isource1", Snapshot: "x"}
	insert(t, s, sb)
	// A build that has lost its tag keeps its artifact while it has a sandbox.
	if released := put(t, s, saved(snapA, "named", template.DefaultTag, 2)); len(released) != 0 {
		t.Errorf("released %v, which is in use", released)
	}
	third := saved(snapA, "named", "v1", 3)
	put(t, s, third)
	wantArtifacts(t, s, "artifact1", "artifact2", "artifact3")
	user := Sandbox()
	user.Template, user.Build = snapA, third.Build.ID
	insert(t, s, user)
	if _, err := s.DeleteSnapshot(t.Context(), snapA, "v1", "test"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("DeleteSnapshot(one of several tags, in use) = %v, want failed precondition", err)
	}
	become(t, s, user.ID, sandbox.Failed)
	// Another tag can go; the template cannot.
	if released, err := s.DeleteSnapshot(t.Context(), snapA, "v1", "test"); err != nil || !slices.Equal(released, []snapshot.ID{"artifact3"}) {
		t.Errorf("DeleteSnapshot(unused tag) = %v, %v", released, err)
	}
	for _, tag := range []string{"", template.DefaultTag} { // the last tag
		if _, err := s.DeleteSnapshot(t.Context(), snapA, tag, "test"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("DeleteSnapshot(%q) in use = %v, want failed precondition", tag, err)
		}
	}
	if _, err := s.DeleteSnapshot(t.Context(), snapA, "v1", "test"); !errdefs.IsNotFound(err) {
		t.Errorf("DeleteSnapshot(deleted tag) = %v, want not found", err)
	}
	become(t, s, sb.ID, sandbox.Killed)
	wantArtifacts(t, s, "artifact2")
	released, err := s.DeleteSnapshot(t.Context(), snapA, "", "test")
	slices.Sort(released)
	if err != nil || !slices.Equal(released, []snapshot.ID{"artifact1", "artifact2"}) {
		t.Errorf("DeleteSnapshot() = %v, %v", released, err)
	}
	if _, err := s.DeleteSnapshot(t.Context(), snapA, "", "test"); !errdefs.IsNotFound(err) {
		t.Errorf("DeleteSnapshot(again) = %v, want not found", err)
	}
	wantArtifacts(t, s)
	if row, err := s.Get(t.Context(), sb.ID); err != nil || row.Origin != sb.Origin {
		t.Errorf("origin of an ended sandbox = %+v, %v", row.Origin, err)
	}
	// The image of a deleted template stays while a snapshot lies on it.
	put(t, s, saved(snapB, "", template.DefaultTag, 4))
	if err := s.DeleteTemplate(t.Context(), TemplateID); err != nil {
		t.Fatal(err)
	}
	if digests, err := s.RootfsDigests(t.Context()); err != nil || !slices.Contains(digests, Build().Rootfs.Digest) {
		t.Errorf("RootfsDigests() = %v, %v, want that of the snapshot", digests, err)
	}
}
