// Package zmtp speaks as much of the ZeroMQ wire protocol (ZMTP 3.0, mechanism
// NULL) as a client of Jupyter kernels needs: one DEALER or SUB socket with one
// peer, over a stream connection that is there already.
//
// Whole ZeroMQ adds reconnecting, queues and fair sharing among peers; a kernel
// is one peer on a local socket that never comes back once it is gone, so none
// of it would ever be used.
package zmtp

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// The kinds of socket.
const (
	Dealer = "DEALER"
	Sub    = "SUB"
)

// Flags of a frame.
const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
)

const (
	greetingSize = 64
	// maxParts bounds the frames of one message.
	maxParts = 64
	// maxCommand bounds a command, which carries names only.
	maxCommand = 64 << 10
)

// ErrTooLarge is reported by Recv for a message over the limit, which it has
// skipped: the connection can be used further.
var ErrTooLarge = errors.New("message is too large")

// Conn is one connection. Recv belongs to one goroutine at a time; Send may be
// called by several.
type Conn struct {
	c     io.ReadWriteCloser
	r     *bufio.Reader
	limit int64

	mu  sync.Mutex // guards w and is held while a message is written
	w   *bufio.Writer
	buf [9]byte
}

// Handshake makes the connection c a socket of the given kind; a SUB socket
// subscribes to everything. Messages of more than limit bytes are not received.
// The caller still closes c, also on error, or else the Conn.
func Handshake(c io.ReadWriteCloser, kind string, limit int64) (*Conn, error) {
	z := &Conn{c: c, r: bufio.NewReaderSize(c, 64<<10), w: bufio.NewWriterSize(c, 16<<10), limit: limit}
	var hello [greetingSize]byte
	hello[0], hello[9], hello[10] = 0xff, 0x7f, 3
	copy(hello[12:], "NULL")
	if _, err := c.Write(hello[:]); err != nil {
		return nil, fmt.Errorf("greet: %w", err)
	}
	var theirs [greetingSize]byte
	if _, err := io.ReadFull(z.r, theirs[:]); err != nil {
		return nil, fmt.Errorf("read greeting: %w", err)
	}
	if theirs[0] != 0xff || theirs[9]&1 == 0 || theirs[10] < 3 || string(theirs[12:16]) != "NULL" {
		return nil, fmt.Errorf("read greeting: the peer does not speak ZMTP 3 without security")
	}
	ready := append([]byte("\x05READY\x0bSocket-Type"), 0, 0, 0, byte(len(kind)))
	ready = append(ready, kind...)
	if err := z.write(flagCommand, ready, true); err != nil {
		return nil, fmt.Errorf("say ready: %w", err)
	}
	flags, size, err := z.header()
	if err != nil {
		return nil, fmt.Errorf("read ready: %w", err)
	}
	if flags&flagCommand == 0 || size > maxCommand {
		return nil, fmt.Errorf("read ready: the peer sent something else")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(z.r, body); err != nil {
		return nil, fmt.Errorf("read ready: %w", err)
	}
	if len(body) < 6 || string(body[:6]) != "\x05READY" {
		return nil, fmt.Errorf("read ready: the peer refused: %.100q", body)
	}
	if kind == Sub {
		if err := z.Send([]byte{1}); err != nil {
			return nil, fmt.Errorf("subscribe: %w", err)
		}
	}
	return z, nil
}

// Close closes the connection; Recv and Send fail from then on.
func (z *Conn) Close() error { return z.c.Close() }

// Send writes one message of one or more parts.
func (z *Conn) Send(parts ...[]byte) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	for i, p := range parts {
		var flags byte
		if i < len(parts)-1 {
			flags = flagMore
		}
		if err := z.frame(flags, p); err != nil {
			return err
		}
	}
	return z.w.Flush()
}

func (z *Conn) write(flags byte, body []byte, flush bool) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.frame(flags, body); err != nil || !flush {
		return err
	}
	return z.w.Flush()
}

func (z *Conn) frame(flags byte, body []byte) error {
	head := z.buf[:2]
	if len(body) > 255 {
		flags |= flagLong
		head = z.buf[:9]
		binary.BigEndian.PutUint64(head[1:], uint64(len(body)))
	} else {
		head[1] = byte(len(body))
	}
	head[0] = flags
	if _, err := z.w.Write(head); err != nil {
		return err
	}
	_, err := z.w.Write(body)
	return err
}

func (z *Conn) header() (flags byte, size uint64, err error) {
	if flags, err = z.r.ReadByte(); err != nil {
		return 0, 0, err
	}
	if flags&flagLong == 0 {
		b, err := z.r.ReadByte()
		return flags, uint64(b), err
	}
	var long [8]byte
	if _, err := io.ReadFull(z.r, long[:]); err != nil {
		return 0, 0, err
	}
	return flags, binary.BigEndian.Uint64(long[:]), nil
}

// Recv returns the next message. After ErrTooLarge it can be called again; any
// other error is the connection's end.
func (z *Conn) Recv() ([][]byte, error) {
	var parts [][]byte
	left := z.limit
	tooLarge := false
	for {
		flags, size, err := z.header()
		if err != nil {
			return nil, err
		}
		if flags&flagCommand != 0 {
			if err := z.command(size); err != nil {
				return nil, err
			}
			continue
		}
		if size > uint64(max(left, 0)) || len(parts) == maxParts {
			tooLarge = true
		}
		if tooLarge {
			parts = nil
			if size > 1<<62 {
				return nil, fmt.Errorf("frame of %d bytes: %w", size, ErrTooLarge)
			}
			if _, err := io.CopyN(io.Discard, z.r, int64(size)); err != nil {
				return nil, err
			}
		} else {
			left -= int64(size)
			body := make([]byte, size)
			if _, err := io.ReadFull(z.r, body); err != nil {
				return nil, err
			}
			parts = append(parts, body)
		}
		if flags&flagMore != 0 {
			continue
		}
		if tooLarge {
			return nil, ErrTooLarge
		}
		return parts, nil
	}
}

// command answers a ping; nothing else asks for an answer.
func (z *Conn) command(size uint64) error {
	if size > maxCommand {
		return fmt.Errorf("command of %d bytes: %w", size, ErrTooLarge)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(z.r, body); err != nil {
		return err
	}
	// PING, a time to live of two bytes, and a context to be sent back.
	if len(body) >= 7 && string(body[:5]) == "\x04PING" {
		return z.write(flagCommand, append([]byte("\x04PONG"), body[7:]...), true)
	}
	return nil
}
