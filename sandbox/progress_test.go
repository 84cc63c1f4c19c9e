package sandbox_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

// The caller of a create is told what it goes through.
func TestProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := warmConfig(1)
	cfg.MaxPerTeam = 4
	p := w.boot(t, cfg).run(t)
	warmed(t, p, 1)
	stages := func(r sandbox.CreateRequest) (got []sandbox.Stage, err error) {
		r.Progress = func(s sandbox.Stage) { got = append(got, s) }
		_, err = p.Create(t.Context(), alice, r)
		return got, err
	}
	snap := save(t, p, create(t, p).ID, "saved") // takes the warm one
	warmed(t, p, 1)
	cold := request()
	cold.Resources.MemoryMiB = 768
	for _, tc := range []struct {
		name string
		req  sandbox.CreateRequest
		want []sandbox.Stage
	}{
		{"warm", request(), []sandbox.Stage{sandbox.Claiming, sandbox.Preparing, sandbox.Ready}},
		{"cold", cold, []sandbox.Stage{sandbox.Starting, sandbox.Preparing, sandbox.Ready}},
		{"snapshot", startFrom(snap.Reference()), []sandbox.Stage{sandbox.Restoring, sandbox.Preparing, sandbox.Ready}},
	} {
		got, err := stages(tc.req)
		if d := cmp.Diff(tc.want, got); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, d)
		}
	}
	if got, err := stages(cold); !errdefs.IsResourceExhausted(err) || len(got) != 0 {
		t.Errorf("one that was refused: %v after %v", err, got)
	}
	if err := p.Check(t.Context(), alice, startFrom("nothing")); !errdefs.IsNotFound(err) {
		t.Errorf("Check(no template) = %v", err)
	}
	if err := p.Check(t.Context(), alice, cold); err != nil {
		t.Errorf("Check() = %v", err)
	}
}

// Who has to wait for a turn is told so while it waits; who is refused at once
// is told of no stage.
func TestProgressOfTheQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := testConfig()
	cfg.ConcurrentCreates, cfg.CreateQueue = 1, 1
	starting, release := make(chan struct{}), make(chan struct{})
	w.boxes.creating = func(context.Context, provider.Spec) error {
		starting <- struct{}{}
		<-release
		return nil
	}
	p := w.boot(t, cfg).run(t)
	results := make(chan error, 2)
	stages := make(chan sandbox.Stage, 10)
	start := func(progress func(sandbox.Stage)) {
		r := request()
		r.Progress = progress
		_, err := p.Create(t.Context(), alice, r)
		results <- err
	}
	go start(nil)
	<-starting
	go start(func(s sandbox.Stage) { stages <- s })
	if got := <-stages; got != sandbox.Queued {
		t.Errorf("while it waits it is %s, want queued", got)
	}
	r := request()
	r.Progress = func(s sandbox.Stage) { t.Errorf("one that finds the queue full is %s", s) }
	if _, err := p.Create(t.Context(), alice, r); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Create() = %v, want a full queue", err)
	}
	close(release)
	<-starting
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("Create() = %v", err)
		}
	}
	close(stages)
	var got []sandbox.Stage
	for s := range stages {
		got = append(got, s)
	}
	if d := cmp.Diff([]sandbox.Stage{sandbox.Starting, sandbox.Preparing, sandbox.Ready}, got); d != "" {
		t.Errorf("after its turn came (-want +got):\n%s", d)
	}
}
