package vnet

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	protoTCP = uint8(header.TCPProtocolNumber)
	protoUDP = uint8(header.UDPProtocolNumber)
	dnsPort  = 53
	// maxQuery is the longest DNS query in bytes that is looked at.
	maxQuery = 4096
	// maxAnswer is the longest DNS answer in bytes that is sent by UDP.
	maxAnswer = 16 << 10
)

// inspect looks at every packet before the stack does and reports whether the
// stack may have it: well-formed unfragmented IPv4 TCP from the guest's own
// address. DNS queries are answered here; all else is dropped. The bytes are
// the guest's and may be anything.
func (n *Network) inspect(packet []byte) bool {
	h := header.IPv4(packet)
	if len(packet) < header.IPv4MinimumSize || packet[0]>>4 != header.IPv4Version {
		return false
	}
	headerLen, total := int(h.HeaderLength()), int(h.TotalLength())
	if headerLen < header.IPv4MinimumSize || total < headerLen || total > len(packet) {
		return false
	}
	if h.More() || h.FragmentOffset() != 0 {
		return false
	}
	if src := h.SourceAddress(); src.As4() != GuestAddr().As4() {
		return false
	}
	dst := netip.AddrFrom4(h.DestinationAddress().As4())
	body := packet[headerLen:total]
	switch h.Protocol() {
	case protoTCP:
		return len(body) >= header.TCPMinimumSize && unicast(dst)
	case protoUDP:
		n.datagram(dst, body)
	}
	return false
}

func unicast(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && a != GuestAddr()
}

// datagram answers DNS to any address and reports every other datagram.
// Queries are answered one by one without a flow behind them, so several on
// one socket (A and AAAA) need no state here.
func (n *Network) datagram(dst netip.Addr, body []byte) {
	if len(body) < header.UDPMinimumSize {
		return
	}
	h := header.UDP(body)
	if int(h.Length()) < header.UDPMinimumSize || int(h.Length()) > len(body) {
		return
	}
	p := n.attachment.Load()
	if p == nil {
		return
	}
	a := *p
	if h.DestinationPort() != dnsPort {
		a.DroppedUDP(netip.AddrPortFrom(dst, h.DestinationPort()))
		return
	}
	if int(h.Length())-header.UDPMinimumSize > maxQuery {
		return
	}
	select {
	case n.queries <- struct{}{}:
	default:
		return
	}
	if !n.begin() {
		<-n.queries
		return
	}
	query := append([]byte(nil), body[header.UDPMinimumSize:h.Length()]...)
	port := h.SourcePort()
	go func() {
		defer n.work.Done()
		defer func() { <-n.queries }()
		answer := a.DNS(n.ctx, query)
		if len(answer) == 0 || len(answer) > maxAnswer {
			return
		}
		n.link.inject(udpPacket(netip.AddrPortFrom(dst, dnsPort), netip.AddrPortFrom(GuestAddr(), port), answer))
	}()
}

// udpPacket builds a complete IPv4 datagram.
func udpPacket(src, dst netip.AddrPort, payload []byte) []byte {
	length := header.UDPMinimumSize + len(payload)
	p := make([]byte, header.IPv4MinimumSize+length)
	p[0] = header.IPv4Version<<4 | header.IPv4MinimumSize/4
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8] = 64 // hop limit
	p[9] = protoUDP
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(p[12:], s[:])
	copy(p[16:], d[:])
	h := header.IPv4(p)
	h.SetChecksum(^h.CalculateChecksum())

	u := header.UDP(p[header.IPv4MinimumSize:])
	u.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(length)})
	copy(u.Payload(), payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, h.SourceAddress(), h.DestinationAddress(), uint16(length))
	u.SetChecksum(^checksum.Checksum(u, sum))
	return p
}
