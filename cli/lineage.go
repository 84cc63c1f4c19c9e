package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

// relative is a sandbox or a snapshot in the tree of descent.
type relative struct {
	Kind      string      `json:"kind"` // sandbox or snapshot
	ID        string      `json:"id"`
	Name      string      `json:"name,omitempty"`
	State     string      `json:"state,omitempty"`
	Forked    bool        `json:"forked,omitempty"`
	SizeBytes int64       `json:"size_bytes,omitempty"`
	CreatedAt *string     `json:"created_at,omitempty"`
	Children  []*relative `json:"children"`

	at time.Time
}

func (s *session) lineageCommand() *cobra.Command {
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Show which sandboxes and snapshots come from which",
		Long: `Show sandboxes and snapshots below what they were made of: snapshots below the
sandbox that was saved, sandboxes below the snapshot or the sandbox that they are
copies of. One that has ended is shown without its state where something comes from
it, and with --all in any case.`,
		Example: "caisson sandbox tree\ncaisson sandbox tree --all --json",
		Args:    args(),
		RunE: s.command(func(ctx context.Context, c *connection, _ []string) error {
			o := client.ListOptions{}
			if all {
				o.States = allStates
			}
			var boxes []client.Sandbox
			for sb, err := range c.List(ctx, o) {
				if err != nil {
					return err
				}
				boxes = append(boxes, sb)
			}
			var snaps []client.Snapshot
			for snap, err := range c.Snapshots(ctx, client.SnapshotListOptions{}) {
				if err != nil {
					return err
				}
				snaps = append(snaps, snap)
			}
			roots := lineage(boxes, snaps)
			if asJSON {
				return s.printJSON(map[string]any{"tree": roots})
			}
			if len(roots) == 0 {
				s.say("No sandboxes found.\n")
				return nil
			}
			for _, r := range roots {
				if err := r.print(s.Out, "", ""); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "ended ones too")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// lineage puts everything below what it comes from, oldest first.
func lineage(boxes []client.Sandbox, snaps []client.Snapshot) []*relative {
	byID, byBuild := map[string]*relative{}, map[string]*relative{}
	roots := []*relative{}
	for _, sb := range boxes {
		byID[sb.ID] = &relative{
			Kind: "sandbox", ID: sb.ID, Name: sb.Name, State: string(sb.State), CreatedAt: new(stamp(sb.CreatedAt)), at: sb.CreatedAt,
			Forked: sb.Origin != nil && sb.Origin.Snapshot == "", Children: []*relative{},
		}
	}
	// source is the sandbox with an id; one that is not listed has ended.
	source := func(id string) *relative {
		if byID[id] == nil {
			byID[id] = &relative{Kind: "sandbox", ID: id, Children: []*relative{}}
			roots = append(roots, byID[id])
		}
		return byID[id]
	}
	adopt := func(parent, child *relative) { parent.Children = append(parent.Children, child) }
	for _, snap := range snaps {
		r := &relative{
			Kind: "snapshot", ID: snap.ID, SizeBytes: snap.SizeBytes,
			CreatedAt: new(stamp(snap.CreatedAt)), at: snap.CreatedAt, Children: []*relative{},
		}
		byBuild[snap.BuildID] = r
		adopt(source(snap.Sandbox), r)
	}
	for _, sb := range boxes {
		r := byID[sb.ID]
		switch {
		case sb.Origin == nil || sb.Origin.Sandbox == sb.ID:
			roots = append(roots, r)
		case sb.Origin.Snapshot != "" && byBuild[sb.BuildID] != nil:
			adopt(byBuild[sb.BuildID], r)
		default:
			adopt(source(sb.Origin.Sandbox), r)
		}
	}
	sortRelatives(roots)
	return roots
}

func sortRelatives(list []*relative) {
	slices.SortStableFunc(list, func(a, b *relative) int { return a.at.Compare(b.at) })
	for _, r := range list {
		sortRelatives(r.Children)
	}
}

// print writes one line for r after first, and its children below, each line
// after rest.
func (r *relative) print(w io.Writer, first, rest string) error {
	text := terminal.Text(r.ID)
	if r.Name != "" {
		text += "  " + terminal.Text(r.Name)
	}
	switch {
	case r.Kind == "snapshot":
		text += "  (snapshot, " + bytesText(r.SizeBytes) + ")"
	case r.State == "":
		text += "  (ended)"
	default:
		text += "  " + terminal.Text(r.State)
	}
	if r.Forked {
		text += "  (fork)"
	}
	if _, err := fmt.Fprintln(w, first+text); err != nil {
		return err
	}
	for i, child := range r.Children {
		branch, below := "├─ ", "│  "
		if i == len(r.Children)-1 {
			branch, below = "└─ ", "   "
		}
		if err := child.print(w, rest+branch, rest+below); err != nil {
			return err
		}
	}
	return nil
}
