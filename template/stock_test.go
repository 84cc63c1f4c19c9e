package template_test

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/template"
)

func TestStockTemplates(t *testing.T) {
	t.Parallel()
	for _, s := range template.StockTemplates() {
		got, err := template.StockTemplate(s.Name)
		if err != nil || got.Name != s.Name {
			t.Errorf("StockTemplate(%q) = %q, %v", s.Name, got.Name, err)
		}
		if (s.Start == "") != (s.Ready == "") {
			t.Errorf("%s: start command %q goes without ready command %q", s.Name, s.Start, s.Ready)
		}
		for i, p := range s.Packages {
			if slices.Contains(s.Packages[:i], p) {
				t.Errorf("%s: package %s is named twice", s.Name, p)
			}
		}
	}
	if _, err := template.StockTemplate("nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("StockTemplate(nothing) = %v, want not found", err)
	}
}
