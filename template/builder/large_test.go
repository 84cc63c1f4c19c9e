package builder_test

import (
	"testing"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// TestFileLargerThanMemory: what a step may write depends on the disk alone.
func TestFileLargerThanMemory(t *testing.T) {
	w := newWorld(t, builder.Limits{MemoryMiB: 96})
	plan := template.Plan{
		Base: w.base(), Resources: provider.Resources{MemoryMiB: 96, CPUs: 2, DiskMiB: 1024, Processes: 64},
		Steps: []template.Step{step("RUN", "seq 1 20000000 | head -c 150000000 > $HOME/large; sha256sum $HOME/large > $HOME/sum")},
	}
	if got := w.try(w.must(plan), "", "sha256sum -c sum"); got != "/home/user/large: OK\n" {
		t.Errorf("in the sandbox = %q", got)
	}
	// The same from the cached layer, with more on it.
	plan.Steps = append(plan.Steps, step("RUN", "echo more >> $HOME/large; echo 1 > $HOME/one"))
	if got := w.try(w.must(plan), "", "head -c 150000000 large > cut; mv cut large; sha256sum -c sum; cat one"); got != "/home/user/large: OK\n1\n" {
		t.Errorf("on the cached layer = %q", got)
	}
}
