// Package gateway applies egress policies to the flows of sandboxes. It
// implements [egress.Guard]: each sandbox gets an attachment that answers its
// DNS queries and decides, dials and relays its TCP connections. Everything
// that a sandbox sends to the world passes here and nowhere else.
//
// A name is resolved for the guest to a synthetic address that stands for that
// name alone, so a connection is known by name before its first byte. What the
// guest then says inside (TLS server name, HTTP Host) must be that name. The
// real address is looked up here, judged, and exactly the judged address is
// dialled; the guest has no say in it.
//
// Only package server imports this one; the rules themselves are in egress.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/egress"
)

// Resolver looks up addresses on the host. [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Recorder takes what sandboxes tried to reach. Record must not block: it is
// called on the path of every connection. [Queue] is one.
type Recorder interface {
	Record(r egress.Record)
}

// Exception opens addresses that are closed by default (private, loopback,
// link-local, the host's own) for policies to allow. It allows nothing itself.
type Exception struct {
	Prefix netip.Prefix
	// Port is the only port that is opened, or 0 for all.
	Port uint16
}

// ParseException reads ADDRESS, CIDR or ADDRESS:PORT.
func ParseException(s string) (Exception, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return Exception{Prefix: p.Masked()}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return Exception{Prefix: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" || ap.Port() == 0 {
		return Exception{}, fmt.Errorf("%q is not an address, a CIDR or address:port: %w", s, errdefs.ErrInvalidArgument)
	}
	a := ap.Addr().Unmap()
	return Exception{Prefix: netip.PrefixFrom(a, a.BitLen()), Port: ap.Port()}, nil
}

// Limits bound what one sandbox may hold. Zero fields mean the defaults.
type Limits struct {
	Flows       int           // open connections; default 512
	Names       int           // names with a synthetic address; default 8192
	HeaderBytes int           // of one HTTP request head or TLS hello; default 32 KiB
	Handshake   time.Duration // to say who it wants to talk to; default 10 s
	Dial        time.Duration // to resolve and connect; default 15 s
	Records     int           // flow records a second; default 100
}

func (l Limits) filled() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Flows, 512)
	def(&l.Names, 8192)
	def(&l.HeaderBytes, 32<<10)
	def(&l.Records, 100)
	if l.Handshake <= 0 {
		l.Handshake = 10 * time.Second
	}
	if l.Dial <= 0 {
		l.Dial = 15 * time.Second
	}
	return l
}

// Config is what a gateway needs. Only Ceiling is required.
type Config struct {
	// Ceiling bounds every policy: a destination must be allowed by both.
	// Its Default must be set, so that nobody forgets it.
	Ceiling egress.Policy
	// Resolver is the host's by default.
	Resolver Resolver
	// Hosts are fixed addresses of names, asked before Resolver.
	Hosts map[string][]netip.Addr
	// AllowPrivate lists the exceptions from what is never reached.
	AllowPrivate []Exception
	// OwnAddrs returns the host's addresses, which sandboxes must not reach;
	// by default those of its interfaces. The result is kept for some seconds.
	OwnAddrs func() ([]netip.Addr, error)
	// Dial connects to the judged address; net.Dialer by default.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Names keeps synthetic addresses over restarts; nil forgets them when
	// the sandbox is detached.
	Names    egress.NameStore
	Recorder Recorder
	Limits   Limits
	Log      *slog.Logger
}

// Gateway is the [egress.Guard] of one server.
type Gateway struct {
	cfg     Config
	ceiling *egress.Matcher
	hosts   map[string][]netip.Addr
	own     ownAddrs
	buffers sync.Pool // of *[bigBuffer]byte, for relays

	mu    sync.Mutex // guards boxes
	boxes map[string]*box
}

var _ egress.Guard = (*Gateway)(nil)

// New checks the configuration and returns a gateway without sandboxes.
func New(c Config) (*Gateway, error) {
	if c.Ceiling.Default == "" {
		return nil, fmt.Errorf("egress ceiling has no default: %w", errdefs.ErrInvalidArgument)
	}
	ceiling, err := egress.Compile(c.Ceiling)
	if err != nil {
		return nil, fmt.Errorf("egress ceiling: %w", err)
	}
	hosts := make(map[string][]netip.Addr, len(c.Hosts))
	for name, addrs := range c.Hosts {
		canonical, err := egress.Canonical(name)
		if err != nil {
			return nil, fmt.Errorf("egress hosts: %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
		}
		hosts[canonical] = slices.Clone(addrs)
	}
	for _, e := range c.AllowPrivate {
		if !e.Prefix.IsValid() {
			return nil, fmt.Errorf("egress exception has no prefix: %w", errdefs.ErrInvalidArgument)
		}
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.OwnAddrs == nil {
		c.OwnAddrs = interfaceAddrs
	}
	if c.Dial == nil {
		c.Dial = dialTCP
	}
	if c.Recorder == nil {
		c.Recorder = discard{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Limits = c.Limits.filled()
	g := &Gateway{cfg: c, ceiling: ceiling, hosts: hosts, boxes: map[string]*box{}}
	g.own.list = c.OwnAddrs
	g.buffers.New = func() any { return new([bigBuffer]byte) }
	return g, nil
}

type discard struct{}

func (discard) Record(egress.Record) {}

// Attach implements [egress.Guard]. It fails with ErrAlreadyExists when the
// sandbox is attached already.
func (g *Gateway) Attach(ctx context.Context, sandboxID string, p egress.Policy) (egress.Attachment, error) {
	m, err := egress.Compile(p)
	if err != nil {
		return nil, fmt.Errorf("attach sandbox %s: %w", sandboxID, err)
	}
	var known map[string]netip.Addr
	if g.cfg.Names != nil {
		if known, err = g.cfg.Names.Names(ctx, sandboxID); err != nil {
			return nil, fmt.Errorf("load names of sandbox %s: %w", sandboxID, err)
		}
	}
	b, err := newBox(g, sandboxID, m, known)
	if err != nil {
		return nil, fmt.Errorf("attach sandbox %s: %w", sandboxID, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.boxes[sandboxID]; ok {
		b.cancel(errDetached)
		return nil, fmt.Errorf("sandbox %s is attached already: %w", sandboxID, errdefs.ErrAlreadyExists)
	}
	g.boxes[sandboxID] = b
	return b, nil
}

// Update implements [egress.Guard]. When it returns, no flow that the new
// policy denies passes bytes any more. An invalid policy changes nothing.
func (g *Gateway) Update(_ context.Context, sandboxID string, p egress.Policy) error {
	m, err := egress.Compile(p)
	if err != nil {
		return fmt.Errorf("update sandbox %s: %w", sandboxID, err)
	}
	b := g.box(sandboxID)
	if b == nil {
		return fmt.Errorf("sandbox %s is not attached: %w", sandboxID, errdefs.ErrNotFound)
	}
	b.update(m)
	return nil
}

// Detach implements [egress.Guard]. It waits for the flows to end or ctx.
func (g *Gateway) Detach(ctx context.Context, sandboxID string) error {
	g.mu.Lock()
	b := g.boxes[sandboxID]
	delete(g.boxes, sandboxID)
	g.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.close(ctx)
}

// Close detaches every sandbox.
func (g *Gateway) Close(ctx context.Context) error {
	g.mu.Lock()
	ids := slices.Collect(maps.Keys(g.boxes))
	g.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, g.Detach(ctx, id))
	}
	return errors.Join(errs...)
}

// Flows returns the open connections of a sandbox, as records with the bytes
// so far.
func (g *Gateway) Flows(sandboxID string) []egress.Record {
	b := g.box(sandboxID)
	if b == nil {
		return nil
	}
	return b.open()
}

// Traffic returns the bytes that a sandbox's connections have carried to and
// from the guest since it was attached, those of open ones included; false when
// it is not attached. Unlike the records it leaves nothing out.
func (g *Gateway) Traffic(sandboxID string) (in, out int64, ok bool) {
	b := g.box(sandboxID)
	if b == nil {
		return 0, 0, false
	}
	in, out = b.traffic()
	return in, out, true
}

func (g *Gateway) box(id string) *box {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.boxes[id]
}
