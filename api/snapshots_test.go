package api_test

import (
	"net/url"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
)

// record puts a snapshot into the database, as if a provider had made it.
func (s *stack) record(t *testing.T, id template.ID, name, tag string) template.Snapshot {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Millisecond)
	b := storetest.Build()
	b.ID, b.Template, b.CreatedAt, b.Sandbox = template.BuildID(string(id)+tag), id, now, "isource"
	b.Resources = provider.Resources{MemoryMiB: 256, CPUs: 1}
	b.Artifact = &snapshot.Artifact{ID: snapshot.ID(string(id) + tag), Kind: snapshot.Memory, ABI: "abi", SizeBytes: 7}
	snap, _, err := s.store.PutSnapshot(t.Context(), template.Snapshot{
		Template: id, Team: identity.DefaultTeam, Name: name, Tag: tag, Build: b, TaggedAt: now,
	}, sandbox.SnapshotQuota{}, audit.Event{Type: "snapshot.created", Team: string(identity.DefaultTeam)})
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

type snapshotInfo struct {
	SnapshotID string
	Names      []string
}

func TestSnapshotRoutes(t *testing.T) {
	t.Parallel()
	s := start(t, settings{savesNothing: true})
	c := s.create(t, nil)
	// The provider can save nothing, and says so.
	before, _ := s.manager.Live(sandbox.ID(c.SandboxID))
	s.call(t, "POST", c.path("/pause"), nil).wants(t, "pause", 501, "")
	select {
	case <-before.Gone:
		t.Error("a pause that can never be has broken the sandbox's streams")
	default:
	}
	for _, call := range []string{"snapshots", "fork"} {
		s.call(t, "POST", c.path("/"+call), map[string]any{}).wants(t, call, 501, "")
		s.call(t, "POST", "/native/v1/sandboxes/"+c.SandboxID+"/"+call, map[string]any{}).wants(t, "native "+call, 501, "")
		s.call(t, "POST", c.path("/"+call), []int{}).wants(t, call+" with a list", 400, "")
	}
	s.call(t, "POST", c.path("/fork"), map[string]any{"count": 101}).wants(t, "fork 101", 400, "count")
	s.call(t, "POST", c.path("/fork"), map[string]any{"timeout": 0}).wants(t, "fork for no time", 400, "timeout")

	v1 := s.record(t, "snapa000000000000000", "named", "v1")
	bare := s.record(t, "snapb000000000000000", "", "default")
	var list []snapshotInfo
	r := s.call(t, "GET", "/snapshots?limit=1", nil)
	r.wants(t, "GET /snapshots", 200, "")
	r.into(t, &list)
	if len(list) != 1 || list[0].SnapshotID != bare.Reference() || list[0].Names == nil || r.header.Get("X-Next-Token") == "" {
		t.Errorf("the first page is %+v, next %q", list, r.header.Get("X-Next-Token"))
	}
	r = s.call(t, "GET", "/snapshots?name=named&nextToken="+url.QueryEscape(r.header.Get("X-Next-Token")), nil)
	r.into(t, &list)
	if len(list) != 1 || list[0].SnapshotID != "default/named:v1" || list[0].Names[0] != "default/named" {
		t.Errorf("the second page is %+v", list)
	}
	for _, query := range []string{"limit=0", "limit=101", "nextToken=x", "name=no%20name"} {
		s.call(t, "GET", "/snapshots?"+query, nil).wants(t, query, 400, "")
	}

	// It is a template that only its team sees.
	s.call(t, "GET", "/templates/aliases/named", nil).wants(t, "alias", 200, "")
	s.call(t, "GET", "/templates/aliases/named:v2", nil).wants(t, "alias of another tag", 404, "")
	s.callAs(t, s.other, "GET", "/templates/named", nil).wants(t, "template of another team", 404, "")
	s.callAs(t, s.other, "DELETE", "/templates/"+string(bare.Template), nil).wants(t, "delete by another team", 404, "")
	s.callAs(t, s.other, "DELETE", "/native/v1/snapshots/named", nil).wants(t, "native delete by another team", 404, "")
	s.call(t, "DELETE", "/native/v1/snapshots/base", nil).wants(t, "delete of a template as a snapshot", 404, "")
	s.call(t, "DELETE", "/templates/base:v9", nil).wants(t, "delete of a template's tag", 404, "")
	s.call(t, "DELETE", "/templates/"+url.PathEscape("default/named:v2"), nil).wants(t, "delete of another tag", 404, "")
	user := storetest.Sandbox()
	user.ID, user.Team, user.Template, user.Build = "iuser", identity.DefaultTeam, v1.Template, v1.Build.ID
	if err := s.store.Insert(t.Context(), user, 0, storetest.Created()); err != nil {
		t.Fatal(err)
	}
	s.call(t, "DELETE", "/native/v1/snapshots/named:v1", nil).wants(t, "delete of one in use", 409, `"named:v1" is in use`)
	s.call(t, "DELETE", "/templates/named:v1", nil).wants(t, "delete of one in use by E2B's API", 400, "in use")
	if _, err := s.store.Mutate(t.Context(), user.ID, storetest.Become(sandbox.Failed)); err != nil {
		t.Fatal(err)
	}
	s.call(t, "DELETE", "/templates/"+url.PathEscape(v1.Reference()), nil).wants(t, "delete", 204, "")
	s.call(t, "DELETE", "/templates/"+url.PathEscape(v1.Reference()), nil).wants(t, "delete again", 404, "")
	s.call(t, "DELETE", "/native/v1/snapshots/"+url.PathEscape(bare.Reference()), nil).wants(t, "native delete", 204, "")
}
