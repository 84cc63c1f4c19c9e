package server

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

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
