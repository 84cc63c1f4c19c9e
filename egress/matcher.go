package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Limits of one policy.
const (
	maxRules = 1024
	maxHosts = 16384
)

// Matcher is a compiled policy. It is immutable and safe for concurrent use.
type Matcher struct {
	def   Verdict
	rules []rule
}

type rule struct {
	verdict  Verdict
	note     string
	ports    []uint16
	any      bool // matches every destination
	anyName  bool // matches every name
	names    map[string]struct{}
	suffixes map[string]struct{} // of wildcards, without "*."
	prefixes []netip.Prefix
}

// Compile checks a policy and makes it fast to ask. Errors are
// [errdefs.ErrInvalidArgument] and name the field and the bad value.
func Compile(p Policy) (*Matcher, error) {
	m := &Matcher{def: p.Default, rules: make([]rule, 0, len(p.Rules))}
	switch p.Default {
	case Allow, Deny:
	case "":
		m.def = Deny
	default:
		return nil, invalid("default", string(p.Default), errors.New("want allow or deny"))
	}
	if len(p.Rules) > maxRules {
		return nil, invalid("rules", fmt.Sprint(len(p.Rules)), fmt.Errorf("at most %d rules", maxRules))
	}
	hosts := 0
	for i, r := range p.Rules {
		field := fmt.Sprintf("rules[%d]", i)
		if r.Verdict != Allow && r.Verdict != Deny {
			return nil, invalid(field+".verdict", string(r.Verdict), errors.New("want allow or deny"))
		}
		if hosts += len(r.Hosts); hosts > maxHosts {
			return nil, invalid(field+".hosts", fmt.Sprint(hosts), fmt.Errorf("at most %d hosts in a policy", maxHosts))
		}
		if slices.Contains(r.Ports, 0) {
			return nil, invalid(field+".ports", "0", errors.New("want 1 to 65535"))
		}
		c := rule{
			verdict: r.Verdict, note: r.Note, ports: slices.Clone(r.Ports), any: len(r.Hosts) == 0,
			names: map[string]struct{}{}, suffixes: map[string]struct{}{},
		}
		for j, h := range r.Hosts {
			t, err := parseTarget(h)
			if err != nil {
				return nil, invalid(fmt.Sprintf("%s.hosts[%d]", field, j), h, err)
			}
			c.add(t)
		}
		m.rules = append(m.rules, c)
	}
	return m, nil
}

func invalid(field, value string, err error) error {
	if len(value) > 300 {
		value = value[:300] + "…"
	}
	return fmt.Errorf("%s: %q: %w: %w", field, value, err, errdefs.ErrInvalidArgument)
}

func (r *rule) add(t target) {
	switch {
	case t.everything():
		r.any = true
	case t.prefix.IsValid():
		r.prefixes = append(r.prefixes, t.prefix)
	case t.name == "":
		r.anyName = true
	case t.wildcard:
		r.suffixes[t.name] = struct{}{}
	default:
		r.names[t.name] = struct{}{}
	}
}

// target is one entry of a rule's host list: a prefix, or a name, or any name
// (name is empty).
type target struct {
	prefix   netip.Prefix
	name     string
	wildcard bool
}

// everything reports whether the target is 0.0.0.0/0, the way to write "all
// traffic": names too, whatever kind of address they have.
func (t target) everything() bool {
	return t.prefix.IsValid() && t.prefix.Bits() == 0 && t.prefix.Addr().Is4()
}

func (t target) isName() bool { return !t.prefix.IsValid() }

func parseTarget(s string) (target, error) {
	if s == "*" {
		return target{}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return target{}, errors.New("not a valid CIDR")
		}
		p = p.Masked()
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return target{}, errors.New("not a valid CIDR")
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p.Addr().IsUnspecified() && (p.Bits() != 0 || !p.Addr().Is4()) {
			return target{}, errors.New("the unspecified address is allowed only as 0.0.0.0/0")
		}
		return target{prefix: p}, nil
	}
	if rest, ok := strings.CutPrefix(s, "*."); ok {
		name, err := Canonical(rest)
		return target{name: name, wildcard: true}, err
	}
	name, addr, err := ParseHost(s)
	if err != nil {
		return target{}, err
	}
	if addr.IsValid() {
		if addr.IsUnspecified() {
			return target{}, errors.New("the unspecified address is allowed only as 0.0.0.0/0")
		}
		return target{prefix: netip.PrefixFrom(addr, addr.BitLen())}, nil
	}
	return target{name: name}, nil
}

// Decide judges one connection. Host rules look at r.Host, address rules at
// r.Addr; a zero field matches no rule of its kind. It is pure.
func (m *Matcher) Decide(r Request) Decision {
	addr := r.Addr
	if addr.IsValid() {
		addr = Unwrap(addr)
	}
	for i := range m.rules {
		c := &m.rules[i]
		if (len(c.ports) == 0 || slices.Contains(c.ports, r.Port)) && (c.any || c.matchName(r.Host) || c.matchAddr(addr)) {
			return m.decided(i)
		}
	}
	return m.byDefault()
}

// DecideName judges a name before its address and port are known, for the
// resolver: it allows a name that some connection could be allowed to.
func (m *Matcher) DecideName(host string) Decision {
	for i := range m.rules {
		c := &m.rules[i]
		if c.verdict == Deny && len(c.ports) > 0 {
			continue // other ports may still be allowed
		}
		if c.any || c.matchName(host) {
			return m.decided(i)
		}
	}
	return m.byDefault()
}

// Open reports whether d was decided without looking at the destination: by
// the default or by a rule that matches everything.
func (m *Matcher) Open(d Decision) bool {
	return d.Rule < 0 || d.Rule < len(m.rules) && m.rules[d.Rule].any && len(m.rules[d.Rule].ports) == 0
}

func (m *Matcher) decided(i int) Decision {
	c := &m.rules[i]
	reason := "denied by a rule"
	if c.verdict == Allow {
		reason = "allowed by a rule"
	}
	if c.note != "" {
		reason += " (" + c.note + ")"
	}
	return Decision{Verdict: c.verdict, Rule: i, Reason: reason}
}

func (m *Matcher) byDefault() Decision {
	if m.def == Allow {
		return Decision{Verdict: Allow, Rule: -1, Reason: "allowed by default"}
	}
	return Decision{Verdict: Deny, Rule: -1, Reason: "no rule allows it"}
}

func (r *rule) matchName(host string) bool {
	if host == "" {
		return false
	}
	if r.anyName {
		return true
	}
	if _, ok := r.names[host]; ok {
		return true
	}
	if len(r.suffixes) == 0 {
		return false
	}
	for _, rest, ok := strings.Cut(host, "."); ok; _, rest, ok = strings.Cut(rest, ".") {
		if _, found := r.suffixes[rest]; found {
			return true
		}
	}
	return false
}

func (r *rule) matchAddr(a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	return slices.ContainsFunc(r.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
