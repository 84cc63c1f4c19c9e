package egress_test

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/caisson-dev/caisson/egress"
)

func TestCanonical(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"example.org":                  "example.org",
		"EXAMPLE.Org":                  "example.org",
		"example.org.":                 "example.org",
		"bücher.example":               "xn--bcher-kva.example",
		"BÜCHER.example":               "xn--bcher-kva.example",
		"xn--bcher-kva.example":        "xn--bcher-kva.example",
		"ｅｘａｍｐｌｅ.org":                  "example.org", // full-width letters
		"example。org":                  "example.org", // ideographic full stop
		"r3---sn-abc.example.com":      "r3---sn-abc.example.com",
		"_acme.example.com":            "_acme.example.com",
		"1.example":                    "1.example",
		"localhost":                    "localhost",
		strings.Repeat("a", 63) + ".x": strings.Repeat("a", 63) + ".x",
	} {
		got, err := egress.Canonical(in)
		if err != nil || got != want {
			t.Errorf("Canonical(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", ".example.org", "example.org..",
		"allowed.org\x00.evil.org", "example.org\x00", "example.org\r\n", "example .org", " example.org", "example.org\t",
		"user@evil.org", "allowed.org@evil.org", "example.org:80", "example.org/path", "example.org?x", "example.org#x",
		`example.org\`, "exa%6dple.org", "[::1]", "*.example.org", "-a.example", "a-.example",
		"127.0.0.1", "0177.0.0.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "127.1", "017700000001", "example.0x", "1.2.3.08",
		"::1", "fe80::1%eth0", "::ffff:1.2.3.4",
		strings.Repeat("a", 64) + ".x", strings.Repeat("abc.", 64) + "x", strings.Repeat("a", 5000),
		"xn--zzzzzzz--.example", "xn--a.example", "\xff\xfe.example", "a\u200d.example", "example.org\u0000",
	} {
		if got, err := egress.Canonical(in); err == nil {
			t.Errorf("Canonical(%q) = %q, want an error", in, got)
		}
	}
}

func TestParseHost(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"1.2.3.4": "1.2.3.4", "::ffff:1.2.3.4": "1.2.3.4", "2001:4860::8": "2001:4860::8",
	} {
		name, addr, err := egress.ParseHost(in)
		if err != nil || name != "" || addr.String() != want {
			t.Errorf("ParseHost(%q) = %q, %v, %v, want %s", in, name, addr, err, want)
		}
	}
	for _, in := range []string{"fe80::1%eth0", "0177.0.0.1", "0x7f.1", "2130706433", "1.2.3", "1.2.3.4.", "1.2.3.256"} {
		if name, addr, err := egress.ParseHost(in); err == nil {
			t.Errorf("ParseHost(%q) = %q, %v, want an error", in, name, addr)
		}
	}
}

func checkCanonical(t interface{ Fatalf(string, ...any) }, in string) {
	got, err := egress.Canonical(in)
	if err != nil {
		return
	}
	if again, err := egress.Canonical(got); err != nil || again != got {
		t.Fatalf("Canonical(%q) = %q, but Canonical of that = %q, %v", in, got, again, err)
	}
	if strings.Trim(got, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || len(got) > 253 || strings.HasSuffix(got, ".") {
		t.Fatalf("Canonical(%q) = %q is not canonical", in, got)
	}
	if _, err := netip.ParseAddr(got); err == nil {
		t.Fatalf("Canonical(%q) = %q is an address", in, got)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"example.org", "BÜCHER.x.", "xn--bcher-kva.x", "a\x00b", "0x7f.1", "。", "ß.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) { checkCanonical(t, s) })
}

func TestCanonicalProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		checkCanonical(t, rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-zA-Z0-9._üß-]{1,40}\.?`)).Draw(t, "name"))
	})
}

func TestSpecial(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9", "169.254.169.254",
		"172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1", "198.19.255.255", "224.0.0.1",
		"239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16",
		"::", "::1", "::2", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "fc00::1", "fd00:ec2::254",
		"fe80::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
		"2001::1", "2001:db8::1", "100::1", "5f00::1", "4000::1",
	} {
		if egress.Special(netip.MustParseAddr(s)) == "" {
			t.Errorf("Special(%s) = public", s)
		}
	}
	for _, s := range []string{"1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"} {
		if r := egress.Special(netip.MustParseAddr(s)); r != "" {
			t.Errorf("Special(%s) = %q, want public", s, r)
		}
	}
	if egress.Special(netip.Addr{}) == "" || egress.Special(netip.MustParseAddr("fe80::1%lo")) == "" {
		t.Error("an invalid address is public")
	}
}
