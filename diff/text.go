package diff

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// context is how many unchanged lines are shown around a change.
	contextLines = 3
	// maxEdits bounds the search for the shortest edit; what differs more is
	// shown as replaced as a whole.
	maxEdits = 1500
	maxLines = 50_000
)

// isBinary says whether a file is shown as text: UTF-8 without NUL bytes.
func isBinary(data []byte) bool {
	return bytes.IndexByte(data, 0) >= 0 || !utf8.Valid(data)
}

// op is a run of lines that are kept (' '), deleted ('-') or inserted ('+').
type op struct {
	kind byte
	line string
}

// unified is the body of a unified diff.
func unified(old, now []byte) (body string, insertions, deletions int) {
	ops := edits(lines(old), lines(now))
	var out strings.Builder
	a, b := 1, 1 // numbers of the next lines
	for i := 0; i < len(ops); {
		if ops[i].kind == ' ' {
			i, a, b = i+1, a+1, b+1
			continue
		}
		// A hunk: from some lines before the change to some behind the last one
		// that is near.
		first := max(i-contextLines, 0)
		for first < i && ops[first].kind != ' ' {
			first++ // cannot be: what lies before was kept
		}
		end, kept := i, 0
		for j := i; j < len(ops) && kept <= 2*contextLines; j++ {
			if ops[j].kind == ' ' {
				kept++
				continue
			}
			kept, end = 0, j+1
		}
		last := min(end+contextLines, len(ops))
		hunk := ops[first:last]
		ac, bc := 0, 0
		for _, o := range hunk {
			if o.kind != '+' {
				ac++
			}
			if o.kind != '-' {
				bc++
			}
		}
		fmt.Fprintf(&out, "@@ -%s +%s @@\n", extent(a-(i-first), ac), extent(b-(i-first), bc))
		for k, o := range hunk {
			switch o.kind {
			case '+':
				insertions++
			case '-':
				deletions++
			}
			out.WriteByte(o.kind)
			out.WriteString(o.line)
			if !strings.HasSuffix(o.line, "\n") {
				out.WriteString("\n\\ No newline at end of file\n")
			}
			if k+first >= i { // those before were counted when they were passed
				if o.kind != '+' {
					a++
				}
				if o.kind != '-' {
					b++
				}
			}
		}
		i = last
	}
	return out.String(), insertions, deletions
}

// extent is the begin and length of a hunk on one side.
func extent(begin, count int) string {
	switch count {
	case 0:
		return fmt.Sprintf("%d,0", begin-1)
	case 1:
		return fmt.Sprint(begin)
	}
	return fmt.Sprintf("%d,%d", begin, count)
}

func lines(data []byte) []string {
	var out []string
	for line := range strings.Lines(string(data)) {
		out = append(out, line)
	}
	return out
}

// edits turns a into b by keeping, deleting and inserting lines.
func edits(a, b []string) []op {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	out := make([]op, 0, len(a)+len(b)-head-tail)
	for _, line := range a[:head] {
		out = append(out, op{' ', line})
	}
	out = append(out, middle(a[head:len(a)-tail], b[head:len(b)-tail])...)
	for _, line := range a[len(a)-tail:] {
		out = append(out, op{' ', line})
	}
	return out
}

// middle is Myers' greedy search for the shortest edit.
func middle(a, b []string) []op {
	if len(a) == 0 || len(b) == 0 || len(a)+len(b) > maxLines {
		return replaced(a, b)
	}
	// reach[d] is, for each diagonal k = x - y, how far x comes with d edits.
	most := min(len(a)+len(b), maxEdits)
	far := make([]int, 2*most+3) // of diagonal k at k+most+1
	v := func(k int) *int { return &far[k+most+1] }
	var trace [][]int
	for d := 0; d <= most; d++ {
		row := make([]int, 2*d+1)
		for k := -d; k <= d; k += 2 {
			x := 0
			if k == -d || (k != d && *v(k - 1) < *v(k + 1)) {
				x = *v(k + 1)
			} else {
				x = *v(k - 1) + 1
			}
			y := x - k
			for x < len(a) && y < len(b) && a[x] == b[y] {
				x, y = x+1, y+1
			}
			*v(k) = x
			row[k+d] = x
			if x >= len(a) && y >= len(b) {
				return retrace(a, b, append(trace, row))
			}
		}
		trace = append(trace, row)
	}
	return replaced(a, b)
}

func replaced(a, b []string) []op {
	var out []op
	for _, line := range a {
		out = append(out, op{'-', line})
	}
	for _, line := range b {
		out = append(out, op{'+', line})
	}
	return out
}

// retrace walks the search back from its end.
func retrace(a, b []string, trace [][]int) []op {
	var back []op
	x, y := len(a), len(b)
	for d := len(trace) - 1; d > 0; d-- {
		before := trace[d-1]
		at := func(k int) int {
			if k < -(d-1) || k > d-1 {
				return -1
			}
			return before[k+d-1]
		}
		k := x - y
		from := k - 1
		if k == -d || (k != d && at(k-1) < at(k+1)) {
			from = k + 1
		}
		px := at(from)
		py := px - from
		for x > px && y > py && x > 0 && y > 0 && !(from == k+1 && x == px && y == py+1) && !(from == k-1 && x == px+1 && y == py) {
			x, y = x-1, y-1
			back = append(back, op{' ', a[x]})
		}
		if from == k+1 {
			y--
			back = append(back, op{'+', b[y]})
		} else {
			x--
			back = append(back, op{'-', a[x]})
		}
	}
	for x > 0 && y > 0 {
		x, y = x-1, y-1
		back = append(back, op{' ', a[x]})
	}
	out := make([]op, len(back))
	for i, o := range back {
		out[len(back)-1-i] = o
	}
	return out
}
