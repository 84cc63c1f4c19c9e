package storetest

import (
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func templates(t *testing.T, s *store.Store) {
	want := Template()
	want.Current = Build().ID
	for _, ref := range []string{string(TemplateID), "base"} {
		got, err := s.GetTemplate(t.Context(), "other", ref)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("GetTemplate(%q) = %v (-want +got):\n%s", ref, err, diff)
		}
	}
	b, err := s.GetBuild(t.Context(), Build().ID)
	if diff := cmp.Diff(Build(), b); diff != "" || err != nil {
		t.Errorf("GetBuild() = %v (-want +got):\n%s", err, diff)
	}
	if _, err := s.GetBuild(t.Context(), "nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("GetBuild(unknown) = %v, want not found", err)
	}
	// A team's own name goes before a public one, and is private.
	own := template.Template{ID: "own00000000000000000", Team: "other", Names: []string{"base", "mine"}, CreatedAt: now(), UpdatedAt: now()}
	ownBuild := template.Build{ID: "b1", Template: own.ID, Status: template.Building, CreatedAt: now()}
	if err := s.PutTemplate(t.Context(), own, ownBuild); err != nil {
		t.Fatalf("PutTemplate() = %v", err)
	}
	if got, err := s.GetTemplate(t.Context(), "other", "base"); err != nil || got.ID != own.ID || got.Current != "" {
		t.Errorf("GetTemplate(own base) = %+v, %v", got, err)
	}
	if got, err := s.GetTemplate(t.Context(), identity.DefaultTeam, "base"); err != nil || got.ID != TemplateID {
		t.Errorf("GetTemplate(base) of the owner = %+v, %v", got, err)
	}
	for _, ref := range []string{"mine", string(own.ID), "nosuch", ""} {
		if _, err := s.GetTemplate(t.Context(), identity.DefaultTeam, ref); !errdefs.IsNotFound(err) {
			t.Errorf("GetTemplate(%q) of another team = %v, want not found", ref, err)
		}
	}
	// A ready build becomes current; a later failed one does not replace it.
	ownBuild.Status, ownBuild.FinishedAt = template.Ready, now().Add(-time.Hour)
	failed := template.Build{ID: "b2", Template: own.ID, Status: template.Failed, Reason: "disk full", CreatedAt: now().Add(time.Second), FinishedAt: now().Add(-time.Hour), Rootfs: image.Rootfs{Digest: "sha256:cd"}}
	own.Names = []string{"renamed"}
	for _, b := range []template.Build{ownBuild, failed} {
		if err := s.PutTemplate(t.Context(), own, b); err != nil {
			t.Fatalf("PutTemplate() = %v", err)
		}
	}
	got, err := s.GetTemplate(t.Context(), "other", "renamed")
	if err != nil || got.Current != "b1" {
		t.Errorf("GetTemplate(renamed) = %+v, %v, want current b1", got, err)
	}
	if builds, err := s.ListBuilds(t.Context(), own.ID); err != nil || len(builds) != 2 || builds[0].ID != "b2" || builds[0].Reason != "disk full" {
		t.Errorf("ListBuilds() = %+v, %v", builds, err)
	}
	for team, n := range map[identity.TeamID]int{"other": 2, identity.DefaultTeam: 1, "": 2} {
		if all, err := s.ListTemplates(t.Context(), team); err != nil || len(all) != n {
			t.Errorf("ListTemplates(%q) = %d, %v, want %d", team, len(all), err, n)
		}
	}
	clash := template.Template{ID: "clash", Team: "other", Names: []string{"renamed"}}
	if err := s.PutTemplate(t.Context(), clash, template.Build{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("PutTemplate(taken name) = %v, want already exists", err)
	}
	stolen := Template()
	stolen.Team = "other"
	if err := s.PutTemplate(t.Context(), stolen, template.Build{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("PutTemplate(another team's id) = %v, want already exists", err)
	}
	if digests, err := s.RootfsDigests(t.Context()); err != nil || len(digests) != 2 {
		t.Errorf("RootfsDigests() = %v, %v, want 2", digests, err)
	}
	if n, err := s.PruneBuilds(t.Context(), now()); err != nil || n != 1 {
		t.Errorf("PruneBuilds() = %d, %v, want 1", n, err)
	}
	if _, err := s.GetBuild(t.Context(), "b1"); err != nil {
		t.Errorf("GetBuild(current) after pruning = %v", err)
	}
}

func templateDeletion(t *testing.T, s *store.Store) {
	sb := insert(t, s, Sandbox())
	if err := s.DeleteTemplate(t.Context(), TemplateID); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("DeleteTemplate(in use) = %v, want failed precondition", err)
	}
	// The build of a live sandbox stays although another became current.
	next := Build()
	next.ID = "next"
	if err := s.PutTemplate(t.Context(), Template(), next); err != nil {
		t.Fatal(err)
	}
	if n, err := s.PruneBuilds(t.Context(), now()); n != 0 || err != nil {
		t.Errorf("PruneBuilds() = %d, %v, want none", n, err)
	}
	become(t, s, sb.ID, sandbox.Killed)
	if n, err := s.PruneBuilds(t.Context(), now()); n != 1 || err != nil {
		t.Errorf("PruneBuilds() = %d, %v, want 1", n, err)
	}
	if err := s.DeleteTemplate(t.Context(), TemplateID); err != nil {
		t.Errorf("DeleteTemplate() = %v", err)
	}
	if err := s.DeleteTemplate(t.Context(), TemplateID); !errdefs.IsNotFound(err) {
		t.Errorf("DeleteTemplate(again) = %v, want not found", err)
	}
	if _, err := s.GetBuild(t.Context(), next.ID); !errdefs.IsNotFound(err) {
		t.Errorf("GetBuild() of a deleted template = %v, want not found", err)
	}
	if _, err := s.Get(t.Context(), sb.ID); err != nil {
		t.Errorf("Get() of an ended sandbox = %v", err)
	}
}

func keys(t *testing.T, s *store.Store) {
	k := identity.Key{ID: "k1", Team: identity.DefaultTeam, Name: "n", Mask: "e2b_1...2", CreatedAt: now()}
	if err := s.InsertKey(t.Context(), k, "hash1", "test"); err != nil {
		t.Fatalf("InsertKey() = %v", err)
	}
	if err := s.InsertKey(t.Context(), identity.Key{ID: "k2", Team: identity.DefaultTeam}, "hash1", "test"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("InsertKey(same hash) = %v, want already exists", err)
	}
	if err := s.InsertKey(t.Context(), identity.Key{ID: "k3", Team: "nosuch"}, "hash3", "test"); !errdefs.IsNotFound(err) {
		t.Errorf("InsertKey(unknown team) = %v, want not found", err)
	}
	got, err := s.KeyByHash(t.Context(), "hash1")
	if diff := cmp.Diff(k, got); diff != "" || err != nil {
		t.Errorf("KeyByHash() = %v (-want +got):\n%s", err, diff)
	}
	used := now()
	if err := s.TouchKeys(t.Context(), map[string]time.Time{"k1": used, "gone": used}); err != nil {
		t.Errorf("TouchKeys() = %v", err)
	}
	if err := s.TouchKeys(t.Context(), map[string]time.Time{"k1": used.Add(-time.Hour)}); err != nil {
		t.Errorf("TouchKeys() = %v", err)
	}
	if all, err := s.ListKeys(t.Context(), identity.DefaultTeam); err != nil || len(all) != 1 || !all[0].LastUsedAt.Equal(used) {
		t.Errorf("ListKeys() = %+v, %v", all, err)
	}
	if err := s.RevokeKey(t.Context(), "other", "k1", now(), "test"); !errdefs.IsNotFound(err) {
		t.Errorf("RevokeKey(other team) = %v, want not found", err)
	}
	if err := s.RevokeKey(t.Context(), identity.DefaultTeam, "k1", now(), "test"); err != nil {
		t.Errorf("RevokeKey() = %v", err)
	}
	if err := s.RevokeKey(t.Context(), identity.DefaultTeam, "k1", now(), "test"); !errdefs.IsNotFound(err) {
		t.Errorf("RevokeKey(again) = %v, want not found", err)
	}
	if _, err := s.KeyByHash(t.Context(), "hash1"); !errdefs.IsNotFound(err) {
		t.Errorf("KeyByHash(revoked) = %v, want not found", err)
	}
	if n, err := s.CountKeys(t.Context()); n != 1 || err != nil {
		t.Errorf("CountKeys() = %d, %v, want 1", n, err)
	}
	events, err := s.Events(t.Context(), audit.Filter{Team: string(identity.DefaultTeam)})
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, ev := range events {
		if ev.Fields["key"] == "k1" {
			types = append(types, ev.Type)
		}
	}
	if diff := cmp.Diff([]string{"key.created", "key.revoked"}, types); diff != "" {
		t.Errorf("key events (-want +got):\n%s", diff)
	}
}

func teams(t *testing.T, s *store.Store) {
	if created, err := s.EnsureTeam(t.Context(), identity.Team{ID: identity.DefaultTeam, MaxSandboxes: 3}); created || err != nil {
		t.Errorf("EnsureTeam(default) = %v, %v, want false", created, err)
	}
	if err := s.SetTeamLimit(t.Context(), "other", 7, "test"); err != nil {
		t.Errorf("SetTeamLimit() = %v", err)
	}
	if err := s.SetTeamLimit(t.Context(), "nosuch", 7, "test"); !errdefs.IsNotFound(err) {
		t.Errorf("SetTeamLimit(unknown) = %v, want not found", err)
	}
	if err := s.SetTeamLimit(t.Context(), "other", -1, "test"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("SetTeamLimit(-1) = %v, want invalid argument", err)
	}
	if got, err := s.GetTeam(t.Context(), "other"); err != nil || got.MaxSandboxes != 7 {
		t.Errorf("GetTeam() = %+v, %v", got, err)
	}
	if all, err := s.ListTeams(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("ListTeams() = %+v, %v, want 2", all, err)
	}
}

func metadata(t *testing.T, s *store.Store) {
	if _, err := s.GetMeta(t.Context(), "x"); !errdefs.IsNotFound(err) {
		t.Errorf("GetMeta(unset) = %v, want not found", err)
	}
	for _, v := range []string{"1", "2"} {
		if err := s.PutMeta(t.Context(), "x", v); err != nil {
			t.Errorf("PutMeta() = %v", err)
		}
	}
	if v, err := s.AddMeta(t.Context(), "x", "3"); v != "2" || err != nil {
		t.Errorf("AddMeta() = %q, %v, want the value that stands", v, err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("Ping() = %v", err)
	}
}
