package providertest

import (
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"sync"

	"github.com/caisson-dev/caisson/egress"
)

var _ egress.Attachment = (*Recorder)(nil)

// Recorder is an attachment that writes down what it is asked. When it allows,
// it echoes every flow, and answers every DNS query with 198.18.0.7.
type Recorder struct {
	allow bool

	mu      sync.Mutex
	flows   []netip.AddrPort
	queries int
	dropped []netip.AddrPort
	changed chan struct{}
}

// NewRecorder returns a recorder that allows everything or nothing.
func NewRecorder(allow bool) *Recorder {
	return &Recorder{allow: allow, changed: make(chan struct{}, 1)}
}

// TCP implements egress.Attachment.
func (r *Recorder) TCP(ctx context.Context, f egress.Flow) {
	r.note(func() { r.flows = append(r.flows, f.Destination()) })
	if !r.allow {
		f.Reject()
		return
	}
	c, err := f.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_, _ = io.Copy(c, c)
}

// DNS implements egress.Attachment.
func (r *Recorder) DNS(_ context.Context, query []byte) []byte {
	r.note(func() { r.queries++ })
	if !r.allow {
		return nil
	}
	return answer(query)
}

// DroppedUDP implements egress.Attachment.
func (r *Recorder) DroppedUDP(dst netip.AddrPort) {
	r.note(func() { r.dropped = append(r.dropped, dst) })
}

func (r *Recorder) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Flows returns the destinations of all flows so far.
func (r *Recorder) Flows() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]netip.AddrPort(nil), r.flows...)
}

// Dropped returns the destinations of all datagrams that were dropped so far.
func (r *Recorder) Dropped() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]netip.AddrPort(nil), r.dropped...)
}

// Queries returns the number of DNS queries so far.
func (r *Recorder) Queries() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queries
}

// answer replies to a query with one question by one A record.
func answer(query []byte) []byte {
	const header = 12
	end := header
	for end < len(query) && query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5 // root label, type, class
	if end > len(query) {
		return nil
	}
	out := append([]byte(nil), query[:end]...)
	binary.BigEndian.PutUint16(out[2:], 0x8180) // answer, recursion available
	binary.BigEndian.PutUint16(out[4:], 1)
	binary.BigEndian.PutUint16(out[6:], 1)
	binary.BigEndian.PutUint32(out[8:], 0)
	// Name by pointer, A, IN, TTL 60, 4 bytes.
	return append(out, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18, 0, 7)
}
