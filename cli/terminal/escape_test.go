package terminal_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/caisson-dev/caisson/cli/terminal"
)

func TestText(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"plain":               "plain",
		"zażółć 漢字 🎉":         "zażółć 漢字 🎉",
		"a\nb\tc\rd":          `a\nb\tc\rd`,
		"\x1b[31mred":         `\x1b[31mred`,
		"\x1b]0;title\x07":    `\x1b]0;title\x07`,
		"\u009b31m":           `\u009b31m`,
		"\x9b31m":             `\x9b31m`,
		"abc\u202egnp.exe":    `abc\u202egnp.exe`,
		"zero\u200bwidth":     `zero\u200bwidth`,
		"\u2028":              `\u2028`,
		"\x00\x7f":            `\x00\x7f`,
		"\U000e0041":          `\U000e0041`,
		"bad \xff utf8 \xc3(": `bad \xff utf8 \xc3(`,
	}
	for in, want := range tests {
		if got := terminal.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}

func escape(t *testing.T, chunks ...string) string {
	t.Helper()
	var out bytes.Buffer
	w := terminal.NewWriter(&out)
	for _, c := range chunks {
		if n, err := w.Write([]byte(c)); err != nil || n != len(c) {
			t.Fatalf("Write(%q) = %d, %v", c, n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestWriter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		in   []string
		want string
	}{
		{"text", []string{"a\tb\r\n漢"}, "a\tb\r\n漢"},
		{"colour", []string{"\x1b[1;31mred\x1b[0m"}, "\x1b[1;31mred\x1b[0m\x1b[0m"},
		{"colour in pieces", []string{"\x1b", "[38:5", ";1", "mred"}, "\x1b[38:5;1mred\x1b[0m"},
		{"cursor", []string{"\x1b[2J\x1b[H"}, `\x1b[2J\x1b[H`},
		{"title", []string{"\x1b]0;x\x07"}, `\x1b]0;x\x07`},
		{"clipboard in pieces", []string{"\x1b", "]52;c;AAA=", "\x1b", "\\"}, `\x1b]52;c;AAA=\x1b\`},
		{"device control", []string{"\x1bP1$r0m"}, `\x1bP1$r0m`},
		{"private", []string{"\x1b[?1049h\x1b[>4;2m"}, `\x1b[?1049h\x1b[>4;2m`},
		{"c1", []string{"\u009b2J", "\x9b2J"}, `\u009b2J\x9b2J`},
		{"backspace and bell", []string{"a\b\a"}, `a\x08\x07`},
		{"split character", []string{"\xe6\xbc", "\xa2"}, "漢"},
		{"unfinished", []string{"a\x1b[3"}, `a\x1b\x5b\x33`},
		{"escape at the end", []string{"a\x1b"}, `a\x1b`},
		{"endless colour", []string{"\x1b[" + strings.Repeat("1;", 50) + "m"}, `\x1b[` + strings.Repeat("1;", 50) + "m"},
		{"bidi", []string{"\u202e"}, `\u202e`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := escape(t, tt.in...); got != tt.want {
				t.Errorf("Writer(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

var sgr = regexp.MustCompile(`\x1b\[[0-9;:]*m`)

func FuzzWriter(f *testing.F) {
	for _, s := range []string{"a", "\x1b[31m", "\x1b]0;x\x07", "\x9b", "\u009b", "\xe6\xbc\xa2", "\x1b[\x1b[m", "\u202e"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, in []byte, cut int) {
		if cut < 0 || cut > len(in) {
			cut = len(in) / 2
		}
		got := escape(t, string(in[:cut]), string(in[cut:]))
		if whole := escape(t, string(in)); whole != got {
			t.Fatalf("split at %d changes the output: %q, %q", cut, got, whole)
		}
		if !utf8.ValidString(got) {
			t.Fatalf("output is not UTF-8: %q", got)
		}
		for _, r := range sgr.ReplaceAllString(got, "") {
			if r != '\n' && r != '\r' && r != '\t' && (r < 0x20 || (r >= 0x7f && r < 0xa0)) {
				t.Fatalf("control character %U in %q from %q", r, got, in)
			}
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add("a\x1b[31m")
	f.Fuzz(func(t *testing.T, in string) {
		got := terminal.Text(in)
		for _, r := range got {
			if r < 0x20 || (r >= 0x7f && r < 0xa0) {
				t.Fatalf("control character %U in %q from %q", r, got, in)
			}
		}
	})
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := terminal.Table(&out, []string{"NAME", "STATE"}, [][]string{{"漢字\x1b[2J", "running"}, {"b", "killed"}}); err != nil {
		t.Fatal(err)
	}
	want := "NAME         STATE\n漢字\\x1b[2J  running\nb            killed\n"
	if out.String() != want {
		t.Errorf("Table = %q, want %q", out.String(), want)
	}
}
