package kernel

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// runner is a program of ours: cells go in as lines of JSON on its descriptor
// 3, events come back as lines of JSON on descriptor 4. Its standard output and
// error carry what the code's own child processes write.
type runner struct {
	*process
	in    *os.File
	lines chan runnerLine
	raw   [2]*stream
	count int
	files []*os.File
	work  sync.WaitGroup
	stop  chan struct{}
	once  sync.Once
	wmu   sync.Mutex // one line at a time on in
}

// runnerLine is one line of a runner.
type runnerLine struct {
	Type      string                     `json:"type"`
	Text      string                     `json:"text"`
	Data      map[string]json.RawMessage `json:"data"`
	Main      bool                       `json:"main"`
	Name      string                     `json:"name"`
	Value     string                     `json:"value"`
	Traceback string                     `json:"traceback"`
	drop      bool
}

type runnerCell struct {
	Code      string            `json:"code"`
	Language  string            `json:"language,omitempty"`
	Globals   map[string]string `json:"globals,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	Interrupt bool              `json:"interrupt,omitempty"`
}

// StartRunner starts a runner and returns once it is ready, or when ctx ends.
func StartRunner(ctx context.Context, cmd *exec.Cmd) (Kernel, error) {
	r := &runner{lines: make(chan runnerLine), stop: make(chan struct{})}
	var ends [4][2]*os.File
	for i := range ends {
		var err error
		if ends[i][0], ends[i][1], err = pipe(); err != nil {
			for _, e := range ends[:i] {
				_, _ = e[0].Close(), e[1].Close()
			}
			return nil, err
		}
	}
	cells, events, out, errs := ends[0], ends[1], ends[2], ends[3]
	cmd.ExtraFiles = []*os.File{cells[0], events[1]}
	cmd.Stdout, cmd.Stderr = out[1], errs[1]
	r.in, r.files = cells[1], []*os.File{cells[1], events[0], out[0], errs[0]}
	var err error
	if r.process, err = startProcess(cmd, cells[0], events[1], out[1], errs[1]); err != nil {
		for _, f := range r.files {
			_ = f.Close()
		}
		return nil, err
	}
	r.raw = [2]*stream{newStream(Stdout, out[0]), newStream(Stderr, errs[0])}
	for _, s := range r.raw {
		r.work.Go(s.run)
	}
	r.work.Go(func() { r.read(events[0]) })
	select {
	case l, ok := <-r.lines:
		if ok && l.Type == "ready" {
			return r, nil
		}
		r.Close()
		return nil, fmt.Errorf("kernel did not start: %s: %w", bytes.TrimSpace(r.raw[1].last()), ErrDied)
	case <-ctx.Done():
		r.Close()
		return nil, fmt.Errorf("kernel did not start: %w", context.Cause(ctx))
	}
}

// read takes lines from the runner until it ends.
func (r *runner) read(f io.Reader) {
	defer close(r.lines)
	b := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := readLine(b, MaxMessage)
		var l runnerLine
		switch {
		case errors.Is(err, errLongLine):
			l.drop = true
		case err != nil:
			return
		case json.Unmarshal(line, &l) != nil:
			continue
		}
		select {
		case r.lines <- l:
		case <-r.stop:
			return
		}
	}
}

var errLongLine = errors.New("line is too long")

// readLine reads one line of at most limit bytes; a longer one is skipped.
func readLine(b *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	long := false
	for {
		piece, err := b.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if long = long || len(line)+len(piece) > limit; !long {
			line = append(line, piece...)
		} else {
			line = nil
		}
		if err != nil {
			continue
		}
		if long {
			return nil, errLongLine
		}
		return line, nil
	}
}

func (r *runner) send(c runnerCell) error {
	line, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode cell: %w", err)
	}
	r.wmu.Lock()
	defer r.wmu.Unlock()
	_, err = r.in.Write(append(line, '\n'))
	return err
}

// Execute implements Kernel.
func (r *runner) Execute(_ context.Context, c Cell, emit func(Event)) error {
	r.count++
	emit(Event{Kind: Count, Count: r.count, At: time.Now()})
	if err := r.send(runnerCell{Code: c.Code, Language: c.Language, Globals: c.Globals, Env: c.Env}); err != nil {
		<-r.done
		return fmt.Errorf("%s: %w", r.ending(), ErrDied)
	}
	raw := [2]<-chan Event{r.raw[0].out, r.raw[1].out}
	for {
		select {
		case l, ok := <-r.lines:
			if !ok {
				<-r.done
				r.rest(emit)
				return fmt.Errorf("%s: %w", r.ending(), ErrDied)
			}
			if l.Type == "done" {
				r.rest(emit)
				return nil
			}
			if e, ok := l.event(); ok {
				emit(e)
			}
		case e, ok := <-raw[0]:
			if raw[0] = open(raw[0], ok); ok {
				emit(e)
			}
		case e, ok := <-raw[1]:
			if raw[1] = open(raw[1], ok); ok {
				emit(e)
			}
		}
	}
}

// open returns ch, or nil, which never delivers, when it was closed.
func open(ch <-chan Event, ok bool) <-chan Event {
	if !ok {
		return nil
	}
	return ch
}

// rest emits what is left in the pipes of the process.
func (r *runner) rest(emit func(Event)) {
	for _, s := range r.raw {
		s.drain(emit)
	}
}

func (l runnerLine) event() (Event, bool) {
	e := Event{At: time.Now(), Text: l.Text}
	switch {
	case l.drop:
		e.Kind, e.Text = Stderr, tooLarge
	case l.Type == "stdout":
		e.Kind = Stdout
	case l.Type == "stderr":
		e.Kind = Stderr
	case l.Type == "result":
		e.Kind, e.Data, e.Main = Result, l.Data, l.Main
	case l.Type == "error":
		e.Kind, e.Name, e.Value, e.Traceback = Error, l.Name, l.Value, l.Traceback
	default:
		return e, false
	}
	return e, true
}

// Interrupt implements Kernel. The runner ends the cell; a signal would end the
// runner. Writing is left to a goroutine: a runner that is busy reads later.
func (r *runner) Interrupt() {
	select {
	case <-r.stop:
		return
	default:
	}
	r.work.Go(func() { _ = r.send(runnerCell{Interrupt: true}) })
}

// Close implements Kernel.
func (r *runner) Close() {
	r.once.Do(func() { close(r.stop) })
	r.kill()
	for _, s := range r.raw {
		s.close()
	}
	for _, f := range r.files {
		_ = f.Close()
	}
	r.work.Wait()
}
