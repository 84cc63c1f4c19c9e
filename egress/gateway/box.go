package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/caisson-dev/caisson/egress"
)

// The guest's own network (package vnet): nothing behind it is reachable but
// the resolver.
var (
	guestNet     = netip.MustParsePrefix("10.0.0.0/24")
	resolverAddr = netip.MustParseAddr("10.0.0.1")
)

const dnsPort = 53

var (
	errDetached = errors.New("sandbox was detached")
	errPolicy   = errors.New("cut when the policy changed")
)

// box is the gateway's end of one sandbox. It implements [egress.Attachment].
type box struct {
	g     *Gateway
	id    string
	names *names
	slots chan struct{} // one for each open connection
	limit *rate.Limiter // of records

	ctx    context.Context // ends with the attachment
	cancel context.CancelCauseFunc
	work   sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	matcher *egress.Matcher
	flows   map[*flow]struct{}
	closed  bool
	lost    int   // records left out since the last one
	in, out int64 // bytes of flows that ended
}

var _ egress.Attachment = (*box)(nil)

func newBox(g *Gateway, id string, m *egress.Matcher, known map[string]netip.Addr) (*box, error) {
	l := g.cfg.Limits
	n, err := newNames(id, g.cfg.Names, l.Names, known)
	if err != nil {
		return nil, err
	}
	b := &box{
		g: g, id: id, names: n, matcher: m,
		slots: make(chan struct{}, l.Flows), limit: rate.NewLimiter(rate.Limit(l.Records), 5*l.Records),
		flows: map[*flow]struct{}{},
	}
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	return b, nil
}

// close cuts everything; after it the box rejects.
func (b *box) close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel(errDetached)
	done := make(chan struct{})
	go func() {
		b.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("detach sandbox %s: %w", b.id, context.Cause(ctx))
	}
}

// begin registers a piece of work that close waits for; false after close.
func (b *box) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.work.Add(1)
	return true
}

func (b *box) policy() *egress.Matcher {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.matcher
}

// decide asks the sandbox's policy and the ceiling; both must allow.
func (b *box) decide(m *egress.Matcher, r egress.Request) error {
	name := r.Host
	if name == "" && r.Addr.IsValid() {
		name = r.Addr.Unmap().String()
	}
	if d := m.Decide(r); d.Verdict != egress.Allow {
		return &denial{reason: d.Reason, hint: egress.Hint(name)}
	}
	if d := b.g.ceiling.Decide(r); d.Verdict != egress.Allow {
		return &denial{reason: "the server's ceiling: " + d.Reason}
	}
	return nil
}

// decideName judges a name for the resolver; open tells that neither policy
// looked at the name.
func (b *box) decideName(host string) (open bool, err error) {
	m := b.policy()
	d := m.DecideName(host)
	if d.Verdict != egress.Allow {
		return false, &denial{reason: d.Reason, hint: egress.Hint(host)}
	}
	c := b.g.ceiling.DecideName(host)
	if c.Verdict != egress.Allow {
		return false, &denial{reason: "the server's ceiling: " + c.Reason}
	}
	return m.Open(d) && b.g.ceiling.Open(c), nil
}

// judge is the whole decision on one upstream address.
func (b *box) judge(r egress.Request) error {
	if reason := b.g.forbidden(r.Addr, r.Port); reason != "" {
		return &denial{reason: reason, hint: "egress.allow_private in the server's configuration"}
	}
	return b.decide(b.policy(), r)
}

// activate makes a dialled flow subject to policy updates. It decides once
// more under the lock that update takes, so no update falls between.
func (b *box) activate(f *flow, up net.Conn, r egress.Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errDetached
	}
	if err := b.decide(b.matcher, r); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return context.Cause(f.ctx)
	}
	f.judged, f.upstream, f.addr = append(f.judged, r), up, r.Addr
	b.flows[f] = struct{}{}
	return nil
}

// present adds a name that the guest used on an open flow to what must stay
// allowed.
func (b *box) present(f *flow, r egress.Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.decide(b.matcher, r); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.judged {
		if j == r {
			return nil
		}
	}
	if len(f.judged) >= maxPresented {
		return &denial{reason: "too many names on one connection"}
	}
	f.judged = append(f.judged, r)
	return nil
}

func (b *box) update(m *egress.Matcher) {
	b.mu.Lock()
	b.matcher = m
	var cut []*flow
	for f := range b.flows {
		f.mu.Lock()
		for _, r := range f.judged {
			if b.decide(m, r) != nil {
				cut = append(cut, f)
				break
			}
		}
		f.mu.Unlock()
	}
	b.mu.Unlock()
	for _, f := range cut {
		f.cut(errPolicy)
	}
}

func (b *box) forget(f *flow) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.flows, f)
	b.in += f.in.Load()
	b.out += f.out.Load()
}

// traffic is what all flows have carried so far.
func (b *box) traffic() (in, out int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	in, out = b.in, b.out
	for f := range b.flows {
		in += f.in.Load()
		out += f.out.Load()
	}
	return in, out
}

func (b *box) open() []egress.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	records := make([]egress.Record, 0, len(b.flows))
	for f := range b.flows {
		records = append(records, f.record(nil))
	}
	return records
}

// DroppedUDP implements [egress.Attachment].
func (b *box) DroppedUDP(dst netip.AddrPort) {
	b.record(egress.Record{
		Kind: "udp", Addr: dst.Addr(), Port: dst.Port(), Host: b.nameOf(dst.Addr()),
		Verdict: egress.Deny, Reason: "UDP other than DNS is not forwarded",
	})
}

func (b *box) nameOf(a netip.Addr) string {
	if name, ok := b.names.name(a); ok {
		return name
	}
	return b.names.realName(a)
}

// record hands one record on, unless the sandbox makes too many: then it is
// counted, and the next one says so.
func (b *box) record(r egress.Record) {
	if !b.limit.Allow() {
		b.mu.Lock()
		b.lost++
		b.mu.Unlock()
		return
	}
	b.mu.Lock()
	lost := b.lost
	b.lost = 0
	b.mu.Unlock()
	if lost > 0 {
		r.Reason += fmt.Sprintf(" (%d records before this one were left out)", lost)
	}
	r.SandboxID = b.id
	if r.At.IsZero() {
		r.At = time.Now()
	}
	b.g.cfg.Recorder.Record(r)
}
