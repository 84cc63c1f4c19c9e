package queue

import (
	"strings"
	"testing"

	"github.com/caisson-dev/caisson/template"
)

func TestCommands(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		r            Recipe
		base         *template.Build
		start, ready string
	}{
		"none":       {},
		"start":      {r: Recipe{Start: "s"}, start: "s", ready: "sleep 20"},
		"both":       {r: Recipe{Start: "s", Ready: "r"}, start: "s", ready: "r"},
		"ready":      {r: Recipe{Ready: "r"}, ready: "r"},
		"inherited":  {base: &template.Build{Start: "s", Ready: "r"}, start: "s", ready: "r"},
		"overridden": {r: Recipe{Start: "x"}, base: &template.Build{Start: "s", Ready: "r"}, start: "x", ready: "r"},
	} {
		if start, ready := commands(c.r, c.base); start != c.start || ready != c.ready {
			t.Errorf("%s: commands() = %q, %q, want %q, %q", name, start, ready, c.start, c.ready)
		}
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	w := &journal{secrets: strings.NewReplacer()}
	if got := w.redact("abcd"); got != "abcd" {
		t.Errorf("redact() without a secret = %q", got)
	}
	w.keep("abc")
	if got := w.redact("abcd"); got != "abcd" {
		t.Errorf("redact() of a short secret = %q", got)
	}
	w.keep("bcde")
	if got := w.redact("abcdef bcde"); got != "a[redacted]f [redacted]" {
		t.Errorf("redact() = %q", got)
	}
}
