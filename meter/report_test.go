package meter_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/caisson-dev/caisson/meter"
)

func TestStep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ length, want time.Duration }{
		{0, 5 * time.Second},
		{time.Hour - 1, 5 * time.Second},
		{time.Hour, 30 * time.Second},
		{6 * time.Hour, time.Minute},
		{12 * time.Hour, 2 * time.Minute},
		{24 * time.Hour, 5 * time.Minute},
		{7 * 24 * time.Hour, 15 * time.Minute},
	} {
		if got := meter.Step(c.length); got != c.want {
			t.Errorf("Step(%s) = %s, want %s", c.length, got, c.want)
		}
	}
}

func TestParseGrouping(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]meter.Grouping{
		"": {By: "sandbox"}, "sandbox": {By: "sandbox"}, "team": {By: "team"}, "template": {By: "template"},
		"label:a:b": {By: "label", Label: "a:b"},
	} {
		if got, err := meter.ParseGrouping(text); got != want || err != nil {
			t.Errorf("ParseGrouping(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"label", "label:", "team:x", "agent", "Sandbox"} {
		if _, err := meter.ParseGrouping(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ParseGrouping(%q) = %v, want invalid argument", text, err)
		}
	}
}

// Runs count with the part of them that lies in the range, and paused time only
// with what lies on disk.
func TestReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zero := time.Now()
		at := func(h float64) time.Time { return zero.Add(time.Duration(h * float64(time.Hour))) }
		w := newWorld()
		run := func(id, label string, kind meter.Kind, from, to float64) {
			r := meter.Run{
				SandboxID: id, Kind: kind, Team: "default", Template: "t", Alias: "base", Labels: map[string]string{"job": label},
				CPUs: 2, MemoryMiB: 1024, StartedAt: at(from), EndedAt: at(to),
			}
			if kind == meter.Saved {
				r.SavedBytes = 100 * mebibyte
			} else {
				r.Figures = meter.Figures{
					CPU: time.Hour, MemoryMiBMillis: 360_000 * 1000, PeakMemoryBytes: 7, EgressIn: 1000, EgressOut: 400,
				}
			}
			w.runs = append(w.runs, r)
		}
		run("ia", "x", meter.Ran, 0, 1)
		run("ia", "x", meter.Saved, 1, 3)
		run("ia", "x", meter.Ran, 3, 5) // half of it is asked for
		run("ib", "", meter.Ran, 0, 1)
		stranger := w.runs[0]
		stranger.Team = "other"
		w.runs = append(w.runs, stranger)
		time.Sleep(10 * time.Hour)
		m := measured(t, w, meter.Config{})

		rep, err := m.Report(t.Context(), "default", meter.Window{From: at(0), To: at(4)}, meter.Grouping{By: meter.ByLabel, Label: "job"})
		if err != nil {
			t.Fatal(err)
		}
		x := meter.Usage{
			Group: "x", Runs: 2, Sandboxes: 1, Wall: 2 * time.Hour, CPU: 90 * time.Minute, CPULimit: 4 * time.Hour,
			MemoryMiBSeconds: 540_000, MemoryLimitMiBSeconds: 1024 * 7200, PeakMemoryBytes: 7, EgressIn: 1500, EgressOut: 600,
			SavedMiBHours: 200,
		}
		none := meter.Usage{
			Runs: 1, Sandboxes: 1, Wall: time.Hour, CPU: time.Hour, CPULimit: 2 * time.Hour,
			MemoryMiBSeconds: 360_000, MemoryLimitMiBSeconds: 1024 * 3600, PeakMemoryBytes: 7, EgressIn: 1000, EgressOut: 400,
		}
		if diff := cmp.Diff([]meter.Usage{x, none}, rep.Lines, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
			t.Errorf("Report() by label (-want +got):\n%s", diff)
		}
		if rep.Total.Wall != 3*time.Hour || rep.Total.Sandboxes != 2 || rep.Total.Runs != 3 {
			t.Errorf("total is %+v", rep.Total)
		}
		for by, lines := range map[string]int{meter.BySandbox: 2, meter.ByTeam: 1, meter.ByTemplate: 1} {
			r, err := m.Report(t.Context(), "default", meter.Window{From: at(0), To: at(4)}, meter.Grouping{By: by})
			if err != nil || len(r.Lines) != lines || !cmp.Equal(r.Total, rep.Total) {
				t.Errorf("Report() by %s = %+v, %v", by, r, err)
			}
		}
	})
}

func TestTeamPoints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		zero := time.Now().Truncate(time.Minute)
		w := newWorld()
		for _, span := range [][2]int{{-3600, 5}, {2, 8}, {3, 4}, {11, 12}, {12, 13}} {
			w.runs = append(w.runs, meter.Run{
				SandboxID: "ia", Kind: meter.Ran, Team: "default",
				StartedAt: zero.Add(time.Duration(span[0]) * time.Second), EndedAt: zero.Add(time.Duration(span[1]) * time.Second),
			})
		}
		time.Sleep(30 * time.Second)
		m := measured(t, w, meter.Config{})
		got, err := m.TeamPoints(t.Context(), "default", meter.Window{From: zero, To: zero.Add(19 * time.Second)})
		want := []meter.TeamPoint{
			{At: zero, Concurrent: 3, StartRate: 0.4},
			{At: zero.Add(5 * time.Second), Concurrent: 2},
			{At: zero.Add(10 * time.Second), Concurrent: 1, StartRate: 0.4},
			{At: zero.Add(15 * time.Second)},
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("TeamPoints() = %v (-want +got):\n%s", err, diff)
		}
		all, err := m.TeamPoints(t.Context(), "default", meter.Window{})
		if err != nil || len(all) < 4 || len(all) > 7 { // 15 minutes apart, from the first run on
			t.Errorf("TeamPoints(7 days) = %d, %v", len(all), err)
		}
		if other, err := m.TeamPoints(t.Context(), "other", meter.Window{}); err != nil || len(other) != 0 {
			t.Errorf("TeamPoints(another team) = %v, %v", other, err)
		}
	})
}
