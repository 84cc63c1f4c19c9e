package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func (s *session) pauseCommand() *cobra.Command {
	var asJSON, filesOnly bool
	cmd := &cobra.Command{
		Use:   "pause <sandbox>",
		Short: "Save a sandbox and end its processes, to be resumed later",
		Long: `Save a sandbox with its memory and files and end its processes. It costs nothing
but disk until it is resumed: processes, terminals and background jobs then go on
where they were. Connections to it end.`,
		Example:           "caisson sandbox pause work\ncaisson sandbox resume work --ttl 30",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			if sb, err = c.Pause(ctx, sb.ID, filesOnly); err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(describe(sb, time.Now()))
			}
			s.say("Paused sandbox: %s\n", sb.ID)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "keep the files and not the memory: processes end for good")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) resumeCommand() *cobra.Command {
	var asJSON bool
	var ttl int
	cmd := &cobra.Command{
		Use:               "resume <sandbox>",
		Short:             "Resume a paused sandbox",
		Example:           "caisson sandbox resume work --ttl 30",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if ttl < 1 {
				return usage(fmt.Errorf("--ttl %d: at least 1 minute", ttl))
			}
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			if sb, err = c.Resume(ctx, sb.ID, time.Duration(ttl)*time.Minute); err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(describe(sb, time.Now()))
			}
			s.say("Resumed sandbox: %s\n  Expires: %s\n", sb.ID, clock(sb.EndsAt))
			return nil
		}),
	}
	cmd.Flags().IntVarP(&ttl, "ttl", "t", 10, "minutes to live")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}
