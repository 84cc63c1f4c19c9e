package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

func (s *session) rollbackCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rollback <sandbox> <snapshot>",
		Short: "Take a sandbox back to a snapshot, under its id",
		Long: `Give a sandbox the files, memory and processes of a snapshot, in place of its own, which are
lost. It keeps id, name, tokens, host names, environment, network and end; connections to
it break. One that is paused runs afterwards. The snapshot must be of this sandbox, or of
one with the same template and limits.

If anything fails the sandbox goes on with the state that it had.`,
		Example: `caisson sandbox snapshot work --name before
caisson sandbox exec work -- ./risky-step || caisson sandbox rollback work before`,
		Args: args("<sandbox>", "<snapshot>"),
		ValidArgsFunction: func(cmd *cobra.Command, have []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(have) == 0 {
				return s.completeSandbox(cmd, have, typed)
			}
			return s.completeSnapshot(cmd, have, typed)
		},
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			if sb, err = c.Rollback(ctx, sb.ID, got[1]); err != nil {
				return err
			}
			return s.replaced("Rolled back sandbox", sb, asJSON)
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) promoteCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "promote <copy>",
		Short: "Put a copy in the place of the sandbox that it was forked from",
		Long: `Put a copy, made by fork or from a snapshot, in the place of the sandbox that it is a copy
of: that one goes on under its own id, name, tokens and end with the files, memory and
processes of the copy, and its own are lost. The copy ends; its siblings are left alone.

If anything fails both go on as they were.`,
		Example: `for id in $(caisson sandbox fork work --count 3); do
  caisson sandbox exec $id -- ./try && caisson sandbox promote $id && break
done
caisson sandbox prune work`,
		Args:              args("<copy>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			if sb, err = c.Promote(ctx, sb.ID); err != nil {
				return err
			}
			return s.replaced("Promoted into sandbox", sb, asJSON)
		}),
	}
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) replaced(done string, sb client.Sandbox, asJSON bool) error {
	if asJSON {
		return s.printJSON(describe(sb, time.Now()))
	}
	s.say("%s: %s\n  Status: %s\n  Expires: %s\n", done, sb.ID, status(sb), clock(sb.EndsAt))
	return nil
}
