package clientaddr_test

import (
	"testing"

	"github.com/caisson-dev/caisson/internal/clientaddr"
)

func TestKey(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"192.0.2.7:4000":          "192.0.2.7",
		"[::ffff:192.0.2.7]:4000": "192.0.2.7",
		"[2001:db8::1]:4000":      "2001:db8::/64",
		"[2001:db8::ffff]:1":      "2001:db8::/64",
		"[fe80::1%eth0]:1":        "fe80::/64",
		"@":                       "@",
	} {
		if got := clientaddr.Key(in); got != want {
			t.Errorf("Key(%q) = %q, want %q", in, got, want)
		}
	}
}
