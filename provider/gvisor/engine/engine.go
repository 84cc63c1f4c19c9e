// Package engine is the server's side of the socket to caisson-engine: it finds
// or launches the engine, calls its operations and passes on what it reports.
// Only provider/gvisor imports it.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/provider"
)

// maxLog is the size of the engine's log at which a launch starts a new one.
const maxLog = 8 << 20

// launchTimeout bounds finding or launching an engine, with the clearing up
// after one that died.
const launchTimeout = 30 * time.Second

// exitRunning is the launcher's exit status when an engine serves the root
// already.
const exitRunning = 3

// Options say which engine.
type Options struct {
	// Binary is the engine's executable.
	Binary string
	// Root is the absolute directory of its records, Socket where it listens.
	Root   string
	Socket string
	// OnExit is called for every box that ends, on one goroutine. It must not
	// call the client.
	OnExit func(wire.Box)
	Log    *slog.Logger
}

// Client is one connection to an engine.
type Client struct {
	// Hello is what the engine said about itself.
	Hello wire.HelloReply

	o    Options
	conn *wire.Conn
	done chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan reply
}

type reply struct {
	m     wire.Message
	files []*os.File
}

// Connect connects to the engine of o.Root, and launches one if there is none.
// An engine of another build is replaced when it has no boxes; otherwise it is
// used as it is, because the boxes would not survive.
func Connect(ctx context.Context, o Options) (*Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, launchTimeout, fmt.Errorf(
		"the engine did not answer within %s: see %s; \"Reading errors\" in docs/operating.md says how to restart it", launchTimeout, logPath(o.Root)))
	defer cancel()
	c, err := dial(ctx, o)
	if err == nil && c.Hello.Build != filepath.Base(o.Binary) {
		c, err = c.replace(ctx)
	}
	if !errors.Is(err, errNoEngine) {
		return c, err
	}
	if err := launch(ctx, o); err != nil {
		return nil, err
	}
	return dial(ctx, o)
}

// errNoEngine says that nothing listens on the socket.
var errNoEngine = errors.New("no engine is running")

// replace stops an idle engine of another build. It returns the client itself
// when the engine is busy, else errNoEngine.
func (c *Client) replace(ctx context.Context) (*Client, error) {
	err := c.Call(ctx, wire.OpShutdown, wire.Shutdown{}, nil)
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		c.o.Log.Warn("engine of another build stays until its boxes have ended",
			slog.String("running", c.Hello.Build), slog.String("ours", filepath.Base(c.o.Binary)))
		return c, nil
	}
	// It closes the connection as its last act but for the lock.
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	return nil, errors.Join(errNoEngine, c.Close())
}

func dial(ctx context.Context, o Options) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", o.Socket)
	if err != nil {
		return nil, errors.Join(errNoEngine, err)
	}
	c := &Client{
		o: o, conn: wire.NewConn(nc.(*net.UnixConn)), done: make(chan struct{}),
		pending: make(map[uint64]chan reply),
	}
	c.wg.Go(c.receive)
	err = c.Call(ctx, wire.OpHello, wire.Hello{Version: wire.Version, Client: "caisson"}, &c.Hello)
	if err != nil {
		return nil, fmt.Errorf("greet engine: %w", errors.Join(err, c.Close()))
	}
	if c.Hello.Version != wire.Version {
		return nil, fmt.Errorf("engine speaks protocol version %d, this server %d: %w",
			c.Hello.Version, wire.Version, errors.Join(errdefs.ErrFailedPrecondition, c.Close()))
	}
	return c, nil
}

func logPath(root string) string { return filepath.Join(root, "engine.log") }

// launch starts an engine and returns when it answers, or when another launch
// was faster.
func launch(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return fmt.Errorf("launch engine: %w", err)
	}
	path := logPath(o.Root)
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		_ = os.Rename(path, path+".old")
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("launch engine: %w", err)
	}
	defer log.Close()
	// An engine that has just been told to stop holds its lock a moment longer.
	for {
		cmd := exec.CommandContext(ctx, o.Binary, "launch", "--root", o.Root, "--socket", o.Socket)
		cmd.Stderr = log
		err = cmd.Run()
		x, ok := errors.AsType[*exec.ExitError](err)
		if !ok || x.ExitCode() != exitRunning {
			break
		}
		if c, err := net.Dial("unix", o.Socket); err == nil {
			return c.Close()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("launch engine: %w", context.Cause(ctx))
		}
	}
	if err != nil {
		return fmt.Errorf("launch engine (see %s): %w", path, errors.Join(err, errdefs.ErrUnavailable))
	}
	return nil
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection; engine and boxes stay. Idempotent.
func (c *Client) Close() error {
	_ = c.conn.Close()
	c.wg.Wait()
	return nil
}

func (c *Client) receive() {
	defer close(c.done)
	defer c.conn.Close()
	for {
		m, files, err := c.conn.Receive()
		if err != nil {
			return
		}
		if m.ID == 0 {
			closeFiles(files)
			var b wire.Box
			if m.Op == wire.OpExited && json.Unmarshal(m.Body, &b) == nil && b.Exit != nil && c.o.OnExit != nil {
				c.o.OnExit(b)
			}
			continue
		}
		c.mu.Lock()
		ch := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if ch == nil {
			closeFiles(files) // its caller gave up
			continue
		}
		ch <- reply{m, files}
	}
}

// Call runs one operation whose reply brings no files.
func (c *Client) Call(ctx context.Context, op string, in, out any, files ...*os.File) error {
	got, err := c.CallFiles(ctx, op, in, out, files...)
	closeFiles(got)
	return err
}

// CallFiles runs one operation and returns the files of its reply, which are
// the caller's; the files it sends stay the caller's too. Errors are of the
// classes of errdefs, or provider.ErrUnenforceable. When ctx ends first, the
// operation may still take effect.
func (c *Client) CallFiles(ctx context.Context, op string, in, out any, files ...*os.File) ([]*os.File, error) {
	ch := make(chan reply, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	c.pending[id] = ch
	c.mu.Unlock()
	if err := c.conn.Send(wire.Message{ID: id, Op: op, Body: wire.Encode(in)}, files...); err != nil {
		c.forget(id, ch)
		return nil, fmt.Errorf("engine %s: %w", op, errors.Join(err, errdefs.ErrUnavailable))
	}
	var r reply
	select {
	case r = <-ch:
	case <-ctx.Done():
		c.forget(id, ch)
		return nil, fmt.Errorf("engine %s: %w", op, context.Cause(ctx))
	case <-c.done:
		c.forget(id, ch)
		return nil, fmt.Errorf("engine %s: the connection broke: %w", op, errdefs.ErrUnavailable)
	}
	if r.m.Error != nil {
		closeFiles(r.files)
		return nil, fmt.Errorf("engine %s: %w", op, kind(r.m.Error))
	}
	if out != nil {
		if err := json.Unmarshal(r.m.Body, out); err != nil {
			closeFiles(r.files)
			return nil, fmt.Errorf("engine %s: decode reply: %w", op, err)
		}
	}
	return r.files, nil
}

// forget gives up on a reply, also on one that is there already.
func (c *Client) forget(id uint64, ch chan reply) {
	c.mu.Lock()
	delete(c.pending, id)
	c.mu.Unlock()
	select {
	case r := <-ch:
		closeFiles(r.files)
	default:
	}
}

// failure is an engine's error with the class that the rest of the server
// matches.
type failure struct {
	text  string
	class error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.class }

func kind(e *wire.Error) error {
	classes := map[wire.Code]error{
		wire.CodeInvalid:       errdefs.ErrInvalidArgument,
		wire.CodeNotFound:      errdefs.ErrNotFound,
		wire.CodeAlreadyExists: errdefs.ErrAlreadyExists,
		wire.CodePrecondition:  errdefs.ErrFailedPrecondition,
		wire.CodeIncompatible:  errdefs.ErrFailedPrecondition,
		wire.CodeUnavailable:   errdefs.ErrUnavailable,
		wire.CodeUnenforceable: provider.ErrUnenforceable,
	}
	class, ok := classes[e.Code]
	if !ok {
		class = errdefs.ErrInternal
	}
	return &failure{text: e.Message, class: class}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
