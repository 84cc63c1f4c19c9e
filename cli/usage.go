package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

func (s *session) usageCommand() *cobra.Command {
	var from, to, by string
	var asJSON, asCSV bool
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "Show what sandboxes used: time, CPU, memory, traffic, disk",
		Long: `Show what the team's sandboxes used, ended ones included: the last 30 days, unless
told otherwise. A time is 2026-01-31, 2026-01-31T15:04:05Z, or how long ago: 90m, 24h, 7d.`,
		Example: `caisson usage --from 24h
caisson usage --from 2026-01-01 --to 2026-02-01 --by label:customer --csv > january.csv`,
		Args: args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			if asJSON && asCSV {
				return usage(errors.New("--csv and --json exclude each other"))
			}
			now := time.Now()
			o := client.UsageOptions{By: by}
			var err error
			if o.From, err = moment("--from", from, now); err != nil {
				return err
			}
			if o.To, err = moment("--to", to, now); err != nil {
				return err
			}
			r, err := c.Usage(ctx, o)
			switch {
			case err != nil:
				return err
			case asJSON:
				return s.printJSON(r)
			case asCSV:
				return s.usageCSV(r)
			}
			return s.usageTable(r, by)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "begin of the time")
	f.StringVar(&to, "to", "", "end of the time (default: now)")
	f.StringVar(&by, "by", "sandbox", "one line for each: sandbox, team, template or label:KEY")
	f.BoolVar(&asCSV, "csv", false, "print CSV")
	f.BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// moment reads a day, a time or how long ago; "" is the zero time.
func moment(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil { //nolint:gosmopolitan // a day is the user's
		return t, nil
	}
	ago, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, derr := strconv.Atoi(days)
		ago, err = time.Duration(n)*24*time.Hour, derr
	}
	const longest = 100 * 365 * 24 * time.Hour
	if err != nil || ago < 0 || ago > longest {
		return time.Time{}, usage(fmt.Errorf("%s %q is no time: write 2026-01-31, 2026-01-31T15:04:05Z, or how long ago, such as 24h or 7d", flag, text))
	}
	return now.Add(-ago), nil
}

func (s *session) usageTable(r client.UsageReport, by string) error {
	head := strings.ToUpper(strings.TrimPrefix(by, "label:"))
	rows := [][]string{}
	for _, u := range r.Lines {
		rows = append(rows, usageRow(u, u.Group))
	}
	rows = append(rows, usageRow(r.Total, "total"))
	s.say("%s to %s\n", clock(r.From), clock(r.To))
	return s.table([]string{head, "RUNS", "WALL", "CPU", "MEMORY GiB·h", "EGRESS OUT", "EGRESS IN", "SAVED GiB·h"}, rows)
}

func usageRow(u client.Usage, name string) []string {
	if name == "" {
		name = "-"
	}
	seconds := func(f float64) string {
		return time.Duration(f * float64(time.Second)).Round(100 * time.Millisecond).String()
	}
	return []string{
		name, strconv.Itoa(u.Runs), seconds(u.WallSeconds), seconds(u.CPUSeconds),
		fmt.Sprintf("%.3f", u.MemoryMiBSeconds/1024/3600), bytesText(u.EgressOutBytes), bytesText(u.EgressInBytes),
		fmt.Sprintf("%.3f", u.SavedMiBHours/1024),
	}
}

// usageCSV prints one line a group, without the sum, which the reader makes.
func (s *session) usageCSV(r client.UsageReport) error {
	w := csv.NewWriter(s.Out)
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', 3, 64) }
	_ = w.Write([]string{ // the error is Flush's
		"group", "from", "to", "runs", "sandboxes", "wall_seconds", "cpu_seconds", "cpu_limit_seconds", "memory_mib_seconds",
		"memory_limit_mib_seconds", "memory_peak_bytes", "egress_in_bytes", "egress_out_bytes", "saved_mib_hours",
	})
	for _, u := range r.Lines {
		_ = w.Write([]string{
			cell(u.Group), stamp(r.From), stamp(r.To), strconv.Itoa(u.Runs), strconv.Itoa(u.Sandboxes),
			number(u.WallSeconds), number(u.CPUSeconds), number(u.CPULimitSeconds), number(u.MemoryMiBSeconds),
			number(u.MemoryLimitMiBSeconds), strconv.FormatInt(u.MemoryPeakBytes, 10),
			strconv.FormatInt(u.EgressInBytes, 10), strconv.FormatInt(u.EgressOutBytes, 10), number(u.SavedMiBHours),
		})
	}
	w.Flush()
	return w.Error()
}

// cell makes text of a request safe for terminals, and for spreadsheets, which
// compute what begins like a formula.
func cell(text string) string {
	text = terminal.Text(text)
	if text != "" && strings.ContainsRune("=+-@", rune(text[0])) {
		return "'" + text
	}
	return text
}
