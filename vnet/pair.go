package vnet

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// socketBuffer is the send and receive buffer asked for on each end, in bytes.
// It bounds what the kernel holds for a guest that stops reading.
const socketBuffer = 4 << 20

// Pair returns a connected pair of datagram sockets: host goes to [New], guest
// to the sandbox as its network interface. Both are close-on-exec and carry the
// large buffers that throughput needs. The caller closes what it does not hand
// over.
//
// The type is SOCK_DGRAM and not SOCK_SEQPACKET because a closed seqpacket peer
// makes every read return zero bytes at once, for ever.
func Pair() (host, guest int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("open network socketpair: %w", err)
	}
	growBuffers(fds[0])
	growBuffers(fds[1])
	return fds[0], fds[1], nil
}

// growBuffers raises both buffers as far as the process may: beyond the
// system's limit with CAP_NET_ADMIN, else up to it. Too small a buffer costs
// speed only, so errors are ignored.
func growBuffers(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	}
}

// checkSocket refuses descriptors that New could not serve safely.
func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("network descriptor %d is not a socket: %w", fd, err)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("read type of network descriptor %d: %w", fd, err)
	}
	if domain != unix.AF_UNIX || typ != unix.SOCK_DGRAM {
		return fmt.Errorf("network descriptor %d has domain %d and type %d, want a unix datagram socket", fd, domain, typ)
	}
	return nil
}
