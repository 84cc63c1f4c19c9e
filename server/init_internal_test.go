package server

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/config"
	"github.com/caisson-dev/caisson/template"
)

// TestProgressOfABuild has one step for each stage and none for the end, whose
// figures are a detail of the last.
func TestProgressOfABuild(t *testing.T) {
	t.Parallel()
	var got []string
	o := baseOptions(config.Defaults(nil), template.BaseName, false, func(step, detail string) { got = append(got, step+"|"+detail) })
	for _, p := range []template.Progress{
		{Stage: template.StageInstall, Line: "unpacking"},
		{Stage: template.StageInstall, Done: 1, Total: 2},
		{Stage: template.StageWrite},
		{Stage: template.StageDone, Done: 9, Total: 9, Line: "9 packages"},
		{Stage: template.StageDone, Done: 9, Total: 9},
	} {
		o.Progress(p)
	}
	want := []string{"base template: install|", "|unpacking", "|1 of 2", "base template: write|", "|9 packages"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
