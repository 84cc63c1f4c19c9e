// Package terminal keeps what sandboxes print from driving the operator's
// terminal, and holds the few things the command line does with one: raw
// mode, size, tables.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text makes s safe for one cell of a table or one line of a log: every
// control, formatting and invalid character becomes a visible escape, line
// breaks too.
func Text(s string) string {
	clean := true
	for _, r := range s {
		if !printable(r) {
			clean = false
			break
		}
	}
	if clean && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 || !printable(r) {
			b.WriteString(visible(s[:n], r))
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// printable excludes C0, DEL, C1, bidirectional and other format controls,
// private-use characters and line separators.
func printable(r rune) bool {
	return unicode.IsPrint(r) || r == '\u00a0' || r == '\u3000'
}

// visible writes the bytes of one character as an escape.
func visible(raw string, r rune) string {
	switch {
	case raw == "\n":
		return `\n`
	case raw == "\r":
		return `\r`
	case raw == "\t":
		return `\t`
	case len(raw) == 1:
		return fmt.Sprintf(`\x%02x`, raw[0])
	case r > 0xffff:
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// maxColour bounds a colour sequence; a longer one is not one.
const maxColour = 64

// Writer passes program output to a terminal: text, line feed, tab, carriage
// return and colours (SGR sequences) as they are, everything else that a
// terminal acts on as a visible escape. Close before the terminal is used for
// anything else. It is not safe for concurrent use.
type Writer struct {
	w io.Writer
	// held is the beginning of a character or colour sequence whose end has
	// not come yet; never more than maxColour bytes.
	held     []byte
	coloured bool
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write implements io.Writer. It reports len(p) when the escaped text was
// written.
func (e *Writer) Write(p []byte) (int, error) {
	in := append(e.held, p...)
	var out []byte
	for len(in) > 0 {
		n, ok := e.next(in)
		if !ok {
			break
		}
		out = e.emit(out, in[:n])
		in = in[n:]
	}
	e.held = append([]byte(nil), in...)
	if _, err := e.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// next measures the first unit of in: a colour sequence, or one character.
// It reports false when more bytes are needed to know.
func (e *Writer) next(in []byte) (int, bool) {
	if in[0] != 0x1b {
		if !utf8.FullRune(in) {
			return 0, false
		}
		_, n := utf8.DecodeRune(in)
		return n, true
	}
	if len(in) == 1 {
		return 0, false
	}
	if in[1] != '[' {
		return 1, true
	}
	for i, c := range in[2:] {
		switch {
		case c == 'm':
			return i + 3, true
		case i+3 > maxColour, c != ';' && c != ':' && (c < '0' || c > '9'):
			return 1, true
		}
	}
	return 0, false
}

func (e *Writer) emit(out, unit []byte) []byte {
	if unit[0] == 0x1b && len(unit) > 1 {
		e.coloured = true
		return append(out, unit...)
	}
	r, n := utf8.DecodeRune(unit)
	switch {
	case r == '\n', r == '\t', r == '\r':
		return append(out, unit...)
	case r == utf8.RuneError && n == 1, !printable(r):
		return append(out, visible(string(unit), r)...)
	}
	return append(out, unit...)
}

// Close writes what was held back and ends colours. It does not close the
// underlying writer.
func (e *Writer) Close() error {
	var out []byte
	for _, c := range e.held {
		out = append(out, visible(string([]byte{c}), rune(c))...)
	}
	e.held = nil
	if e.coloured {
		out = append(out, "\x1b[0m"...)
		e.coloured = false
	}
	if len(out) == 0 {
		return nil
	}
	_, err := e.w.Write(out)
	return err
}
