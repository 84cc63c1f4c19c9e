package control

import (
	"encoding/json"
	"fmt"
)

// Kinds of message. The client greets with hello and sends requests; the agent
// answers hello with hello and requests with replies, and sends events. An
// agent that has just started, and knows no epoch yet, says hello in epoch 0.
const (
	kindHello   = "hello"
	kindRequest = "request"
	kindReply   = "reply"
	kindEvent   = "event"
)

// Operations of a request.
const (
	opInit    = "init"
	opPrepare = "prepare"
	opHealth  = "health"
	opFreeze  = "freeze"
	opDial    = "dial"
)

// Codes of a failed reply.
const (
	codeRefused = "refused"
	codeInvalid = "invalid"
	codeFailed  = "failed"
)

type message struct {
	Kind   string  `json:"kind"`
	ID     uint64  `json:"id,omitempty"`
	Op     string  `json:"op,omitempty"`
	Init   *Init   `json:"init,omitempty"`
	Port   uint16  `json:"port,omitempty"`
	Ticket []byte  `json:"ticket,omitempty"`
	Health *Health `json:"health,omitempty"`
	Event  *Event  `json:"event,omitempty"`
	Code   string  `json:"code,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// encodeMessage returns m as one frame.
func encodeMessage(epoch uint64, m message, limit int) ([]byte, error) {
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode control message: %w", err)
	}
	return encodeFrame(epoch, payload, limit)
}
