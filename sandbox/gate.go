package sandbox

import (
	"context"
	"sync"
)

// gate lets traffic pass but while its sandbox stands still to be saved. The
// agent then closes idle connections, so what is under way to it must have
// arrived before. The zero value is open.
type gate struct {
	mu     sync.Mutex    // guards what follows
	inside int           // requests that have not been answered yet
	shut   chan struct{} // closed when the gate opens; nil while it is open
	empty  chan struct{} // closed when inside becomes 0 while it is shut
}

// enter waits until the gate is open, or ctx or gone ends, and returns what to
// call, once, when the answer to the request begins.
func (g *gate) enter(ctx context.Context, gone <-chan struct{}) (leave func()) {
	for {
		g.mu.Lock()
		shut := g.shut
		if shut == nil {
			g.inside++
			g.mu.Unlock()
			return g.leave
		}
		g.mu.Unlock()
		select {
		case <-shut:
		case <-gone:
			return func() {}
		case <-ctx.Done():
			return func() {}
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close shuts the gate; the channel is closed when nobody is inside. The gate is
// open.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
	empty := make(chan struct{})
	if g.inside == 0 {
		close(empty)
	} else {
		g.empty = empty
	}
	return empty
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut, g.empty = nil, nil
}
