package builder_test

import (
	"archive/tar"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// TestFailures: a build that fails says which step and why, and leaves nothing
// behind, wherever it fails.
func TestFailures(t *testing.T) {
	w := newWorld(t, builder.Limits{Step: 3 * time.Second, Ready: 2 * time.Second, ArchiveBytes: 1 << 20})
	base := w.base()
	device := item{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, ""}
	files := archives(map[string][]byte{
		"good": pack(t, file("f", "x")), "traversal": pack(t, file("../../etc/passwd", "x")), "device": pack(t, device),
		"link": pack(t, link("out", "/etc"), file("out/passwd", "x")), "large": pack(t, file("f", strings.Repeat("x", 2<<20))),
		"hard": pack(t, item{tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/shadow"}, ""}), "garbage": []byte(strings.Repeat("no tar ", 200)),
	})
	ok := step("RUN", "true")
	tests := []struct {
		name  string
		plan  template.Plan
		step  int
		is    func(error) bool
		words string
	}{
		{"no base", template.Plan{}, 0, errdefs.IsInvalidArgument, "neither an image nor a template"},
		{"unknown image", template.Plan{Image: template.ImageSource{Ref: "none"}}, 0, errdefs.IsNotFound, "image none"},
		{"a snapshot", template.Plan{Base: &template.Build{Status: template.Ready, Sandbox: "x"}}, 0, errdefs.IsInvalidArgument, "cannot be built upon"},
		{"a build that is not ready", template.Plan{Base: &template.Build{Status: template.Failed}}, 0, errdefs.IsFailedPrecondition, "no finished build"},
		{"first step", template.Plan{Base: base, Steps: []template.Step{step("RUN", "exit 3")}}, 1, errdefs.IsFailedPrecondition, "failed to run command 'exit 3': exit status 3"},
		{"last step", template.Plan{Base: base, Steps: []template.Step{ok, ok, step("RUN", "nosuchprogram")}}, 3, errdefs.IsFailedPrecondition, "'nosuchprogram': exit status 127"},
		{"unknown type", template.Plan{Base: base, Steps: []template.Step{ok, step("FETCH", "x")}}, 2, errdefs.IsInvalidArgument, `unknown step type "FETCH"`},
		{
			"unknown user",
			template.Plan{Base: base, Steps: []template.Step{step("RUN", "whoami", "root123")}},
			1, errdefs.IsFailedPrecondition,
			"failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'",
		},
		{"impossible user", template.Plan{Base: base, Steps: []template.Step{step("USER", "a b")}}, 1, errdefs.IsInvalidArgument, "USER a b: invalid username: 'a b'"},
		{"odd environment", template.Plan{Base: base, Steps: []template.Step{step("ENV", "A")}}, 1, errdefs.IsInvalidArgument, "names and values"},
		{"bad name", template.Plan{Base: base, Steps: []template.Step{step("ENV", "A B", "c")}}, 1, errdefs.IsInvalidArgument, "not the name of a variable"},
		{"directory over a file", template.Plan{Base: base, Steps: []template.Step{step("WORKDIR", "/etc/old/x")}}, 1, errdefs.IsInvalidArgument, "not a directory"},
		{"time", template.Plan{Base: base, Steps: []template.Step{step("RUN", "sleep 60")}}, 1, isDeadline, "the step took longer than 3s"},
		{"missing upload", template.Plan{Base: base, Steps: []template.Step{copyStep("none", "f", "/")}}, 1, errdefs.IsNotFound, "no upload none"},
		{"no hash", template.Plan{Base: base, Steps: []template.Step{step("COPY", "f", "/")}}, 1, errdefs.IsInvalidArgument, "no files were uploaded"},
		{"bad mode", template.Plan{Base: base, Steps: []template.Step{copyStep("good", "f", "/", "", "abc")}}, 1, errdefs.IsInvalidArgument, "not octal"},
		{"bad owner", template.Plan{Base: base, Steps: []template.Step{copyStep("good", "f", "/", "nobody9")}}, 1, errdefs.IsInvalidArgument, "invalid username: 'nobody9'"},
		{"traversal", template.Plan{Base: base, Steps: []template.Step{copyStep("traversal", ".", "/srv")}}, 1, errdefs.IsInvalidArgument, "leaves the archive with .."},
		{"through a link", template.Plan{Base: base, Steps: []template.Step{copyStep("link", ".", "/srv")}}, 1, errdefs.IsInvalidArgument, "through the symbolic link"},
		{"hard link out", template.Plan{Base: base, Steps: []template.Step{copyStep("hard", ".", "/srv")}}, 1, errdefs.IsInvalidArgument, "leaves the archive"},
		{"device", template.Plan{Base: base, Steps: []template.Step{copyStep("device", ".", "/srv")}}, 1, errdefs.IsInvalidArgument, "is a device"},
		{"large", template.Plan{Base: base, Steps: []template.Step{copyStep("large", ".", "/srv")}}, 1, errdefs.IsInvalidArgument, "more than 1048576 bytes"},
		{"no archive", template.Plan{Base: base, Steps: []template.Step{copyStep("garbage", ".", "/srv")}}, 1, errdefs.IsInvalidArgument, "damaged"},
		{"start command", template.Plan{Base: base, Start: "echo oops >&2; exit 4", Ready: "false"}, -1, errdefs.IsFailedPrecondition, "the start command has ended: exit status 4"},
		{"ready command", template.Plan{Base: base, Start: "sleep 1000", Ready: "false"}, -1, isDeadline, "the ready command 'false' did not pass within 2s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.plan.Build, tt.plan.Files = "b", files
			_, err := w.build(tt.plan)
			se, blamed := errors.AsType[*template.StepError](err)
			if !blamed || se.Step != tt.step {
				t.Errorf("error = %v (%T), want it at step %d", err, err, tt.step)
			}
			if err == nil || !tt.is(err) || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error = %v, want another kind or %q", err, tt.words)
			}
			if left := w.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if n := w.artifacts(); n > 0 {
				t.Errorf("%d artefacts were left behind", n)
			}
		})
	}
	// All of this did no harm.
	if got := w.try(w.must(template.Plan{Base: base, Steps: []template.Step{step("RUN", "echo fine > $HOME/x")}}), "", "cat ~/x"); got != "fine\n" {
		t.Errorf("a good build after the bad ones = %q", got)
	}
}

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// TestCancel: a build that nobody wants any more ends at once, whatever it does.
func TestCancel(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	base := w.base()
	for name, p := range map[string]template.Plan{
		"a step": {Base: base, Steps: []template.Step{step("RUN", "echo waiting; sleep 1000")}},
		"ready":  {Base: base, Start: "echo waiting; sleep 1000", Ready: "false"},
	} {
		t.Run(name, func(t *testing.T) {
			gone := errors.New("cancelled by its owner")
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			_, err := w.builder.Execute(ctx, p, func(l template.LogLine) {
				if l.Text == "waiting" {
					cancel(gone)
				}
			})
			if !errors.Is(err, gone) {
				t.Errorf("Execute = %v, want the cause", err)
			}
			if left := w.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestMemoryLimit: a step that takes all memory fails with a reason.
func TestMemoryLimit(t *testing.T) {
	w := newWorld(t, builder.Limits{MemoryMiB: 64})
	_, err := w.build(template.Plan{
		Base: w.base(), Resources: provider.Resources{MemoryMiB: 96},
		Steps: []template.Step{step("RUN", "dd if=/dev/zero of=/dev/null bs=1G count=1")},
	})
	// Either the kernel of the sandbox refuses or the host ends the box.
	if err == nil || !strings.Contains(err.Error(), "memory") && !strings.Contains(err.Error(), "exit status") {
		t.Errorf("error = %v", err)
	}
	if left := w.leftovers(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestOutputBound: a step that never stops talking is not logged without end.
func TestOutputBound(t *testing.T) {
	w := newWorld(t, builder.Limits{LogBytes: 4096})
	w.must(template.Plan{Base: w.base(), Steps: []template.Step{step("RUN", "seq 1 100000"), step("RUN", "echo later")}})
	text := w.text()
	if len(text) > 16<<10 || !strings.Contains(text, "further output is not logged") || strings.Contains(text, "later\n2 info later") {
		t.Errorf("the log has %d bytes: %.300s", len(text), text)
	}
}
