// Package vnet is the userspace network of one sandbox. The guest's only
// network interface is one end of a datagram socketpair; this package runs a
// TCP/IP stack on the other end, so every connection that leaves the box
// arrives here as an [egress.Flow] and the host opens connections to any guest
// port with [Network.Dial]. There is no host interface, route or firewall rule
// behind it: when a Network is closed, nothing of the guest's traffic has
// anywhere to go.
//
// What may leave: TCP, decided by the attachment before the guest's handshake
// completes, and DNS queries, answered by the attachment. Everything else
// (IPv6, ICMP, other UDP, fragments, foreign source addresses) is dropped
// before it reaches the stack.
//
// The provider that owns a box owns its Network. Policy lives in egress and
// egress/gateway, never here. This package may import gVisor's pkg/tcpip and
// nothing else of gVisor.
package vnet
