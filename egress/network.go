package egress

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Server is what the operator's configuration says about every sandbox.
type Server struct {
	// Default is the verdict for destinations that nothing names.
	Default Verdict
	// Presets and Allow are what every sandbox may reach, unless its own
	// configuration turns the network off.
	Presets []string
	Allow   []string
}

// Network is the egress part of a sandbox's network configuration as the user
// gave it (E2B contract §2.5).
type Network struct {
	// AllowInternet: only a pointer to false means something; nil and true
	// both mean the server's default, because SDKs differ in what they send
	// when the user says nothing.
	AllowInternet *bool
	AllowOut      []string
	DenyOut       []string
}

const maxEntries = 1000

var errNeedsDenyAll = errors.New(`a name here has no effect unless all other traffic is denied: add "0.0.0.0/0" to network.denyOut`)

// FromNetwork compiles the user's and the operator's words into one policy, in
// this order: allowOut, denyOut, nothing more when AllowInternet is false, the
// server's own allow list and presets, the server's default. So a user's allow
// beats a user's deny, and both beat the default. What no policy can open
// (private addresses, the server's ceiling) is not part of it; the gateway
// enforces that.
//
// allowOut may name hosts when everything else is denied anyway: by
// "0.0.0.0/0" in denyOut, as the contract demands, by AllowInternet false, or
// because the server denies by default. denyOut takes addresses only. An empty
// Network gives the server's default. Errors name field and value.
func FromNetwork(n Network, s Server) (Policy, error) {
	p := Policy{Version: 1, Default: s.Default}
	if s.Default == "" {
		p.Default = Deny
	}
	if p.Default != Allow && p.Default != Deny {
		return Policy{}, invalid("egress.default", string(s.Default), errors.New("want allow or deny"))
	}
	off := n.AllowInternet != nil && !*n.AllowInternet
	deny, all, err := denied(n.DenyOut)
	if err != nil {
		return Policy{}, err
	}
	restricted := all || off || p.Default == Deny
	if len(n.AllowOut) > maxEntries {
		return Policy{}, invalid("network.allowOut", fmt.Sprint(len(n.AllowOut)), fmt.Errorf("at most %d entries", maxEntries))
	}
	for i, h := range n.AllowOut {
		t, err := parseTarget(h)
		if err == nil && t.isName() && !restricted {
			err = errNeedsDenyAll
		}
		if err != nil {
			return Policy{}, invalid(fmt.Sprintf("network.allowOut[%d]", i), h, err)
		}
	}
	if len(n.AllowOut) > 0 {
		p.Rules = append(p.Rules, Rule{Hosts: slices.Clone(n.AllowOut), Verdict: Allow, Note: "allowOut"})
	}
	if len(deny) > 0 {
		p.Rules = append(p.Rules, Rule{Hosts: deny, Verdict: Deny, Note: "denyOut"})
	}
	if off {
		p.Default = Deny
		p.Rules = append(p.Rules, Rule{Verdict: Deny, Note: "internet access is off"})
		return p, nil
	}
	base, err := s.rules()
	if err != nil {
		return Policy{}, err
	}
	p.Rules = append(p.Rules, base...)
	return p, nil
}

func denied(list []string) (hosts []string, all bool, err error) {
	if len(list) > maxEntries {
		return nil, false, invalid("network.denyOut", fmt.Sprint(len(list)), fmt.Errorf("at most %d entries", maxEntries))
	}
	for i, h := range list {
		t, err := parseTarget(h)
		if err == nil && t.isName() {
			err = errors.New("only addresses and CIDRs can be denied")
		}
		if err != nil {
			return nil, false, invalid(fmt.Sprintf("network.denyOut[%d]", i), h, err)
		}
		all = all || t.everything()
		hosts = append(hosts, h)
	}
	return hosts, all, nil
}

func (s Server) rules() ([]Rule, error) {
	var rules []Rule
	for i, h := range s.Allow {
		if _, err := parseTarget(h); err != nil {
			return nil, invalid(fmt.Sprintf("egress.allow[%d]", i), h, err)
		}
	}
	if len(s.Allow) > 0 {
		rules = append(rules, Rule{Hosts: slices.Clone(s.Allow), Verdict: Allow, Note: "egress.allow"})
	}
	for i, name := range s.Presets {
		hosts, ok := Preset(name)
		if !ok {
			return nil, invalid(fmt.Sprintf("egress.presets[%d]", i), name,
				fmt.Errorf("no such preset; there are %s", strings.Join(PresetNames(), ", ")))
		}
		rules = append(rules, Rule{Hosts: hosts, Verdict: Allow, Note: "preset:" + name})
	}
	return rules, nil
}

// CeilingPolicy makes the policy that bounds all others: deny beats allow, the
// operator's own allow list and presets are always within it, and what nothing
// names is denied. In allow, "*" means everything, addresses included.
func (s Server) CeilingPolicy(allow, deny []string) (Policy, error) {
	p := Policy{Version: 1, Default: Deny}
	for _, l := range []struct {
		key  string
		list []string
	}{{"egress.ceiling_deny", deny}, {"egress.ceiling_allow", allow}} {
		for i, h := range l.list {
			if _, err := parseTarget(h); err != nil {
				return Policy{}, invalid(fmt.Sprintf("%s[%d]", l.key, i), h, err)
			}
		}
	}
	if len(deny) > 0 {
		p.Rules = append(p.Rules, Rule{Hosts: slices.Clone(deny), Verdict: Deny, Note: "egress.ceiling_deny"})
	}
	if slices.Contains(allow, "*") {
		p.Default = Allow
		return p, nil
	}
	if len(allow) > 0 {
		p.Rules = append(p.Rules, Rule{Hosts: slices.Clone(allow), Verdict: Allow, Note: "egress.ceiling_allow"})
	}
	base, err := s.rules()
	if err != nil {
		return Policy{}, err
	}
	p.Rules = append(p.Rules, base...)
	return p, nil
}
