package gvisor

import (
	"context"
	"errors"

	"github.com/caisson-dev/caisson/engine/wire"
)

// Shutdown closes the provider and ends the engine too. It is refused while
// boxes run; the provider is closed all the same.
func (p *Provider) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	c := p.client
	p.mu.Unlock()
	var err error
	if c != nil {
		err = c.Call(ctx, wire.OpShutdown, wire.Shutdown{}, nil)
	}
	return errors.Join(err, p.Close())
}
