package kernel

import (
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// pieceSize is the most that one event of a stream carries.
const pieceSize = 64 << 10

// stream turns what comes through a pipe into events, without splitting
// characters. Nothing is read ahead of the reader of out.
type stream struct {
	kind Kind
	f    *os.File
	out  chan Event
	stop chan struct{}
	once sync.Once

	mu   sync.Mutex // guards tail and busy
	tail []byte     // the last that was read, for messages about a failed start
	busy bool       // something was read and not yet taken
}

func newStream(kind Kind, f *os.File) *stream {
	return &stream{kind: kind, f: f, out: make(chan Event), stop: make(chan struct{})}
}

// run reads until the pipe ends or is closed.
func (s *stream) run() {
	defer close(s.out)
	buf := make([]byte, pieceSize)
	kept := 0
	for {
		n, err := s.f.Read(buf[kept:])
		s.mark(n > 0)
		n += kept
		kept = 0
		if err == nil {
			kept = unfinished(buf[:n])
		}
		if n > kept {
			s.remember(buf[:n-kept])
			select {
			case s.out <- Event{Kind: s.kind, Text: string(buf[:n-kept]), At: time.Now()}:
			case <-s.stop:
				return
			}
		}
		copy(buf, buf[n-kept:n])
		s.mark(false)
		if err != nil {
			return
		}
	}
}

// unfinished is how many bytes at the end of b begin a character.
func unfinished(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if utf8.RuneStart(b[len(b)-n]) {
			if utf8.FullRune(b[len(b)-n:]) {
				return 0
			}
			return n
		}
	}
	return 0
}

func (s *stream) mark(busy bool) {
	s.mu.Lock()
	s.busy = busy
	s.mu.Unlock()
}

func (s *stream) remember(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tail = append(s.tail[:0], b[max(0, len(b)-512):]...)
}

func (s *stream) last() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]byte(nil), s.tail...)
}

// drain emits what is in the pipe now.
func (s *stream) drain(emit func(Event)) {
	for s.pending() {
		select {
		case e, ok := <-s.out:
			if !ok {
				return
			}
			emit(e)
		case <-time.After(time.Millisecond):
		}
	}
}

// pending says whether something is in the pipe, or was read from it and is
// not yet taken.
func (s *stream) pending() bool {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return false
	}
	queued := 0
	if raw.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) != nil || err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return queued > 0 || s.busy
}

func (s *stream) close() { s.once.Do(func() { close(s.stop) }) }
