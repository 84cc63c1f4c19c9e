package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

func (s *session) egressGroup() *cobra.Command {
	cmd := &cobra.Command{Use: "egress", Short: "Check and change what sandboxes may reach", Args: noSubcommand, RunE: showHelp}
	cmd.AddCommand(s.egressCheck(), s.egressAllow())
	return cmd
}

func (s *session) egressCheck() *cobra.Command {
	var sandbox string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "check <host>[:port]",
		Short:   "Say what would happen to a connection, and which rule decides",
		Long:    `Say what would happen to a connection, and which rule decides. Nothing is dialled. Exit code 0: it would be allowed; 1: denied.`,
		Example: "caisson egress check pypi.org:443\ncaisson egress check 10.0.0.5:5432 --sandbox work",
		Args:    args("<host>[:port]"),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			host, port, err := hostPort(got[0])
			if err != nil {
				return err
			}
			id := ""
			if sandbox != "" {
				sb, err := c.Find(ctx, sandbox)
				if err != nil {
					return err
				}
				id = sb.ID
			}
			d, err := c.CheckEgress(ctx, host, port, id)
			if err != nil {
				return err
			}
			if asJSON {
				err = s.printJSON(d)
			} else {
				rule := ""
				if d.Rule != nil {
					rule = strings.TrimSpace(strings.Join(d.Rule.Hosts, ",") + " " + d.Rule.Note)
				}
				err = s.fields("Verdict:", d.Verdict, "Reason:", d.Reason, "Rule:", rule, "To allow:", d.Suggestion)
			}
			if err == nil && d.Verdict != "allow" {
				return exitWith(exitError)
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&sandbox, "sandbox", "", "judge by this sandbox's policy instead of the server's default")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// hostPort splits host[:port]; the port defaults to 443.
func hostPort(s string) (string, int, error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		return strings.Trim(s, "[]"), 443, nil //nolint:nilerr // no port was given
	}
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, usage(fmt.Errorf("%q is not a port", text))
	}
	return host, port, nil
}

func (s *session) egressAllow() *cobra.Command {
	return &cobra.Command{
		Use:               "allow <sandbox> <host>...",
		Short:             "Let a running sandbox reach more hosts, at once",
		Example:           "caisson egress allow work pypi.org files.pythonhosted.org",
		Args:              args("<sandbox>", "<host>..."),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.running(ctx, got[0])
			if err != nil {
				return err
			}
			n := sb.Network
			for _, h := range got[1:] {
				if !slices.Contains(n.AllowOut, h) {
					n.AllowOut = append(n.AllowOut, h)
				}
			}
			after, err := c.SetNetwork(ctx, sb.ID, n, presetsOf(sb.Egress))
			if err != nil {
				return err
			}
			s.say("%s: %s\n", sb.ID, egressText(after.Egress))
			return nil
		}),
	}
}

// presetsOf reads the presets of a policy from the notes of its rules.
func presetsOf(p client.EgressPolicy) []string {
	var out []string
	for _, r := range p.Rules {
		if name, ok := strings.CutPrefix(r.Note, "preset:"); ok && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// rowFlags are the flags of commands that print a log.
type rowFlags struct {
	json, follow bool
	limit        int
	after        int64
}

func (f *rowFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.BoolVarP(&f.json, "json", "j", false, "print JSON, one object a line")
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on with new lines until the sandbox ends")
	fl.IntVar(&f.limit, "limit", 100, "at most this many of the latest lines")
	fl.Int64Var(&f.after, "after", 0, "only lines after this number (seq)")
}

func (f *rowFlags) options() client.RowOptions {
	return client.RowOptions{Limit: f.limit, After: f.after, Follow: f.follow}
}

func (s *session) egressCommand() *cobra.Command {
	var f rowFlags
	var denied bool
	cmd := &cobra.Command{
		Use:   "egress <sandbox>",
		Short: "Show what a sandbox reached, what was refused, and the rule that would open it",
		Example: `caisson sandbox egress work
caisson sandbox egress work --denied
caisson sandbox egress work --follow --json`,
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			var denials []string
			print := s.flowPrinter(f)
			for row, err := range c.Flows(ctx, sb.ID, f.options()) {
				if err != nil {
					return stopFollowing(ctx, f, err)
				}
				if denied && row.Verdict != "deny" {
					continue
				}
				if row.Verdict == "deny" && row.Host != "" && !slices.Contains(denials, row.Host) {
					denials = append(denials, row.Host)
				}
				if err := print(row); err != nil {
					return err
				}
			}
			if len(denials) > 0 && sb.State == client.Running {
				s.say("hint: to allow what was denied: caisson egress allow %s %s\n", sb.ID, strings.Join(denials[:min(len(denials), 5)], " "))
			}
			return nil
		}),
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&denied, "denied", false, "only what was refused")
	return cmd
}

// stopFollowing makes Ctrl-C the normal end of --follow.
func stopFollowing(ctx context.Context, f rowFlags, err error) error {
	if f.follow && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil
	}
	return err
}

func (s *session) flowPrinter(f rowFlags) func(client.Flow) error {
	if f.json {
		return func(r client.Flow) error { return s.printLine(r) }
	}
	return func(r client.Flow) error {
		target := r.Host
		switch {
		case target == "":
			target = r.Address
		case r.Address != "":
			target += " (" + r.Address + ")"
		}
		if r.Port != 0 && r.Kind != "dns" {
			target += " :" + strconv.Itoa(r.Port)
		}
		size := ""
		if r.BytesIn+r.BytesOut > 0 {
			size = fmt.Sprintf("  out %s, in %s", bytesText(r.BytesOut), bytesText(r.BytesIn))
		}
		why := r.Reason
		if r.Hint != "" {
			why = strings.TrimPrefix(why+"; to allow: "+r.Hint, "; ")
		}
		verdict := r.Verdict
		if terminal.Is(s.Out) && verdict == "deny" {
			verdict = "\x1b[31mdeny\x1b[0m "
		}
		_, err := fmt.Fprintf(s.Out, "%s  %-5s  %-3s  %s  [%s]%s\n", r.At.Local().Format("15:04:05.000"),
			verdict, terminal.Text(r.Kind), terminal.Text(target), terminal.Text(why), size)
		return err
	}
}

func (s *session) logsCommand() *cobra.Command {
	var f rowFlags
	cmd := &cobra.Command{
		Use:               "logs <sandbox>",
		Short:             "Show what happened to a sandbox: created, changed, ended and why",
		Example:           "caisson sandbox logs work --follow",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			for ev, err := range c.Events(ctx, sb.ID, f.options()) {
				if err != nil {
					return stopFollowing(ctx, f, err)
				}
				if err := s.printEvent(f, ev); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	f.add(cmd)
	return cmd
}

func (s *session) printEvent(f rowFlags, ev client.Event) error {
	if f.json {
		return s.printLine(ev)
	}
	line := fmt.Sprintf("%s  %s", ev.At.Local().Format(time.DateTime), terminal.Text(ev.Type))
	if ev.Reason != "" {
		line += "  " + terminal.Text(ev.Reason)
	}
	if ev.Actor != "" {
		line += "  by " + terminal.Text(ev.Actor)
	}
	var extra []string
	for k, v := range ev.Fields {
		extra = append(extra, terminal.Text(k+"="+v))
	}
	slices.Sort(extra)
	_, err := fmt.Fprintln(s.Out, strings.TrimRight(line+"  "+strings.Join(extra, " "), " "))
	return err
}
