package kernel

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/codeinterp/kernel/zmtp"
)

// The sockets of a kernel, numbered as ports of the connection file.
const (
	shellPort = iota + 1
	iopubPort
	stdinPort
	controlPort
	heartbeatPort
)

const (
	protocolVersion = "5.3"
	dialPause       = 10 * time.Millisecond
	delimiter       = "<IDS|MSG>"
)

// Snippets make code of variables, for a kernel that does not take them from
// the metadata of its cells.
type Snippets struct {
	// Set and Unset return code that changes the environment.
	Set   func(vars map[string]string) string
	Unset func(names []string) string
}

// jupyter is a Jupyter kernel.
type jupyter struct {
	*process
	dir     string
	key     []byte
	session string
	shell   *zmtp.Conn
	iopub   *zmtp.Conn
	env     *Snippets
	serial  int
	globals map[string]string

	mu      sync.Mutex // guards current
	current *run

	readers sync.WaitGroup
}

// run is the cell that is being run: replies to it go into its channel.
type run struct {
	id   string
	in   chan incoming
	over chan struct{}
}

type incoming struct {
	msg   message
	shell bool
	drop  bool // a message that was too large stood here
}

// message is what is used of a Jupyter message.
type message struct {
	kind   string
	parent string
	body   json.RawMessage
}

// StartJupyter starts a Jupyter kernel whose sockets lie in dir, which it makes
// and Close removes. argv gets the path of the connection file in place of
// "{connection}". It returns once the kernel answers, or when ctx ends.
func StartJupyter(ctx context.Context, dir string, cmd *exec.Cmd, env *Snippets) (Kernel, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start kernel: %w", err)
	}
	j := &jupyter{dir: dir, key: []byte(rand.Text()), session: rand.Text(), env: env}
	sockets := filepath.Join(dir, "s")
	connection, err := json.Marshal(map[string]any{
		"transport": "ipc", "ip": sockets, "key": string(j.key), "signature_scheme": "hmac-sha256",
		"shell_port": shellPort, "iopub_port": iopubPort, "stdin_port": stdinPort,
		"control_port": controlPort, "hb_port": heartbeatPort, "kernel_name": "",
	})
	if err != nil {
		return nil, fmt.Errorf("start kernel: %w", err)
	}
	file := filepath.Join(dir, "connection.json")
	if err := os.WriteFile(file, connection, 0o600); err != nil {
		return nil, fmt.Errorf("start kernel: %w", err)
	}
	for i, a := range cmd.Args {
		if a == "{connection}" {
			cmd.Args[i] = file
		}
	}
	if j.process, err = startProcess(cmd); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := j.connect(ctx, sockets); err != nil {
		j.Close()
		return nil, err
	}
	j.readers.Go(func() { j.read(j.shell, true) })
	j.readers.Go(func() { j.read(j.iopub, false) })
	if err := j.settle(ctx); err != nil {
		j.Close()
		return nil, err
	}
	return j, nil
}

func (j *jupyter) connect(ctx context.Context, sockets string) (err error) {
	if j.shell, err = j.dial(ctx, sockets, shellPort, zmtp.Dealer); err != nil {
		return err
	}
	j.iopub, err = j.dial(ctx, sockets, iopubPort, zmtp.Sub)
	return err
}

// dial waits for the kernel to listen: it tells nobody when it does.
func (j *jupyter) dial(ctx context.Context, sockets string, port int, kind string) (*zmtp.Conn, error) {
	for {
		for _, sep := range []string{"-", ":"} {
			c, err := net.Dial("unix", sockets+sep+strconv.Itoa(port))
			if err != nil {
				continue
			}
			z, err := zmtp.Handshake(c, kind, MaxMessage)
			if err != nil {
				_ = c.Close()
				return nil, fmt.Errorf("kernel: %w", err)
			}
			return z, nil
		}
		select {
		case <-j.done:
			return nil, fmt.Errorf("kernel did not start: %s: %w", j.ending(), ErrDied)
		case <-ctx.Done():
			return nil, fmt.Errorf("kernel did not start: %w", context.Cause(ctx))
		case <-time.After(dialPause):
		}
	}
}

// settle asks for the kernel's information until the answer comes on both
// sockets: a subscription takes effect some time after it was made.
func (j *jupyter) settle(ctx context.Context) error {
	for {
		r, err := j.request("kernel_info_request", map[string]any{}, nil)
		if err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		replied, idle := false, false
		for !replied || !idle {
			select {
			case in := <-r.in:
				replied = replied || in.shell
				idle = idle || !in.shell && in.msg.kind == "status"
				continue
			case <-j.done:
				cancel()
				return fmt.Errorf("kernel did not start: %s: %w", j.ending(), ErrDied)
			case <-try.Done():
			}
			break
		}
		cancel()
		j.finish(r)
		if replied && idle {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("kernel did not start: %w", context.Cause(ctx))
		}
	}
}

// request sends a message on the shell socket; what answers it goes to the run.
func (j *jupyter) request(kind string, content, metadata any) (*run, error) {
	j.serial++
	r := &run{id: j.session + "_" + strconv.Itoa(j.serial), in: make(chan incoming), over: make(chan struct{})}
	parts := make([][]byte, 4)
	for i, v := range []any{
		map[string]any{
			"msg_id": r.id, "session": j.session, "username": "caisson", "msg_type": kind,
			"version": protocolVersion, "date": time.Now().UTC().Format(time.RFC3339Nano),
		},
		struct{}{},
		metadata, content,
	} {
		if v == nil {
			v = struct{}{}
		}
		var err error
		if parts[i], err = json.Marshal(v); err != nil {
			return nil, fmt.Errorf("encode message: %w", err)
		}
	}
	j.mu.Lock()
	j.current = r
	j.mu.Unlock()
	if err := j.shell.Send(append([][]byte{[]byte(delimiter), j.sign(parts)}, parts...)...); err != nil {
		j.finish(r)
		return nil, j.dead(err)
	}
	return r, nil
}

// dead makes ErrDied of an error of a connection, once the process ended.
func (j *jupyter) dead(err error) error {
	select {
	case <-j.done:
		return fmt.Errorf("%s: %w", j.ending(), ErrDied)
	case <-time.After(time.Second):
		return err
	}
}

func (j *jupyter) finish(r *run) {
	j.mu.Lock()
	if j.current == r {
		j.current = nil
	}
	j.mu.Unlock()
	close(r.over)
}

func (j *jupyter) sign(parts [][]byte) []byte {
	h := hmac.New(sha256.New, j.key)
	for _, p := range parts {
		h.Write(p)
	}
	return hex.AppendEncode(nil, h.Sum(nil))
}

// read hands the messages of one socket to the run they belong to.
func (j *jupyter) read(z *zmtp.Conn, shell bool) {
	for {
		parts, err := z.Recv()
		in := incoming{shell: shell}
		switch {
		case errors.Is(err, zmtp.ErrTooLarge):
			in.drop = true
		case err != nil:
			return
		default:
			var ok bool
			if in.msg, ok = j.decode(parts); !ok {
				continue
			}
		}
		j.mu.Lock()
		r := j.current
		j.mu.Unlock()
		// What came too late, such as the output of a thread of an earlier
		// cell, has no reader any more.
		if r == nil || !in.drop && in.msg.parent != r.id {
			continue
		}
		select {
		case r.in <- in:
		case <-r.over:
		case <-j.done:
		}
	}
}

// decode checks and takes apart a message; one that is not signed is none.
func (j *jupyter) decode(parts [][]byte) (message, bool) {
	for i, p := range parts {
		if string(p) != delimiter {
			continue
		}
		parts = parts[i+1:]
		if len(parts) < 5 || !hmac.Equal(j.sign(parts[1:5]), parts[0]) {
			return message{}, false
		}
		var header, parent struct {
			Kind string `json:"msg_type"`
			ID   string `json:"msg_id"`
		}
		if json.Unmarshal(parts[1], &header) != nil || json.Unmarshal(parts[2], &parent) != nil {
			return message{}, false
		}
		return message{kind: header.Kind, parent: parent.ID, body: parts[4]}, true
	}
	return message{}, false
}

// Execute implements Kernel.
func (j *jupyter) Execute(_ context.Context, c Cell, emit func(Event)) error {
	if j.env == nil {
		return j.execute(c.Code, false, map[string]any{"caisson": map[string]any{"globals": c.Globals, "env": c.Env}}, emit)
	}
	last := lastValue{emit: emit}
	err := j.withEnv(c, last.event)
	last.flush(true)
	return err
}

// lastValue finds the value of a cell for a kernel that shows every value in the
// same way (R): it is what was shown last, unless that is a picture.
type lastValue struct {
	emit func(Event)
	held *Event
}

func (l *lastValue) event(e Event) {
	l.flush(false)
	_, png := e.Data["image/png"]
	_, svg := e.Data["image/svg+xml"]
	if e.Kind == Result && !png && !svg {
		l.held = &e
		return
	}
	l.emit(e)
}

func (l *lastValue) flush(last bool) {
	if l.held == nil {
		return
	}
	e := *l.held
	l.held = nil
	e.Main = e.Main || last
	l.emit(e)
}

// withEnv runs a cell of a kernel that knows nothing of variables: they are set
// and put back by code that is not counted as an execution.
func (j *jupyter) withEnv(c Cell, emit func(Event)) error {
	silent := func(code string) error { return j.execute(code, true, nil, func(Event) {}) }
	if len(c.Globals) > 0 {
		if err := silent(j.env.Set(c.Globals)); err != nil {
			return err
		}
		j.globals = c.Globals
	}
	if len(c.Env) == 0 {
		return j.execute(c.Code, false, nil, emit)
	}
	if err := silent(j.env.Set(c.Env)); err != nil {
		return err
	}
	if err := j.execute(c.Code, false, nil, emit); err != nil {
		return err
	}
	back, gone := map[string]string{}, []string(nil)
	for name := range c.Env {
		if v, ok := j.globals[name]; ok {
			back[name] = v
		} else {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		if err := silent(j.env.Unset(gone)); err != nil {
			return err
		}
	}
	if len(back) > 0 {
		return silent(j.env.Set(back))
	}
	return nil
}

func (j *jupyter) execute(code string, silent bool, metadata any, emit func(Event)) error {
	r, err := j.request("execute_request", map[string]any{
		"code": code, "silent": silent, "store_history": !silent, "user_expressions": struct{}{},
		"allow_stdin": false, "stop_on_error": false,
	}, metadata)
	if err != nil {
		return err
	}
	defer j.finish(r)
	replied, idle, failed := false, false, false
	for !replied || !idle {
		var in incoming
		select {
		case in = <-r.in:
		case <-j.done:
			return fmt.Errorf("%s: %w", j.ending(), ErrDied)
		}
		switch {
		case in.drop:
			emit(Event{Kind: Stderr, Text: tooLarge, At: time.Now()})
			replied = replied || in.shell
		case in.shell:
			replied = true
		case in.msg.kind == "status":
			idle = idle || status(in.msg.body) == "idle"
		default:
			if e, ok := event(in.msg); ok && !(e.Kind == Error && failed) {
				failed = failed || e.Kind == Error
				emit(e)
			}
		}
	}
	return nil
}

// Close implements Kernel.
func (j *jupyter) Close() {
	j.kill()
	for _, z := range []*zmtp.Conn{j.shell, j.iopub} {
		if z != nil {
			_ = z.Close()
		}
	}
	j.readers.Wait()
	_ = os.RemoveAll(j.dir)
}
