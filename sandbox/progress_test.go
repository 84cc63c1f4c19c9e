package sandbox_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/sandbox"
	"github.com/containerd/errdefs"
)

// The caller of a create is told what it goes through, from when it is admitted.
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
		{"cold", cold, []sandbox.Stage{sandbox.Queued, sandbox.Starting, sandbox.Preparing, sandbox.Ready}},
		{"snapshot", startFrom(snap.Reference()), []sandbox.Stage{sandbox.Queued, sandbox.Restoring, sandbox.Preparing, sandbox.Ready}},
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
