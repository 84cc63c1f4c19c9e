package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

// lifeFlags say what happens to a sandbox when its time is over.
type lifeFlags struct {
	onTimeout             string
	filesOnly, autoResume bool
}

func (f *lifeFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.onTimeout, "on-timeout", "kill", "what happens after --ttl: kill or pause")
	fl.BoolVar(&f.filesOnly, "files-only", false, "the pause on timeout keeps the files and not the memory")
	fl.BoolVar(&f.autoResume, "auto-resume", false, "commands, files and other traffic resume it when it is paused with its memory")
	_ = cmd.RegisterFlagCompletionFunc("on-timeout", cobra.FixedCompletions([]string{ // the flag is there
		"kill\tdestroy it", "pause\tsave it, to be resumed",
	}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *lifeFlags) lifecycle() (client.Lifecycle, error) {
	l := client.Lifecycle{OnTimeout: client.OnTimeout(f.onTimeout), FilesOnly: f.filesOnly, AutoResume: f.autoResume}
	switch {
	case l.OnTimeout != client.KillOnTimeout && l.OnTimeout != client.PauseOnTimeout:
		return l, usage(fmt.Errorf("--on-timeout %q: use kill or pause", f.onTimeout))
	case l.FilesOnly && l.OnTimeout != client.PauseOnTimeout:
		return l, usage(fmt.Errorf("--files-only needs --on-timeout pause"))
	case l.FilesOnly && l.AutoResume:
		return l, usage(fmt.Errorf("--auto-resume wakes only what was paused with its memory: leave --files-only out"))
	}
	return l, nil
}

func (s *session) pauseCommand() *cobra.Command {
	var asJSON, filesOnly bool
	cmd := &cobra.Command{
		Use:   "pause <sandbox>",
		Short: "Save a sandbox and free what it uses, to be resumed later",
		Long: `Save a sandbox with its memory and files, and end its box. It costs nothing but disk until it is
resumed; then processes, terminals and background jobs go on where they were. Connections to it end.

With --files-only the memory is not kept: processes end for good, and /tmp and /dev/shm are empty after
the resume. One that is paused already stays as it is.`,
		Example:           "caisson sandbox pause work\ncaisson sandbox resume work --ttl 30",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeIn(client.Running),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, before, err := c.pause(ctx, got[0], filesOnly)
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(describe(sb, time.Now()))
			}
			done := "Paused sandbox"
			if before {
				done = "Was paused before"
			}
			s.say("%s: %s\n  Status: %s\n  Paused at: %s\n  Saved: %s\n", done, sb.ID, status(sb), clock(sb.PausedAt), savedText(sb.Saved))
			return nil
		}),
	}
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "keep the files and not the memory: processes end for good")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// pause pauses a sandbox and tells whether it was before.
func (c *connection) pause(ctx context.Context, ref string, filesOnly bool) (_ client.Sandbox, before bool, err error) {
	sb, err := c.Find(ctx, ref)
	if err != nil || sb.State == client.Paused {
		return sb, true, err
	}
	if sb.State != client.Running && sb.State != client.Pausing {
		return sb, false, unfit(ref, sb)
	}
	after, err := c.Pause(ctx, sb.ID, filesOnly)
	if errors.Is(err, errdefs.ErrConflict) {
		// Somebody else was faster.
		if now, gerr := c.Get(ctx, sb.ID); gerr == nil && now.State == client.Paused {
			return now, true, nil
		}
	}
	return after, false, err
}

func (s *session) resumeCommand() *cobra.Command {
	var asJSON bool
	var ttl int
	var cmd *cobra.Command
	cmd = &cobra.Command{
		Use:   "resume <sandbox>",
		Short: "Resume a paused sandbox",
		Long: `Resume a paused sandbox: same id, same environment, same egress policy. One that runs already lives
at least --ttl minutes from now.`,
		Example:           "caisson sandbox resume work\ncaisson sandbox resume work --ttl 30",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeIn(client.Paused),
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if cmd.Flags().Changed("ttl") && ttl < 1 {
				return usage(fmt.Errorf("--ttl %d: at least 1 minute", ttl))
			}
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			switch sb.State {
			case client.Killing, client.Killed, client.Failed:
				return unfit(got[0], sb)
			}
			if ttl == 0 {
				ttl = labelledTTL(sb, defaultTTL)
			}
			done := "Resumed sandbox"
			if sb.State == client.Running {
				done = "Was running before"
			}
			if sb, err = c.Resume(ctx, sb.ID, time.Duration(ttl)*time.Minute); err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(describe(sb, time.Now()))
			}
			s.say("%s: %s\n  Status: %s\n  Expires: %s\n", done, sb.ID, status(sb), clock(sb.EndsAt))
			return nil
		}),
	}
	cmd.Flags().IntVarP(&ttl, "ttl", "t", 0, "minutes to live (default: as created)")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}
