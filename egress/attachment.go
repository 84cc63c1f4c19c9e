package egress

import (
	"context"
	"net"
	"net/netip"
)

// Flow is one TCP connection attempt that left a sandbox. The gateway must
// call exactly one of Accept and Reject, once.
type Flow interface {
	// Destination is the address the guest dialled.
	Destination() netip.AddrPort
	// Accept completes the guest's handshake and returns the connection.
	Accept() (net.Conn, error)
	// Reject answers the guest with a reset.
	Reject()
}

// Attachment is the gateway's end of one sandbox's network. The provider owns
// the network and hands every flow to it; nothing else may leave the box
// (decisions.md 16). Methods are safe for concurrent use; after Detach they
// reject everything.
type Attachment interface {
	// TCP decides one flow and, if it is allowed, serves it until it ends.
	// It blocks; the caller runs it on a goroutine of its own and cancels ctx
	// when the box goes away.
	TCP(ctx context.Context, f Flow)
	// DNS answers one query packet. A nil result means: do not answer.
	DNS(ctx context.Context, query []byte) []byte
	// DroppedUDP tells of a datagram to a port other than 53, which the
	// provider has dropped. It must not block.
	DroppedUDP(dst netip.AddrPort)
}

// Guard is the gateway as the sandbox manager sees it.
type Guard interface {
	// Attach registers a sandbox before anything of it runs.
	Attach(ctx context.Context, sandboxID string, p Policy) (Attachment, error)
	// Update replaces the policy for new flows at once; flows that the new
	// policy denies are cut.
	Update(ctx context.Context, sandboxID string, p Policy) error
	// Detach cuts every flow of the sandbox and forgets it. Idempotent.
	Detach(ctx context.Context, sandboxID string) error
}
