package builder_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// crashDir makes this test binary a server that builds a template in the
// directory named, until it is killed.
const crashDir = "CAISSON_TEST_BUILD_DIR"

func crashPlan(base *template.Build) template.Plan {
	return template.Plan{Build: "b", Base: base, Steps: []template.Step{
		step("RUN", "echo kept > $HOME/first"), step("RUN", "echo reached; [ -e $HOME/first ] && sleep 1000"),
	}}
}

// TestKilledServer: a server that is killed in the middle of a build leaves a box
// that nobody owns, for the orphan sweep, and nothing that is in use; the next
// one builds on what was cached.
func TestKilledServer(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		w := openWorld(t, dir, builder.Limits{})
		base := w.base()
		_, err := w.builder.Execute(context.Background(), crashPlan(base), func(l template.LogLine) {
			if l.Text == "reached" {
				_ = os.WriteFile(filepath.Join(dir, "reached"), nil, 0o600)
				_, _ = os.Stdout.WriteString("reached\n")
			}
		})
		t.Fatalf("the build ended: %v", err)
	}
	w := newWorld(t, builder.Limits{})
	// The engine is the child's as well as ours: it outlives the child.
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledServer$")
	cmd.Env = append(os.Environ(), crashDir+"="+w.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("reached"))
	if _, err := out.Read(buf); err != nil || string(buf) != "reached" {
		_ = cmd.Process.Kill()
		t.Fatalf("the child said %q, %v", buf, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	handles, err := w.prov.List(t.Context())
	if err != nil || len(handles) != 1 {
		t.Fatalf("boxes after the crash = %v, %v; want that of the build", handles, err)
	}
	if w.builder.Owns(handles[0].ID) {
		t.Error("the next server owns the box of the one that was killed")
	}
	// What sandbox.Manager does with boxes that have no owner.
	var d provider.Destroyer = w.prov
	if err := d.Destroy(t.Context(), handles[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := w.images.GC(t.Context(), nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := w.builder.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	p := crashPlan(w.base())
	p.Steps[1] = step("RUN", "cat $HOME/first")
	w.must(p)
	if got := w.cachedSteps(); len(got) != 1 {
		t.Errorf("cached steps after the crash = %v, want the first", got)
	}
}

// TestCollect: cached steps go when they are old or too many; builds that need
// them run them again.
func TestCollect(t *testing.T) {
	w := newWorld(t, builder.Limits{CacheAge: time.Hour, CacheBytes: 1 << 30})
	base := w.base()
	plan := template.Plan{Build: "b", Base: base, Steps: []template.Step{step("RUN", "echo x > $HOME/x"), step("RUN", "echo y > $HOME/y")}}
	w.must(plan)
	keep, err := builder.KeepImages(filepath.Join(w.dir, "builds"))
	if err != nil || len(keep) != 2 {
		t.Errorf("KeepImages = %v, %v; want base and result", keep, err)
	}
	if err := w.builder.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.must(plan)
	if got := w.cachedSteps(); len(got) != 2 {
		t.Errorf("cached steps after a collection = %v, want both", got)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, pattern := range []string{"steps/*", "layers/*"} {
		found, err := filepath.Glob(filepath.Join(w.dir, "builds", pattern))
		if err != nil || len(found) != 2 {
			t.Fatalf("%s = %v, %v", pattern, found, err)
		}
		for _, path := range found {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.builder.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"steps/*", "layers/*"} {
		if found, _ := filepath.Glob(filepath.Join(w.dir, "builds", pattern)); len(found) > 0 {
			t.Errorf("left of %s: %v", pattern, found)
		}
	}
	w.must(plan)
	if got := w.cachedSteps(); got != nil {
		t.Errorf("cached steps after all were collected = %v", got)
	}
	// An image that is gone is written again, from the cached layer.
	a := w.must(plan)
	if err := os.Remove(a.Rootfs.Path); err != nil {
		t.Fatal(err)
	}
	a = w.must(plan)
	if got := w.try(a, "", "cat ~/x ~/y"); got != "x\ny\n" || len(w.cachedSteps()) != 2 {
		t.Errorf("written again = %q, cached %v", got, w.cachedSteps())
	}
	if _, err := builder.KeepImages(t.TempDir()); err != nil {
		t.Errorf("KeepImages of nothing = %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := builder.New(builder.Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("New without anything = %v", err)
	}
	var none *template.StepError
	if errors.As(errdefs.ErrNotFound, &none) {
		t.Error("not a step's error")
	}
}
