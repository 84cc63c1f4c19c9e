package main

import (
	"os"
	"sync"
)

// maxLog is the size in bytes at which the log starts over.
const maxLog = 16 << 20

// boundedLog writes to a file that is emptied when it has grown too large. What
// is not a regular file, such as a terminal or the journal, is left alone.
type boundedLog struct {
	f *os.File

	mu    sync.Mutex // one check at a time
	lines int
}

// Write implements io.Writer. The size is looked at once in a thousand lines.
func (l *boundedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines%1000 == 0 {
		if fi, err := l.f.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() > maxLog {
			_ = l.f.Truncate(0) // it was opened for appending
		}
	}
	l.lines++
	return l.f.Write(b)
}
