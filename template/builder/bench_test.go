package builder_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// BenchmarkThreeSteps builds a template of three quick steps on the stock base
// template of a prepared data directory.
func BenchmarkThreeSteps(b *testing.B) {
	data := os.Getenv("CAISSON_TEST_DATA")
	if data == "" {
		b.Skip("CAISSON_TEST_DATA names no prepared data directory")
	}
	w := newWorld(b, builder.Limits{})
	stock, err := image.Open(filepath.Join(data, "images"))
	if err != nil {
		b.Fatal(err)
	}
	all, err := stock.List()
	if err != nil || len(all) == 0 {
		b.Fatalf("no stock image: %v", err)
	}
	if err := os.Link(all[0].Path, filepath.Join(w.images.Dir(), filepath.Base(all[0].Path))); err != nil {
		b.Fatal(err)
	}
	plan := template.Plan{
		Build: "bench", Force: true, Files: archives(map[string][]byte{"h": pack(b, file("app/main.py", "print(1)\n"))}),
		Base: &template.Build{Status: template.Ready, Rootfs: all[0], User: "user", Workdir: "/home/user"},
		Steps: []template.Step{
			copyStep("h", "app", "/app"), step("WORKDIR", "/app"), step("RUN", "python3 -c 'print(1)' > out"),
		},
		Start: "python3 -m http.server 8000", Ready: "curl -sf localhost:8000 >/dev/null",
	}
	for b.Loop() {
		w.must(plan)
	}
	b.Logf("the last one:\n%s", w.text())
	if left := w.leftovers(); len(left) > 0 {
		b.Errorf("left behind: %v", left)
	}
}
