package egress_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/egress"
)

func TestFromNetwork(t *testing.T) {
	t.Parallel()
	off, on := false, true
	name := func(h string) egress.Request {
		return egress.Request{Host: h, Addr: netip.MustParseAddr("9.9.9.9"), Port: 443}
	}
	ip := func(a string) egress.Request { return egress.Request{Addr: netip.MustParseAddr(a), Port: 443} }
	denying := egress.Server{Default: egress.Deny, Presets: []string{"pypi"}, Allow: []string{"own.org"}}
	open := egress.Server{Default: egress.Allow}
	tests := []struct {
		name   string
		n      egress.Network
		s      egress.Server
		allows []egress.Request
		denies []egress.Request
	}{
		{"empty is the server's default, denying", egress.Network{}, denying, []egress.Request{name("pypi.org"), name("own.org")}, []egress.Request{name("a.org"), ip("1.1.1.1")}},
		{"true is the server's default too", egress.Network{AllowInternet: &on}, denying, []egress.Request{name("pypi.org")}, []egress.Request{name("a.org")}},
		{"empty is the server's default, open", egress.Network{}, open, []egress.Request{name("a.org"), ip("1.1.1.1")}, nil},
		{"a server without default denies", egress.Network{}, egress.Server{}, nil, []egress.Request{name("a.org")}},
		{"false cuts the presets as well", egress.Network{AllowInternet: &off}, denying, nil, []egress.Request{name("pypi.org"), name("own.org"), ip("1.1.1.1")}},
		{"false cuts an open server", egress.Network{AllowInternet: &off}, open, nil, []egress.Request{name("a.org"), ip("1.1.1.1")}},
		{"allowOut widens what false cut", egress.Network{AllowInternet: &off, AllowOut: []string{"a.org"}}, open, []egress.Request{name("a.org")}, []egress.Request{name("b.org")}},
		{"allowOut widens a denying server", egress.Network{AllowOut: []string{"a.org", "*.b.org", "1.1.1.0/24"}}, denying, []egress.Request{name("a.org"), name("x.b.org"), ip("1.1.1.9"), name("pypi.org")}, []egress.Request{name("b.org"), ip("1.1.2.1")}},
		{"contract: names with all denied", egress.Network{AllowOut: []string{"a.org"}, DenyOut: []string{"0.0.0.0/0"}}, open, []egress.Request{name("a.org")}, []egress.Request{name("b.org"), ip("1.1.1.1")}},
		{"user deny beats presets", egress.Network{DenyOut: []string{"0.0.0.0/0"}}, denying, nil, []egress.Request{name("pypi.org")}},
		{"user allow beats user deny", egress.Network{AllowOut: []string{"1.1.1.1"}, DenyOut: []string{"1.1.0.0/16"}}, open, []egress.Request{ip("1.1.1.1"), ip("8.8.8.8")}, []egress.Request{ip("1.1.1.2")}},
		{"deny of an address hits names that lead there", egress.Network{DenyOut: []string{"9.9.9.9"}}, open, nil, []egress.Request{name("a.org")}},
		{"all traffic allowed", egress.Network{AllowOut: []string{"0.0.0.0/0"}}, denying, []egress.Request{name("a.org"), ip("1.1.1.1")}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := egress.FromNetwork(tt.n, tt.s)
			if err != nil {
				t.Fatal(err)
			}
			m := compile(t, p)
			for _, r := range tt.allows {
				if d := m.Decide(r); d.Verdict != egress.Allow {
					t.Errorf("Decide(%+v) = %+v, want allow", r, d)
				}
			}
			for _, r := range tt.denies {
				if d := m.Decide(r); d.Verdict != egress.Deny {
					t.Errorf("Decide(%+v) = %+v, want deny", r, d)
				}
				if r.Host != "" {
					if d := m.DecideName(r.Host); d.Verdict != egress.Deny && r.Addr != netip.MustParseAddr("9.9.9.9") {
						t.Errorf("DecideName(%s) = %+v, want deny", r.Host, d)
					}
				}
			}
		})
	}
}

func TestFromNetworkErrors(t *testing.T) {
	t.Parallel()
	open := egress.Server{Default: egress.Allow}
	for want, in := range map[string]struct {
		n egress.Network
		s egress.Server
	}{
		`network.allowOut[2]: "a b"`:        {egress.Network{AllowOut: []string{"1.1.1.1", "*", "a b"}}, egress.Server{}},
		`network.allowOut[0]: "a.org"`:      {egress.Network{AllowOut: []string{"a.org"}}, open},
		`network.allowOut[0]: "*"`:          {egress.Network{AllowOut: []string{"*"}}, open},
		`network.allowOut[0]: "1.2.3.4/33"`: {egress.Network{AllowOut: []string{"1.2.3.4/33"}}, open},
		`network.denyOut[1]: "a.org"`:       {egress.Network{DenyOut: []string{"1.1.1.1", "a.org"}}, open},
		`network.denyOut[0]: "*"`:           {egress.Network{DenyOut: []string{"*"}}, open},
		`network.denyOut[0]: "::/0"`:        {egress.Network{DenyOut: []string{"::/0"}}, open},
		`network.denyOut[0]: "0.0.0.0"`:     {egress.Network{DenyOut: []string{"0.0.0.0"}}, open},
		`network.denyOut[0]: "0.0.0.0/8"`:   {egress.Network{DenyOut: []string{"0.0.0.0/8"}}, open},
		`network.denyOut[0]: ""`:            {egress.Network{DenyOut: []string{""}}, open},
		`egress.presets[0]: "pip"`:          {egress.Network{}, egress.Server{Presets: []string{"pip"}}},
		`egress.allow[0]: "http://x"`:       {egress.Network{}, egress.Server{Allow: []string{"http://x"}}},
		`egress.default: "ask"`:             {egress.Network{}, egress.Server{Default: "ask"}},
		`network.allowOut: "5000"`:          {egress.Network{AllowOut: make([]string, 5000)}, egress.Server{}},
	} {
		_, err := egress.FromNetwork(in.n, in.s)
		if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("FromNetwork() = %v, want an invalid argument that starts with %s", err, want)
		}
	}
}

func TestCeilingPolicy(t *testing.T) {
	t.Parallel()
	s := egress.Server{Presets: []string{"pypi"}}
	p, err := s.CeilingPolicy([]string{"*.corp.org"}, []string{"secret.corp.org"})
	if err != nil {
		t.Fatal(err)
	}
	m := compile(t, p)
	for host, want := range map[string]egress.Verdict{
		"a.corp.org": egress.Allow, "secret.corp.org": egress.Deny, "pypi.org": egress.Allow, "a.org": egress.Deny,
	} {
		if d := m.Decide(egress.Request{Host: host}); d.Verdict != want {
			t.Errorf("Decide(%s) = %+v, want %s", host, d, want)
		}
	}
	p, err = s.CeilingPolicy([]string{"*"}, nil)
	if err != nil || p.Default != egress.Allow {
		t.Errorf("CeilingPolicy(*) = %+v, %v", p, err)
	}
	if p, err = s.CeilingPolicy(nil, nil); err != nil || p.Default != egress.Deny {
		t.Errorf("CeilingPolicy() = %+v, %v, want a denying one", p, err)
	}
	if _, err = s.CeilingPolicy([]string{"a b"}, nil); err == nil {
		t.Error("CeilingPolicy(bad host) succeeded")
	}
}

func TestPresetsCompile(t *testing.T) {
	t.Parallel()
	for _, name := range egress.PresetNames() {
		p, err := egress.FromNetwork(egress.Network{}, egress.Server{Presets: []string{name}})
		if err != nil {
			t.Fatal(err)
		}
		compile(t, p)
	}
	if _, ok := egress.Preset("nope"); ok {
		t.Error("there is a preset nope")
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	p, err := egress.FromNetwork(egress.Network{}, egress.Server{Presets: []string{"pypi"}})
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"PyPI.org":        "allow pypi.org:443: allowed by a rule (preset:pypi): pypi.org files.pythonhosted.org",
		"evil.org":        "deny evil.org:443: no rule allows it",
		"169.254.169.254": "deny 169.254.169.254:443: link-local or metadata address, denied unless the server's egress.allow_private names it",
	} {
		e, err := egress.Explain(p, in, 443)
		if err != nil || e.String() != want {
			t.Errorf("Explain(%s) = %q, %v, want %q", in, e, err, want)
		}
	}
	e, _ := egress.Explain(p, "evil.org", 443)
	if e.Hint != "--allow evil.org" {
		t.Errorf("Hint = %q", e.Hint)
	}
	if _, err := egress.Explain(p, "a b", 1); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("Explain(bad host) = %v", err)
	}
}
