package gvisor

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/internal/undo"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/vnet"
)

const mib = 1 << 20

// meta is what the engine keeps of a box for the next server.
type meta struct {
	RootfsDigest string `json:"rootfsDigest"`
	ABI          string `json:"abi"`
	// Instance tells boxes apart that had one id one after the other, as those
	// of a paused and resumed sandbox have.
	Instance string `json:"instance,omitempty"`
}

// EndedError says that a box has ended before it could be opened.
type EndedError struct {
	ID string
	// How tells how it ended.
	How provider.Exit
}

// Error implements error.
func (e *EndedError) Error() string {
	return fmt.Sprintf("box %s has ended: %s", e.ID, e.How.Reason)
}

// Exit tells how the box ended.
func (e *EndedError) Exit() provider.Exit { return e.How }

// Unwrap makes the error match errdefs.ErrNotFound.
func (e *EndedError) Unwrap() error { return errdefs.ErrNotFound }

// launch is what differs between a cold start and the kinds of restore.
type launch struct {
	filesFrom string     // directory of a saved writable layer
	restore   []*os.File // the files of a checkpoint
	// abi and agent are those of the checkpoint: its processes run the agent of
	// their time.
	abi, agent string
	instance   string // see meta; set by create
}

// Create implements provider.Provider.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (provider.Box, error) {
	return p.create(ctx, spec, launch{})
}

func (p *Provider) create(ctx context.Context, spec provider.Spec, l launch) (_ *Box, err error) {
	l.instance = rand.Text()
	var steps undo.Stack
	defer func() {
		if err != nil {
			clean, cancel := cleanupContext(ctx)
			defer cancel()
			err = errors.Join(err, steps.Run(clean))
		}
	}()
	pre, err := p.takePrebooted(spec, l)
	if pre != nil {
		steps.Add(pre.Destroy)
	}
	if err != nil {
		return nil, err
	}
	req, err := p.request(spec, l)
	if err != nil {
		return nil, err
	}
	b := newBox(p, spec.SandboxID, p.metaOf(spec, l))
	if err := p.register(b); err != nil {
		return nil, err
	}
	steps.Add(func(context.Context) error { p.forget(b); return b.disconnect() })
	c, err := p.engine(ctx)
	if err != nil {
		return nil, err
	}
	// Pushed first: a create whose caller gives up may still succeed.
	ours := true
	steps.Add(func(ctx context.Context) error {
		if !ours {
			return nil
		}
		return p.call(ctx, wire.OpKill, wire.ByID{ID: b.id}, nil)
	})
	var files []*os.File
	start := wire.Launch{ID: b.id}
	if pre != nil {
		b.cpuBefore = pre.box.cpu()
		files, start = pre.take(), wire.Launch{ID: pre.box.id, Claim: claimOf(req)}
	} else if files, err = c.CallFiles(ctx, wire.OpCreate, req, nil); err != nil {
		ours = !errors.Is(err, errdefs.ErrAlreadyExists)
		return nil, fmt.Errorf("create box: %w", err)
	}
	// The network and its policy exist before the guest's first instruction.
	if err := b.connect(files, spec.Egress); err != nil {
		return nil, fmt.Errorf("create box: %w", err)
	}
	op := wire.OpStart
	if l.restore != nil {
		op = wire.OpRestore
	}
	if err := c.Call(ctx, op, start, nil, l.restore...); err != nil {
		ours = !errors.Is(err, errdefs.ErrAlreadyExists)
		return nil, fmt.Errorf("create box: %w", err)
	}
	if pre != nil {
		p.forget(pre.box)
	}
	if err := b.ready(ctx); err != nil {
		return nil, fmt.Errorf("create box: %w", err)
	}
	return b, nil
}

// request translates and checks a spec.
func (p *Provider) request(spec provider.Spec, l launch) (wire.Create, error) {
	invalid := func(format string, a ...any) (wire.Create, error) {
		return wire.Create{}, fmt.Errorf("create box: "+format+": %w", append(a, errdefs.ErrInvalidArgument)...)
	}
	r := spec.Resources
	switch {
	case spec.Egress == nil:
		return invalid("no egress attachment")
	case !wire.ValidID(spec.SandboxID):
		return invalid("sandbox id %q", spec.SandboxID)
	case !filepath.IsAbs(spec.Rootfs.Path) || spec.Rootfs.Digest == "":
		return invalid("root filesystem without path or digest")
	case r.MemoryMiB < 0 || r.DiskMiB < 0 || r.CPUs < 0 || r.Processes < 0,
		r.MemoryMiB > math.MaxInt64/mib, r.DiskMiB > math.MaxInt64/mib:
		return invalid("a limit is out of range")
	}
	m, err := json.Marshal(p.metaOf(spec, l))
	if err != nil {
		return wire.Create{}, fmt.Errorf("create box: %w", err)
	}
	req := wire.Create{
		ID: spec.SandboxID, Hostname: spec.Hostname,
		Rootfs: spec.Rootfs.Path, Agent: cmp.Or(l.agent, p.agentImage), OverlayDir: p.overlays,
		DiskBytes: r.DiskMiB * mib, MemoryBytes: r.MemoryMiB * mib, CPUs: r.CPUs, Processes: r.Processes,
		FilesFrom: l.filesFrom, Deadline: spec.Deadline, Meta: m,
	}
	for _, u := range p.cfg.Unenforced {
		req.Unenforced = append(req.Unenforced, string(u))
	}
	return req, nil
}

func (p *Provider) metaOf(spec provider.Spec, l launch) meta {
	return meta{RootfsDigest: spec.Rootfs.Digest, ABI: cmp.Or(l.abi, p.abi), Instance: l.instance}
}

func (p *Provider) register(b *Box) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("create box: provider is closed: %w", errdefs.ErrUnavailable)
	}
	if p.boxes[b.id] != nil {
		return fmt.Errorf("create box: %s exists: %w", b.id, errdefs.ErrAlreadyExists)
	}
	p.boxes[b.id] = b
	return nil
}

// forget drops b, unless another box has taken its id.
func (p *Provider) forget(b *Box) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.boxes[b.id] == b {
		delete(p.boxes, b.id)
	}
}

// Open implements provider.Provider. A box that is open in this process is
// returned as it is, with its egress now attached to a. The error for one that
// has ended is an *EndedError.
func (p *Provider) Open(ctx context.Context, h provider.Handle, a egress.Attachment) (_ provider.Box, err error) {
	if a == nil {
		return nil, fmt.Errorf("open box: no egress attachment: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkHandle(h); err != nil {
		return nil, fmt.Errorf("open box: %w", err)
	}
	if b := p.running(h.ID); b != nil {
		if !b.attach(a) {
			return nil, fmt.Errorf("open box: %s is still being created: %w", h.ID, errdefs.ErrUnavailable)
		}
		return b, nil
	}
	b := newBox(p, h.ID, meta{})
	if err := p.register(b); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.forget(b)
			err = errors.Join(err, b.disconnect())
		}
	}()
	c, err := p.engine(ctx)
	if err != nil {
		return nil, err
	}
	var r wire.BoxReply
	files, err := c.CallFiles(ctx, wire.OpAttach, wire.ByID{ID: h.ID}, &r)
	if err != nil {
		return nil, p.whyGone(ctx, h.ID, fmt.Errorf("open box: %w", err))
	}
	if r.Box.State != wire.StateRunning {
		closeFiles(files)
		return nil, fmt.Errorf("open box: %s never started: %w", h.ID, errdefs.ErrNotFound)
	}
	var m meta
	if err := json.Unmarshal(r.Box.Meta, &m); err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("open box: decode record: %w", err)
	}
	b.mu.Lock()
	b.meta = m
	b.mu.Unlock()
	if err := b.connect(files, a); err != nil {
		return nil, fmt.Errorf("open box: %w", err)
	}
	if err := b.ready(ctx); err != nil {
		return nil, fmt.Errorf("open box: %w", err)
	}
	return b, nil
}

// Destroy implements provider.Destroyer.
func (p *Provider) Destroy(ctx context.Context, h provider.Handle) error {
	if err := checkHandle(h); err != nil {
		return fmt.Errorf("destroy box: %w", err)
	}
	if b := p.running(h.ID); b != nil {
		return b.Destroy(ctx)
	}
	boxes, err := p.list(ctx)
	if err != nil {
		return fmt.Errorf("destroy box: %w", err)
	}
	if !slices.ContainsFunc(boxes, func(b wire.Box) bool { return b.ID == h.ID }) {
		return fmt.Errorf("destroy box: box %s: %w", h.ID, errdefs.ErrNotFound)
	}
	if err := p.call(ctx, wire.OpKill, wire.ByID{ID: h.ID}, nil); err != nil {
		return fmt.Errorf("destroy box: %w", err)
	}
	return nil
}

func checkHandle(h provider.Handle) error {
	if h.Provider != Name || h.Version != 1 || !wire.ValidID(h.ID) {
		return fmt.Errorf("handle of %s version %d: %w", h.Provider, h.Version, errdefs.ErrInvalidArgument)
	}
	return nil
}

// running finds a box that is open here and has not ended.
func (p *Provider) running(id string) *Box {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.boxes[id]
	if b == nil {
		return nil
	}
	select {
	case <-b.done:
		delete(p.boxes, id) // so that Open reports how it ended
		return nil
	default:
		return b
	}
}

// whyGone adds how a box ended to the error of not finding it.
func (p *Provider) whyGone(ctx context.Context, id string, err error) error {
	if !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	boxes, lerr := p.list(ctx)
	if lerr != nil {
		return err
	}
	i := slices.IndexFunc(boxes, func(b wire.Box) bool { return b.ID == id && b.Exit != nil })
	if i < 0 {
		return err
	}
	return fmt.Errorf("open box: %w", &EndedError{ID: id, How: exit(*boxes[i].Exit)})
}

// connect makes the network and the control channel from the engine's files,
// which it takes.
func (b *Box) connect(files []*os.File, a egress.Attachment) error {
	defer closeFiles(files)
	if len(files) != 2 {
		return fmt.Errorf("engine sent %d files, want 2: %w", len(files), errdefs.ErrInternal)
	}
	fd, err := duplicate(files[0])
	if err != nil {
		return err
	}
	n, err := vnet.New(vnet.Options{FD: fd, MTU: wire.MTU, Attachment: a, Log: b.log})
	if err != nil {
		return fmt.Errorf("make network: %w", err)
	}
	conn, err := net.FileConn(files[1]) // pollable, so that Close ends a read
	if err != nil {
		return fmt.Errorf("open control channel: %w", errors.Join(err, n.Close()))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.net, b.ctl = n, control.NewClient(conn, b.log)
	return nil
}

// ready waits until the agent answers, or the box ends.
func (b *Box) ready(ctx context.Context) error {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the agent did not answer in time"))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	errc := make(chan error, 1)
	go func() { errc <- b.Control().Ready(ctx) }()
	select {
	case err := <-errc:
		return err
	case <-b.done:
		stop(fmt.Errorf("the box ended: %s: %s: %w", b.exit.Reason, b.exit.Detail, errdefs.ErrUnavailable))
		return <-errc
	}
}

func duplicate(f *os.File) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	fd := -1
	var derr error
	err = rc.Control(func(orig uintptr) { fd, derr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, derr); err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return fd, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
