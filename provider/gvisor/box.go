package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/vnet"
)

// Box is one gVisor sandbox.
type Box struct {
	p    *Provider
	id   string
	log  *slog.Logger
	meta meta

	done chan struct{} // closed when the box has ended; exit is set before
	exit provider.Exit

	mu           sync.Mutex
	net          *vnet.Network
	ctl          *control.Client
	ended        bool
	disconnected bool
	prebooted    bool // it waits in the engine, without a network
	// cpuSeen is the CPU time last seen, cpuBefore what was used before a claim:
	// it is not the claimer's.
	cpuSeen, cpuBefore time.Duration
}

func newBox(p *Provider, id string, m meta) *Box {
	return &Box{p: p, id: id, log: p.log.With(slog.String("sandbox", id)), meta: m, done: make(chan struct{})}
}

// Handle implements provider.Box.
func (b *Box) Handle() provider.Handle { return handle(b.id) }

// Control implements provider.Box.
func (b *Box) Control() *control.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ctl
}

func (b *Box) network() *vnet.Network {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.net
}

// attach hands the box's flows to a; false while the box has no network yet.
func (b *Box) attach(a egress.Attachment) bool {
	n := b.network()
	if n == nil {
		return false
	}
	n.SetAttachment(a)
	return true
}

// Route implements provider.Box. Ports that listen on the wildcard or on the
// box's address are dialled directly; for the rest the agent dials localhost.
func (b *Box) Route(_ context.Context, port uint16) (provider.Route, error) {
	if port == 0 {
		return provider.Route{}, fmt.Errorf("route to port 0: %w", errdefs.ErrInvalidArgument)
	}
	return provider.Route{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := b.dial(ctx, port)
		if err != nil {
			select {
			case <-b.done:
				return nil, fmt.Errorf("dial port %d: the box has ended: %w", port, errdefs.ErrUnavailable)
			default:
			}
			return nil, fmt.Errorf("dial port %d: %w", port, err)
		}
		return conn, nil
	}}, nil
}

func (b *Box) dial(ctx context.Context, port uint16) (net.Conn, error) {
	n := b.network()
	conn, err := n.Dial(ctx, port)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return conn, err
	}
	if port == control.AgentPort || port == control.ForwardPort {
		return nil, errors.Join(provider.ErrPortClosed, err)
	}
	ticket, err := b.Control().Dial(ctx, port)
	if errors.Is(err, control.ErrRefused) {
		return nil, provider.ErrPortClosed
	}
	if err != nil {
		return nil, err
	}
	conn, err = n.Dial(ctx, control.ForwardPort)
	if err != nil {
		return nil, fmt.Errorf("reach the agent's forward port: %w", err)
	}
	if _, err := conn.Write(ticket[:]); err != nil {
		return nil, fmt.Errorf("show ticket: %w", errors.Join(err, conn.Close()))
	}
	return conn, nil
}

// Stats implements provider.Box.
func (b *Box) Stats(ctx context.Context) (provider.Stats, error) {
	var s wire.Stats
	if err := b.p.call(ctx, wire.OpStats, wire.ByID{ID: b.id}, &s); err != nil {
		return provider.Stats{}, fmt.Errorf("box stats: %w", err)
	}
	b.mu.Lock()
	b.cpuSeen = time.Duration(s.CPUNanos)
	used := b.cpuSeen - b.cpuBefore
	b.mu.Unlock()
	return provider.Stats{
		At: time.Now(), CPUUsage: used,
		MemoryBytes: s.MemoryBytes, CacheBytes: s.CacheBytes, MemoryMaxBytes: s.MemoryMaxBytes,
		DiskBytes: s.DiskBytes, Processes: s.Processes,
	}, nil
}

// Wait implements provider.Box.
func (b *Box) Wait(ctx context.Context) (provider.Exit, error) {
	select {
	case <-b.done:
		return b.exit, nil
	default:
	}
	select {
	case <-b.done:
		return b.exit, nil
	case <-ctx.Done():
		return provider.Exit{}, fmt.Errorf("wait for box: %w", context.Cause(ctx))
	}
}

// finish sets how the box ended; false when that was known already.
func (b *Box) finish(x provider.Exit) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return false
	}
	b.ended, b.exit = true, x
	close(b.done)
	return true
}

// SetDeadline implements provider.Deadliner.
func (b *Box) SetDeadline(ctx context.Context, t time.Time) error {
	if err := b.p.call(ctx, wire.OpSetDeadline, wire.SetDeadline{ID: b.id, Deadline: t}, nil); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return nil
}

// claimStats is how long a claim waits to hear what the box used before.
const claimStats = 100 * time.Millisecond

// Claim implements provider.Claimer on this side of the box: from now on its
// flows belong to the new identity. What the guest learns of it travels by
// Control().Init, which follows.
func (b *Box) Claim(ctx context.Context, id provider.Identity) error {
	if id.Egress == nil {
		return fmt.Errorf("claim box: no egress attachment: %w", errdefs.ErrInvalidArgument)
	}
	select {
	case <-b.done:
		return fmt.Errorf("claim box: it has ended: %w", errdefs.ErrNotFound)
	default:
	}
	b.attach(id.Egress)
	// What ran in it while it waited is not the claimer's. An engine that does not
	// say at once how much that was is no reason to wait.
	ctx, cancel := context.WithTimeout(ctx, claimStats)
	defer cancel()
	if _, err := b.Stats(ctx); err != nil {
		b.log.Warn("CPU time of a warm box is not known", slog.Any("error", err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cpuBefore = b.cpuSeen
	return nil
}

// Destroy implements provider.Box.
func (b *Box) Destroy(ctx context.Context) error {
	if err := b.p.call(ctx, wire.OpKill, wire.ByID{ID: b.id}, nil); err != nil {
		return fmt.Errorf("destroy box: %w", err)
	}
	b.finish(provider.Exit{Reason: provider.ReasonDestroyed, At: time.Now().UTC()})
	b.p.forget(b)
	if err := b.disconnect(); err != nil {
		return fmt.Errorf("destroy box: %w", err)
	}
	return nil
}

// disconnect puts away network and control channel. Idempotent.
func (b *Box) disconnect() error {
	b.mu.Lock()
	n, ctl, before := b.net, b.ctl, b.disconnected
	b.disconnected = true
	b.mu.Unlock()
	var errs []error
	if ctl != nil {
		errs = append(errs, ctl.Close())
	}
	if n != nil {
		errs = append(errs, n.Close())
	}
	if before {
		return nil
	}
	return errors.Join(errs...)
}

// Exec runs a command through the engine, without the agent: for diagnosis of a
// box whose agent does not answer. It returns the exit status. The streams may
// be nil.
func (b *Box) Exec(ctx context.Context, argv []string, stdin io.Reader, output io.Writer) (int, error) {
	in, inW, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	outR, out, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("exec: %w", errors.Join(err, in.Close(), inW.Close()))
	}
	defer outR.Close()
	var r wire.ExecReply
	err = b.p.call(ctx, wire.OpExec, wire.Exec{ID: b.id, Argv: argv}, &r, in, out, out)
	_, _ = in.Close(), out.Close()
	if err != nil {
		_ = inW.Close()
		return 0, fmt.Errorf("exec: %w", err)
	}
	// Both copies end when the process does, or with ctx.
	stop := context.AfterFunc(ctx, func() { _, _ = outR.Close(), inW.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer inW.Close()
		if stdin != nil {
			_, _ = io.Copy(inW, stdin)
		}
	})
	if output == nil {
		output = io.Discard
	}
	_, _ = io.Copy(output, outR)
	var w wire.WaitReply
	err = b.p.call(ctx, wire.OpWaitPID, wire.WaitPID{ID: b.id, PID: r.PID}, &w)
	_ = inW.Close()
	wg.Wait()
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if ws := syscall.WaitStatus(w.Status); ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return syscall.WaitStatus(w.Status).ExitStatus(), nil
}
