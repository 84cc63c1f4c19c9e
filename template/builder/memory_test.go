package builder_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// TestMemory: a sandbox of a build with a start command begins with it running,
// and knows nothing of the build's own identity.
func TestMemory(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	const token = "TOKENTHATMUSTNOTBESAVED"
	w.builder.SetToken(func() string { return token })
	plan := template.Plan{
		Build: "b", Base: w.base(),
		Steps: []template.Step{step("ENV", "WORD", "spoken"), step("WORKDIR", "/srv"), step("RUN", "echo made > f")},
		// Its state is in memory alone; it says so when it is asked.
		Start: `id -un > who; pwd >> who; echo $WORD >> who; n=0; while true; do n=$((n+1)); echo $n > t; mv t ticks; sleep 0.05; done`,
		Ready: "grep -q '[5-9]' ticks",
	}
	a := w.must(plan)
	if a.Memory == nil || a.Memory.Kind != snapshot.Memory || a.Memory.RootfsDigest != a.Rootfs.Digest {
		t.Fatalf("memory = %+v", a.Memory)
	}
	for range 2 {
		got := w.try(a, "", "cat who; cat f; before=$(cat ticks); sleep 1; after=$(cat ticks); [ $after -gt $before ] && [ $before -gt 4 ] && echo running; cat /run/e2b/.E2B_SANDBOX_ID")
		if want := "user\n/srv\nspoken\nmade\nrunning\ntry"; got != want {
			t.Errorf("in the sandbox = %q, want %q", got, want)
		}
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if n := w.artifacts(); n != 1 {
		t.Errorf("%d artefacts, want 1", n)
	}
	// The token with which the builder spoke to the agent is in no file.
	dir := filepath.Join(w.dir, "snapshots", string(a.Memory.ID))
	if !grepFiles(t, dir, "n=$((n+1))") {
		t.Error("the start command is not in the saved memory, where it must be: the search is of no use")
	}
	if grepFiles(t, dir, token) {
		t.Error("the build's token is in the saved memory")
	}
	// Without a ready command it is saved at once; without a start command there
	// is nothing to save.
	plan.Ready = ""
	if a := w.must(plan); a.Memory == nil {
		t.Error("no memory without a ready command")
	}
	plan.Start, plan.Ready = "", "grep made /srv/f"
	if a := w.must(plan); a.Memory != nil {
		t.Errorf("memory without a start command = %+v", a.Memory)
	}
	if diff := cmp.Diff([]int{1, 2, 3}, w.cachedSteps()); diff != "" {
		t.Errorf("cached steps (-want +got):\n%s", diff)
	}
	if !strings.Contains(w.text(), "[finalize] ready") {
		t.Errorf("log:\n%s", w.text())
	}
}

// grepFiles says whether a file in dir holds text.
func grepFiles(t *testing.T, dir, text string) bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(text)) {
			return true
		}
	}
	return false
}
