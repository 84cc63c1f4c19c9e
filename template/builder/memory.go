package builder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

const (
	// The ready command is asked again after a pause that grows between these.
	minReadyPause = 50 * time.Millisecond
	maxReadyPause = 2 * time.Second
)

// memory boots the finished root filesystem under the template's own limits, has
// the start command run and the ready command pass, and saves the state. Without
// a start command nothing is saved.
func (r *run) memory(ctx context.Context, m made) (a *snapshot.Artifact, err error) {
	x, err := r.open(ctx, m.rootfs, nil, r.plan.Resources, m.state)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, x.close(ctx)); err != nil && a != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
			defer cancel()
			a, err = nil, errors.Join(err, r.o.Vault.Delete(clean, a.ID))
		}
	}()
	var started *background
	if r.plan.Start != "" {
		r.log.info(0, "[finalize] start: %s", r.plan.Start)
		if started, err = r.startCommand(ctx, x, m.state); err != nil {
			return nil, err
		}
		defer started.leave()
	}
	if r.plan.Ready != "" {
		if err := r.ready(ctx, x, m.state, started); err != nil {
			return nil, err
		}
	}
	if started == nil {
		return nil, nil
	}
	if err := started.failed(); err != nil {
		return nil, err
	}
	// Its stream would be a dead connection in every copy, whose buffers hold the
	// token. An answer on another one says that the agent has seen its end.
	started.leave()
	if err := x.client.Ready(ctx); err != nil {
		return nil, x.why(ctx, err)
	}
	return r.saveMemory(ctx, x)
}

// background is the start command while its output is being read.
type background struct {
	stop  context.CancelFunc
	conns *connections
	done  chan struct{} // closed when the stream has ended; err is set before
	err   error
}

// startCommand runs the start command, which goes on when its stream is left.
func (r *run) startCommand(ctx context.Context, x *box, st state) (*background, error) {
	// A deadline of the stream would be the command's own.
	sctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	// Its end is another matter: an agent that never answers must not hold the
	// build for ever.
	context.AfterFunc(ctx, stop)
	out := &stream{j: r.log, level: levelInfo}
	errs := &stream{j: r.log, level: levelWarn}
	conns := &connections{}
	own := *x // the same box, over connections of its own
	own.client = x.dial(conns)
	p, err := own.start(sctx, command{
		line: r.plan.Start, user: st.User, dir: st.dir(), env: st.Env, stdout: out, stderr: errs,
	})
	if err != nil {
		stop()
		conns.close()
		return nil, fmt.Errorf("failed to run start command '%s': %w", r.plan.Start, err)
	}
	b := &background{stop: stop, conns: conns, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		exit, err := p.Wait()
		out.flush()
		errs.flush()
		switch {
		case err != nil:
			b.err = err
		case !exit.Exited || exit.Code != 0:
			b.err = &errStatus{code: exit.Code, text: exit.Status}
		}
	}()
	return b, nil
}

// leave ends the stream and waits for its reader.
func (b *background) leave() {
	b.stop()
	<-b.done
	b.conns.close()
}

// connections are those that one client has opened.
type connections struct {
	mu   sync.Mutex // guards open
	open []net.Conn
}

func (c *connections) dial(ctx context.Context, next func(context.Context) (net.Conn, error)) (net.Conn, error) {
	conn, err := next(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, conn)
	return conn, nil
}

// close closes them at once: an HTTP client does so later.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		_ = conn.Close() // perhaps again
	}
	c.open = nil
}

// failed returns how the start command failed, if it has.
func (b *background) failed() error {
	if b == nil {
		return nil
	}
	select {
	case <-b.done:
	default:
		return nil
	}
	if b.err == nil {
		return nil // it put itself into the background
	}
	return fmt.Errorf("the start command has ended: %w", b.err)
}

// ready asks the ready command until it passes, the start command fails or the
// time is over.
func (r *run) ready(ctx context.Context, x *box, st state, started *background) error {
	limit := r.o.Limits.Ready
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("the ready command '%s' did not pass within %s: %w", r.plan.Ready, limit, context.DeadlineExceeded))
	defer cancel()
	r.log.info(0, "[finalize] ready: %s", r.plan.Ready)
	began := time.Now()
	wait := minReadyPause
	for {
		err := x.exec(ctx, command{line: r.plan.Ready, user: st.User, dir: st.dir(), env: st.Env})
		if ferr := started.failed(); ferr != nil {
			return ferr
		}
		if err == nil {
			r.log.info(0, "[finalize] ready after %s", round(time.Since(began)))
			return nil
		}
		if _, ok := errors.AsType[*errStatus](err); !ok || ctx.Err() != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("failed to run ready command '%s': %w", r.plan.Ready, err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, maxReadyPause)
	}
}

// saveMemory takes the artefact. Before, the agent forgets its token (Snapshot
// sees to that); there are no variables for it to forget.
func (r *run) saveMemory(ctx context.Context, x *box) (*snapshot.Artifact, error) {
	s, ok := x.box.(provider.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot save memory: %w", r.o.Provider.Name(), errdefs.ErrNotImplemented)
	}
	x.client.Close()
	began := time.Now()
	a, err := s.Snapshot(ctx, snapshot.Memory, r.o.Vault)
	if err != nil {
		return nil, fmt.Errorf("save memory: %w", err)
	}
	if err := r.o.Vault.Sync(ctx, a.ID); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("save memory: %w", err), r.o.Vault.Delete(clean, a.ID))
	}
	r.log.info(0, "[finalize] saved %d MiB of memory in %s", a.SizeBytes>>20, round(time.Since(began)))
	return &a, nil
}
