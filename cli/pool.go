package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// watchEvery is how often --watch asks again.
const watchEvery = 2 * time.Second

func (s *session) poolCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "pool", Short: "See which sandboxes are kept warm", Args: noSubcommand, RunE: showHelp}
	cmd.AddCommand(s.poolStatus())
	return cmd
}

func (s *session) poolStatus() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is kept warm, how often that served a create, and why not",
		Long: `Show what is kept warm, how often that served a create, and why not: one line for each template build
and size of sandbox. What to keep is set on the server: pool.templates, pool.demand, pool.prebooted,
pool.memory_mib.

TIER is hot for sandboxes that run and answer, which creates become, and prebooted for those that have nothing in
them yet, for resumes, forks, snapshots and creates that find no hot one.
TARGET is how many there should be now, READY how many are ready, MAKING how many are being started, OLDEST the age
of the oldest, HIT% the share of those who asked that got one, FILL how long it took to start the last one.`,
		Example: `caisson pool status
caisson pool status --watch
caisson pool status --json | jq '.pools[] | {templateName, hot, target}'`,
		Args: args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			if watch {
				return s.watchPool(ctx, c, asJSON)
			}
			st, err := c.Pool(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(st)
			}
			return s.showPool(st)
		}),
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every two seconds, until Ctrl-C")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON; with --watch, one object a line")
	return cmd
}

// watchPool shows the status again and again until ctx ends, which is no error.
func (s *session) watchPool(ctx context.Context, c *connection, asJSON bool) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		st, err := c.Pool(ctx)
		switch {
		case err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
			return nil
		case err != nil:
			return err
		case asJSON:
			err = s.printLine(st)
		default:
			if err = s.nextScreen(first); err == nil {
				err = s.showPool(st)
			}
		}
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// nextScreen begins anew on a terminal, and parts what follows by an empty line
// elsewhere.
func (s *session) nextScreen(first bool) error {
	text := "\n"
	switch {
	case terminal.Is(s.Out):
		text = "\x1b[H\x1b[2J"
	case first:
		return nil
	}
	_, err := io.WriteString(s.Out, text)
	return err
}

func (s *session) showPool(st client.PoolStatus) error {
	if len(st.Pools) > 0 {
		var rows [][]string
		for _, p := range st.Pools {
			rows = append(rows, poolRow(p))
		}
		if err := s.table([]string{"TEMPLATE", "BUILD", "MEM", "CPU", "TIER", "TARGET", "READY", "MAKING", "OLDEST", "HIT%", "FILL", "PROBLEM"}, rows); err != nil {
			return err
		}
		s.say("%s\n", poolTotals(st))
	}
	for _, name := range st.MissingTemplates {
		s.say("warning: pool.templates names %s, and there is no such template: \"caisson template list\" shows what there is\n", quoted(name))
	}
	switch {
	case !st.Enabled:
		s.say("No sandboxes are kept warm: every create starts one.\n" +
			"hint: to keep some ready, set pool.templates where the server runs, for example caisson serve --set pool.templates=base=4, or pool.demand\n")
	case len(st.Pools) == 0:
		s.say("Nothing is warm: no template of pool.templates is built, and none was asked for in the last five minutes.\n" +
			"hint: what to keep is set where the server runs: caisson config shows pool.templates and pool.demand\n")
	}
	return nil
}

func poolRow(p client.Pool) []string {
	name := p.TemplateName
	if name == "" {
		name = p.Template
	}
	oldest, fill := "-", "-"
	if p.Hot > 0 {
		oldest = (time.Duration(p.OldestSeconds) * time.Second).String()
	}
	if p.Made > 0 {
		fill = (time.Duration(p.LastFillMs) * time.Millisecond).String()
	}
	build, _, _ := strings.Cut(p.BuildID, "-") // enough to tell builds apart; --json has it all
	return []string{
		name, build, bytesText(p.Resources.MemoryMiB << 20), strconv.Itoa(p.Resources.CPUs), p.Tier,
		strconv.Itoa(p.Target), strconv.Itoa(p.Hot), strconv.Itoa(p.Making),
		oldest, hitText(p.Hits, p.Hits+p.Misses), fill, p.Problem,
	}
}

func hitText(hits, creates int64) string {
	if creates == 0 {
		return "-"
	}
	return percent(float64(hits) / float64(creates))
}

// percent never shows a share as all or nothing that is not.
func percent(share float64) string {
	n := int(share*100 + 0.5)
	if share > 0 {
		n = max(n, 1)
	}
	if share < 1 {
		n = min(n, 99)
	}
	return fmt.Sprintf("%d%%", n)
}

func poolTotals(st client.PoolStatus) string {
	text := "Memory: " + bytesText(st.MemoryBytes)
	if st.MemoryLimitBytes > 0 {
		text += " of " + bytesText(st.MemoryLimitBytes)
	}
	if st.HitRate != nil {
		text += "; creates since the server started that got a warm sandbox: " + percent(*st.HitRate)
	}
	return text
}
