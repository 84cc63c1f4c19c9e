package gvisor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor/engine"
)

// engine returns a connection that was alive a moment ago, and waits for one
// while the supervisor launches a new engine.
func (p *Provider) engine(ctx context.Context) (*engine.Client, error) {
	for {
		p.mu.Lock()
		c, fresh, closed := p.client, p.fresh, p.closed
		p.mu.Unlock()
		if closed {
			return nil, fmt.Errorf("gvisor: provider is closed: %w", errdefs.ErrUnavailable)
		}
		select {
		case <-c.Done():
		default:
			return c, nil
		}
		select {
		case <-fresh:
		case <-ctx.Done():
			return nil, fmt.Errorf("gvisor: wait for the engine: %w", context.Cause(ctx))
		}
	}
}

// supervise replaces the connection whenever it breaks, launching a new engine
// if the old one is gone, and settles what became of the boxes.
func (p *Provider) supervise(ctx context.Context, c *engine.Client) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.Done():
		}
		if ctx.Err() != nil {
			return
		}
		p.log.Error("connection to the engine broke; reconnecting")
		next := p.reconnect(ctx)
		if next == nil {
			return
		}
		_ = c.Close()
		c = next
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = c.Close()
			return
		}
		p.client = c
		close(p.fresh)
		p.fresh = make(chan struct{})
		p.mu.Unlock()
		p.settle(ctx)
	}
}

// reconnect tries until it succeeds; nil when ctx has ended.
func (p *Provider) reconnect(ctx context.Context) *engine.Client {
	const most = 5 * time.Second
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, most) {
		c, err := engine.Connect(ctx, p.options)
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			return nil
		}
		p.log.Error("engine cannot be reached", slog.Any("error", err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// settle ends every box of ours that the engine we now talk to does not run.
func (p *Provider) settle(ctx context.Context) {
	ours := p.made()
	listed, err := p.list(ctx)
	if err != nil {
		p.log.Error("list boxes after reconnecting", slog.Any("error", err))
		return // the connection broke again; supervise comes back here
	}
	states := make(map[string]wire.Box, len(listed))
	for _, b := range listed {
		states[b.ID] = b
	}
	for _, b := range ours {
		s, ok := states[b.id]
		if ok && s.State != wire.StateEnded {
			continue
		}
		x := provider.Exit{Reason: provider.ReasonEngineLost, At: time.Now().UTC(), Detail: "the engine process died"}
		if ok && s.Exit != nil {
			x = exit(*s.Exit)
		}
		p.ended(b, x)
	}
}

// made are the boxes that an engine had. One that is being created is its
// create's business: it may have waited for this engine, and come to it after the
// listing.
func (p *Provider) made() []*Box {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Values(p.boxes)), func(b *Box) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.net == nil && !b.prebooted
	})
}

// onExit runs on the connection's goroutine. What it is told may be old: that
// of a sandbox's box from before a pause comes, now and then, when the one it is
// resumed in is there already.
func (p *Provider) onExit(w wire.Box) {
	p.mu.Lock()
	b := p.boxes[w.ID]
	p.mu.Unlock()
	if b != nil && b.is(w.Meta) {
		p.ended(b, exit(*w.Exit))
	}
}

// is whether the engine's record is of this very box; also when it cannot be
// told, while one is being opened.
func (b *Box) is(record json.RawMessage) bool {
	var m meta
	if err := json.Unmarshal(record, &m); err != nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.meta == meta{} || b.meta.Instance == m.Instance
}

// ended announces the end of a box and puts its network and channel away.
func (p *Provider) ended(b *Box, x provider.Exit) {
	if !b.finish(x) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed { // Close disconnects every box itself
		return
	}
	p.wg.Go(func() {
		if err := b.disconnect(); err != nil {
			p.log.Warn("put box away", slog.String("sandbox", b.id), slog.Any("error", err))
		}
	})
}

func exit(x wire.Exit) provider.Exit {
	return provider.Exit{Reason: x.Reason, Status: x.Status, At: x.At, Detail: x.Detail}
}
