package sandbox_test

import (
	"slices"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

// TestPrivatePorts: what a stock template keeps to those with the traffic token,
// all that comes of its sandboxes keeps too.
func TestPrivatePorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.boot(t, testConfig()).run(t)
	_, build, err := resolver{s: w.db}.Resolve(t.Context(), alice.Team, "base")
	if err != nil {
		t.Fatal(err)
	}
	build.ID, build.Template = "browser-build", "browser-template"
	stock := template.Template{ID: build.Template, Team: identity.DefaultTeam, Public: true, Names: []string{template.BrowserName}, Current: build.ID}
	if err := w.db.PutTemplate(t.Context(), stock, build); err != nil {
		t.Fatal(err)
	}
	doors := []uint16{9222}
	wants := func(what string, id sandbox.ID, want []uint16) {
		t.Helper()
		live, ok := p.Live(id)
		if !ok || !slices.Equal(live.PrivatePorts, want) {
			t.Fatalf("%s: live %v, private ports %v, want %v", what, ok, live, want)
		}
	}
	wants("another template", create(t, p).ID, nil)
	src := pausable(t, p, func(r *sandbox.CreateRequest) {
		r.Template, r.AutoResume = template.BrowserName, true
		r.Network = sandbox.Network{PrivatePorts: []uint16{1}} // not the caller's to say
	})
	wants("created", src.ID, doors)
	if err := p.UpdateNetwork(t.Context(), alice, src.ID, sandbox.Network{AllowOut: []string{"pypi.org"}}); err != nil {
		t.Fatal(err)
	}
	if row, err := w.db.Get(t.Context(), src.ID); err != nil || !slices.Equal(row.Network.PrivatePorts, doors) {
		t.Errorf("its record after a change of its network has %+v (%v)", row.Network, err)
	}
	out, err := p.Fork(t.Context(), alice, src.ID, 1, time.Hour)
	if err != nil || out[0].Err != nil {
		t.Fatalf("Fork() = %+v, %v", out, err)
	}
	wants("forked", out[0].Sandbox.ID, doors)
	snap := save(t, p, out[0].Sandbox.ID, "once")
	child, err := p.Create(t.Context(), alice, startFrom(snap.Reference()))
	if err != nil {
		t.Fatal(err)
	}
	wants("of a snapshot", child.ID, doors)
	again := save(t, p, child.ID, "twice")
	if child, err = p.Create(t.Context(), alice, startFrom(again.Reference())); err != nil {
		t.Fatal(err)
	}
	wants("of a snapshot of one", child.ID, doors)
	if err := p.Pause(t.Context(), alice, src.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	if d, ok := p.Dormant(src.ID); !ok || !slices.Equal(d.PrivatePorts, doors) {
		t.Errorf("paused: %+v, %v", d, ok)
	}
	if _, _, err := p.Connect(t.Context(), alice, src.ID, time.Hour); err != nil {
		t.Fatal(err)
	}
	wants("resumed", src.ID, doors)
	p.halt()
	p = w.boot(t, testConfig()).run(t)
	wants("taken over", src.ID, doors)
}
