package daemon

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a console. A guest that writes faster waits.
const (
	consoleTail = 16 << 10 // bytes kept
	consoleRate = 1 << 20  // bytes read per second
)

// console reads what the first process of a box writes to its standard streams
// and keeps the end of it.
type console struct {
	c    net.Conn
	done chan struct{}

	mu   sync.Mutex
	tail []byte
}

// newConsole returns the console and the guest's end: a socket, because gVisor
// writes to a regular file at offsets of its own.
func newConsole() (*console, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make console: %w", err)
	}
	mine, guest := os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
	c, err := net.FileConn(mine)
	_ = mine.Close()
	if err != nil {
		_ = guest.Close()
		return nil, nil, fmt.Errorf("open console: %w", err)
	}
	return &console{c: c, done: make(chan struct{})}, guest, nil
}

// drain reads until the console is closed.
func (c *console) drain() {
	buf := make([]byte, 4<<10)
	for {
		n, err := c.c.Read(buf)
		c.mu.Lock()
		c.tail = append(c.tail, buf[:n]...)
		if over := len(c.tail) - consoleTail; over > 0 {
			c.tail = append(c.tail[:0], c.tail[over:]...)
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
		select {
		case <-time.After(time.Duration(n) * time.Second / consoleRate):
		case <-c.done:
			return
		}
	}
}

// lastLine returns the last line written, at most 512 bytes.
func (c *console) lastLine() string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	text := strings.TrimSpace(string(c.tail))
	line := text[strings.LastIndexByte(text, '\n')+1:]
	return strings.ToValidUTF8(line[max(0, len(line)-512):], "?")
}

func (c *console) close() {
	close(c.done)
	_ = c.c.Close()
}
