// Package agent is the in-sandbox agent: it serves the E2B agent protocol on
// TCP 49983, exchanges tickets for dialled connections on 49982, and takes its
// identity over the private control channel. cmd/caisson-agent runs it as pid 1
// of a sandbox, provider/fake inside the server.
//
// The parts have packages of their own: process, filesystem, transfer (/files),
// forward, control; session is what they share. This package wires them and
// guards the door. It imports no server package, no SQL and nothing of gVisor.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/child"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/agent/filesystem"
	"github.com/caisson-dev/caisson/agent/forward"
	"github.com/caisson-dev/caisson/agent/metadata"
	"github.com/caisson-dev/caisson/agent/process"
	"github.com/caisson-dev/caisson/agent/session"
	"github.com/caisson-dev/caisson/agent/transfer"
	"github.com/caisson-dev/caisson/agent/version"
)

// DefaultPath is the PATH of commands when the agent was given none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// idleTimeout is above the 300 s that clients keep connections.
const idleTimeout = 620 * time.Second

// Config is all that an agent needs.
type Config struct {
	// Mode is child.Guest for pid 1 of a sandbox.
	Mode child.Mode
	// Path is the PATH of commands; empty means DefaultPath.
	Path string
	// Listener serves the agent protocol, ForwardListener tickets. Either may
	// be nil; Run closes them.
	Listener        net.Listener
	ForwardListener net.Listener
	// Control is the agent's end of the private channel; nil for none. Run
	// closes it.
	Control io.ReadWriteCloser
	// Guest makes the machine match the identity (hostname, marker files,
	// clock, trust store); nil does nothing, as an embedded agent must.
	Guest Guest
	// Dial replaces net.Dialer for guest ports; nil for the default.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MetadataFile keeps the metadata of files that the file system cannot
	// hold; empty keeps it in memory.
	MetadataFile string
	Log          *slog.Logger
}

// Guest applies an identity to the machine that the agent runs in.
type Guest interface {
	Apply(ctx context.Context, in control.Init) error
	// Refresh is Apply for an identity that was applied already: what changes
	// with time.
	Refresh(in control.Init)
}

// Agent is one running agent.
type Agent struct {
	cfg      Config
	sess     *session.Session
	launcher *child.Launcher
	procs    *process.Service
	files    *filesystem.Service
	transfer *transfer.Service
	forward  *forward.Forwarder
	server   *http.Server
	control  *control.Server
	conns    connections
	cpu      cpuMeter
	requests requests

	initMu sync.Mutex // held over Init, Prepare and Freeze, which must not interleave
	// prepared is what Prepare has applied; guarded by initMu.
	prepared control.Init
}

// New wires an agent; Run starts it.
func New(cfg Config) (*Agent, error) {
	if cfg.Log == nil {
		return nil, fmt.Errorf("agent: no logger: %w", errdefs.ErrInvalidArgument)
	}
	if cfg.Path == "" {
		cfg.Path = DefaultPath
	}
	a := &Agent{
		cfg:      cfg,
		sess:     session.New(account.NewDatabase()),
		launcher: child.New(cfg.Mode),
		forward:  forward.New(cfg.Dial, cfg.Log),
	}
	a.procs = process.New(a.sess, a.launcher, cfg.Path, a.emit, cfg.Log)
	meta := metadata.New(cfg.MetadataFile)
	a.files = filesystem.New(a.sess, meta, cfg.Log)
	a.transfer = transfer.New(a.sess, meta, cfg.Log)
	if cfg.Control != nil {
		a.control = control.NewServer(cfg.Control, a, cfg.Log)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	a.server = &http.Server{
		Handler:           a.requests.count(a.conns.serve(a.handler())),
		Protocols:         &protocols,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		ConnState:         a.conns.observe,
		ConnContext:       a.conns.context,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return a, nil
}

// Run serves until parent ends, then kills every command and returns when nothing
// of the agent runs any more. It fails when a part fails; the loss of the
// control channel is none, because the server may come back.
func (a *Agent) Run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(name string, run func() error) {
		wg.Go(func() {
			if err := run(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("launcher", func() error { return a.launcher.Run(ctx) })
	if a.cfg.Listener != nil {
		part("agent port", func() error { return a.server.Serve(a.cfg.Listener) })
	}
	if a.cfg.ForwardListener != nil {
		part("forward port", func() error { return a.forward.Serve(ctx, a.cfg.ForwardListener) })
	}
	if a.control != nil {
		wg.Go(func() { a.serveControl(ctx) })
	}
	<-ctx.Done()
	if a.cfg.Control != nil {
		_ = a.cfg.Control.Close()
	}
	_ = a.server.Close()
	a.forward.Close()
	a.files.Close()
	wg.Wait()
	a.procs.Wait()
	a.requests.wait()
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// serveControl serves the channel until ctx ends or a pipe in this process was
// closed. An EOF on a descriptor is waited out.
func (a *Agent) serveControl(ctx context.Context) {
	for {
		err := a.control.Run(ctx)
		if ctx.Err() != nil || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, os.ErrClosed) {
			return
		}
		a.cfg.Log.Warn("control channel ended", slog.Any("error", err))
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) emit(ev control.Event) {
	if a.control != nil {
		a.control.Emit(ev)
	}
}

// Init implements control.Handler.
func (a *Agent) Init(ctx context.Context, in control.Init) error {
	a.initMu.Lock()
	defer a.initMu.Unlock()
	if in.AccessToken == "" {
		return fmt.Errorf("access token is empty: %w", errdefs.ErrInvalidArgument)
	}
	prepared := a.prepared
	a.prepared = control.Init{}
	if err := a.launcher.LimitProcesses(in.Limits.Processes); err != nil {
		return err
	}
	switch {
	case a.cfg.Guest == nil:
	case sameMachine(prepared, in):
		a.cfg.Guest.Refresh(in)
	default:
		if err := a.cfg.Guest.Apply(ctx, in); err != nil {
			return err
		}
	}
	a.sess.Bind(in)
	return nil
}

// sameMachine reports whether two identities look the same to the machine.
func sameMachine(a, b control.Init) bool {
	return a.SandboxID == b.SandboxID && a.TemplateID == b.TemplateID && a.BuildID == b.BuildID &&
		a.Hostname == b.Hostname && a.CABundle == b.CABundle
}

// Prepare implements control.Handler.
func (a *Agent) Prepare(ctx context.Context, in control.Init) error {
	a.initMu.Lock()
	defer a.initMu.Unlock()
	if a.sess.Ready() || in.SandboxID == "" {
		return fmt.Errorf("prepare an agent that has an identity, or for none: %w", errdefs.ErrInvalidArgument)
	}
	if a.cfg.Guest != nil {
		if err := a.cfg.Guest.Apply(ctx, in); err != nil {
			return err
		}
	}
	a.procs.Rehearse(ctx, in.DefaultUser)
	a.prepared = in
	return nil
}

// Health implements control.Handler.
func (a *Agent) Health() control.Health {
	return control.Health{Version: version.Envd, Ready: a.sess.Ready(), Processes: a.procs.Count()}
}

// Freeze implements control.Handler. What held the token and the variables is
// collected, and overwritten where the runtime is told to (GODEBUG
// clobberfree=1); requests that are being served may still have theirs.
func (a *Agent) Freeze() {
	a.initMu.Lock()
	defer a.initMu.Unlock()
	a.sess.Forget()
	a.prepared = control.Init{}
	a.forward.Forget()
	a.conns.close()
	// Twice, because pools keep their buffers over one collection.
	runtime.GC()
	debug.FreeOSMemory()
}

// Dial implements control.Handler.
func (a *Agent) Dial(ctx context.Context, port uint16) (control.Ticket, error) {
	return a.forward.Dial(ctx, port)
}
