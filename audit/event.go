// Package audit describes the events that record every state change. An event
// is written in the same transaction as the change it tells of. It also holds
// what wakes those who follow a log.
package audit

import "time"

// Event is one entry of the audit log.
type Event struct {
	// Seq is given by the store; increasing.
	Seq int64 `json:"seq"`
	// Type is a dotted fixed name such as "sandbox.created".
	Type      string    `json:"type"`
	At        time.Time `json:"at"`
	Team      string    `json:"team,omitempty"`
	Actor     string    `json:"actor,omitempty"` // API key id, "system" or "cli"
	SandboxID string    `json:"sandboxID,omitempty"`
	// Reason is the machine-readable cause, for example "timeout" or "oom".
	Reason string            `json:"reason,omitempty"`
	Fields map[string]string `json:"fields,omitempty"`
}
