package kernel

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// lastWords is how long the output of a shell that ended is waited for.
const lastWords = 100 * time.Millisecond

// bash is an interactive shell without a terminal. It reads commands from its
// standard input, so that an interrupt brings it back to the next one, as it
// does at a prompt; each cell is a file that it sources. Marks on the
// descriptors behind standard output and error tell where a cell's output ends.
type bash struct {
	*process
	dir     string
	in      *os.File
	out     [2]*marked
	files   []*os.File
	mark    string
	count   int
	globals map[string]string
	work    sync.WaitGroup

	mu   sync.Mutex
	cell chan struct{} // closed when the cell that runs ends; nil between cells
}

// How often an interrupt is said again, and how many times.
const (
	interruptAgain = 300 * time.Millisecond
	interrupts     = 5
)

// Interrupt implements Kernel. A shell that waits for a command ends its loop
// only if the signal ended the command; one that reaches a child between its
// fork and its program does not, and nothing is interrupted. So it is said again
// while the same cell runs.
func (b *bash) Interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.process.Interrupt()
	if b.cell != nil {
		go b.insist(b.cell)
	}
}

func (b *bash) insist(cell chan struct{}) {
	for range interrupts - 1 {
		select {
		case <-cell:
			return
		case <-b.done:
			return
		case <-time.After(interruptAgain):
		}
		b.mu.Lock()
		if b.cell == cell {
			b.process.Interrupt()
		}
		b.mu.Unlock()
	}
}

// begin and end are around what a cell runs.
func (b *bash) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cell = make(chan struct{})
}

func (b *bash) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.cell)
	b.cell = nil
}

// StartBash starts a shell that keeps its files in dir, which it makes and
// Close removes.
func StartBash(ctx context.Context, dir string, cmd *exec.Cmd) (Kernel, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start kernel: %w", err)
	}
	b := &bash{dir: dir, mark: rand.Text()}
	var ends [3][2]*os.File
	for i := range ends {
		var err error
		if ends[i][0], ends[i][1], err = pipe(); err != nil {
			for _, e := range ends[:i] {
				_, _ = e[0].Close(), e[1].Close()
			}
			return nil, err
		}
	}
	b.in, b.files = ends[0][1], []*os.File{ends[0][1], ends[1][0], ends[2][0]}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ends[0][0], ends[1][1], ends[2][1]
	cmd.Args = append(cmd.Args, "--noprofile", "--norc", "--noediting", "-i")
	var err error
	if b.process, err = startProcess(cmd, ends[0][0], ends[1][1], ends[2][1]); err != nil {
		for _, f := range b.files {
			_ = f.Close()
		}
		_ = os.RemoveAll(dir)
		return nil, err
	}
	for i, kind := range []Kind{Stdout, Stderr} {
		b.out[i] = &marked{kind: kind, f: ends[1+i][0], mark: []byte(b.mark), out: make(chan Event), stop: make(chan struct{})}
		b.work.Go(b.out[i].run)
	}
	ready := make(chan error, 1)
	b.work.Go(func() {
		// 250 and 251 are where the output goes whatever the cells redirect.
		ready <- b.run("set +m +o history; PS1= PS2= PROMPT_COMMAND=; exec 250>&1 251>&2\n", func(Event) {})
	})
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("kernel did not start: %w", err)
	}
	return b, nil
}

// run gives the shell lines to read and emits what comes until both marks.
func (b *bash) run(lines string, emit func(Event)) error {
	mark := quote(b.mark)
	lines += "{ printf '%s%d\\n' " + mark + " $? >&250; printf '%s0\\n' " + mark + " >&251; } 2>/dev/null\n"
	if _, err := io.WriteString(b.in, lines); err != nil {
		<-b.done
		return fmt.Errorf("%s: %w", b.ending(), ErrDied)
	}
	code := 0
	out := [2]<-chan Event{b.out[0].out, b.out[1].out}
	done := b.done
	var late <-chan time.Time
	for left := 2; left > 0; {
		var e Event
		ok, from := false, 0
		select {
		case e, ok = <-out[0]:
		case e, ok = <-out[1]:
			from = 1
		case <-done:
			// What is in the pipes still comes; a child may hold them open.
			done, late = nil, time.After(lastWords)
			continue
		case <-late:
			return fmt.Errorf("%s: %w", b.ending(), ErrDied)
		}
		switch {
		case !ok:
			if out[from] = nil; out[1-from] == nil {
				<-b.done
				return fmt.Errorf("%s: %w", b.ending(), ErrDied)
			}
		case e.Kind != 0:
			emit(e)
		default:
			left--
			code = max(code, e.Count)
		}
	}
	if code != 0 {
		status := strconv.Itoa(code)
		emit(Event{Kind: Error, Name: "ExitCode", Value: status, Traceback: "the last command ended with status " + status, At: time.Now()})
	}
	return nil
}

// Execute implements Kernel.
func (b *bash) Execute(_ context.Context, c Cell, emit func(Event)) error {
	b.count++
	emit(Event{Kind: Count, Count: b.count, At: time.Now()})
	cell := filepath.Join(b.dir, "cell-"+strconv.Itoa(b.count))
	if err := os.WriteFile(cell, []byte(c.Code+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep cell: %w", err)
	}
	defer os.Remove(cell)
	if len(c.Globals) > 0 {
		b.globals = c.Globals
	}
	set := exports(c.Globals) + exports(c.Env)
	if set != "" {
		if err := b.run(set+"true\n", func(Event) {}); err != nil {
			return err
		}
	}
	b.begin()
	err := b.run("source "+quote(cell)+" </dev/null\n", emit)
	b.end()
	if err != nil || len(c.Env) == 0 {
		return err
	}
	var back strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		if v, ok := b.globals[name]; ok {
			back.WriteString("export " + name + "=" + quote(v) + "\n")
		} else {
			back.WriteString("unset -v " + name + "\n")
		}
	}
	return b.run(back.String()+"true\n", func(Event) {})
}

func exports(vars map[string]string) string {
	var s strings.Builder
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		s.WriteString("export " + name + "=" + quote(vars[name]) + "\n")
	}
	return s.String()
}

// quote makes s one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Close implements Kernel.
func (b *bash) Close() {
	b.kill()
	for _, m := range b.out {
		m.close()
	}
	for _, f := range b.files {
		_ = f.Close()
	}
	b.work.Wait()
	_ = os.RemoveAll(b.dir)
}

// marked is a stream in which a mark, a number and a newline end each cell;
// the end is an Event without a kind.
type marked struct {
	kind Kind
	f    *os.File
	mark []byte
	out  chan Event
	stop chan struct{}
	once sync.Once
}

func (m *marked) close() { m.once.Do(func() { close(m.stop) }) }

// run reads until the pipe ends or the stream is closed.
func (m *marked) run() {
	defer close(m.out)
	buf := make([]byte, 0, pieceSize)
	for {
		n, err := m.f.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for {
			before, after, ok := m.cut(buf)
			if !m.text(before) {
				return
			}
			if !ok {
				buf = append(buf[:0], after...)
				break
			}
			line, rest, _ := bytes.Cut(after, []byte{'\n'})
			code, _ := strconv.Atoi(string(line))
			if !m.send(Event{Count: code}) {
				return
			}
			buf = append(buf[:0], rest...)
		}
		if err != nil {
			m.text(buf)
			return
		}
	}
}

// cut returns what may be shown of b, and what is kept: with ok, a whole line
// that follows a mark; else what may be the beginning of a mark or a character.
func (m *marked) cut(b []byte) (before, after []byte, ok bool) {
	if i := bytes.Index(b, m.mark); i >= 0 {
		rest := b[i+len(m.mark):]
		if bytes.IndexByte(rest, '\n') >= 0 {
			return b[:i], rest, true
		}
		return b[:i], b[i:], false
	}
	keep := unfinished(b)
	for n := min(len(m.mark)-1, len(b)); n > keep; n-- {
		if bytes.HasSuffix(b, m.mark[:n]) {
			keep = n
			break
		}
	}
	return b[:len(b)-keep], b[len(b)-keep:], false
}

func (m *marked) text(b []byte) bool {
	return len(b) == 0 || m.send(Event{Kind: m.kind, Text: string(b), At: time.Now()})
}

func (m *marked) send(e Event) bool {
	select {
	case m.out <- e:
		return true
	case <-m.stop:
		return false
	}
}
