package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
)

const (
	dialTimeout = 15 * time.Second
	// idleTimeout is shorter than the agent's, so that a connection is not
	// taken from the pool just as the other side closes it.
	idleTimeout     = 60 * time.Second
	maxIdle         = 32
	goneGrace       = 250 * time.Millisecond
	maxGuestHeaders = 256 << 10
)

// dialRetries are the pauses between attempts at a port that nothing listens on
// yet: a server that was just started gets half a second. Nothing of the
// request has been read by then.
func dialRetries() []time.Duration {
	return []time.Duration{100 * time.Millisecond, 150 * time.Millisecond, 250 * time.Millisecond}
}

// box is what the data plane holds for one running sandbox: its connections.
type box struct {
	live      *sandbox.Live
	transport *http.Transport

	ctx  context.Context //nolint:containedctx // ends when the sandbox goes
	gone context.CancelFunc

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

// boxOf returns the connections of a sandbox, made on first use. A watcher
// breaks and forgets them when the sandbox goes.
func (h *Handler) boxOf(live *sandbox.Live) *box {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.boxes[live.ID]; b != nil && b.live.Gone == live.Gone {
		return b
	}
	b := &box{live: live, conns: map[*conn]struct{}{}}
	b.ctx, b.gone = context.WithCancel(h.ctx)
	b.transport = &http.Transport{
		DialContext:            b.dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxGuestHeaders,
		ExpectContinueTimeout:  time.Second,
	}
	h.boxes[live.ID] = b
	h.wg.Go(func() {
		select {
		case <-live.Gone:
		case <-h.ctx.Done():
		}
		h.mu.Lock()
		if h.boxes[live.ID] == b {
			delete(h.boxes, live.ID)
		}
		h.mu.Unlock()
		b.shut()
	})
	return b
}

// goes reports whether the sandbox is gone. A sandbox that ends by itself breaks
// its connections a moment before it is marked, so a broken one waits for that.
func (b *box) goes() bool {
	t := time.NewTimer(goneGrace)
	defer t.Stop()
	select {
	case <-b.ctx.Done():
		return true
	case <-t.C:
		return false
	}
}

// shut breaks every connection to the sandbox. Requests in flight see an error,
// and abort their client.
func (b *box) shut() {
	b.gone()
	b.mu.Lock()
	conns := b.conns
	b.conns = nil
	b.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close() // it is being thrown away
	}
	b.transport.CloseIdleConnections()
}

// dial connects to a port inside; addr is ID:port. It retries a closed port for
// a moment.
func (b *box) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	_, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address of a sandbox port: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address of a sandbox port: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	for retries := dialRetries(); ; retries = retries[1:] {
		c, err := b.connect(ctx, uint16(port))
		if err == nil {
			return b.track(c)
		}
		if !errors.Is(err, provider.ErrPortClosed) || len(retries) == 0 {
			return nil, err
		}
		pause := time.NewTimer(retries[0])
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, err
		}
	}
}

func (b *box) connect(ctx context.Context, port uint16) (net.Conn, error) {
	route, err := b.live.Route(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("route to port %d: %w", port, err)
	}
	if route.Dial == nil {
		return nil, fmt.Errorf("route to port %d has no way to dial: %w", port, errdefs.ErrNotImplemented)
	}
	return route.Dial(ctx)
}

// track registers a connection so that shut finds it.
func (b *box) track(inner net.Conn) (net.Conn, error) {
	c := &conn{Conn: inner, box: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns == nil {
		_ = inner.Close()
		return nil, fmt.Errorf("sandbox %s is gone: %w", b.live.ID, net.ErrClosed)
	}
	b.conns[c] = struct{}{}
	return c, nil
}

// conn is a tracked connection into a sandbox.
type conn struct {
	net.Conn

	box *box
}

// Read implements net.Conn. A connection that ends because its sandbox goes must
// not look like one that the guest has finished: a response without a length
// would then end cleanly.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		select {
		case <-c.box.live.Gone:
			err = net.ErrClosed
		case <-c.box.ctx.Done():
			err = net.ErrClosed
		default:
		}
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.box.mu.Lock()
	delete(c.box.conns, c)
	c.box.mu.Unlock()
	return c.Conn.Close()
}
