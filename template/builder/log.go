package builder

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/caisson-dev/caisson/template"
)

const (
	maxLine = 8 << 10 // bytes; longer ones are cut into pieces

	levelInfo = "info"
	levelWarn = "warn"
)

// journal hands lines to a build's log, one at a time and not without end.
type journal struct {
	mu    sync.Mutex // guards what follows, and calls of emit
	emit  func(template.LogLine)
	left  int64 // bytes of output that may still be logged
	ended bool  // the output has reached its limit
}

func newJournal(emit func(template.LogLine), limit int64) *journal {
	return &journal{emit: emit, left: limit}
}

func (j *journal) write(l template.LogLine) {
	l.At = time.Now().UTC()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.emit(l)
}

func (j *journal) info(step int, format string, args ...any) {
	j.write(template.LogLine{Level: levelInfo, Step: step, Text: fmt.Sprintf(format, args...)})
}

func (j *journal) warn(step int, format string, args ...any) {
	j.write(template.LogLine{Level: levelWarn, Step: step, Text: fmt.Sprintf(format, args...)})
}

// output logs a line that a command wrote.
func (j *journal) output(step int, level, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return
	}
	if j.left -= int64(len(text)) + 1; j.left < 0 {
		j.ended = true
		level, text = levelWarn, "further output is not logged: the limit is reached"
	}
	j.emit(template.LogLine{At: time.Now().UTC(), Level: level, Step: step, Text: text})
}

// stream cuts output into lines. It belongs to one goroutine.
type stream struct {
	j     *journal
	step  int
	level string
	part  []byte
	last  string // the last line that was not empty
}

// Write implements io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte("\n"))
		take := min(len(line), maxLine-len(s.part))
		s.part = append(s.part, line[:take]...)
		switch {
		case take < len(line):
			s.flush()
			p = p[take:]
			continue
		case ended:
			s.flush()
		}
		p = rest
	}
	return n, nil
}

// flush logs what has no end of line yet.
func (s *stream) flush() {
	if len(s.part) == 0 {
		return
	}
	text := clean(s.part)
	s.part = s.part[:0]
	if text == "" {
		return
	}
	s.last = text
	s.j.output(s.step, s.level, text)
}

// clean is what a terminal would show in the end of a line that was written over
// with carriage returns, without what cannot be shown.
func clean(b []byte) string {
	b = bytes.TrimRight(b, "\r")
	if i := bytes.LastIndexByte(b, '\r'); i >= 0 {
		b = b[i+1:]
	}
	text := string(b)
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	return strings.ReplaceAll(text, "\x00", "")
}
