package gateway_test

import (
	"errors"
	"net"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/caisson-dev/caisson/egress/gateway"
)

func TestNewResolver(t *testing.T) {
	t.Parallel()
	if _, err := gateway.NewResolver([]string{"1.1.1.1", "dns.test"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("NewResolver(name) = %v", err)
	}
	if r, err := gateway.NewResolver(nil); err != nil || r != gateway.Resolver(net.DefaultResolver) {
		t.Errorf("NewResolver() = %v, %v, want the host's", r, err)
	}
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
					Body:   &dnsmessage.AResource{A: [4]byte{93, 184, 216, 34}},
				}}
			}
			out, _ := m.Pack()
			_, _ = server.WriteTo(out, from)
		}
	}()
	r, err := gateway.NewResolver([]string{server.LocalAddr().String()})
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := r.LookupNetIP(t.Context(), "ip", "somewhere.test.")
	if err != nil || len(addrs) != 1 || addrs[0].Unmap().String() != "93.184.216.34" {
		t.Errorf("LookupNetIP() = %v, %v", addrs, err)
	}
}
