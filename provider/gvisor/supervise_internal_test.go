package gvisor

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/caisson-dev/caisson/vnet"
)

// A new engine that does not list a box has lost it, when it runs and when it
// waits to be used; one that is being created may come to it later.
func TestMade(t *testing.T) {
	t.Parallel()
	p := &Provider{boxes: map[string]*Box{}, log: slog.New(slog.DiscardHandler)}
	for _, id := range []string{"begun", "runs", "waits"} {
		p.boxes[id] = newBox(p, id, meta{})
	}
	p.boxes["runs"].net = &vnet.Network{}
	p.boxes["waits"].wait()
	var got []string
	for _, b := range p.made() {
		got = append(got, b.id)
	}
	slices.Sort(got)
	if want := []string{"runs", "waits"}; !slices.Equal(got, want) {
		t.Errorf("made() = %v, want %v", got, want)
	}
}
