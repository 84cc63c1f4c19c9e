package erofs

import (
	"bytes"
	"fmt"
	"os"
)

const spoolBytes = 1 << 20

// spool appends to a file through one buffer. A buffer of zeros becomes a hole.
type spool struct {
	f   *os.File
	off int64 // length written so far
	buf []byte
	err error
}

func newSpool(f *os.File) *spool {
	return &spool{f: f, buf: make([]byte, 0, spoolBytes)}
}

// Write implements io.Writer. After an error every call returns that error.
func (s *spool) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if s.err != nil {
			return 0, s.err
		}
		n := min(len(p), spoolBytes-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		if len(s.buf) == spoolBytes {
			s.flush()
		}
	}
	return total, s.err
}

// len returns the length of the file with what is still buffered.
func (s *spool) len() int64 { return s.off + int64(len(s.buf)) }

// pad writes zeros up to the next block boundary.
func (s *spool) pad() error {
	if r := s.len() % BlockSize; r != 0 {
		_, err := s.Write(zeros[:BlockSize-r])
		return err
	}
	return s.err
}

func (s *spool) flush() error {
	if s.err != nil || len(s.buf) == 0 {
		return s.err
	}
	if !allZero(s.buf) {
		if _, err := s.f.WriteAt(s.buf, s.off); err != nil {
			s.err = fmt.Errorf("write image: %w", err)
			return s.err
		}
	}
	s.off += int64(len(s.buf))
	s.buf = s.buf[:0]
	return nil
}

// close flushes and gives the file its length, which a trailing hole needs.
func (s *spool) close() error {
	if err := s.flush(); err != nil {
		return err
	}
	if err := s.f.Truncate(s.off); err != nil {
		return fmt.Errorf("set length of image: %w", err)
	}
	return nil
}

var zeros [BlockSize]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
