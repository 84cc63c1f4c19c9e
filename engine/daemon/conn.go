package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"gvisor.dev/gvisor/runsc/version"

	"github.com/caisson-dev/caisson/engine/wire"
)

// Bounds of one connection.
const (
	maxInFlight = 256
	maxEvents   = 4096
)

// conn is one connected server.
type conn struct {
	e      *Engine
	w      *wire.Conn
	events chan wire.Box

	mu        sync.Mutex
	unstarted map[string]bool // ids; see dropUnstarted
}

// reply is what an operation answers: a body and files, which are closed once
// sent.
type reply struct {
	body  any
	files []*os.File
}

func newConn(e *Engine, w *wire.Conn) *conn {
	return &conn{e: e, w: w, events: make(chan wire.Box, maxEvents), unstarted: map[string]bool{}}
}

// serve answers until the peer goes away.
func (c *conn) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer c.dropUnstarted()
	defer wg.Wait()
	defer cancel()
	defer c.w.Close()
	if err := c.hello(); err != nil {
		c.e.log.Debug("connection refused", slog.Any("error", err))
		return
	}
	wg.Go(func() { c.forward(ctx) })
	slots := make(chan struct{}, maxInFlight)
	for {
		m, files, err := c.w.Receive()
		if err != nil {
			return
		}
		// A box is registered before the next message is read, so that a kill
		// never overtakes the create it is meant for.
		var b *box
		if m.Op == wire.OpCreate {
			if b, err = c.e.admit(m); err != nil {
				closeFiles(files)
				_ = c.w.Send(wire.Message{ID: m.ID, Error: wire.AsError(err)})
				continue
			}
		}
		// So is a box that changes its id.
		if m.Op == wire.OpStart || m.Op == wire.OpRestore {
			if err := c.claim(m); err != nil {
				closeFiles(files)
				_ = c.w.Send(wire.Message{ID: m.ID, Error: wire.AsError(err)})
				continue
			}
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer closeFiles(files)
			c.answer(ctx, b, m, files)
		})
	}
}

func (c *conn) hello() error {
	m, files, err := c.w.Receive()
	closeFiles(files)
	if err != nil {
		return err
	}
	var h wire.Hello
	if m.Op != wire.OpHello || json.Unmarshal(m.Body, &h) != nil {
		return fmt.Errorf("first message is %q", m.Op)
	}
	if h.Version != wire.Version {
		err := &wire.Error{
			Code:    wire.CodeIncompatible,
			Message: fmt.Sprintf("engine speaks protocol version %d, the server %d", wire.Version, h.Version),
		}
		_ = c.w.Send(wire.Message{ID: m.ID, Error: err})
		return err
	}
	return c.w.Send(wire.Message{ID: m.ID, Body: wire.Encode(wire.HelloReply{
		Version: wire.Version, ABI: version.Version(), Build: c.e.build, PID: os.Getpid(),
		Limits: c.e.limits(), Rootless: c.e.rootless, Claims: true,
	})})
}

func (e *Engine) limits() []string {
	var l []string
	if e.cgroups.Memory() {
		l = append(l, wire.LimitMemory)
	}
	if e.cgroups.CPU() {
		l = append(l, wire.LimitCPU)
	}
	return l
}

// forward sends events, so that a slow server delays nobody else.
func (c *conn) forward(ctx context.Context) {
	for {
		select {
		case b := <-c.events:
			if c.w.Send(wire.Message{Op: wire.OpExited, Body: wire.Encode(b)}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// broadcast tells every server that a box has ended. A server that does not
// read is cut off; it lists the boxes when it returns.
func (e *Engine) broadcast(b wire.Box) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.conns {
		select {
		case c.events <- b:
		default:
			_ = c.w.Close()
		}
	}
}

// answer runs one operation; b is the registered box of a create.
func (c *conn) answer(ctx context.Context, b *box, m wire.Message, files []*os.File) {
	var r reply
	var err error
	if b != nil {
		r, err = c.e.create(ctx, b)
	} else {
		r, err = c.e.dispatch(ctx, m, files)
	}
	out := wire.Message{ID: m.ID, Error: wire.AsError(err)}
	if err == nil {
		out.Body = wire.Encode(r.body)
		c.track(b, m)
	}
	_ = c.w.Send(out, r.files...) // a server that cannot be told has gone away
	closeFiles(r.files)
}

// track remembers boxes that this server has created and not yet started, for
// dropUnstarted.
func (c *conn) track(b *box, m wire.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case b != nil:
		c.unstarted[b.name] = true
	case m.Op == wire.OpStart || m.Op == wire.OpRestore:
		if r, err := decode[wire.Launch](m); err == nil {
			delete(c.unstarted, r.Box())
		}
	case m.Op == wire.OpKill:
		if r, err := decode[wire.ByID](m); err == nil {
			delete(c.unstarted, r.ID)
		}
	}
}

// dropUnstarted destroys what the server that has gone away created and did not
// start: nobody else knows of it, and no later server would start it.
func (c *conn) dropUnstarted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.unstarted {
		_ = c.e.destroy(context.Background(), id) // fails with its context only
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
