package fake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/provider"
)

var (
	errDestroyed = errors.New("box was destroyed")
	errDeadline  = errors.New("box reached its deadline")
)

// Box is one agent in this process.
type Box struct {
	provider     *Provider
	id           string
	control      *control.Client
	cancel       context.CancelCauseFunc
	api, tickets string
	own          sync.WaitGroup
	done         chan struct{} // closed when exit is set and nothing is left

	mu    sync.Mutex // guards what follows
	exit  provider.Exit
	timer *time.Timer
}

// serve runs the agent to its end.
func (b *Box) serve(ctx context.Context, a *agent.Agent) {
	err := a.Run(ctx)
	e := provider.Exit{Reason: provider.ReasonExited, At: time.Now()}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errDestroyed):
		e.Reason = provider.ReasonDestroyed
	case errors.Is(cause, errDeadline):
		e.Reason = provider.ReasonDeadline
	case err != nil:
		e.Reason, e.Detail = provider.ReasonCrashed, err.Error()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exit = e
	if b.timer != nil {
		b.timer.Stop()
	}
	close(b.done)
}

// reap removes the box from its provider when the agent has ended.
func (b *Box) reap() {
	<-b.done
	_ = b.control.Close()
	b.provider.forget(b.id)
}

// Handle implements provider.Box.
func (b *Box) Handle() provider.Handle {
	return provider.Handle{Provider: name, Version: handleVersion, ID: b.id}
}

// Control implements provider.Box.
func (b *Box) Control() *control.Client { return b.control }

// Route implements provider.Box.
func (b *Box) Route(_ context.Context, port uint16) (provider.Route, error) {
	select {
	case <-b.done:
		return provider.Route{}, fmt.Errorf("route to box %q: %w", b.id, errdefs.ErrUnavailable)
	default:
	}
	if port == control.AgentPort {
		return provider.Route{Dial: func(ctx context.Context) (net.Conn, error) { return b.dial(ctx, b.api) }}, nil
	}
	return provider.Route{Dial: func(ctx context.Context) (net.Conn, error) { return b.dialPort(ctx, port) }}, nil
}

func (b *Box) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial box %q: %w: %w", b.id, errdefs.ErrUnavailable, err)
	}
	return conn, nil
}

func (b *Box) dialPort(ctx context.Context, port uint16) (net.Conn, error) {
	ticket, err := b.control.Dial(ctx, port)
	if errors.Is(err, control.ErrRefused) {
		return nil, fmt.Errorf("dial port %d of box %q: %w", port, b.id, provider.ErrPortClosed)
	}
	if err != nil {
		return nil, fmt.Errorf("dial port %d of box %q: %w", port, b.id, err)
	}
	conn, err := b.dial(ctx, b.tickets)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(ticket[:]); err != nil {
		return nil, errors.Join(fmt.Errorf("show ticket: %w", err), conn.Close())
	}
	return conn, nil
}

// Stats implements provider.Box. Only the number of processes is known.
func (b *Box) Stats(ctx context.Context) (provider.Stats, error) {
	h, err := b.control.Health(ctx)
	if err != nil {
		return provider.Stats{}, fmt.Errorf("stats of box %q: %w", b.id, err)
	}
	return provider.Stats{At: time.Now(), Processes: h.Processes}, nil
}

// Wait implements provider.Box.
func (b *Box) Wait(ctx context.Context) (provider.Exit, error) {
	select {
	case <-b.done:
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.exit, nil
	case <-ctx.Done():
		return provider.Exit{}, fmt.Errorf("wait for box %q: %w", b.id, context.Cause(ctx))
	}
}

// SetDeadline implements provider.Deadliner; the zero time means none.
func (b *Box) SetDeadline(_ context.Context, t time.Time) error {
	b.setDeadline(t)
	return nil
}

func (b *Box) setDeadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if !t.IsZero() && b.exit.Reason == "" {
		b.timer = time.AfterFunc(time.Until(t), func() { b.cancel(errDeadline) })
	}
}

// Destroy implements provider.Box.
func (b *Box) Destroy(ctx context.Context) error {
	b.cancel(errDestroyed)
	gone := make(chan struct{})
	go func() { // ends with the agent, which cancel has told to end
		b.own.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("destroy box %q: %w", b.id, context.Cause(ctx))
	}
}
