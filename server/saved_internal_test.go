package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
)

// neverBuilds stands for an executor; the queue of these tests does not run.
type neverBuilds struct{}

func (neverBuilds) Execute(context.Context, template.Plan, func(template.LogLine)) (template.Artifacts, error) {
	return template.Artifacts{}, errors.ErrUnsupported
}

func TestUnsaved(t *testing.T) {
	t.Parallel()
	own := template.Template{Team: identity.DefaultTeam}
	for name, c := range map[string]struct {
		t    template.Template
		b    template.Build
		want bool
	}{
		"stock":          {own, template.Build{Source: "debian bookworm"}, true},
		"saved":          {own, template.Build{Source: "debian bookworm", Artifact: &snapshot.Artifact{}}, false},
		"of an image":    {own, template.Build{Source: "image debian"}, false},
		"of a template":  {own, template.Build{Source: "template base"}, false},
		"another team's": {template.Template{Team: "other"}, template.Build{Source: "debian bookworm"}, false},
	} {
		if got := unsaved(c.t, c.b); got != c.want {
			t.Errorf("%s: unsaved() = %t", name, got)
		}
	}
}

// After an upgrade a team may have more templates to renew than it may have
// builds: the rest come later, and none is left registered.
func TestRebuildWaitsForRoom(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := config.Defaults(config.Environ{})
	cfg.Data = t.TempDir()
	cfg.Template.BuildsPerTeam = 1
	h, err := open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	t.Cleanup(func() { h.close(log) })
	n := &node{cfg: cfg, log: log, home: h}
	if n.builds, err = n.newBuilds(neverBuilds{}); err != nil {
		t.Fatal(err)
	}
	ready := func(name string) (template.Template, template.Build) {
		b := template.Build{
			ID: template.BuildID(uuid.NewString()), Template: template.NewID(), Status: template.Waiting,
			Tags: []string{template.DefaultTag}, CreatedAt: time.Now().Add(-time.Hour).Truncate(time.Millisecond),
		}
		tmpl, err := h.store.RegisterBuild(ctx, identity.DefaultTeam, name, b, 0, "k")
		if err == nil {
			err = h.store.BeginBuild(ctx, identity.DefaultTeam, b, "sealed", queue.Limits{}, "k")
		}
		if err == nil {
			b.Status, b.FinishedAt = template.Ready, time.Now()
			err = h.store.FinishBuild(ctx, b, "k")
		}
		if err != nil {
			t.Fatal(err)
		}
		return tmpl, b
	}
	builds := func(tmpl template.Template) []template.Build {
		all, err := h.store.ListBuilds(ctx, tmpl.ID)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	one, oneBuild := ready("one")
	two, twoBuild := ready("two")
	image := queue.Recipe{Image: "debian"} // a template would need a root filesystem
	if err := n.rebuild(ctx, one, oneBuild, []string{template.DefaultTag}, image); err != nil {
		t.Fatalf("rebuild() of the first = %v", err)
	}
	if err := n.rebuild(ctx, two, twoBuild, []string{template.DefaultTag}, image); !errors.Is(err, errBusy) {
		t.Errorf("rebuild() of the second = %v, want errBusy", err)
	}
	if got := builds(two); len(got) != 1 {
		t.Errorf("the second has builds %+v, want the old one alone", got)
	}
	first := builds(one)[0]
	first.Status, first.FinishedAt = template.Failed, time.Now()
	if err := h.store.FinishBuild(ctx, first, "k"); err != nil {
		t.Fatal(err)
	}
	// One that cannot be started does not look like one that is coming.
	if err := n.rebuild(ctx, two, twoBuild, []string{template.DefaultTag}, queue.Recipe{}); err == nil {
		t.Error("rebuild() by a recipe that is none succeeded")
	}
	if got := builds(two); len(got) != 2 || got[0].Status != template.Failed {
		t.Errorf("the second has builds %+v, want a new one that failed", got)
	}
	three, threeBuild := ready("three")
	if err := n.rebuild(ctx, three, threeBuild, []string{template.DefaultTag}, image); err != nil {
		t.Errorf("rebuild() with room again = %v", err)
	}
	if got := builds(three); len(got) != 2 || got[0].Status != template.Building {
		t.Errorf("the third has builds %+v, want a new one under way", got)
	}
}

// A build that the team has under way comes first; one that failed says nothing of the
// memory.
func TestRebuildBesideTheTeams(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := config.Defaults(config.Environ{})
	cfg.Data = t.TempDir()
	h, err := open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	t.Cleanup(func() { h.close(log) })
	n := &node{cfg: cfg, log: log, home: h}
	if n.builds, err = n.newBuilds(neverBuilds{}); err != nil {
		t.Fatal(err)
	}
	who := system(identity.DefaultTeam)
	tmpl, b, err := n.builds.Import(ctx, who, queue.Imported{Name: "mine", Start: "s", Artifact: &snapshot.Artifact{ID: "a"}})
	if err != nil {
		t.Fatal(err)
	}
	_, theirs, err := n.builds.Register(ctx, who, queue.Request{Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	renew := func() error {
		return n.rebuild(ctx, tmpl, b, []string{template.DefaultTag}, queue.Recipe{Image: "debian"})
	}
	if err := renew(); !errors.Is(err, errBusy) {
		t.Errorf("rebuild() beside a build that waits = %v, want errBusy", err)
	}
	if err := n.builds.Cancel(ctx, who, "mine", theirs.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is one
		if err := renew(); err != nil {
			t.Errorf("rebuild() beside a build that failed = %v", err)
		}
	}
	all, err := h.store.ListBuilds(ctx, tmpl.ID)
	if err != nil || len(all) != 3 {
		t.Fatalf("builds = %+v, %v, want the renewal beside the two", all, err)
	}
	i := slices.IndexFunc(all, func(x template.Build) bool { return x.Status == template.Building })
	if i < 0 {
		t.Fatalf("builds = %+v, want one under way", all)
	}
	if of, ok := all[i].Renews(); !ok || of != b.ID || !all[i].FromRecipe() {
		t.Errorf("the renewal is %+v", all[i])
	}
}

// A template has memory under every tag, and each is renewed under its own.
func TestTaggedBuilds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := config.Defaults(config.Environ{})
	cfg.Data = t.TempDir()
	h, err := open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	t.Cleanup(func() { h.close(log) })
	n := &node{cfg: cfg, log: log, home: h}
	if n.builds, err = n.newBuilds(neverBuilds{}); err != nil {
		t.Fatal(err)
	}
	who := system(identity.DefaultTeam)
	add := func(name string) (template.Template, template.Build) {
		tmpl, b, err := n.builds.Import(ctx, who, queue.Imported{Name: name, Start: "s", Artifact: &snapshot.Artifact{ID: "a"}})
		if err != nil {
			t.Fatal(err)
		}
		return tmpl, b
	}
	tmpl, old := add("mine:v1")
	_, current := add("mine:v2")
	if err := errors.Join(
		tagged(ctx, h, tmpl, "v1", "stable"), tagged(ctx, h, tmpl, "v2", template.DefaultTag),
	); err != nil {
		t.Fatal(err)
	}
	got, err := n.taggedBuilds(ctx, tmpl)
	if err != nil {
		t.Fatal(err)
	}
	tags := map[template.BuildID][]string{}
	for _, x := range got {
		slices.Sort(x.tags)
		tags[x.id] = x.tags
	}
	want := map[template.BuildID][]string{old.ID: {"stable", "v1"}, current.ID: {template.DefaultTag, "v2"}}
	if diff := cmp.Diff(want, tags); diff != "" {
		t.Errorf("taggedBuilds() (-want +got):\n%s", diff)
	}
	// The newer build does not stand in the way of the older one's renewal, and that
	// takes the older one's tags only.
	for _, b := range []template.Build{old, old, current} {
		if err := n.rebuild(ctx, tmpl, b, tags[b.ID], queue.Recipe{Image: "debian"}); err != nil {
			t.Errorf("rebuild() = %v", err)
		}
	}
	all, err := h.store.ListBuilds(ctx, tmpl.ID)
	if err != nil {
		t.Fatal(err)
	}
	var begun [][]string
	for _, b := range all {
		if b.Status == template.Building {
			begun = append(begun, b.Tags)
		}
	}
	slices.SortFunc(begun, slices.Compare)
	if diff := cmp.Diff([][]string{{template.DefaultTag, "v2"}, {"stable", "v1"}}, begun); diff != "" {
		t.Errorf("builds begun (-want +got):\n%s", diff)
	}
}

func tagged(ctx context.Context, h *home, tmpl template.Template, source, tag string) error {
	_, err := h.store.AssignTags(ctx, tmpl.ID, source, []string{tag}, "k")
	return err
}
