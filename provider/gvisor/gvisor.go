// Package gvisor is the default provider: boxes are gVisor sandboxes, made by
// the engine that travels inside the caisson binary. Boxes live in the engine's
// process tree and survive this one; the userspace network and the agent's
// control channel live here and are taken back after a restart. Package server
// makes the one Provider.
package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/engine/wire"
	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor/engine"
	"github.com/caisson-dev/caisson/snapshot"
)

// Name is the provider's name in handles and configuration.
const Name = "gvisor"

// agentMark is what stands before the agent's digest in an ABI.
const agentMark = "/agent-"

// maxSocketPath is the kernel's limit on the path of a unix socket.
const maxSocketPath = 107

// Config says where the provider keeps things and what it may leave unenforced.
type Config struct {
	// DataDir is an absolute directory of the provider's own, for one Provider at
	// a time. Writable layers lie in it, so it decides how much boxes can write.
	DataDir string
	// Unenforced lists limits that boxes may have although this host cannot
	// enforce them. A limit that is neither enforceable nor listed makes Create
	// fail with provider.ErrUnenforceable.
	Unenforced []provider.Limit
	// EnginePath and AgentPath replace the embedded programs, for development.
	EnginePath, AgentPath string
	// SavedABIs lists the ABIs of all saved memory, whose agents must stay. When
	// it is nil all agents stay.
	SavedABIs func(ctx context.Context) ([]string, error)
	Log       *slog.Logger
}

// Provider makes boxes. It is safe for concurrent use.
type Provider struct {
	cfg        Config
	log        *slog.Logger
	agentImage string
	abi        string
	caps       provider.Capabilities
	overlays   string
	options    engine.Options

	closing context.CancelFunc
	wg      sync.WaitGroup // the supervisor and boxes being put away

	probing sync.Mutex // held by the one trial box at a time

	mu     sync.Mutex
	client *engine.Client
	fresh  chan struct{} // closed and replaced when client changes
	closed bool
	probed bool
	boxes  map[string]*Box
}

var (
	_ provider.Provider    = (*Provider)(nil)
	_ provider.Restorer    = (*Provider)(nil)
	_ provider.Destroyer   = (*Provider)(nil)
	_ provider.Box         = (*Box)(nil)
	_ provider.Snapshotter = (*Box)(nil)
	_ provider.Claimer     = (*Box)(nil)
	_ provider.Deadliner   = (*Box)(nil)
)

// New prepares engine and agent and connects to the engine, which it launches
// when none is running. Programs of other builds that nothing uses any more are
// removed. Close must be called. embedded.ErrAbsent when the binary
// was built without the two programs.
func New(ctx context.Context, cfg Config) (*Provider, error) {
	if !filepath.IsAbs(cfg.DataDir) {
		return nil, fmt.Errorf("gvisor: data directory %q is not absolute: %w", cfg.DataDir, errdefs.ErrInvalidArgument)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{
		cfg: cfg, log: cfg.Log, overlays: filepath.Join(cfg.DataDir, "layers"),
		boxes: make(map[string]*Box), fresh: make(chan struct{}),
	}
	for _, d := range []string{cfg.DataDir, p.overlays} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("gvisor: prepare data directory: %w", err)
		}
	}
	binary, err := p.engineBinary()
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	image, digest, err := p.agentFile()
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	p.agentImage = image
	root := filepath.Join(cfg.DataDir, "engine")
	p.options = engine.Options{Binary: binary, Root: root, Socket: socketPath(root), OnExit: p.onExit, Log: p.log}
	if p.client, err = engine.Connect(ctx, p.options); err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	p.abi = joinABI(p.client.Hello.ABI, digest)
	p.caps = p.capabilities()
	p.sweepPrograms(ctx, p.client)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.closing = cancel
	first := p.client
	p.wg.Go(func() { p.supervise(run, first) })
	return p, nil
}

// socketPath is the engine's socket in root, or, where that path is too long
// for a socket, a name made from it in the temporary directory. The engine
// checks who connects.
func socketPath(root string) string {
	path := filepath.Join(root, "engine.sock")
	if len(path) <= maxSocketPath {
		return path
	}
	sum := sha256.Sum256([]byte(root))
	return filepath.Join(os.TempDir(), "caisson-"+hex.EncodeToString(sum[:8])+".sock")
}

func (p *Provider) engineBinary() (string, error) {
	if p.cfg.EnginePath != "" {
		return filepath.Abs(p.cfg.EnginePath)
	}
	a, err := embedded.Engine()
	if err != nil {
		return "", err
	}
	return a.Unpack(p.programs())
}

func (p *Provider) capabilities() provider.Capabilities {
	limits := []provider.Limit{provider.LimitDisk, provider.LimitProcesses}
	for _, l := range p.client.Hello.Limits {
		limits = append(limits, provider.Limit(l))
	}
	slices.Sort(limits)
	return provider.Capabilities{
		Claim: true, Restore: true, EnforcesEgress: true, BuildsImages: true,
		Snapshots: []snapshot.Kind{snapshot.Filesystem, snapshot.Memory},
		Limits:    limits,
	}
}

// Name implements provider.Provider.
func (p *Provider) Name() string { return Name }

// Capabilities implements provider.Provider.
func (p *Provider) Capabilities() provider.Capabilities { return p.caps }

// ABI is the snapshot ABI: gVisor's version, the engine's own number and the
// agent's digest. A memory snapshot of another ABI cannot be restored.
func (p *Provider) ABI() string { return p.abi }

// Close lets go of the engine and of the host's side of every box. Boxes keep
// running; a later Provider on the same directory opens them again.
func (p *Provider) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	boxes := make([]*Box, 0, len(p.boxes))
	for _, b := range p.boxes {
		boxes = append(boxes, b)
	}
	c := p.client
	p.mu.Unlock()
	p.closing()
	err := c.Close()
	for _, b := range boxes {
		err = errors.Join(err, b.disconnect())
	}
	p.wg.Wait()
	return err
}

// StopEngine ends the engine and with it every box. Only for taking a data
// directory out of use: a stopping server leaves the engine running.
func (p *Provider) StopEngine(ctx context.Context) error {
	c, err := p.engine(ctx)
	if err != nil {
		return err
	}
	p.closing() // or the supervisor would launch another
	if err := c.Call(ctx, wire.OpShutdown, wire.Shutdown{Force: true}, nil); err != nil {
		return fmt.Errorf("stop engine: %w", err)
	}
	select {
	case <-c.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop engine: %w", context.Cause(ctx))
	}
}

// List implements provider.Provider. Boxes that have ended and were not yet
// destroyed are included; trial boxes of Probe are not.
func (p *Provider) List(ctx context.Context) ([]provider.Handle, error) {
	boxes, err := p.list(ctx)
	if err != nil {
		return nil, err
	}
	var out []provider.Handle
	for _, b := range boxes {
		if !strings.HasPrefix(b.ID, probePrefix) {
			out = append(out, handle(b.ID))
		}
	}
	return out, nil
}

func (p *Provider) list(ctx context.Context) ([]wire.Box, error) {
	var r wire.ListReply
	if err := p.call(ctx, wire.OpList, nil, &r); err != nil {
		return nil, err
	}
	return r.Boxes, nil
}

// call runs one engine operation, waiting for the engine to come back if it was
// lost.
func (p *Provider) call(ctx context.Context, op string, in, out any, files ...*os.File) error {
	c, err := p.engine(ctx)
	if err != nil {
		return err
	}
	return c.Call(ctx, op, in, out, files...)
}

// cleanupContext outlives the request whose work is being undone.
func cleanupContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}

func handle(id string) provider.Handle { return provider.Handle{Provider: Name, Version: 1, ID: id} }
