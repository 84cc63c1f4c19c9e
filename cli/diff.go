package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/caisson-dev/caisson/cli/terminal"
	"github.com/caisson-dev/caisson/client"
)

func (s *session) diffCommand() *cobra.Command {
	var asJSON, stat, nameOnly bool
	cmd := &cobra.Command{
		Use:   "diff <point> [point]",
		Short: "Show which files changed between two points, as a patch",
		Long: `Show which files changed from one point to another: a sandbox that runs or is paused,
a snapshot, or a template. With one point: from what that sandbox or snapshot started from.

The patch is what "git apply" and "patch -p1" read. Binary files, and text of more than
1 MiB, are named only, and so are on standard error: directories, special files, owners
and modes, for which a patch has no words. Times of change are not compared, nor /tmp
and other mounts. A sandbox that runs stands still for a moment, as for a snapshot.`,
		Example: `caisson sandbox diff work
caisson sandbox diff before-upgrade work --stat
caisson sandbox diff before-upgrade work | git apply --directory=copy
caisson sandbox diff base work --json | jq -r '.changes[] | select(.binary) | .path'`,
		Args:              args("<point>", "[point]"),
		ValidArgsFunction: s.completeSandbox,
		RunE: s.command(func(ctx context.Context, c *connection, got []string) error {
			if stat && nameOnly {
				return usage(errors.New("--stat and --name-only exclude each other"))
			}
			o := client.DiffOptions{NoPatch: nameOnly}
			var err error
			if o.To, err = c.point(ctx, got[len(got)-1]); err != nil {
				return err
			}
			if len(got) == 2 {
				if o.From, err = c.point(ctx, got[0]); err != nil {
					return err
				}
			}
			d, err := c.Diff(ctx, o)
			switch {
			case err != nil:
				return err
			case asJSON:
				return s.printJSON(d)
			case nameOnly:
				for _, ch := range d.Changes {
					if _, err := fmt.Fprintln(s.Out, terminal.Text(ch.Path)); err != nil {
						return err
					}
				}
			case stat:
				err = s.diffStat(d)
			default:
				err = s.diffPatch(d)
			}
			if d.Truncated {
				s.say("warning: only the first %d changes are shown\n", len(d.Changes))
			}
			if d.PatchesLeftOut > 0 {
				s.say("warning: the patch would be too long: %d of its files are left out; --name-only names them\n", d.PatchesLeftOut)
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&stat, "stat", false, "print how much of each file changed")
	cmd.Flags().BoolVar(&nameOnly, "name-only", false, "print names only")
	cmd.Flags().BoolVarP(&asJSON, "json", "j", false, "print JSON")
	return cmd
}

// point is the id of a sandbox that ref names, else ref: that of a snapshot or a
// template.
func (c *connection) point(ctx context.Context, ref string) (string, error) {
	sb, err := c.Find(ctx, ref)
	switch {
	case err == nil:
		return sb.ID, nil
	case errdefs.IsNotFound(err):
		return ref, nil
	}
	return "", err
}

func (s *session) diffPatch(d client.Diff) error {
	shown := terminal.Is(s.Out)
	for _, ch := range d.Changes {
		if what := wordless(ch); what != "" {
			s.say("%s\n", what)
		}
		text := ch.Patch
		if shown {
			text = safeLines(text)
		}
		if _, err := io.WriteString(s.Out, text); err != nil {
			return err
		}
	}
	return nil
}

// safeLines is text of a sandbox for a terminal: its lines and tabs stay.
func safeLines(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		body, end := strings.CutSuffix(line, "\n")
		for i, part := range strings.Split(body, "\t") {
			if i > 0 {
				out.WriteByte('\t')
			}
			out.WriteString(terminal.Text(part))
		}
		if end {
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// wordless says what a patch cannot: "" when it says all.
func wordless(ch client.Change) string {
	a, b := ch.Before, ch.After
	name := terminal.Text(ch.Path)
	special := func(m *client.FileMeta) bool { return m != nil && m.Type != "file" && m.Type != "symlink" }
	switch {
	case a != nil && b != nil && a.Type != b.Type:
		return fmt.Sprintf("%s: was a %s, is a %s", name, a.Type, b.Type)
	case special(a) && b == nil, special(b) && a == nil:
		return fmt.Sprintf("%s: %s %s", name, kindOf(a, b), ch.Kind)
	case a == nil || b == nil:
		return ""
	}
	var parts []string
	if a.Mode != b.Mode {
		parts = append(parts, "mode "+a.Mode+" to "+b.Mode)
	}
	if a.UID != b.UID || a.GID != b.GID {
		parts = append(parts, fmt.Sprintf("owner %d:%d to %d:%d", a.UID, a.GID, b.UID, b.GID))
	}
	if a.Device != b.Device {
		parts = append(parts, "device "+a.Device+" to "+b.Device)
	}
	if len(parts) == 0 {
		return ""
	}
	return name + ": " + strings.Join(parts, ", ")
}

func kindOf(a, b *client.FileMeta) string {
	if a != nil {
		return a.Type
	}
	return b.Type
}

func (s *session) diffStat(d client.Diff) error {
	var rows [][]string
	insertions, deletions := 0, 0
	for _, ch := range d.Changes {
		much := ""
		switch {
		case ch.Binary:
			much = fmt.Sprintf("binary, %s to %s", sizeOf(ch.Before), sizeOf(ch.After))
		case ch.Large:
			much = fmt.Sprintf("large, %s to %s", sizeOf(ch.Before), sizeOf(ch.After))
		case ch.Content || ch.Insertions+ch.Deletions > 0:
			much = fmt.Sprintf("+%d -%d", ch.Insertions, ch.Deletions)
		default:
			much = kindOf(ch.After, ch.Before)
			if ch.After == nil {
				much = ch.Before.Type
			}
		}
		insertions, deletions = insertions+ch.Insertions, deletions+ch.Deletions
		rows = append(rows, []string{ch.Kind, much, ch.Path})
	}
	if len(rows) == 0 {
		s.say("No file differs.\n")
		return nil
	}
	if err := s.table([]string{"CHANGE", "HOW MUCH", "PATH"}, rows); err != nil {
		return err
	}
	s.say("%d changed, %d lines added, %d removed\n", len(rows), insertions, deletions)
	return nil
}

func sizeOf(m *client.FileMeta) string {
	if m == nil || m.Type != "file" {
		return "nothing"
	}
	return bytesText(m.Size)
}
