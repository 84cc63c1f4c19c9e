package pool_test

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/pool"
)

func TestPlanAt(t *testing.T) {
	t.Parallel()
	plan, err := pool.ParsePlan("2; mon-fri 08:00-18:00 Europe/Berlin 16; sat 22:00-06:00 5; fri-mon 00:00-24:00 1")
	if err != nil {
		t.Fatal(err)
	}
	for at, want := range map[string]int{
		"2026-11-18T06:59:00Z": 2,  // Wednesday, 07:59 in Berlin
		"2026-11-18T07:00:00Z": 16, // 08:00
		"2026-11-18T16:59:59Z": 16,
		"2026-11-18T17:00:00Z": 2,  // 18:00
		"2026-07-15T06:00:00Z": 16, // 08:00, in summer time
		"2026-07-15T05:59:00Z": 2,
		"2026-11-21T21:59:00Z": 1, // Saturday
		"2026-11-21T22:00:00Z": 5,
		"2026-11-22T05:59:00Z": 5, // Sunday, in the window of Saturday
		"2026-11-22T06:00:00Z": 1,
		"2026-11-22T22:30:00Z": 1, // Sunday night is none of Saturday's
		"2026-11-24T12:00:00Z": 16,
	} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := plan.At(when); got != want {
			t.Errorf("At(%s) = %d, want %d", at, got, want)
		}
	}
	if plan.Most() != 16 {
		t.Errorf("Most() = %d, want 16", plan.Most())
	}
}

func TestParsePlanRefuses(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"":                       `"" is no number`,
		"x":                      `"x" is no number`,
		"-1":                     "no number from 0",
		"10001":                  "to 10000",
		"1;":                     "days, times and number",
		"1; mon 08:00-09:00":     "days, times and number|weekdays",
		"1; mon 8-9 3":           "times of day",
		"1; mon 08:00-08:00 3":   "times of day",
		"1; mon 08:00-25:00 3":   "times of day",
		"1; mon 08:60-09:00 3":   "times of day",
		"1; mo 08:00-09:00 3":    "weekdays",
		"1; mon-xyz 08:00-9 3":   "weekdays",
		"1; onm 08:00-09:00 3":   "weekdays",
		"1; mon 08:00-09:00 M 3": "time zone",
		"1; mon 08:00-09:00 UTC": "no number",
	} {
		_, err := pool.ParsePlan(text)
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("ParsePlan(%q) = %v, want an invalid argument", text, err)
			continue
		}
		ok := false
		for s := range strings.SplitSeq(says, "|") {
			ok = ok || strings.Contains(err.Error(), s)
		}
		if !ok || !strings.Contains(err.Error(), "Europe/Berlin") {
			t.Errorf("ParsePlan(%q) = %q, want it to say %q and how to write it", text, err, says)
		}
	}
}
