package storetest

import (
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// waiting is a build that RegisterBuild takes.
func waiting(tags ...string) template.Build {
	return template.Build{
		ID: template.BuildID(uuid.NewString()), Template: template.NewID(), Status: template.Waiting, Tags: tags,
		Resources: provider.Resources{MemoryMiB: 512, CPUs: 2, DiskMiB: 1024, Processes: 64}, CreatedAt: now(),
	}
}

// built takes a build of the default team from its beginning to its end.
func built(t *testing.T, s *store.Store, name string, change func(*template.Build)) (template.Template, template.Build) {
	t.Helper()
	b := waiting(template.DefaultTag)
	tmpl, err := s.RegisterBuild(t.Context(), identity.DefaultTeam, name, b, 0, "k")
	if err != nil {
		t.Fatalf("RegisterBuild() = %v", err)
	}
	b.Template = tmpl.ID
	if err := s.BeginBuild(t.Context(), identity.DefaultTeam, b, "sealed", queue.Limits{}, "k"); err != nil {
		t.Fatalf("BeginBuild() = %v", err)
	}
	b.Status, b.FinishedAt = template.Ready, now()
	b.Rootfs = image.Rootfs{Digest: "sha256:" + string(b.ID)}
	if change != nil {
		change(&b)
	}
	if err := s.FinishBuild(t.Context(), b, "k"); err != nil {
		t.Fatalf("FinishBuild() = %v", err)
	}
	return tmpl, b
}

func buildLife(t *testing.T, s *store.Store) {
	b := waiting("default", "v1")
	tmpl, err := s.RegisterBuild(t.Context(), "other", "mine", b, 1, "k")
	if err != nil || !cmp.Equal(tmpl.Names, []string{"mine"}) || tmpl.ID != b.Template || tmpl.Current != "" {
		t.Fatalf("RegisterBuild() = %+v, %v", tmpl, err)
	}
	if _, err := s.RegisterBuild(t.Context(), "other", "another", waiting(), 1, "k"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("RegisterBuild() above the limit = %v, want resource exhausted", err)
	}
	if _, err := s.GetTemplate(t.Context(), "other", "another"); !errdefs.IsNotFound(err) {
		t.Errorf("GetTemplate() of what was refused = %v, want not found", err)
	}
	// A template is meant by name and by id, but not another team's.
	for _, name := range []string{"mine", string(tmpl.ID)} {
		again := waiting()
		got, err := s.RegisterBuild(t.Context(), "other", name, again, 0, "k")
		if err != nil || got.ID != tmpl.ID {
			t.Errorf("RegisterBuild(%q) = %+v, %v, want the same template", name, got, err)
		}
	}
	if got, err := s.RegisterBuild(t.Context(), identity.DefaultTeam, string(tmpl.ID), waiting(), 0, "k"); err != nil || got.ID == tmpl.ID {
		t.Errorf("RegisterBuild() with another team's id = %+v, %v, want a template of its own", got, err)
	}
	if _, err := s.RegisterBuild(t.Context(), "nosuch", "x", waiting(), 0, "k"); !errdefs.IsNotFound(err) {
		t.Errorf("RegisterBuild() of an unknown team = %v, want not found", err)
	}
	b.Template, b.Source, b.Start, b.Ready = tmpl.ID, "image x", "start", "ready"
	if err := s.BeginBuild(t.Context(), "other", b, "sealed", queue.Limits{PerTeam: 1, Total: 1}, "k"); err != nil {
		t.Fatalf("BeginBuild() below the limits = %v", err)
	}
	if err := s.BeginBuild(t.Context(), "other", b, "sealed", queue.Limits{}, "k"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("BeginBuild() again = %v, want failed precondition", err)
	}
	second := waiting()
	if _, err := s.RegisterBuild(t.Context(), "other", "mine", second, 0, "k"); err != nil {
		t.Fatal(err)
	}
	for _, l := range []queue.Limits{{PerTeam: 1}, {Total: 1}} {
		if err := s.BeginBuild(t.Context(), "other", second, "sealed", l, "k"); !errdefs.IsResourceExhausted(err) {
			t.Errorf("BeginBuild() above %+v = %v, want resource exhausted", l, err)
		}
	}
	buildAttempts(t, s, tmpl.ID, b, second)
	b.Status, b.FinishedAt, b.User, b.Workdir, b.Env = template.Ready, now(), "u", "/w", map[string]string{"A": "b"}
	b.Rootfs = image.Rootfs{Digest: "sha256:x"}
	b.Artifact = &snapshot.Artifact{ID: "a1", Kind: snapshot.Memory, ABI: "abi", RootfsDigest: "sha256:x", SizeBytes: 7}
	if err := s.FinishBuild(t.Context(), b, "k"); err != nil {
		t.Fatalf("FinishBuild() = %v", err)
	}
	got, err := s.GetBuild(t.Context(), b.ID)
	if diff := cmp.Diff(b, got); diff != "" || err != nil {
		t.Errorf("GetBuild() = %v (-want +got):\n%s", err, diff)
	}
	if pending, err := s.PendingBuilds(t.Context()); err != nil || len(pending) != 0 {
		t.Errorf("PendingBuilds() after the end = %v, %v, want none", pending, err)
	}
	if err := s.FinishBuild(t.Context(), b, "k"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("FinishBuild() again = %v, want failed precondition", err)
	}
	if arts, err := s.Artifacts(t.Context()); err != nil || len(arts) != 1 || arts[0] != *b.Artifact {
		t.Errorf("Artifacts() = %v, %v", arts, err)
	}
	second.Template, second.Status, second.Step, second.Reason = tmpl.ID, template.Failed, "2", "exit status 1"
	if err := s.FinishBuild(t.Context(), second, "k"); err != nil {
		t.Errorf("FinishBuild(failed) = %v", err)
	}
	now, err := s.GetTemplate(t.Context(), "other", "mine")
	if err != nil || now.Current != b.ID {
		t.Errorf("GetTemplate() after a failed build = %+v, %v, want the ready one", now, err)
	}
	if ref, err := s.TaggedBuild(t.Context(), tmpl.ID, "v1"); err != nil || ref != b.ID {
		t.Errorf("TaggedBuild(v1) = %v, %v", ref, err)
	}
	var kinds []string
	events, err := s.Events(t.Context(), audit.Filter{Team: "other"})
	for _, ev := range events {
		if ev.Fields["build"] == string(b.ID) {
			kinds = append(kinds, ev.Type)
		}
	}
	if diff := cmp.Diff([]string{"template.build_registered", "template.build_started", "template.build_finished"}, kinds); diff != "" || err != nil {
		t.Errorf("events = %v (-want +got):\n%s", err, diff)
	}
	if err := s.DeleteTemplate(t.Context(), tmpl.ID); err != nil {
		t.Fatalf("DeleteTemplate() = %v", err)
	}
	if err := s.FinishBuild(t.Context(), b, "k"); !errdefs.IsNotFound(err) {
		t.Errorf("FinishBuild() of a deleted template = %v, want not found", err)
	}
}

// buildAttempts is what the next server is told of a build under way, b; second
// waits.
func buildAttempts(t *testing.T, s *store.Store, tmpl template.ID, b, second template.Build) {
	t.Helper()
	if err := s.AttemptBuild(t.Context(), b.ID); err != nil {
		t.Errorf("AttemptBuild() = %v", err)
	}
	if err := s.AttemptBuild(t.Context(), second.ID); !errdefs.IsNotFound(err) {
		t.Errorf("AttemptBuild() of one that was not begun = %v, want not found", err)
	}
	pending, err := s.PendingBuilds(t.Context())
	want := []template.Pending{{Build: b.ID, Template: tmpl, Team: "other", Sealed: "sealed", Attempts: 1}}
	if diff := cmp.Diff(want, pending); diff != "" || err != nil {
		t.Errorf("PendingBuilds() = %v (-want +got):\n%s", err, diff)
	}
	for range 2 { // there is only one to take back
		if err := s.RetractAttempt(t.Context(), b.ID); err != nil {
			t.Errorf("RetractAttempt() = %v", err)
		}
	}
	if err := s.CancelBuild(t.Context(), "other", second, "k"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("CancelBuild() of one that waits = %v, want failed precondition", err)
	}
	pending, err = s.PendingBuilds(t.Context())
	want[0].Attempts = 0
	if diff := cmp.Diff(want, pending); diff != "" || err != nil {
		t.Errorf("PendingBuilds() = %v (-want +got):\n%s", err, diff)
	}
}

// cancelledBuilds sees that one whose cancelling was acknowledged is neither begun nor ready.
func cancelledBuilds(t *testing.T, s *store.Store) {
	b := waiting("v1")
	tmpl, err := s.RegisterBuild(t.Context(), "other", "mine", b, 0, "k")
	if err != nil {
		t.Fatal(err)
	}
	b.Template = tmpl.ID
	if err := s.BeginBuild(t.Context(), "other", b, "sealed", queue.Limits{}, "k"); err != nil {
		t.Fatal(err)
	}
	if err := s.CancelBuild(t.Context(), "other", b, "k"); err != nil {
		t.Fatalf("CancelBuild() = %v", err)
	}
	pending, err := s.PendingBuilds(t.Context())
	want := []template.Pending{{Build: b.ID, Template: tmpl.ID, Team: "other", Sealed: "sealed", Cancelled: true}}
	if diff := cmp.Diff(want, pending); diff != "" || err != nil {
		t.Errorf("PendingBuilds() = %v (-want +got):\n%s", err, diff)
	}
	if err := s.AttemptBuild(t.Context(), b.ID); !errors.Is(err, queue.ErrCancelled) {
		t.Errorf("AttemptBuild() = %v, want ErrCancelled", err)
	}
	ready := b
	ready.Status, ready.FinishedAt = template.Ready, now()
	if err := s.FinishBuild(t.Context(), ready, "k"); !errors.Is(err, queue.ErrCancelled) {
		t.Errorf("FinishBuild(ready) = %v, want ErrCancelled", err)
	}
	if got, err := s.GetBuild(t.Context(), b.ID); err != nil || got.Status != template.Building {
		t.Errorf("GetBuild() = %+v, %v, want it building still", got, err)
	}
	if _, err := s.TaggedBuild(t.Context(), tmpl.ID, "v1"); !errdefs.IsNotFound(err) {
		t.Errorf("TaggedBuild() = %v, want not found", err)
	}
	b.Status, b.FinishedAt, b.Reason = template.Failed, now(), "cancelled"
	if err := s.FinishBuild(t.Context(), b, "k"); err != nil {
		t.Errorf("FinishBuild(failed) = %v", err)
	}
}

func buildLogs(t *testing.T, s *store.Store) {
	b := waiting()
	if _, err := s.RegisterBuild(t.Context(), "other", "mine", b, 0, "k"); err != nil {
		t.Fatal(err)
	}
	if n, err := s.LastBuildLog(t.Context(), b.ID); n != 0 || err != nil {
		t.Errorf("LastBuildLog() of none = %d, %v", n, err)
	}
	at := now()
	var all []template.Entry
	for i := range 10 {
		all = append(all, template.Entry{
			Seq: int64(i + 1), At: at.Add(time.Duration(i) * time.Second), Level: template.Level(i % 4), Step: strconv.Itoa(i / 5), Text: "line ü " + strconv.Itoa(i),
			Done: i == 4, Cached: i == 4, Duration: time.Duration(i) * time.Millisecond,
		})
	}
	for _, some := range [][]template.Entry{all[:3], all[3:]} {
		if err := s.AppendBuildLog(t.Context(), b.ID, some); err != nil {
			t.Fatalf("AppendBuildLog() = %v", err)
		}
	}
	if err := s.AppendBuildLog(t.Context(), b.ID, all[:1]); err == nil {
		t.Error("AppendBuildLog() of a number that is taken succeeded")
	}
	if err := s.AppendBuildLog(t.Context(), b.ID, []template.Entry{{Seq: 11, At: at, Text: "a\x00b\xff"}}); err != nil {
		t.Errorf("AppendBuildLog() of bytes that are no text = %v", err)
	}
	if n, err := s.LastBuildLog(t.Context(), b.ID); n != 11 || err != nil {
		t.Errorf("LastBuildLog() = %d, %v, want 11", n, err)
	}
	for name, c := range map[string]struct {
		f    template.LogFilter
		want []int64
	}{
		"all":          {template.LogFilter{Limit: 100}, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		"page":         {template.LogFilter{Limit: 2, Skip: 3}, []int64{4, 5}},
		"level":        {template.LogFilter{Limit: 100, Least: template.Warn}, []int64{3, 4, 7, 8}},
		"level, page":  {template.LogFilter{Limit: 2, Skip: 1, Least: template.Warn}, []int64{4, 7}},
		"step":         {template.LogFilter{Limit: 100, Step: "1"}, []int64{6, 7, 8, 9, 10}},
		"since":        {template.LogFilter{Limit: 100, Since: at.Add(8 * time.Second)}, []int64{9, 10}},
		"backward":     {template.LogFilter{Limit: 3, Backward: true}, []int64{11, 10, 9}},
		"until":        {template.LogFilter{Limit: 2, Backward: true, Until: at.Add(4 * time.Second), Step: "0"}, []int64{5, 4}},
		"beyond":       {template.LogFilter{Limit: 2, Skip: 11}, nil},
		"far beyond":   {template.LogFilter{Limit: 2, Skip: 1 << 62}, nil},
		"far in level": {template.LogFilter{Limit: 2, Skip: 1 << 62, Least: template.Error}, nil},
	} {
		got, err := s.BuildLog(t.Context(), b.ID, c.f)
		var seqs []int64
		for _, e := range got {
			seqs = append(seqs, e.Seq)
			if e.Seq <= 10 {
				if diff := cmp.Diff(all[e.Seq-1], e); diff != "" {
					t.Errorf("%s: line (-want +got):\n%s", name, diff)
				}
			}
		}
		if err != nil || !slices.Equal(seqs, c.want) {
			t.Errorf("%s: BuildLog() = %v, %v, want %v", name, seqs, err, c.want)
		}
	}
	if n, err := s.ExpireBuilds(t.Context(), now().Add(time.Minute), "too old"); n != 1 || err != nil {
		t.Errorf("ExpireBuilds() = %d, %v, want 1", n, err)
	}
	if got, err := s.GetBuild(t.Context(), b.ID); err != nil || got.Status != template.Failed || got.Reason != "too old" || got.FinishedAt.IsZero() {
		t.Errorf("build = %+v, %v", got, err)
	}
}

func buildTags(t *testing.T, s *store.Store) {
	artifact := func(id snapshot.ID) func(*template.Build) {
		return func(b *template.Build) { b.Artifact = &snapshot.Artifact{ID: id, Kind: snapshot.Memory} }
	}
	tmpl, one := built(t, s, "mine", artifact("one"))
	if got, err := s.AssignTags(t.Context(), tmpl.ID, "default", []string{"v1", "stable"}, "k"); got != one.ID || err != nil {
		t.Fatalf("AssignTags() = %v, %v", got, err)
	}
	_, two := built(t, s, "mine", artifact("two"))
	arts := func() (ids []snapshot.ID) {
		all, err := s.Artifacts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			ids = append(ids, a.ID)
		}
		slices.Sort(ids)
		return ids
	}
	if got := arts(); !slices.Equal(got, []snapshot.ID{"one", "two"}) {
		t.Errorf("artifacts of two tagged builds = %v", got)
	}
	want := map[string]template.BuildID{"default": two.ID, "v1": one.ID, "stable": one.ID}
	tags, err := s.ListTags(t.Context(), tmpl.ID)
	for _, tag := range tags {
		if want[tag.Name] != tag.Build || tag.AssignedAt.IsZero() {
			t.Errorf("tag = %+v", tag)
		}
	}
	if len(tags) != 3 || err != nil {
		t.Errorf("ListTags() = %v, %v", tags, err)
	}
	if _, err := s.AssignTags(t.Context(), tmpl.ID, "nosuch", []string{"x"}, "k"); !errdefs.IsNotFound(err) {
		t.Errorf("AssignTags() from an unknown tag = %v, want not found", err)
	}
	if err := s.RemoveTags(t.Context(), tmpl.ID, []string{"v1", "nosuch"}, "k"); !errdefs.IsNotFound(err) {
		t.Errorf("RemoveTags() of an unknown tag = %v, want not found", err)
	}
	if err := s.RemoveTags(t.Context(), tmpl.ID, []string{"default"}, "k"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("RemoveTags(default) = %v, want invalid argument", err)
	}
	// The default tag goes back to the older build; the newer has none then, and
	// nothing can start from it any more.
	if got, err := s.AssignTags(t.Context(), tmpl.ID, "v1", []string{"default"}, "k"); got != one.ID || err != nil {
		t.Errorf("AssignTags() of an older build = %v, %v", got, err)
	}
	if now, err := s.GetTemplate(t.Context(), identity.DefaultTeam, "mine"); err != nil || now.Current != one.ID {
		t.Errorf("GetTemplate() = %+v, %v, want the older build", now, err)
	}
	if got := arts(); !slices.Equal(got, []snapshot.ID{"one"}) {
		t.Errorf("artifacts after the newer build has lost its tag = %v", got)
	}
	if err := s.RemoveTags(t.Context(), tmpl.ID, []string{"v1", "stable"}, "k"); err != nil {
		t.Errorf("RemoveTags() = %v", err)
	}
	if got := arts(); !slices.Equal(got, []snapshot.ID{"one"}) {
		t.Errorf("artifacts of the default build = %v", got)
	}
	// A live sandbox keeps what it started from.
	sb := Sandbox()
	sb.Template, sb.Build = tmpl.ID, one.ID
	insert(t, s, sb)
	if now, err := s.GetTemplate(t.Context(), identity.DefaultTeam, "mine"); err != nil || now.Spawned.Count != 1 || now.Spawned.Last.IsZero() {
		t.Errorf("GetTemplate() after a create = %+v, %v", now.Spawned, err)
	}
	built(t, s, "mine", nil)
	if got := arts(); !slices.Equal(got, []snapshot.ID{"one"}) {
		t.Errorf("artifacts with a live sandbox = %v", got)
	}
	become(t, s, sb.ID, sandbox.Killed)
	if got := arts(); len(got) != 0 {
		t.Errorf("artifacts in the end = %v, want none", got)
	}
	if err := s.SetPublic(t.Context(), tmpl.ID, true, "k"); err != nil {
		t.Errorf("SetPublic() = %v", err)
	}
	if now, err := s.GetTemplate(t.Context(), "other", "mine"); err != nil || !now.Public {
		t.Errorf("GetTemplate() of another team = %+v, %v", now, err)
	}
	if err := s.SetPublic(t.Context(), "nosuch", true, "k"); !errdefs.IsNotFound(err) {
		t.Errorf("SetPublic(unknown) = %v, want not found", err)
	}
	// What was built before there were tags has its own.
	if tags, err := s.ListTags(t.Context(), TemplateID); err != nil || len(tags) != 1 || tags[0].Name != template.DefaultTag || tags[0].Build != Build().ID {
		t.Errorf("ListTags(base) = %+v, %v", tags, err)
	}
}

// A build that was registered first and ends last does not take the tags of the
// other, whose files are newer; those that are free it gets.
func buildOrder(t *testing.T, s *store.Store) {
	at := now()
	begin := func(id snapshot.ID, after time.Duration, tags ...string) template.Build {
		t.Helper()
		b := waiting(tags...)
		b.CreatedAt = at.Add(after)
		tmpl, err := s.RegisterBuild(t.Context(), "other", "mine", b, 0, "k")
		if err != nil {
			t.Fatal(err)
		}
		b.Template = tmpl.ID
		if err := s.BeginBuild(t.Context(), "other", b, "sealed", queue.Limits{}, "k"); err != nil {
			t.Fatal(err)
		}
		b.Status, b.FinishedAt = template.Ready, at.Add(time.Minute)
		b.Artifact = &snapshot.Artifact{ID: id, Kind: snapshot.Memory}
		return b
	}
	slow, lost, quick := begin("slow", 0, "default", "slow"), begin("lost", 0, "default"), begin("quick", time.Second, "default")
	for _, b := range []template.Build{quick, slow, lost} {
		if err := s.FinishBuild(t.Context(), b, "k"); err != nil {
			t.Fatalf("FinishBuild() = %v", err)
		}
	}
	tmpl, err := s.GetTemplate(t.Context(), "other", "mine")
	if err != nil || tmpl.Current != quick.ID {
		t.Errorf("GetTemplate() = %+v, %v, want the build %s, registered last", tmpl, err, quick.ID)
	}
	for tag, want := range map[string]template.BuildID{"default": quick.ID, "slow": slow.ID} {
		if got, err := s.TaggedBuild(t.Context(), tmpl.ID, tag); err != nil || got != want {
			t.Errorf("TaggedBuild(%s) = %v, %v, want %v", tag, got, err, want)
		}
	}
	// What no tag means is not kept.
	var ids []snapshot.ID
	arts, err := s.Artifacts(t.Context())
	for _, a := range arts {
		ids = append(ids, a.ID)
	}
	if slices.Sort(ids); err != nil || !slices.Equal(ids, []snapshot.ID{"quick", "slow"}) {
		t.Errorf("Artifacts() = %v, %v", ids, err)
	}
}

// renewals sees that a renewal of memory takes no tag that was moved or removed while
// it was built.
func renewals(t *testing.T, s *store.Store) {
	t.Helper()
	old := waiting("default", "kept", "moved", "removed")
	finish := func(b template.Build) template.Template {
		t.Helper()
		tmpl, err := s.RegisterBuild(t.Context(), "other", "mine", b, 0, "k")
		if err != nil {
			t.Fatal(err)
		}
		b.Template = tmpl.ID
		b.Status, b.FinishedAt = template.Ready, now()
		if err := s.FinishBuild(t.Context(), b, "k"); err != nil {
			t.Fatal(err)
		}
		return tmpl
	}
	old.CreatedAt = old.CreatedAt.Add(-time.Minute)
	finish(old)
	other := waiting("another")
	other.CreatedAt = old.CreatedAt
	tmpl := finish(other)
	if _, err := s.AssignTags(t.Context(), tmpl.ID, "another", []string{"moved"}, "k"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveTags(t.Context(), tmpl.ID, []string{"removed"}, "k"); err != nil {
		t.Fatal(err)
	}
	renewal := waiting("default", "kept", "moved", "removed")
	renewal.Source = template.RenewalSource(old)
	finish(renewal)
	for tag, want := range map[string]template.BuildID{"default": renewal.ID, "kept": renewal.ID, "moved": other.ID, "removed": ""} {
		if got, err := s.TaggedBuild(t.Context(), tmpl.ID, tag); got != want || (err != nil) != (want == "") {
			t.Errorf("TaggedBuild(%s) = %v, %v, want %v", tag, got, err, want)
		}
	}
}

// discarded sees that a build which was given up at once leaves what was there.
func discarded(t *testing.T, s *store.Store) {
	register := func(name string) template.Build {
		b := waiting()
		tmpl, err := s.RegisterBuild(t.Context(), identity.DefaultTeam, name, b, 0, "k")
		if err != nil {
			t.Fatal(err)
		}
		b.Template = tmpl.ID
		return b
	}
	first, second, only := register("brief"), register("brief"), register("alone")
	if err := s.BeginBuild(t.Context(), identity.DefaultTeam, second, "sealed", queue.Limits{}, "k"); err != nil {
		t.Fatal(err)
	}
	for _, b := range []template.Build{first, first, second, only} { // twice, and one that has begun
		if err := s.DiscardBuild(t.Context(), b, "k"); err != nil {
			t.Errorf("DiscardBuild() = %v", err)
		}
	}
	if all, err := s.ListBuilds(t.Context(), first.Template); err != nil || len(all) != 1 || all[0].ID != second.ID {
		t.Errorf("builds = %+v, %v, want the one that has begun", all, err)
	}
	if got, err := s.GetTemplate(t.Context(), identity.DefaultTeam, "alone"); !errdefs.IsNotFound(err) {
		t.Errorf("template without builds = %+v, %v, want none", got, err)
	}
}

func uploadUses(t *testing.T, s *store.Store) {
	soon := now().Add(time.Minute)
	if err := s.UseUpload(t.Context(), "a", soon); err != nil {
		t.Errorf("UseUpload() = %v", err)
	}
	if err := s.UseUpload(t.Context(), "a", soon); !errdefs.IsAlreadyExists(err) {
		t.Errorf("UseUpload() again = %v, want already exists", err)
	}
	if err := s.UseUpload(t.Context(), "old", now().Add(-time.Minute)); err != nil {
		t.Errorf("UseUpload() = %v", err)
	}
	if _, err := s.ExpireBuilds(t.Context(), now(), ""); err != nil {
		t.Fatal(err)
	}
	if err := s.UseUpload(t.Context(), "a", soon); !errdefs.IsAlreadyExists(err) {
		t.Errorf("UseUpload() after a sweep = %v, want already exists", err)
	}
	if err := s.UseUpload(t.Context(), "old", soon); err != nil {
		t.Errorf("UseUpload() of a forgotten one = %v", err)
	}
}
