package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/caisson-dev/caisson/cli/terminal"
)

// printJSON writes one indented document.
func (s *session) printJSON(v any) error {
	e := json.NewEncoder(s.Out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printLine writes one JSON document on one line.
func (s *session) printLine(v any) error {
	e := json.NewEncoder(s.Out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

func (s *session) table(headings []string, rows [][]string) error {
	return terminal.Table(s.Out, headings, rows)
}

// fields prints names and values, one a line.
func (s *session) fields(pairs ...string) error {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		width = max(width, len(pairs[i]))
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(s.Out, "%-*s  %s\n", width, pairs[i], terminal.Text(pairs[i+1])); err != nil {
			return err
		}
	}
	return nil
}

// clock is a time of day for tables, in the local zone; empty for the zero
// time.
func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// in tells how far away a time is: "4m12s", or "" for the zero time.
func until(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Sub(now).Round(time.Second).String()
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, suffix := float64(n), ""
	for _, suffix = range []string{"KiB", "MiB", "GiB", "TiB"} {
		f /= unit
		if f < unit {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", f, suffix)
}
