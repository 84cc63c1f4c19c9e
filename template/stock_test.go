package template_test

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/template"
)

func TestPrivatePorts(t *testing.T) {
	t.Parallel()
	browser, err := template.StockTemplate(template.BrowserName)
	if err != nil {
		t.Fatal(err)
	}
	stock := template.Template{Team: identity.DefaultTeam, Names: []string{template.BrowserName}}
	for name, c := range map[string]struct {
		t    template.Template
		b    template.Build
		want []uint16
	}{
		"the browser":                         {stock, template.Build{Start: browser.Start}, []uint16{9222}},
		"one of an earlier version":           {stock, template.Build{Start: "chromium"}, []uint16{9222}},
		"a team's template on it":             {template.Template{Team: "ann", Names: []string{"mine"}}, template.Build{Start: browser.Start}, []uint16{9222}},
		"a team's own of that name":           {template.Template{Team: "ann", Names: []string{template.BrowserName}}, template.Build{Start: "serve"}, nil},
		"another stock template":              {template.Template{Team: identity.DefaultTeam, Names: []string{template.BaseName}}, template.Build{}, nil},
		"a snapshot, which says so by itself": {template.Template{Team: identity.DefaultTeam, Names: stock.Names, Kind: template.KindSnapshot}, template.Build{}, nil},
	} {
		if got := template.PrivatePorts(c.t, c.b); !slices.Equal(got, c.want) {
			t.Errorf("%s: PrivatePorts() = %v, want %v", name, got, c.want)
		}
	}
}

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
