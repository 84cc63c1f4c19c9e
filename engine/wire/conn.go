package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// Bounds of one message; a peer that exceeds them is cut off.
const (
	MaxMessage = 4 << 20
	MaxFiles   = 16
)

// Message is one frame.
type Message struct {
	// ID pairs a reply with its request; zero marks an event.
	ID    uint64          `json:"id,omitempty"`
	Op    string          `json:"op,omitempty"` // empty in replies
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Conn carries messages over a unix stream socket. One goroutine may receive
// while any number send.
type Conn struct {
	c  *net.UnixConn
	mu sync.Mutex // one frame at a time
}

// NewConn takes ownership of c.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// Close ends the connection; a blocked Receive returns.
func (c *Conn) Close() error { return c.c.Close() }

// Send writes one message with files, which stay the caller's.
func (c *Conn) Send(m Message, files ...*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("send %s: %d files, at most %d", m.Op, len(files), MaxFiles)
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(payload) > MaxMessage {
		return fmt.Errorf("send %s: message of %d bytes, at most %d", m.Op, len(payload), MaxMessage)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), uint32(len(payload)))
	frame = append(frame, payload...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(files) > 0 {
		// The descriptors travel with the first byte of the frame.
		n, err := c.sendFiles(frame, files)
		if err != nil {
			return fmt.Errorf("send files: %w", err)
		}
		frame = frame[n:]
	}
	if _, err := c.c.Write(frame); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// sendFiles nests one Control callback per file, so that none of them can be
// closed and its number reused before the socket holds a reference.
func (c *Conn) sendFiles(frame []byte, files []*os.File) (n int, err error) {
	fds := make([]int, 0, len(files))
	var send func(rest []*os.File) error
	send = func(rest []*os.File) error {
		if len(rest) == 0 {
			var err error
			n, _, err = c.c.WriteMsgUnix(frame, syscall.UnixRights(fds...), nil)
			return err
		}
		rc, err := rest[0].SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		err = rc.Control(func(fd uintptr) {
			fds = append(fds, int(fd))
			inner = send(rest[1:])
		})
		return errors.Join(err, inner)
	}
	err = send(files)
	return n, err
}

// Receive reads one message. The caller owns the files, which are
// close-on-exec. io.EOF says that the peer has gone between messages.
func (c *Conn) Receive() (Message, []*os.File, error) {
	var head [4]byte
	oob := make([]byte, syscall.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(head[:], oob)
	files, ferr := parseFiles(oob[:oobn])
	if err == nil {
		err = ferr
	}
	if err == nil && flags&syscall.MSG_CTRUNC != 0 {
		err = fmt.Errorf("more than %d files in one message", MaxFiles)
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && n < len(head) {
		_, err = io.ReadFull(c.c, head[n:])
	}
	if err != nil {
		closeAll(files)
		if errors.Is(err, io.EOF) {
			return Message{}, nil, io.EOF
		}
		return Message{}, nil, fmt.Errorf("receive: %w", err)
	}
	m, err := c.payload(binary.BigEndian.Uint32(head[:]))
	if err != nil {
		closeAll(files)
		return Message{}, nil, fmt.Errorf("receive: %w", err)
	}
	return m, files, nil
}

func (c *Conn) payload(size uint32) (Message, error) {
	if size > MaxMessage {
		return Message{}, fmt.Errorf("message of %d bytes, at most %d", size, MaxMessage)
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(c.c, buf); err != nil {
		return Message{}, err
	}
	var m Message
	if err := json.Unmarshal(buf, &m); err != nil {
		return Message{}, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Encode makes a message body; values of this package always encode.
func Encode(v any) json.RawMessage {
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("wire: encode %T: %v", v, err))
	}
	return b
}
