package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/client"
)

// pruneFlags say what a prune command takes.
type pruneFlags struct {
	olderThan    string
	keep         int
	dryRun, json bool
}

func (f *pruneFlags) add(cmd *cobra.Command, keep string) {
	fl := cmd.Flags()
	fl.StringVar(&f.olderThan, "older-than", "", "only what was made so long ago, such as 12h or 7d")
	fl.IntVar(&f.keep, "keep", 0, keep)
	fl.BoolVar(&f.dryRun, "dry-run", false, "name what would go, and change nothing")
	fl.BoolVarP(&f.json, "json", "j", false, "print JSON")
}

func (f *pruneFlags) before(now time.Time) (time.Time, error) {
	if f.keep < 0 {
		return time.Time{}, usage(fmt.Errorf("--keep %d: at least 0", f.keep))
	}
	if f.olderThan == "" {
		return now, nil
	}
	return moment("--older-than", f.olderThan, now)
}

// pruned is one thing that a prune command took, or could not.
type pruned struct {
	ID        string `json:"id"`
	SizeBytes int64  `json:"size_bytes,omitempty"`
	CreatedAt string `json:"created_at"`
	// Error says why it is still there.
	Error string `json:"error,omitempty"`
}

func (s *session) snapshotPrune() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Delete old snapshots that no live sandbox is based on",
		Long: `Delete snapshots of the team: those older than --older-than, but the newest --keep of each
source sandbox. At least one of the two must be given. What live sandboxes are based on stays.`,
		Example: `caisson snapshot prune --older-than 7d --dry-run
caisson snapshot prune --keep 3 --json | jq '.deleted | length'`,
		Args: args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			before, err := f.before(time.Now())
			if err != nil {
				return err
			}
			if f.olderThan == "" && f.keep == 0 {
				return usage(errors.New("say what to delete: --older-than, --keep or both"))
			}
			var chosen []client.Snapshot
			newest := map[string]int{} // of each source; the listing begins with the newest
			for snap, err := range c.Snapshots(ctx, client.SnapshotListOptions{}) {
				if err != nil {
					return err
				}
				newest[snap.Sandbox]++
				if newest[snap.Sandbox] > f.keep && !snap.CreatedAt.After(before) {
					chosen = append(chosen, snap)
				}
			}
			var list []pruned
			for _, snap := range chosen {
				p := pruned{ID: snap.ID, SizeBytes: snap.SizeBytes, CreatedAt: stamp(snap.CreatedAt)}
				list = append(list, f.take(p, func() error { return c.DeleteSnapshot(ctx, snap.ID) }))
			}
			return s.printPruned(list, f, "deleted")
		}),
	}
	f.add(cmd, "keep the newest so many of each source sandbox")
	return cmd
}

// take does what is to be done with one, unless nothing is to be changed.
func (f *pruneFlags) take(p pruned, do func() error) pruned {
	if f.dryRun {
		return p
	}
	if err := do(); err != nil && !errdefs.IsNotFound(err) {
		p.Error = err.Error()
	}
	return p
}

func (s *session) printPruned(list []pruned, f pruneFlags, done string) error {
	var problems []error
	out := map[string][]pruned{done: {}, "left": {}}
	var bytes int64
	for _, p := range list {
		word := done
		if p.Error != "" {
			word = "left"
			problems = append(problems, fmt.Errorf("%s is left: %s", quoted(p.ID), p.Error))
		} else {
			bytes += p.SizeBytes
		}
		out[word] = append(out[word], p)
	}
	if f.json {
		return errors.Join(append(problems, s.printJSON(map[string]any{done: out[done], "left": out["left"], "dry_run": f.dryRun}))...)
	}
	for _, p := range out[done] {
		if _, err := fmt.Fprintln(s.Out, p.ID); err != nil {
			return err
		}
	}
	words := done
	if f.dryRun {
		words = "would be " + done
	}
	if bytes > 0 {
		s.say("%d %s, %s\n", len(out[done]), words, bytesText(bytes))
	} else {
		s.say("%d %s\n", len(out[done]), words)
	}
	return errors.Join(problems...)
}

func (s *session) sandboxPrune() *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use:   "prune <sandbox>",
		Short: "End the copies of a sandbox from which nothing goes on",
		Long: `End the leaves of a sandbox's fork tree: copies, and copies of copies, that run or are paused
and of which no copy lives. The sandbox itself stays, and so do snapshots. Call it again for
those that were not leaves before.`,
		Example: `caisson sandbox prune work --dry-run
caisson sandbox prune work --older-than 1h --keep 2`,
		Args:              args("<sandbox>"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			before, err := f.before(time.Now())
			if err != nil {
				return err
			}
			root, err := c.Find(ctx, got[0])
			if err != nil {
				return err
			}
			var live []client.Sandbox
			for sb, err := range c.List(ctx, client.ListOptions{States: allStates}) {
				if err != nil {
					return err
				}
				live = append(live, sb)
			}
			chosen := leaves(root.ID, live)
			slices.SortFunc(chosen, func(a, b client.Sandbox) int { return b.CreatedAt.Compare(a.CreatedAt) })
			var list []pruned
			for i, sb := range chosen {
				if i < f.keep || sb.CreatedAt.After(before) {
					continue
				}
				p := pruned{ID: sb.ID, CreatedAt: stamp(sb.CreatedAt)}
				list = append(list, f.take(p, func() error { return c.Kill(ctx, sb.ID) }))
			}
			return s.printPruned(list, f, "ended")
		}),
	}
	f.add(cmd, "keep the newest so many")
	return cmd
}

// leaves are the live descendants of a sandbox that have no live descendants.
// Those that have ended hold the tree together.
func leaves(root string, all []client.Sandbox) []client.Sandbox {
	kids := map[string][]client.Sandbox{}
	for _, sb := range all {
		if sb.Origin != nil && sb.ID != root && sb.Origin.Sandbox != sb.ID {
			kids[sb.Origin.Sandbox] = append(kids[sb.Origin.Sandbox], sb)
		}
	}
	var out []client.Sandbox
	seen := map[string]bool{root: true}
	// below collects the leaves below id and says whether anything lives there.
	var below func(id string) bool
	below = func(id string) bool {
		any := false
		for _, sb := range kids[id] {
			if seen[sb.ID] {
				continue
			}
			seen[sb.ID] = true
			deeper := below(sb.ID)
			lives := sb.State == client.Running || sb.State == client.Paused
			if lives && !deeper {
				out = append(out, sb)
			}
			any = any || lives || deeper
		}
		return any
	}
	below(root)
	return out
}
