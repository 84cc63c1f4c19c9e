package egress_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"pgregory.net/rapid"

	"github.com/caisson-dev/caisson/egress"
)

func allow(hosts ...string) egress.Rule { return egress.Rule{Hosts: hosts, Verdict: egress.Allow} }
func deny(hosts ...string) egress.Rule  { return egress.Rule{Hosts: hosts, Verdict: egress.Deny} }

func compile(t testing.TB, p egress.Policy) *egress.Matcher {
	t.Helper()
	m, err := egress.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestDecide(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	tests := []struct {
		name    string
		policy  egress.Policy
		request egress.Request
		want    egress.Verdict
		rule    int
	}{
		{"zero policy denies", egress.Policy{}, egress.Request{Host: "a.org"}, egress.Deny, -1},
		{"default allow", egress.Policy{Default: egress.Allow}, egress.Request{Host: "a.org"}, egress.Allow, -1},
		{"exact", egress.Policy{Rules: []egress.Rule{allow("a.org")}}, egress.Request{Host: "a.org"}, egress.Allow, 0},
		{"exact is no suffix", egress.Policy{Rules: []egress.Rule{allow("a.org")}}, egress.Request{Host: "x.a.org"}, egress.Deny, -1},
		{"exact is no part", egress.Policy{Rules: []egress.Rule{allow("a.org")}}, egress.Request{Host: "xa.org"}, egress.Deny, -1},
		{"case of the rule", egress.Policy{Rules: []egress.Rule{allow("A.Org.")}}, egress.Request{Host: "a.org"}, egress.Allow, 0},
		{"wildcard", egress.Policy{Rules: []egress.Rule{allow("*.a.org")}}, egress.Request{Host: "x.a.org"}, egress.Allow, 0},
		{"wildcard deep", egress.Policy{Rules: []egress.Rule{allow("*.a.org")}}, egress.Request{Host: "y.x.a.org"}, egress.Allow, 0},
		{"wildcard not apex", egress.Policy{Rules: []egress.Rule{allow("*.a.org")}}, egress.Request{Host: "a.org"}, egress.Deny, -1},
		{"wildcard not part", egress.Policy{Rules: []egress.Rule{allow("*.a.org")}}, egress.Request{Host: "xa.org"}, egress.Deny, -1},
		{"star is any name", egress.Policy{Rules: []egress.Rule{allow("*")}}, egress.Request{Host: "q.x"}, egress.Allow, 0},
		{"star is no address", egress.Policy{Rules: []egress.Rule{allow("*")}}, egress.Request{Addr: addr("1.1.1.1")}, egress.Deny, -1},
		{"address", egress.Policy{Rules: []egress.Rule{allow("1.1.1.1")}}, egress.Request{Addr: addr("1.1.1.1")}, egress.Allow, 0},
		{"cidr", egress.Policy{Rules: []egress.Rule{allow("1.1.0.0/16")}}, egress.Request{Addr: addr("1.1.9.1")}, egress.Allow, 0},
		{"cidr judges the upstream address of a name", egress.Policy{Default: egress.Allow, Rules: []egress.Rule{deny("1.1.0.0/16")}}, egress.Request{Host: "a.org", Addr: addr("1.1.9.1")}, egress.Deny, 0},
		{"mapped address", egress.Policy{Default: egress.Allow, Rules: []egress.Rule{deny("1.1.0.0/16")}}, egress.Request{Addr: addr("::ffff:1.1.9.1")}, egress.Deny, 0},
		{"nat64 address", egress.Policy{Default: egress.Allow, Rules: []egress.Rule{deny("1.1.0.0/16")}}, egress.Request{Addr: addr("64:ff9b::101:901")}, egress.Deny, 0},
		{"mapped rule", egress.Policy{Rules: []egress.Rule{allow("::ffff:1.1.0.0/112")}}, egress.Request{Addr: addr("1.1.9.1")}, egress.Allow, 0},
		{"first wins", egress.Policy{Rules: []egress.Rule{deny("a.org"), allow("*")}}, egress.Request{Host: "a.org"}, egress.Deny, 0},
		{"all traffic covers names", egress.Policy{Default: egress.Allow, Rules: []egress.Rule{deny("0.0.0.0/0")}}, egress.Request{Host: "a.org"}, egress.Deny, 0},
		{"all traffic covers ipv6", egress.Policy{Default: egress.Allow, Rules: []egress.Rule{deny("0.0.0.0/0")}}, egress.Request{Addr: addr("2606::1")}, egress.Deny, 0},
		{"no hosts is everything", egress.Policy{Rules: []egress.Rule{{Verdict: egress.Allow}}}, egress.Request{Addr: addr("1.1.1.1")}, egress.Allow, 0},
		{"port", egress.Policy{Rules: []egress.Rule{{Hosts: []string{"a.org"}, Ports: []uint16{443}, Verdict: egress.Allow}}}, egress.Request{Host: "a.org", Port: 443}, egress.Allow, 0},
		{"other port", egress.Policy{Rules: []egress.Rule{{Hosts: []string{"a.org"}, Ports: []uint16{443}, Verdict: egress.Allow}}}, egress.Request{Host: "a.org", Port: 80}, egress.Deny, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := compile(t, tt.policy).Decide(tt.request)
			if got.Verdict != tt.want || got.Rule != tt.rule || got.Reason == "" {
				t.Errorf("Decide(%+v) = %+v, want %s by rule %d", tt.request, got, tt.want, tt.rule)
			}
		})
	}
}

func TestDecideName(t *testing.T) {
	t.Parallel()
	m := compile(t, egress.Policy{Rules: []egress.Rule{
		{Hosts: []string{"d.org"}, Ports: []uint16{25}, Verdict: egress.Deny},
		{Hosts: []string{"a.org", "d.org"}, Ports: []uint16{443}, Verdict: egress.Allow},
		allow("1.2.3.0/24"),
	}})
	for host, want := range map[string]egress.Verdict{"a.org": egress.Allow, "d.org": egress.Allow, "b.org": egress.Deny} {
		if got := m.DecideName(host); got.Verdict != want {
			t.Errorf("DecideName(%s) = %+v, want %s", host, got, want)
		}
	}
	closed := compile(t, egress.Policy{Default: egress.Allow, Rules: []egress.Rule{allow("a.org"), deny("0.0.0.0/0")}})
	if d := closed.DecideName("b.org"); d.Verdict != egress.Deny {
		t.Errorf("DecideName under a deny of all traffic = %+v: DNS would leak", d)
	}
	if !closed.Open(closed.DecideName("b.org")) || closed.Open(closed.DecideName("a.org")) {
		t.Error("Open() does not tell the deny of everything from a named rule")
	}
}

func TestCompileErrors(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]egress.Policy{
		`default: "ask"`:                 {Default: "ask"},
		`rules[0].verdict: ""`:           {Rules: []egress.Rule{{}}},
		`rules[1].hosts[0]: "a b"`:       {Rules: []egress.Rule{allow("a.org"), allow("a b")}},
		`rules[0].hosts[1]: "1.2.3.4/x"`: {Rules: []egress.Rule{allow("a.org", "1.2.3.4/x")}},
		`rules[0].hosts[0]: "*.*.x"`:     {Rules: []egress.Rule{allow("*.*.x")}},
		`rules[0].hosts[0]: "a*.x"`:      {Rules: []egress.Rule{allow("a*.x")}},
		`rules[0].hosts[0]: "0.0.0.0"`:   {Rules: []egress.Rule{allow("0.0.0.0")}},
		`rules[0].hosts[0]: "0x7f.1"`:    {Rules: []egress.Rule{allow("0x7f.1")}},
		`rules[0].ports: "0"`:            {Rules: []egress.Rule{{Ports: []uint16{0}, Verdict: egress.Deny}}},
		`rules: "2000"`:                  {Rules: slices.Repeat([]egress.Rule{allow("a.org")}, 2000)},
	} {
		_, err := egress.Compile(p)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Compile() = %v, want an invalid argument that starts with %s", err, want)
		}
	}
}

// A rule list means the same as asking its rules one by one, and a deny of a
// host in front of any policy denies it whatever follows.
func TestDecideProperties(t *testing.T) {
	t.Parallel()
	host := rapid.StringMatching(`[ab]\.[cd]\.(org|net)`)
	entry := rapid.OneOf(host, rapid.Map(host, func(h string) string { return "*" + h[1:] }), rapid.SampledFrom([]string{"*", "1.2.0.0/16", "1.2.3.4", "0.0.0.0/0"}))
	rules := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) egress.Rule {
		return egress.Rule{
			Hosts:   rapid.SliceOfN(entry, 0, 3).Draw(t, "hosts"),
			Ports:   rapid.SliceOfN(rapid.Uint16Range(1, 3), 0, 2).Draw(t, "ports"),
			Verdict: rapid.SampledFrom([]egress.Verdict{egress.Allow, egress.Deny}).Draw(t, "verdict"),
		}
	}), 0, 5)
	rapid.Check(t, func(t *rapid.T) {
		p := egress.Policy{Default: rapid.SampledFrom([]egress.Verdict{egress.Allow, egress.Deny}).Draw(t, "default"), Rules: rules.Draw(t, "rules")}
		r := egress.Request{Host: host.Draw(t, "host"), Addr: netip.AddrFrom4([4]byte{1, 2, rapid.Byte().Draw(t, "c"), 4}), Port: rapid.Uint16Range(1, 3).Draw(t, "port")}
		m, err := egress.Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		want := p.Default
		for _, rule := range p.Rules {
			one, err := egress.Compile(egress.Policy{Rules: []egress.Rule{rule}})
			if err != nil {
				t.Fatal(err)
			}
			if one.Decide(r).Rule == 0 {
				want = rule.Verdict
				break
			}
		}
		got := m.Decide(r)
		if got.Verdict != want {
			t.Fatalf("Decide(%+v) = %+v, want %s", r, got, want)
		}
		// The resolver never refuses a name that a connection may have, as
		// far as names decide: it would break allowed hosts.
		if got.Verdict == egress.Allow && m.Decide(egress.Request{Host: r.Host, Port: r.Port}).Verdict == egress.Allow && m.DecideName(r.Host).Verdict != egress.Allow {
			t.Fatalf("%+v is allowed, its name is not", r)
		}
		p.Rules = append([]egress.Rule{deny(r.Host)}, p.Rules...)
		if d := compileRapid(t, p).Decide(r); d.Verdict != egress.Deny {
			t.Fatalf("a deny in front gave %+v", d)
		}
	})
}

func compileRapid(t *rapid.T, p egress.Policy) *egress.Matcher {
	m, err := egress.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func FuzzDecide(f *testing.F) {
	f.Add("*.example.org", "www.example.org", []byte{1, 2, 3, 4})
	f.Add("10.0.0.0/8", "", []byte{10, 2, 3, 4})
	f.Fuzz(func(t *testing.T, pattern, host string, ip []byte) {
		m, err := egress.Compile(egress.Policy{Rules: []egress.Rule{allow(pattern)}})
		if err != nil {
			return
		}
		a, _ := netip.AddrFromSlice(ip)
		d := m.Decide(egress.Request{Host: host, Addr: a})
		if (d.Verdict == egress.Allow) != (d.Rule == 0) {
			t.Errorf("Decide(%q, %q, %v) = %+v", pattern, host, a, d)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	p, err := egress.FromNetwork(egress.Network{}, egress.Server{Presets: egress.PresetNames()})
	if err != nil {
		b.Fatal(err)
	}
	m := compile(b, p)
	r := egress.Request{Host: "files.pythonhosted.org", Addr: netip.MustParseAddr("151.101.0.223"), Port: 443}
	for b.Loop() {
		m.Decide(r)
	}
}
