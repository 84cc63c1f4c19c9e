package terminal

import (
	"fmt"
	"io"
	"strings"

	"charm.land/lipgloss/v2"
)

// Table writes rows under headings in aligned columns. Cells are made safe
// with Text; nothing is cut, so that ids can be copied.
func Table(w io.Writer, headings []string, rows [][]string) error {
	widths := make([]int, len(headings))
	safe := make([][]string, 0, len(rows)+1)
	safe = append(safe, headings)
	for _, r := range rows {
		cells := make([]string, len(headings))
		for i := range min(len(r), len(cells)) {
			cells[i] = Text(r[i])
		}
		safe = append(safe, cells)
	}
	for _, r := range safe {
		for i, c := range r {
			widths[i] = max(widths[i], lipgloss.Width(c))
		}
	}
	heading := lipgloss.NewStyle().Bold(true)
	colour := Is(w)
	for n, r := range safe {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c)
			if i < len(r)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-lipgloss.Width(c)+2))
			}
		}
		text := strings.TrimRight(line.String(), " ")
		if n == 0 && colour {
			text = heading.Render(text)
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}
