// Package control is the private channel between server and agent: messages
// over a byte stream whose framing finds itself again after either end was
// replaced (a restored guest, a restarted server). Nothing but init, freeze,
// health and dialling of guest ports travels here; SDK traffic uses TCP 49983
// (decisions.md 6). Beside the standard library the package imports errdefs
// only, so that the agent stays small.
//
// A Client is the server's end, a Server the agent's. Each Client has an epoch
// of its own; the agent answers the newest epoch that greeted it and forgets
// the one before, so no end ever has to see an EOF to know that its peer is
// new. Neither end trusts the other with memory: frames, queues and the number
// of outstanding requests are bounded.
package control

import (
	"errors"
	"time"
)

// ErrRefused says that nothing in the guest listens on the dialled port,
// neither on localhost nor on the box's own address.
var ErrRefused = errors.New("connection refused in the guest")

// ForwardPort is the TCP port on which the agent exchanges a Ticket for the
// connection that Dial opened.
const ForwardPort = 49982

// AgentPort is the TCP port of the agent's public protocol.
const AgentPort = 49983

// TicketTTL is how long a Ticket is good for.
const TicketTTL = 10 * time.Second

// Ticket is a single-use right to one dialled connection. It must be the first
// sixteen bytes sent on a connection to ForwardPort; what follows in both
// directions belongs to the dialled connection.
type Ticket [16]byte

// Init binds an identity to the agent. Until it has arrived, TCP 49983 answers
// /health only. It may be sent again; the last one wins.
type Init struct {
	SandboxID  string `json:"sandboxID"`
	TemplateID string `json:"templateID"`
	BuildID    string `json:"buildID"`
	Hostname   string `json:"hostname,omitempty"`
	// AccessToken must accompany every request on TCP 49983; never empty.
	AccessToken string            `json:"accessToken"`
	EnvVars     map[string]string `json:"envVars,omitempty"`
	// DefaultUser and DefaultWorkdir apply when a request names none; empty
	// user means root, empty workdir the user's home.
	DefaultUser    string `json:"defaultUser"`
	DefaultWorkdir string `json:"defaultWorkdir,omitempty"`
	Limits         Limits `json:"limits"`
	// CABundle is PEM to append to the guest's trust store; empty for none.
	CABundle string `json:"caBundle,omitempty"`
	// Now is the host's clock.
	Now time.Time `json:"now"`
	// Seed is fresh randomness for guests that were restored from a snapshot.
	Seed []byte `json:"seed,omitempty"`
}

// Limits are what the agent enforces per command.
type Limits struct {
	// WallTime ends a command's process group; zero means none.
	WallTime time.Duration `json:"wallTime"`
	// OutputBytes ends a command that has written more to stdout and stderr
	// (or its PTY) together; zero means none.
	OutputBytes int64 `json:"outputBytes"`
	// Processes is RLIMIT_NPROC of every command; zero means the box's own.
	Processes int64 `json:"processes"`
}

// The values of Event.Type and Event.Limit.
const (
	EventLimit = "limit"

	LimitWallTime  = "wall_time"
	LimitOutput    = "output"
	LimitProcesses = "processes"
)

// Event is something that the agent tells the server unasked.
type Event struct {
	// Type is "limit": a command hit Limits.
	Type string `json:"type"`
	// Limit is "wall_time", "output" or "processes" for Type "limit".
	Limit string    `json:"limit,omitempty"`
	PID   uint32    `json:"pid,omitempty"`
	Cmd   string    `json:"cmd,omitempty"` // at most 256 bytes
	At    time.Time `json:"at"`
}

// Health is the agent's answer to a health request.
type Health struct {
	Version   string `json:"version"`
	Ready     bool   `json:"ready"` // Init has arrived
	Processes int    `json:"processes"`
}
