package sandbox_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/diff"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// comparable is a world whose images and vault are real files.
func comparable(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.vault.root = t.TempDir()
	w.image = filepath.Join(t.TempDir(), "image")
	f, err := os.Create(w.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.Build(f, []erofs.File{{Path: "etc/hosts", Mode: 0o644, Data: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestDiff(t *testing.T) {
	t.Parallel()
	w := comparable(t)
	p := w.boot(t, testConfig()).run(t)
	sb, asleep := pausable(t, p, nil), pausable(t, p, nil)
	before, _ := p.Live(sb.ID)
	snap := save(t, p, sb.ID, "point")
	if err := p.Pause(t.Context(), alice, asleep.ID, snapshot.Memory); err != nil {
		t.Fatal(err)
	}
	saved := checkPaused(t, p, asleep.ID).Saved.ID
	paths := func(from, to string) []string {
		t.Helper()
		r, err := p.Diff(t.Context(), alice, from, to, diff.Options{})
		if err != nil {
			t.Fatalf("Diff(%q, %q) = %v", from, to, err)
		}
		var out []string
		for _, c := range r.Changes {
			out = append(out, string(c.Kind)+" "+c.Path)
		}
		slices.Sort(out)
		return out
	}
	if got, want := paths("", string(asleep.ID)), []string{"added " + string(saved)}; !slices.Equal(got, want) {
		t.Errorf("Diff(template, paused) = %v, want %v", got, want)
	}
	if got, want := paths(string(asleep.ID), "point"), []string{"added " + string(snap.Build.Artifact.ID), "removed " + string(saved)}; !slices.Equal(got, want) {
		t.Errorf("Diff(paused, snapshot) = %v, want %v", got, want)
	}
	if got := paths("base", string(sb.ID)); len(got) != 1 {
		t.Errorf("Diff(template, running) = %v, want one file of a checkpoint", got)
	}
	if got := paths("base", "base"); len(got) != 0 {
		t.Errorf("Diff(template, template) = %v", got)
	}
	runsOn(t, p, before)
	for name, c := range map[string]struct {
		to   string
		kind func(error) bool
	}{
		"nothing": {"", errdefs.IsInvalidArgument}, "no such": {"inone", errdefs.IsNotFound}, "bad name": {"../x", errdefs.IsNotFound},
	} {
		if _, err := p.Diff(t.Context(), alice, "", c.to, diff.Options{}); !c.kind(err) {
			t.Errorf("Diff(%s) = %v", name, err)
		}
	}
	for _, to := range []string{string(sb.ID), string(asleep.ID), "point"} {
		if _, err := p.Diff(t.Context(), mallory, "", to, diff.Options{}); !errdefs.IsNotFound(err) {
			t.Errorf("Diff(%s) by another team = %v, want not found", to, err)
		}
	}
	nothingOfDiff(t, p, sb.ID)
}

// nothingOfDiff checks that no copy is left, nor anything that was read.
func nothingOfDiff(t *testing.T, p *process, live sandbox.ID) {
	t.Helper()
	if got := p.w.boxes.ids(); !slices.Equal(got, []string{string(live)}) {
		t.Errorf("boxes %v are left", got)
	}
	want := p.w.recorded(t)
	rows, err := p.w.db.Unfinished(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range rows {
		if sb.Saved != nil {
			want = append(want, sb.Saved.ID)
		}
	}
	slices.Sort(want)
	if got := p.w.vault.ids(); !slices.Equal(got, want) {
		t.Errorf("artifacts %v, want %v", got, want)
	}
}

// Whatever fails, nothing of a copy is left and the sandbox runs on.
func TestDiffFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"snapshot", "restore", "create", "export"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			w := comparable(t)
			p := w.boot(t, testConfig()).run(t)
			sb := pausable(t, p, nil)
			before, _ := p.Live(sb.ID)
			p.failNext(call)
			if _, err := p.Diff(t.Context(), alice, "", string(sb.ID), diff.Options{}); !errors.Is(err, errInjected) {
				t.Errorf("Diff() = %v, want the fault", err)
			}
			runsOn(t, p, before)
			nothingOfDiff(t, p, sb.ID)
		})
	}
}

// A server that dies in the middle leaves a copy, which the next one destroys.
func TestCrashDuringDiff(t *testing.T) {
	t.Parallel()
	w := comparable(t)
	p := w.boot(t, testConfig()).run(t)
	sb := pausable(t, p, nil)
	p.atStep(func(name string) {
		if name == "export" {
			p.dead.Store(true)
		}
	})
	_, _ = p.Diff(t.Context(), alice, "", string(sb.ID), diff.Options{}) // nobody hears the answer
	if n := len(w.boxes.ids()); n != 2 {
		t.Fatalf("%d boxes, want the sandbox and its copy", n)
	}
	p.kill9()
	next := w.boot(t, testConfig()).run(t)
	if err := next.Kill(t.Context(), alice, sb.ID, ""); err != nil {
		t.Error(err)
	}
	next.Sweep(t.Context())
	if n := len(w.boxes.ids()); n != 0 {
		t.Errorf("%d boxes are left", n)
	}
}

var _ provider.LayerExporter = (*openBox)(nil)
