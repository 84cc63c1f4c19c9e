package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/caisson-dev/caisson/egress"
)

const (
	tlsHandshake = 0x16
	// sniffBytes bounds a request head on ports that are not inspected.
	sniffBytes     = 8 << 10
	upstreamBuffer = 4 << 10
)

type kind int

const (
	kindOther kind = iota
	kindTLS
	kindHTTP
)

// classify looks at the first bytes of a client until they tell what the
// protocol is: TLS, HTTP of any version, or neither. It consumes nothing.
func classify(br *bufio.Reader) (kind, error) {
	for n := 1; ; {
		b, err := br.Peek(n)
		if len(b) < n {
			if errors.Is(err, bufio.ErrBufferFull) {
				return kindOther, &denial{reason: "the first line is too long"}
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return kindOther, &denial{reason: "the guest did not finish its first line"}
			}
			return kindOther, nil
		}
		b, _ = br.Peek(br.Buffered())
		if k, known := classifyBytes(b); known {
			return k, nil
		}
		n = len(b) + 1
	}
}

// classifyBytes reports false while more bytes could change the answer.
func classifyBytes(b []byte) (kind, bool) {
	if b[0] == tlsHandshake {
		if len(b) < 2 {
			return kindOther, false
		}
		if b[1] == 3 {
			return kindTLS, true
		}
		return kindOther, true
	}
	b = bytes.TrimLeft(b, "\r\n") // some servers skip these before a request
	if len(b) == 0 {
		return kindOther, false
	}
	line, _, whole := bytes.Cut(b, []byte("\n"))
	method, rest, spaced := bytes.Cut(line, []byte(" "))
	for _, c := range method {
		if !tokenByte(c) && (c != '\r' || spaced) {
			return kindOther, true
		}
	}
	if !whole {
		return kindOther, false
	}
	if spaced && bytes.Contains(rest, []byte(" HTTP/")) {
		return kindHTTP, true
	}
	return kindOther, true
}

func tokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

// hello is what a TLS client said first.
type hello struct {
	name string // canonical, or "" without a server name
	read []byte // all that was consumed to find out
}

// rest returns the whole stream again. What br still holds is moved out of it,
// so that br's buffer is free during the relay.
func (h *hello) rest(br *bufio.Reader, c net.Conn) io.Reader {
	buffered, _ := br.Peek(br.Buffered())
	return io.MultiReader(bytes.NewReader(h.read), bytes.NewReader(bytes.Clone(buffered)), c)
}

var errHello = errors.New("hello read")

// readHello reads one ClientHello of at most limit bytes, fragmented in any
// way. With encrypted hellos (ECH) the name is the outer one: it names the
// front, and must be the allowed name like any other.
func readHello(br *bufio.Reader, limit int) (*hello, error) {
	var read bytes.Buffer
	h := &hello{}
	var raw string
	var bad error
	conn := &readOnly{r: io.TeeReader(io.LimitReader(br, int64(limit)), &read)}
	err := tls.Server(conn, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		if raw = info.ServerName; raw != "" {
			h.name, bad = egress.Canonical(info.ServerName)
		}
		return nil, errHello
	}}).Handshake()
	if bad != nil {
		return nil, &denial{reason: fmt.Sprintf("TLS server name %q: %v", printable(raw), bad)}
	}
	if !errors.Is(err, errHello) {
		return nil, &denial{reason: "not a readable TLS hello"}
	}
	h.read = read.Bytes()
	return h, nil
}

// readOnly is the connection that crypto/tls reads a hello from; what it would
// answer is thrown away.
type readOnly struct{ r io.Reader }

func (c *readOnly) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *readOnly) Write(p []byte) (int, error)      { return len(p), nil }
func (c *readOnly) Close() error                     { return nil }
func (c *readOnly) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *readOnly) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *readOnly) SetDeadline(time.Time) error      { return nil }
func (c *readOnly) SetReadDeadline(time.Time) error  { return nil }
func (c *readOnly) SetWriteDeadline(time.Time) error { return nil }

// peeked waits for the first byte of a stream on a goroutine of its own; Read
// returns it and what follows. An error of the wait is kept: a connection
// reports a reset only once and then looks as if it had ended in order.
type peeked struct {
	*bufio.Reader
	done chan struct{}
	err  error // valid after done
}

// peek starts waiting. The goroutine ends when r has a byte or breaks; ready is
// called then.
func peek(r *bufio.Reader, ready func()) *peeked {
	p := &peeked{Reader: r, done: make(chan struct{})}
	go func() {
		_, p.err = r.Peek(1)
		close(p.done)
		ready()
	}()
	return p
}

func (p *peeked) Read(b []byte) (int, error) {
	<-p.done
	if p.err != nil {
		return 0, p.err
	}
	return p.Reader.Read(b)
}

// readConn is a connection whose first bytes were read already.
type readConn struct {
	net.Conn
	r io.Reader
}

func (c *readConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite half-closes the connection below.
func (c *readConn) CloseWrite() error { return closeWrite(c.Conn) }
