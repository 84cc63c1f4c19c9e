// Package egress decides what a sandbox may reach. Policy, Matcher and Decision
// are values and pure functions: no I/O and no clock. The gateway subpackage
// applies them to real flows.
package egress

import (
	"net/netip"
)

// Verdict is the outcome for one request.
type Verdict string

const (
	// Allow lets the flow out.
	Allow Verdict = "allow"
	// Deny refuses it.
	Deny Verdict = "deny"
)

// Policy is an immutable rule list. The first rule that matches decides;
// Default decides when none does. The zero Policy denies everything.
type Policy struct {
	Version int     `json:"version"`
	Default Verdict `json:"default"`
	Rules   []Rule  `json:"rules,omitempty"`
}

// Rule matches by destination. An empty list in a field matches anything.
type Rule struct {
	// Hosts holds exact names ("pypi.org"), wildcards ("*.pypi.org", which
	// does not match the apex), "*" (any name), addresses and CIDRs.
	Hosts []string `json:"hosts,omitempty"`
	// Ports are TCP destination ports.
	Ports   []uint16 `json:"ports,omitempty"`
	Verdict Verdict  `json:"verdict"`
	// Note says where the rule comes from, for example "allowOut" or
	// "preset:pypi"; it is shown to users and never evaluated.
	Note string `json:"note,omitempty"`
}

// Request is one thing to decide.
type Request struct {
	// Host is the canonical name (lower-case ASCII, no trailing dot) or ""
	// when the destination is known by address only.
	Host string
	// Addr is the upstream address, or the zero Addr when only a name is
	// being judged (a DNS query).
	Addr netip.Addr
	Port uint16
}

// Decision says what was decided and why.
type Decision struct {
	Verdict Verdict
	// Rule is the index of the deciding rule in Policy.Rules, or -1 when the
	// default or a built-in decided.
	Rule int
	// Reason is a short fixed text for logs and users.
	Reason string
}
