package codeinterp

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/codeinterp/kernel"
)

// Times of an interrupt.
const (
	// interruptGrace is how long an interrupted cell may take to end before
	// its kernel is replaced.
	interruptGrace = 4 * time.Second
)

// The names of the errors that the interpreter reports itself.
const (
	errContextRestarting = "ContextRestarting"
	errAborted           = "ExecutionAborted"
	errOutOfMemory       = "out of memory" // reported as ContextRestarting
)

// Context is the state that cells share: one kernel, one cell at a time.
type Context struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	Cwd      string `json:"cwd"`

	server    *Server
	defaultOf string
	// turn is held by whoever uses the kernel; those who wait get it in order.
	turn chan struct{}
	// token is a hash of the access token under which the variables were read:
	// what is in memory comes into snapshots, and a copy must not have the token
	// of its source. Belongs to the holder of turn.
	token [sha256.Size]byte
	read  bool
	known map[string]string
	// warm asks for modules imported beforehand in the first kernel, which a
	// checkpoint keeps; later ones are to be there soon. Belongs to the holder
	// of turn.
	warm bool

	mu     sync.Mutex // guards what follows
	kernel kernel.Kernel
	why    string // why the kernel is being ended, for the cell that runs
	gone   bool
}

func newContext(s *Server, id, language, cwd string) *Context {
	return &Context{ID: id, Language: language, Cwd: cwd, server: s, turn: make(chan struct{}, 1)}
}

// enter waits for the turn.
func (c *Context) enter(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Context) leave() { <-c.turn }

// start starts the kernel if none runs.
func (c *Context) start(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	_, err := c.running(ctx)
	return err
}

// running returns the kernel, started when there is none that lives. The caller
// has the turn.
func (c *Context) running(ctx context.Context) (kernel.Kernel, error) {
	c.mu.Lock()
	k, gone := c.kernel, c.gone
	c.mu.Unlock()
	if gone {
		return nil, errors.New("the context was removed")
	}
	if k != nil {
		select {
		case <-k.Done():
			c.server.cfg.Log.Warn("a kernel ended and is replaced", slog.String("context", c.ID), slog.String("language", c.Language))
			k.Close()
		default:
			return k, nil
		}
	}
	// The start goes on when the client leaves: the next one needs it too.
	start := c.server.cfg.Kernels.Start
	if c.warm {
		start, c.warm = c.server.cfg.Kernels.StartWarm, false
	}
	k, err := start(context.WithoutCancel(ctx), kernel.Runtime(c.Language), c.Cwd)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kernel, c.read, c.token, c.known = k, false, [sha256.Size]byte{}, nil
	if err != nil {
		c.kernel = nil
		return nil, err
	}
	if c.gone {
		k.Close()
		c.kernel = nil
		return nil, errors.New("the context was removed")
	}
	return k, nil
}

// restart ends the kernel, and with it the cell that runs, and starts another.
func (c *Context) restart(ctx context.Context) error {
	c.end(errContextRestarting)
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	// One that was started meanwhile by a cell that waited is as fresh, but
	// that cell has used it.
	c.end(errContextRestarting)
	_, err := c.running(ctx)
	return err
}

// end kills the kernel; the cell that runs reports why.
func (c *Context) end(why string) {
	c.mu.Lock()
	k := c.kernel
	c.kernel, c.why = nil, why
	c.mu.Unlock()
	if k != nil {
		k.Close()
	}
}

// close ends the context for good.
func (c *Context) close() {
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.end(errAborted)
}

// request is one execution.
type request struct {
	code, language, token string
	env                   map[string]string
}

// execute runs a cell and writes what comes of it to out. An error means that
// nothing was written.
func (c *Context) execute(ctx context.Context, r request, out *stream) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer c.leave()
	k, err := c.running(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.why = ""
	c.mu.Unlock()
	cell := kernel.Cell{Code: r.code, Language: r.language, Env: r.env, Globals: c.globals(ctx, r.token)}
	over := make(chan struct{})
	var watchers sync.WaitGroup
	watchers.Go(func() { c.watch(ctx, k, over) })
	watchers.Go(func() { c.server.guard(ctx, c, over) })
	err = k.Execute(ctx, cell, out.event)
	close(over)
	watchers.Wait()
	if err != nil {
		c.lost(ctx, err, out)
	}
	out.end()
	return nil
}

// watch interrupts the cell when its client has left.
func (c *Context) watch(ctx context.Context, k kernel.Kernel, over <-chan struct{}) {
	select {
	case <-over:
		return
	case <-ctx.Done():
	}
	k.Interrupt()
	grace := time.NewTimer(interruptGrace)
	defer grace.Stop()
	select {
	case <-over:
	case <-grace.C:
		c.server.cfg.Log.Warn("a cell did not end when it was interrupted", slog.String("context", c.ID))
		c.end(errContextRestarting)
	}
}

// lost reports a cell whose kernel ended, and starts another kernel.
func (c *Context) lost(ctx context.Context, err error, out *stream) {
	c.mu.Lock()
	why, gone := c.why, c.gone
	c.mu.Unlock()
	c.server.cfg.Log.Warn("a kernel ended in a cell", slog.String("context", c.ID), slog.Any("error", err))
	name, text := errContextRestarting, "the kernel was restarted and its variables are gone"
	switch {
	case why == errAborted:
		name, text = errAborted, "the context was removed"
	case why == errOutOfMemory:
		text = "the kernel used more memory than the sandbox has; it was restarted and its variables are gone"
	case why == "" && errors.Is(err, kernel.ErrDied):
		text = "the kernel died (" + err.Error() + ") and was restarted; its variables are gone"
	case why == "":
		name, text = "UnexpectedEndOfExecution", "the connection to the kernel was lost: "+err.Error()
	}
	out.event(kernel.Event{Kind: kernel.Error, Name: name, Value: text, Traceback: text})
	if why == "" {
		c.end(errContextRestarting)
	}
	if !gone && (why == "" || why == errOutOfMemory) {
		// The client hears of the end after the kernel can be used again.
		if _, err := c.running(ctx); err != nil {
			c.server.cfg.Log.Error("a kernel could not be replaced", slog.String("context", c.ID), slog.Any("error", err))
		}
	}
}
