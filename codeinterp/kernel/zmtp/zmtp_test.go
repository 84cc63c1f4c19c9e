package zmtp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/codeinterp/kernel/zmtp"
)

const limit = 1000

// peer answers a handshake and gives the connection to then.
func peer(t *testing.T, then func(c net.Conn)) *zmtp.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = ours.Close() })
	done := make(chan struct{})
	t.Cleanup(func() { _ = theirs.Close(); <-done })
	go func() {
		defer close(done)
		hello := make([]byte, 64)
		if _, err := io.ReadFull(theirs, hello); err != nil || hello[0] != 0xff || string(hello[12:16]) != "NULL" {
			t.Errorf("greeting = %q, %v", hello, err)
			return
		}
		_, _ = theirs.Write(hello)
		ready := make([]byte, 2)
		_, _ = io.ReadFull(theirs, ready)
		body := make([]byte, ready[1])
		_, _ = io.ReadFull(theirs, body)
		if ready[0] != 4 || !strings.HasPrefix(string(body), "\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER") {
			t.Errorf("ready = %v %q", ready, body)
		}
		_, _ = theirs.Write(append([]byte{4, byte(len(body))}, body...))
		then(theirs)
	}()
	z, err := zmtp.Handshake(ours, zmtp.Dealer, limit)
	if err != nil {
		t.Fatalf("Handshake = %v", err)
	}
	return z
}

func frame(flags byte, body string) []byte {
	if len(body) < 256 {
		return append([]byte{flags, byte(len(body))}, body...)
	}
	return append(binary.BigEndian.AppendUint64([]byte{flags | 2}, uint64(len(body))), body...)
}

func TestRecv(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	for name, tt := range map[string]struct {
		sent [][]byte
		want []string
		err  error
	}{
		"one part":               {sent: [][]byte{frame(0, "a")}, want: []string{"a"}},
		"parts, empty and long":  {sent: [][]byte{frame(1, ""), frame(1, long), frame(0, "b")}, want: []string{"", long, "b"}},
		"a command between":      {sent: [][]byte{frame(1, "a"), frame(4, "\x05OTHER"), frame(0, "b")}, want: []string{"a", "b"}},
		"too large":              {sent: [][]byte{frame(0, strings.Repeat("x", limit+1))}, err: zmtp.ErrTooLarge},
		"too large altogether":   {sent: [][]byte{frame(1, strings.Repeat("x", limit)), frame(0, "y")}, err: zmtp.ErrTooLarge},
		"too many parts":         {sent: [][]byte{bytes.Repeat(frame(1, ""), 70), frame(0, "")}, err: zmtp.ErrTooLarge},
		"a length beyond reason": {sent: [][]byte{{2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}, err: zmtp.ErrTooLarge},
		"the end in a frame":     {sent: [][]byte{{0, 5, 'a'}}, err: io.ErrUnexpectedEOF},
		"the end":                {err: io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			z := peer(t, func(c net.Conn) {
				for _, b := range tt.sent {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
				if tt.err != nil && !strings.Contains(name, "too") || tt.err == nil {
					_ = c.Close()
					return
				}
				_, _ = c.Write(frame(0, "next"))
			})
			parts, err := z.Recv()
			if !errors.Is(err, tt.err) {
				t.Fatalf("Recv = %v, want %v", err, tt.err)
			}
			var got []string
			for _, p := range parts {
				got = append(got, string(p))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Recv: %s", diff)
			}
			if errors.Is(tt.err, zmtp.ErrTooLarge) && strings.Contains(name, "too") {
				if parts, err := z.Recv(); err != nil || string(parts[0]) != "next" {
					t.Errorf("Recv after ErrTooLarge = %q, %v", parts, err)
				}
			}
		})
	}
}

func TestSendAndPing(t *testing.T) {
	t.Parallel()
	got := make(chan []byte, 1)
	z := peer(t, func(c net.Conn) {
		want := append(append(frame(1, "a"), frame(1, strings.Repeat("b", 256))...), frame(0, "")...)
		sent := make([]byte, len(want))
		_, _ = io.ReadFull(c, sent)
		if !bytes.Equal(sent, want) {
			t.Errorf("sent = %q, want %q", sent, want)
		}
		go func() { _, _ = c.Write(append(frame(4, "\x04PING\x00\x05ctx"), frame(0, "m")...)) }()
		pong := make([]byte, 10)
		_, _ = io.ReadFull(c, pong)
		got <- pong
	})
	if err := z.Send([]byte("a"), bytes.Repeat([]byte("b"), 256), nil); err != nil {
		t.Fatal(err)
	}
	if parts, err := z.Recv(); err != nil || string(parts[0]) != "m" {
		t.Errorf("Recv = %q, %v", parts, err)
	}
	if pong := <-got; string(pong) != "\x04\x08\x04PONGctx" {
		t.Errorf("pong = %q", pong)
	}
}

func TestHandshakeRefuses(t *testing.T) {
	t.Parallel()
	for name, hello := range map[string]string{
		"old version": "\xff\x00\x00\x00\x00\x00\x00\x00\x00\x7f\x01",
		"not ZMTP":    "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			defer ours.Close()
			go func() {
				defer theirs.Close()
				_, _ = io.CopyN(io.Discard, theirs, 64)
				_, _ = theirs.Write(append([]byte(hello), make([]byte, 64-len(hello))...))
			}()
			if _, err := zmtp.Handshake(ours, zmtp.Sub, limit); err == nil {
				t.Error("Handshake = nil, want an error")
			}
		})
	}
}
