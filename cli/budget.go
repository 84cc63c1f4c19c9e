package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/config"
)

func (s *session) budgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "budget",
		Short: "Show and set what a sandbox or a team may use",
		Args:  noSubcommand, RunE: showHelp,
	}
	cmd.AddCommand(s.budgetShow(), s.budgetSet())
	return cmd
}

func (s *session) budgetShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [sandbox]",
		Short: "Show a budget, and what is used of it",
		Long: `Show the budget of the team in its period and what is used of it, or that of one sandbox.
A sandbox that has used up its budget is paused; a team's sandboxes are, all of them, and none is
started before the period ends or an administrator raises the budget.`,
		Example:           "caisson budget show\ncaisson budget show work --json",
		Args:              args("[sandbox]"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if len(got) == 0 {
				return s.showTeamBudget(ctx, c, asJSON)
			}
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			return s.showBudget(ctx, c, sb, asJSON)
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) showTeamBudget(ctx context.Context, c *connection, asJSON bool) error {
	b, err := c.TeamBudget(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return s.printJSON(b)
	}
	source := "the server's"
	if b.Own {
		source = "set for this team"
	}
	s.say("Team %s, this %s until %s (%s)\n", quoted(b.Team), b.Period, clock(b.Until), source)
	if b.Spent != "" {
		s.say("Used up: %s. No sandbox is started before then.\n", b.Spent)
	}
	return s.table([]string{"", "USED", "BUDGET", "%"}, [][]string{
		budgetRow("CPU", spanText(b.Used.CPUSeconds), spanText(float64(b.CPUSeconds)), b.Used.CPUSeconds, float64(b.CPUSeconds)),
		budgetRow("WALL", spanText(b.Used.WallSeconds), spanText(float64(b.WallSeconds)), b.Used.WallSeconds, float64(b.WallSeconds)),
		budgetRow("EGRESS", bytesText(b.Used.EgressBytes), bytesText(b.EgressBytes), float64(b.Used.EgressBytes), float64(b.EgressBytes)),
	})
}

func spanText(f float64) string {
	return time.Duration(f * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// budgetRow is one line of a budget; a limit of 0 is none.
func budgetRow(name, used, limit string, part, whole float64) []string {
	if whole == 0 {
		return []string{name, used, "-", ""}
	}
	return []string{name, used, limit, fmt.Sprintf("%.0f", 100*part/whole)}
}

// sandboxBudget is the budget of a sandbox as --json prints it.
type sandboxBudget struct {
	Sandbox string          `json:"sandbox"`
	Budget  client.Budget   `json:"budget"`
	Used    client.TeamUsed `json:"used"`
}

func (s *session) showBudget(ctx context.Context, c *connection, sb client.Sandbox, asJSON bool) error {
	// A budget is for the whole life; usage of runs is kept longer than records.
	report, err := c.Usage(ctx, client.UsageOptions{From: sb.CreatedAt.Add(-time.Second), By: "sandbox"})
	if err != nil {
		return err
	}
	out := sandboxBudget{Sandbox: sb.ID}
	if sb.Budget != nil {
		out.Budget = *sb.Budget
	}
	for _, u := range report.Lines {
		if u.Group == sb.ID {
			out.Used = client.TeamUsed{CPUSeconds: u.CPUSeconds, WallSeconds: u.WallSeconds, EgressBytes: u.EgressInBytes + u.EgressOutBytes}
		}
	}
	if asJSON {
		return s.printJSON(out)
	}
	b, used := out.Budget, out.Used
	if b.Spent != "" {
		s.say("Used up: %s. It can be resumed with another budget: caisson budget set %s\n", b.Spent, sb.ID)
	}
	return s.table([]string{"", "USED", "BUDGET", "%"}, [][]string{
		budgetRow("CPU", spanText(used.CPUSeconds), spanText(float64(b.CPUSeconds)), used.CPUSeconds, float64(b.CPUSeconds)),
		budgetRow("WALL", spanText(used.WallSeconds), spanText(float64(b.WallSeconds)), used.WallSeconds, float64(b.WallSeconds)),
		budgetRow("EGRESS", bytesText(used.EgressBytes), bytesText(b.EgressBytes), float64(used.EgressBytes), float64(b.EgressBytes)),
	})
}

// budgetFlags are the members of a budget.
type budgetFlags struct {
	cpu, wall      time.Duration
	egress, period string
	none           bool
}

func (f *budgetFlags) bytes() (int64, error) {
	if f.egress == "" {
		return 0, nil
	}
	var n config.Bytes
	if err := n.UnmarshalText([]byte(f.egress)); err != nil {
		return 0, usage(fmt.Errorf("--egress: %w", err))
	}
	return int64(n), nil
}

func (s *session) budgetSet() *cobra.Command {
	var team string
	var f budgetFlags
	cmd := &cobra.Command{
		Use:   "set [sandbox]",
		Short: "Give a sandbox, or with --team a team, another budget",
		Long: `Give a sandbox another budget for all of its life: members that are left out are the server's limit.
One that was paused because its budget was used up can be resumed then.

With --team TEAM the data directory of this machine is changed instead, so that only who
administers it can: members that are left out are not limited. A running server holds it
within seconds. --none gives the team the server's budget again.`,
		Example: `caisson budget set work --cpu 2h --egress 10GiB
caisson budget set --team research --cpu 100h --period month --data ./data
caisson budget set --team research --none --data ./data`,
		Args: args("[sandbox]"),
		RunE: func(cmd *cobra.Command, got []string) error {
			bytes, err := f.bytes()
			switch {
			case err != nil:
				return err
			case (team == "") == (len(got) == 0):
				return usage(errors.New("name a sandbox, or a team with --team"))
			case f.cpu < 0 || f.wall < 0:
				return usage(errors.New("a budget is not negative"))
			case f.cpu%time.Second != 0 || f.wall%time.Second != 0:
				return usage(errors.New("a budget is in whole seconds"))
			case team == "" && (f.none || cmd.Flags().Changed("period")):
				return usage(errors.New("--none and --period are for --team"))
			case team != "":
				return s.setTeamBudget(cmd.Context(), team, f, bytes)
			}
			return s.command(func(ctx context.Context, c *connection, got []string) error {
				sb, err := c.Find(ctx, got[0])
				if err != nil {
					return err
				}
				sb, err = c.SetBudget(ctx, sb.ID, client.Budget{
					CPUSeconds: int64(f.cpu / time.Second), WallSeconds: int64(f.wall / time.Second), EgressBytes: bytes,
				})
				if err == nil {
					s.say("Set budget of sandbox: %s\n  Status: %s\n", sb.ID, status(sb))
				}
				return err
			})(cmd, got)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&team, "team", "", "set the budget of this team in the local data directory")
	fl.DurationVar(&f.cpu, "cpu", 0, "CPU time")
	fl.DurationVar(&f.wall, "wall", 0, "time that it runs")
	fl.StringVar(&f.egress, "egress", "", "bytes of its connections, such as 10GiB")
	fl.StringVar(&f.period, "period", "month", "how long a team's budget lasts: day or month")
	fl.BoolVar(&f.none, "none", false, "take the team's own budget away")
	return cmd
}

func (s *session) setTeamBudget(ctx context.Context, team string, f budgetFlags, bytes int64) error {
	cfg, err := s.local(s.Local.SetTeamBudget != nil)
	if err != nil {
		return err
	}
	var b *client.BudgetOfTeam
	if !f.none {
		b = &client.BudgetOfTeam{
			CPUSeconds: int64(f.cpu / time.Second), WallSeconds: int64(f.wall / time.Second), EgressBytes: bytes, Period: f.period,
		}
	}
	if err := s.Local.SetTeamBudget(ctx, cfg, team, b); err != nil {
		return err
	}
	s.say("set the budget of team %s\n", quoted(team))
	return nil
}
