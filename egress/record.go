package egress

import (
	"context"
	"net/netip"
	"time"
)

// Record tells of one thing that a sandbox tried to reach: what it was, what
// was decided, and how much passed. The gateway makes it, package store keeps
// it, and users read it with `caisson sandbox egress`.
type Record struct {
	// Seq is given by the store: increasing and without gaps per sandbox.
	Seq       int64     `json:"seq"`
	SandboxID string    `json:"sandboxID"`
	At        time.Time `json:"at"`
	// Kind is "tcp", "dns" or "udp".
	Kind string `json:"kind"`
	// Host is the canonical name, or "" when only the address is known.
	Host string `json:"host,omitempty"`
	// Addr is the upstream address, or the zero Addr when none was dialled.
	Addr    netip.Addr `json:"addr,omitzero"`
	Port    uint16     `json:"port,omitempty"`
	Verdict Verdict    `json:"verdict"`
	Reason  string     `json:"reason,omitempty"`
	// Hint is the rule that would allow the flow, for users.
	Hint string `json:"hint,omitempty"`
	// BytesIn came from upstream to the guest, BytesOut left the guest.
	BytesIn  int64         `json:"bytesIn"`
	BytesOut int64         `json:"bytesOut"`
	Duration time.Duration `json:"duration"`
}

// NameStore keeps the synthetic addresses that DNS gave to names, so that an
// address means the same name after a restart and is never reused within a
// sandbox. Implemented by package store.
type NameStore interface {
	// Names returns all addresses given to a sandbox, by name.
	Names(ctx context.Context, sandboxID string) (map[string]netip.Addr, error)
	// PutName records one; errdefs.ErrAlreadyExists when the name has another
	// address or the address another name. Repeating a pair is no error.
	PutName(ctx context.Context, sandboxID, name string, addr netip.Addr) error
	// CopyNames gives sandbox to all the names of sandbox from.
	CopyNames(ctx context.Context, from, to string) error
}
