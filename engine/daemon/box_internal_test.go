package daemon

import (
	"strings"
	"testing"
)

func TestCrashLine(t *testing.T) {
	t.Parallel()
	const warning = "W1121 16:12:56.570270       6 membarrier.go:48] membarrier() failed: function not implemented\n"
	long := strings.Repeat("x", 2000)
	for _, tc := range []struct{ name, log, want string }{
		{"nothing", "", ""},
		{"a warning", warning, ""},
		{"a panic", "panic: out of hope\n\ngoroutine 1 [running]:\n", "panic: out of hope"},
		{"a panic after warnings", warning + "\n" + warning + "fatal error: all asleep\n", "fatal error: all asleep"},
		{"a long line", long, long[:512]},
	} {
		if got := crashLine(strings.NewReader(tc.log)); got != tc.want {
			t.Errorf("%s: crashLine() = %q, want %q", tc.name, got, tc.want)
		}
	}
}
