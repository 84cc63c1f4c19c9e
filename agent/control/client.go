package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// clientQueue bounds messages waiting to be written to a guest that does
	// not read.
	clientQueue = 64
	// eventQueue bounds events nobody has taken; further ones are dropped.
	eventQueue = 256
	// greetEvery is the least time between two answers to unasked hellos, so
	// that a guest cannot make the server chatter.
	greetEvery = 100 * time.Millisecond
)

// Client is the server's end of the channel. Methods are safe for concurrent
// use. A guest that sends garbage, floods or never answers costs bounded memory
// and the caller's deadline, nothing else.
type Client struct {
	rw     io.ReadWriteCloser
	log    *slog.Logger
	epoch  uint64
	out    chan []byte
	events chan Event
	ready  chan struct{} // closed when the agent has greeted this epoch
	done   chan struct{} // closed by Close or when the stream broke
	wg     sync.WaitGroup

	closeOnce sync.Once
	readyOnce sync.Once

	mu      sync.Mutex // guards what follows
	last    uint64
	pending map[uint64]chan message
	err     error
}

// NewClient greets the agent at the other end of rw and returns at once. It
// owns rw and two goroutines until Close. Close must unblock a Read and a Write
// of rw, as net.Conn and pollable files do.
func NewClient(rw io.ReadWriteCloser, log *slog.Logger) *Client {
	c := &Client{
		rw:      rw,
		log:     log,
		epoch:   rand.Uint64() | 1, // never 0, which is the agent's own greeting
		out:     make(chan []byte, clientQueue),
		events:  make(chan Event, eventQueue),
		ready:   make(chan struct{}),
		done:    make(chan struct{}),
		pending: make(map[uint64]chan message),
	}
	c.greet()
	c.wg.Go(c.write)
	c.wg.Go(c.read)
	return c
}

// Ready waits until the agent has answered this client's greeting.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	default:
	}
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return c.closedError()
	case <-ctx.Done():
		return fmt.Errorf("wait for agent: %w", context.Cause(ctx))
	}
}

// Init binds an identity to the agent. errdefs.ErrInvalidArgument when the
// agent refuses it.
func (c *Client) Init(ctx context.Context, in Init) error {
	if in.AccessToken == "" {
		return fmt.Errorf("init agent: no access token: %w", errdefs.ErrInvalidArgument)
	}
	_, err := c.call(ctx, message{Op: opInit, Init: &in})
	return err
}

// Prepare has the agent do ahead what of an Init does not need its secrets, so
// that the Init that follows for the same sandbox takes less time. in's access
// token and variables are not sent.
func (c *Client) Prepare(ctx context.Context, in Init) error {
	in.AccessToken, in.EnvVars = "", nil
	_, err := c.call(ctx, message{Op: opPrepare, Init: &in})
	return err
}

// Health asks the agent how it is.
func (c *Client) Health(ctx context.Context) (Health, error) {
	m, err := c.call(ctx, message{Op: opHealth})
	if err != nil {
		return Health{}, err
	}
	if m.Health == nil {
		return Health{}, fmt.Errorf("agent health: empty answer: %w", errdefs.ErrInternal)
	}
	return *m.Health, nil
}

// Freeze makes the agent forget its token and the injected variables and close
// idle connections, as must happen before a checkpoint. Until the next Init
// only /health is answered.
func (c *Client) Freeze(ctx context.Context) error {
	_, err := c.call(ctx, message{Op: opFreeze})
	return err
}

// Dial makes the agent connect to a TCP port inside (127.0.0.1, then ::1, then
// the box's own address) and returns the ticket for that connection. The error
// satisfies errors.Is(err, ErrRefused) when nothing listens.
func (c *Client) Dial(ctx context.Context, port uint16) (Ticket, error) {
	m, err := c.call(ctx, message{Op: opDial, Port: port})
	if err != nil {
		return Ticket{}, err
	}
	if len(m.Ticket) != len(Ticket{}) {
		return Ticket{}, fmt.Errorf("dial guest port: malformed ticket: %w", errdefs.ErrInternal)
	}
	return Ticket(m.Ticket), nil
}

// Events is what the agent told unasked. The channel holds a few hundred and
// then drops; it is never closed, see Done.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the channel has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the channel and waits for its goroutines. Idempotent.
func (c *Client) Close() error {
	c.fail(errors.New("closed"))
	c.wg.Wait()
	return nil
}

// fail ends the channel for the first reason given.
func (c *Client) fail(err error) {
	c.closeOnce.Do(func() {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		close(c.done)
		if err := c.rw.Close(); err != nil {
			c.log.Debug("close agent channel", slog.Any("error", err))
		}
	})
}

func (c *Client) closedError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Errorf("agent channel: %w: %w", errdefs.ErrUnavailable, c.err)
}

// greet queues a hello; when the queue is full one is waiting anyway.
func (c *Client) greet() {
	b, err := encodeMessage(c.epoch, message{Kind: kindHello}, maxToAgent)
	if err != nil {
		return
	}
	select {
	case c.out <- b:
	default:
	}
}

func (c *Client) write() {
	for {
		select {
		case b := <-c.out:
			if _, err := c.rw.Write(b); err != nil {
				c.fail(fmt.Errorf("write: %w", err))
				return
			}
		case <-c.done:
			return
		}
	}
}

func (c *Client) read() {
	fr := newFrameReader(c.rw, maxToServer)
	var greeted time.Time // when it was, or will be
	for {
		f, err := fr.next()
		if err != nil {
			c.fail(fmt.Errorf("read: %w", err))
			return
		}
		var m message
		if json.Unmarshal(f.payload, &m) != nil {
			continue
		}
		switch {
		case f.epoch == c.epoch:
			c.handle(m)
		case m.Kind == kindHello && !greeted.After(time.Now()):
			// An agent that knows another epoch or none: tell it ours, soon.
			wait := max(0, time.Until(greeted.Add(greetEvery)))
			greeted = time.Now().Add(wait)
			time.AfterFunc(wait, c.greet)
		}
	}
}

func (c *Client) handle(m message) {
	switch m.Kind {
	case kindHello:
		c.readyOnce.Do(func() { close(c.ready) })
	case kindReply:
		c.mu.Lock()
		ch := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- m // buffered; each id is answered once
		}
	case kindEvent:
		if m.Event == nil {
			return
		}
		ev := *m.Event
		ev.Cmd = ev.Cmd[:min(len(ev.Cmd), 256)]
		select {
		case c.events <- ev:
		default:
			c.log.Debug("agent event dropped", slog.String("type", ev.Type))
		}
	}
}

// call sends a request and waits for its reply.
func (c *Client) call(ctx context.Context, m message) (message, error) {
	reply := make(chan message, 1)
	c.mu.Lock()
	c.last++
	id := c.last
	c.pending[id] = reply
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
	}()

	m.Kind, m.ID = kindRequest, id
	b, err := encodeMessage(c.epoch, m, maxToAgent)
	if err != nil {
		return message{}, fmt.Errorf("%s agent: %w: %w", m.Op, errdefs.ErrInvalidArgument, err)
	}
	select {
	case c.out <- b:
	case <-c.done:
		return message{}, c.closedError()
	case <-ctx.Done():
		return message{}, fmt.Errorf("%s agent: %w", m.Op, context.Cause(ctx))
	}
	select {
	case r := <-reply:
		return r, replyError(m.Op, r)
	case <-c.done:
		return message{}, c.closedError()
	case <-ctx.Done():
		return message{}, fmt.Errorf("%s agent: %w", m.Op, context.Cause(ctx))
	}
}

func replyError(op string, r message) error {
	text := r.Error[:min(len(r.Error), 512)]
	switch r.Code {
	case "":
		return nil
	case codeRefused:
		return fmt.Errorf("%s agent: %w", op, ErrRefused)
	case codeInvalid:
		return fmt.Errorf("%s agent: %q: %w", op, text, errdefs.ErrInvalidArgument)
	default:
		return fmt.Errorf("%s agent: %q: %w", op, text, errdefs.ErrUnavailable)
	}
}
