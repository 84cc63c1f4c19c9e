package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/doctor"
	"github.com/caisson-dev/caisson/cli/terminal"
)

func (s *session) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Check that this machine can run sandboxes, and say how to mend what it cannot",
		Long:    `Check that this machine can run sandboxes. Exit code 0: all well, warnings included; 1: something must be mended first.`,
		Example: "caisson doctor --data ./data\ncaisson doctor --json",
		Args:    args(),
	}
	flags := s.configFlags(cmd, "listen")
	asJSON := cmd.Flags().BoolP("json", "j", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		l, err := s.load(flags())
		if err != nil {
			return err
		}
		checks := doctor.Host(l.Config)
		if s.Local.Checks != nil {
			checks = append(checks, s.Local.Checks(l.Config)...)
		}
		report := doctor.Run(cmd.Context(), checks)
		if *asJSON {
			err = s.printJSON(report)
		} else {
			err = s.printReport(report)
		}
		if err == nil && !report.OK {
			return exitWith(exitError)
		}
		return err
	}
	return cmd
}

func (s *session) printReport(r doctor.Report) error {
	marks := map[doctor.Status]string{doctor.OK: "ok  ", doctor.Warn: "warn", doctor.Fail: "FAIL", doctor.Skip: "skip"}
	colours := map[doctor.Status]string{doctor.OK: "32", doctor.Warn: "33", doctor.Fail: "31", doctor.Skip: "2"}
	counts := map[doctor.Status]int{}
	for _, c := range r.Checks {
		counts[c.Status]++
		mark := marks[c.Status]
		if terminal.Is(s.Out) {
			mark = "\x1b[" + colours[c.Status] + "m" + mark + "\x1b[0m"
		}
		fmt.Fprintf(s.Out, "%s  %-20s %s\n", mark, c.Name, terminal.Text(c.Detail))
		if c.Fix != "" && c.Status != doctor.OK {
			fmt.Fprintf(s.Out, "      %-20s -> %s\n", "", terminal.Text(c.Fix))
		}
	}
	_, err := fmt.Fprintf(s.Out, "\n%d ok, %d to note, %d to mend\n", counts[doctor.OK], counts[doctor.Warn], counts[doctor.Fail])
	return err
}
