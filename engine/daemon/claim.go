package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/runsc/boot"

	"github.com/caisson-dev/caisson/engine/sentry"
	"github.com/caisson-dev/caisson/engine/wire"
)

// claimPatience is how long the sentry of a box that was created ahead of its
// use may take for its first call. One that lives answers within a millisecond.
const claimPatience = 2 * time.Second

// claim gives a box of this connection, of which nothing has run, the id and the
// record of the one that uses it, if the message asks for that.
func (c *conn) claim(m wire.Message) error {
	l, err := decode[wire.Launch](m)
	if err != nil || l.Claim == nil {
		return err
	}
	switch {
	case !wire.ValidID(l.Claim.ID):
		return &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("box id %q is not 1 to 64 of a-z and 0-9", l.Claim.ID)}
	case len(l.Claim.Hostname) > 64:
		return &wire.Error{Code: wire.CodeInvalid, Message: "hostname is longer than 64 bytes"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unstarted[l.ID] {
		return &wire.Error{Code: wire.CodeNotFound, Message: fmt.Sprintf("box %q is none that this server created and has not started", l.ID)}
	}
	if err := c.e.rename(l.ID, *l.Claim); err != nil {
		return err
	}
	delete(c.unstarted, l.ID)
	c.unstarted[l.Claim.ID] = true // until it runs
	return nil
}

// rename enters a created box under another id.
func (e *Engine) rename(id string, to wire.Claim) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := e.boxes[id]
	switch {
	case b == nil || b.ended():
		return &wire.Error{Code: wire.CodeNotFound, Message: fmt.Sprintf("box %q has ended", id)}
	case e.boxes[to.ID] != nil:
		return &wire.Error{Code: wire.CodeAlreadyExists, Message: fmt.Sprintf("box %q exists", to.ID)}
	case e.stopping:
		return &wire.Error{Code: wire.CodeUnavailable, Message: "the engine is stopping"}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.info.State != wire.StateCreated || b.nicPeer == nil || b.reason != "" {
		return &wire.Error{Code: wire.CodePrecondition, Message: fmt.Sprintf("box %q does not wait to be started", id)}
	}
	b.info.ID, b.info.Meta = to.ID, to.Meta
	b.hostname = to.Hostname
	b.setDeadline(to.Deadline)
	delete(e.boxes, id)
	e.boxes[to.ID] = b
	b.log.Debug("box claimed", slog.String("id", to.ID))
	return nil
}

// connect gives the sentry its network and, to a claimed box, its name. After
// start or restore its seccomp filter forbids the former.
func (b *box) connect(ctx context.Context, links *boot.CreateLinksAndRoutesArgs) error {
	b.mu.Lock()
	hostname := b.hostname
	b.mu.Unlock()
	if hostname == "" {
		return call(ctx, b, boot.ContMgrCreateLinksAndRoutes, links, nil)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, claimPatience,
		&wire.Error{Code: wire.CodeUnavailable, Message: "the sandbox process does not answer"})
	defer cancel()
	err := call(ctx, b, boot.ContMgrCreateLinksAndRoutes, links, nil)
	if err == nil {
		err = call(ctx, b, boot.ContMgrCreateTraceSession, &boot.CreateTraceSessionArgs{Config: sentry.Hostname(hostname)}, nil)
	}
	return err
}
