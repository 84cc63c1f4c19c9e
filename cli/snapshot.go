package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

func (s *session) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "List and delete snapshots of sandboxes", Args: noSubcommand, RunE: showHelp}
	cmd.AddCommand(s.snapshotList(), s.snapshotDelete(), s.snapshotPrune())
	return cmd
}

func (s *session) snapshotCreate() *cobra.Command {
	var asJSON bool
	var name string
	cmd := &cobra.Command{
		Use:   "snapshot <sandbox>",
		Short: "Save a sandbox as something to create others from; it runs on",
		Long: `Save a running sandbox with its memory and files, and print the snapshot's id on
standard output. The sandbox stands still for a moment and runs on. Sandboxes that are
created from the snapshot go on where it stood, with ids and tokens of their own.

A --name that was used before is saved over: its tag means the new state from then on.`,
		Example: `caisson sandbox snapshot work --name before-upgrade
caisson sandbox create again --template before-upgrade`,
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			snap, err := c.CreateSnapshot(ctx, sb.ID, name)
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(snap)
			}
			s.say("Saved sandbox: %s\n  Size: %s\n", sb.ID, bytesText(snap.SizeBytes))
			_, err = fmt.Fprintln(s.Out, snap.ID)
			return err
		}),
	}
	cmd.Flags().StringVarP(&name, "name", "n", "", "name or name:tag to save it under")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

func (s *session) snapshotList() *cobra.Command {
	var asJSON bool
	var sandbox string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List snapshots, newest first",
		Example: "caisson snapshot list\ncaisson snapshot list --sandbox work --json | jq -r '.snapshots[].id'",
		Args:    args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			var o client.SnapshotListOptions
			if sandbox != "" {
				sb, err := c.Find(ctx, sandbox)
				if err != nil {
					return err
				}
				o.Sandbox = sb.ID
			}
			list, rows := []client.Snapshot{}, [][]string{}
			for snap, err := range c.Snapshots(ctx, o) {
				if err != nil {
					return err
				}
				list = append(list, snap)
				rows = append(rows, []string{snap.ID, bytesText(snap.SizeBytes), snap.Sandbox, clock(snap.CreatedAt)})
			}
			if asJSON {
				return s.printJSON(map[string]any{"snapshots": list})
			}
			if len(rows) == 0 {
				s.say("No snapshots found.\n")
				return nil
			}
			return s.table([]string{"ID", "SIZE", "SANDBOX", "CREATED"}, rows)
		}),
	}
	cmd.Flags().StringVar(&sandbox, "sandbox", "", "only those of this sandbox")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("sandbox", func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return s.completeSandbox(cmd, nil, typed)
	})
	return cmd
}

func (s *session) snapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete <snapshot>...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots that no live sandbox is based on",
		Long: `Delete snapshots by id or name. With a tag only that one goes, without a tag all of
the name's. Sandboxes that were made from a snapshot and have not ended keep it.`,
		Example:           "caisson snapshot delete before-upgrade",
		Args:              args("<snapshot>..."),
		ValidArgsFunction: s.completeSnapshot,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			var problems []error
			for _, ref := range got {
				if err := c.DeleteSnapshot(ctx, ref); err != nil {
					problems = append(problems, err)
					continue
				}
				s.say("deleted %s\n", quoted(ref))
			}
			return errors.Join(problems...)
		}),
	}
}

// completeSnapshot offers ids of snapshots.
func (s *session) completeSnapshot(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := s.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	var out []string
	for snap, err := range c.Snapshots(ctx, client.SnapshotListOptions{}) {
		if err != nil {
			break
		}
		out = append(out, terminal.Text(snap.ID)+"\t"+terminal.Text(snap.Sandbox))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (s *session) forkCommand() *cobra.Command {
	var asJSON bool
	var count, ttl int
	cmd := &cobra.Command{
		Use:   "fork <sandbox>",
		Short: "Start copies of a running sandbox, which runs on",
		Long: `Start copies of a running sandbox and print their ids on standard output. All start
from the same moment: processes, memory and files are as they were then, and go their
own ways. Template, variables, labels and network are the source's; ids and tokens are
their own.

Copies that could not be started are named on standard error, and the exit code is that
of the first.`,
		Example:           "for id in $(caisson sandbox fork work --count 3); do caisson sandbox exec $id -- ./try; done",
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if ttl < 1 {
				return usage(fmt.Errorf("--ttl %d: at least 1 minute", ttl))
			}
			if count < 1 {
				return usage(fmt.Errorf("--count %d: at least 1", count))
			}
			sb, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			made, err := c.Fork(ctx, sb.ID, client.ForkOptions{Count: count, Timeout: time.Duration(ttl) * time.Minute})
			if err != nil {
				return err
			}
			return s.printForks(made, asJSON)
		}),
	}
	cmd.Flags().IntVarP(&count, "count", "n", 1, "how many, at most 100")
	cmd.Flags().IntVarP(&ttl, "ttl", "t", 10, "minutes that each lives")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// forkDescription is one copy as --json prints it.
type forkDescription struct {
	Sandbox *description      `json:"sandbox,omitempty"`
	Error   *client.ForkError `json:"error,omitempty"`
}

func (s *session) printForks(made []client.Forked, asJSON bool) error {
	var problems []error
	list := []forkDescription{}
	for _, f := range made {
		switch {
		case f.Sandbox != nil:
			list = append(list, forkDescription{Sandbox: new(describe(*f.Sandbox, time.Now()))})
			if !asJSON {
				fmt.Fprintln(s.Out, f.Sandbox.ID)
			}
		case f.Error != nil:
			list = append(list, forkDescription{Error: f.Error})
			problems = append(problems, &client.Error{Op: "fork", Status: f.Error.Code, Message: f.Error.Message})
		}
	}
	if asJSON {
		problems = append(problems, s.printJSON(map[string]any{"forks": list}))
	}
	return errors.Join(problems...)
}
