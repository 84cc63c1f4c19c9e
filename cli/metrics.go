package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

// metricsEvery is how often --follow asks again.
const metricsEvery = 2 * time.Second

func (s *session) metricsCommand() *cobra.Command {
	var asJSON, follow bool
	var from, to string
	cmd := &cobra.Command{
		Use:   "metrics <sandbox>",
		Short: "Show CPU, memory and disk that a sandbox uses, as they are measured",
		Long: `Show what a sandbox used over the last ten minutes, also after its end. A time is 2026-01-31,
2026-01-31T15:04:05Z, or how long ago: 90m, 24h, 7d. A long range is thinned.

With --follow new measurements are shown as they come, until the sandbox ends, is paused, or Ctrl-C.`,
		Example: `caisson sandbox metrics work --follow
caisson sandbox metrics work --from 24h --json | jq '[.points[].memoryBytes] | max'`,
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			now := time.Now()
			begin, err := moment("--from", from, now)
			if err != nil {
				return err
			}
			end, err := moment("--to", to, now)
			if err != nil {
				return err
			}
			if follow {
				if to != "" {
					return usage(errors.New("--follow has no end: leave --to out"))
				}
				return s.followMetrics(ctx, c, sb.ID, begin, asJSON)
			}
			points, err := c.Metrics(ctx, sb.ID, begin, end)
			if err != nil {
				return err
			}
			if asJSON {
				if points == nil {
					points = []client.Metric{}
				}
				return s.printJSON(map[string]any{"sandbox": sb.ID, "points": points})
			}
			if len(points) == 0 {
				s.say("No measurements found.\n")
				return nil
			}
			var rows [][]string
			for _, p := range points {
				rows = append(rows, metricRow(p))
			}
			return s.table(metricHead(), rows)
		}),
	}
	fl := cmd.Flags()
	fl.StringVar(&from, "from", "", "begin of the time (default: ten minutes ago)")
	fl.StringVar(&to, "to", "", "end of the time (default: now)")
	fl.BoolVarP(&follow, "follow", "f", false, "show new ones as they come")
	fl.BoolVarP(&asJSON, "json", "j", false, "print JSON; with --follow, one object a line")
	return cmd
}

func metricHead() []string {
	return []string{"TIME", "CPU%", "CPUS", "MEMORY", "OF", "CACHE", "DISK", "OF"}
}

func metricRow(p client.Metric) []string {
	limit := func(n int64) string {
		if n == 0 {
			return "-"
		}
		return bytesText(n)
	}
	return []string{
		clock(p.At), fmt.Sprintf("%.1f", p.CPUPercent), fmt.Sprint(p.CPUs), bytesText(p.MemoryBytes), limit(p.MemoryTotal),
		bytesText(p.CacheBytes), bytesText(p.DiskBytes), limit(p.DiskTotal),
	}
}

// followMetrics shows each measurement once, until the sandbox does not run any
// more or ctx ends, which is no error.
func (s *session) followMetrics(ctx context.Context, c *connection, id string, since time.Time, asJSON bool) error {
	tick := time.NewTicker(metricsEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		sb, err := c.Get(ctx, id)
		var points []client.Metric
		if err == nil {
			points, err = c.Metrics(ctx, id, since, time.Time{})
		}
		if err != nil {
			if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
				return nil
			}
			return err
		}
		for _, p := range points {
			since = p.At.Add(time.Millisecond)
			if asJSON {
				err = s.printLine(p)
			} else {
				err = s.metricLine(p, first)
				first = false
			}
			if err != nil {
				return err
			}
		}
		if sb.State != client.Running {
			s.say("sandbox %s is %s\n", id, status(sb))
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// metricLine prints one row of a table that has no end.
func (s *session) metricLine(p client.Metric, head bool) error {
	const form = "%-19s  %6s  %4s  %10s  %10s  %10s  %10s  %10s\n"
	anys := func(cells []string) []any {
		out := make([]any, len(cells))
		for i, cell := range cells {
			out[i] = cell
		}
		return out
	}
	if head {
		if _, err := fmt.Fprintf(s.Out, form, anys(metricHead())...); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(s.Out, form, anys(metricRow(p))...)
	return err
}
