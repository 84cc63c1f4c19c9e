package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/caisson-dev/caisson/egress"
)

const (
	maxQuery      = 4096
	maxTCPQueries = 256
	answerTTL     = 30 // seconds; short, so that a changed policy is seen soon
	maxAnswers    = 8
	lookupTimeout = 5 * time.Second
)

// DNS implements [egress.Attachment]. Queries never leave the host as the guest
// wrote them: an allowed name is answered with its synthetic address, every
// other name does not exist.
func (b *box) DNS(ctx context.Context, query []byte) []byte {
	if len(query) > maxQuery || !b.begin() {
		return nil
	}
	defer b.work.Done()
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return reply(h, nil, dnsmessage.RCodeFormatError, nil)
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return reply(h, nil, dnsmessage.RCodeFormatError, nil)
	}
	if h.OpCode != 0 {
		return reply(h, &q, dnsmessage.RCodeNotImplemented, nil)
	}
	if q.Class != dnsmessage.ClassINET {
		return reply(h, &q, dnsmessage.RCodeRefused, nil)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	code, addrs := b.answer(ctx, q)
	return reply(h, &q, code, addrs)
}

// answer decides one question.
func (b *box) answer(ctx context.Context, q dnsmessage.Question) (dnsmessage.RCode, []netip.Addr) {
	raw := q.Name.String()
	host, err := egress.Canonical(raw)
	if err != nil {
		b.deniedName(printable(raw), &denial{reason: err.Error()})
		return dnsmessage.RCodeNameError, nil
	}
	if strings.HasSuffix(host, ".arpa") {
		return dnsmessage.RCodeNameError, nil // programs ask these unasked; not worth a record
	}
	open, err := b.decideName(host)
	if err != nil {
		b.deniedName(host, err)
		return dnsmessage.RCodeNameError, nil
	}
	switch q.Type {
	case dnsmessage.TypeA:
	case dnsmessage.TypeTXT, dnsmessage.TypeALL, typeNULL:
		b.deniedName(host, &denial{reason: "record type " + q.Type.String() + " is not answered"})
		return dnsmessage.RCodeRefused, nil
	default:
		return dnsmessage.RCodeSuccess, nil // the name exists, with IPv4 only
	}
	if open {
		code, addrs := b.realAddrs(ctx, host)
		if code != dnsmessage.RCodeSuccess || len(addrs) > 0 {
			return code, addrs
		}
		// Reachable by IPv6 alone: the guest has only IPv4.
	}
	a, err := b.names.assign(ctx, host)
	if err != nil {
		if !errors.Is(err, errTooManyNames) {
			b.g.cfg.Log.Error("sandbox name has no address", "sandbox", b.id, "name", host, "error", err)
		}
		b.deniedName(host, &denial{reason: "no address for the name: " + err.Error()})
		return dnsmessage.RCodeServerFailure, nil
	}
	return dnsmessage.RCodeSuccess, []netip.Addr{a}
}

const typeNULL dnsmessage.Type = 10

// realAddrs answers with what the name resolves to, for sandboxes whose policy
// does not look at names. Flows to these addresses are judged by address.
func (b *box) realAddrs(ctx context.Context, host string) (dnsmessage.RCode, []netip.Addr) {
	found, err := b.g.resolve(ctx, host)
	if err != nil {
		var dnsErr *net.DNSError
		if errors.As(err, &dnsErr) && dnsErr.IsNotFound {
			return dnsmessage.RCodeNameError, nil
		}
		return dnsmessage.RCodeServerFailure, nil
	}
	var addrs []netip.Addr
	var bad string
	public := false
	for _, a := range found {
		reason := b.g.forbidden(a, 0)
		if reason != "" && !b.g.excepted(a) {
			bad = reason
			continue
		}
		public = true
		if a.Is4() && len(addrs) < maxAnswers {
			b.names.saw(a, host)
			addrs = append(addrs, a)
		}
	}
	if !public {
		if bad == "" {
			return dnsmessage.RCodeNameError, nil
		}
		b.deniedName(host, &denial{reason: "the name leads to a " + bad, hint: "egress.allow_private in the server's configuration"})
		return dnsmessage.RCodeNameError, nil
	}
	return dnsmessage.RCodeSuccess, addrs
}

// excepted reports whether some port of an address is opened by the server.
func (g *Gateway) excepted(a netip.Addr) bool {
	u := egress.Unwrap(a)
	for _, e := range g.cfg.AllowPrivate {
		if e.Prefix.Contains(u) {
			return true
		}
	}
	return false
}

func (b *box) deniedName(host string, err error) {
	r := egress.Record{Kind: "dns", Host: host, Port: dnsPort, Verdict: egress.Deny, Reason: err.Error()}
	var d *denial
	if errors.As(err, &d) {
		r.Hint = d.hint
	}
	b.record(r)
}

// printable makes the guest's bytes safe to show.
func printable(s string) string {
	if len(s) > 253 {
		s = s[:253]
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}

func reply(h dnsmessage.Header, q *dnsmessage.Question, code dnsmessage.RCode, addrs []netip.Addr) []byte {
	m := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true, RCode: code,
	})
	m.EnableCompression()
	if q != nil {
		if m.StartQuestions() != nil || m.Question(*q) != nil {
			return nil
		}
	}
	if m.StartAnswers() != nil {
		return nil
	}
	for _, a := range addrs {
		rh := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: answerTTL}
		if m.AResource(rh, dnsmessage.AResource{A: a.As4()}) != nil {
			return nil
		}
	}
	out, err := m.Finish()
	if err != nil {
		return nil
	}
	return out
}

// dnsOverTCP answers queries on a connection to the resolver.
func (b *box) dnsOverTCP(f *flow, accept func() (net.Conn, error)) {
	c, err := accept()
	if err != nil {
		return
	}
	defer c.Close()
	f.attach(c)
	var length [2]byte
	for range maxTCPQueries {
		_ = c.SetDeadline(time.Now().Add(b.g.cfg.Limits.Handshake))
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint16(length[:])
		if n == 0 || n > maxQuery {
			return
		}
		query := make([]byte, n)
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		answer := b.DNS(f.ctx, query)
		if answer == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
