// Package daemon is the long-lived engine process: it answers the server over a
// unix socket (package wire), keeps boxes running while no server is connected,
// holds duplicates of their network and agent descriptors for the next server,
// enforces deadlines, and clears up after an engine that died.
package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/version"

	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/sentry"
	"github.com/caisson-dev/caisson/engine/spawner"
	"github.com/caisson-dev/caisson/engine/wire"
)

// Options configure an engine.
type Options struct {
	// Root is the absolute directory of the engine's records.
	Root string
	// Socket is the path that the engine listens on.
	Socket string
	// Spawners is how many sandboxes may be booting at once.
	Spawners int
	// IdleExit ends the engine when for this long no server was connected and
	// no box existed; zero means never.
	IdleExit time.Duration
	// Debug makes gVisor write its debug log into each box's directory.
	Debug bool
	// Ready is called once, when the engine answers.
	Ready func()
	Log   *slog.Logger
}

// ErrRunning says that another engine already serves the same root.
var ErrRunning = errors.New("another engine is running for this directory")

// Engine is one running engine.
type Engine struct {
	o        Options
	log      *slog.Logger
	cgroups  *cgroup.Manager
	pool     *spawner.Pool
	build    string
	rootless bool

	mu       sync.Mutex
	boxes    map[string]*box
	conns    map[*conn]bool
	idle     *time.Timer
	stopping bool
	stop     chan struct{}
	wg       sync.WaitGroup // connections and box watchers
}

// Run serves until ctx ends, Shutdown is called or the engine has been idle.
// Boxes that still run are killed.
func Run(ctx context.Context, o Options) error {
	e := &Engine{
		o: o, log: o.Log, rootless: os.Geteuid() != 0,
		boxes: make(map[string]*box), conns: make(map[*conn]bool), stop: make(chan struct{}),
	}
	unlock, err := e.prepare()
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.recover(); err != nil {
		return err
	}
	defer e.cgroups.Close() // after the spawners have left them
	e.pool, err = spawner.NewPool(max(o.Spawners, 1), spawner.Options{
		Debug: o.Debug, Rootless: e.rootless,
	}, e.log, children)
	if err != nil {
		return fmt.Errorf("start spawners: %w", err)
	}
	defer e.pool.Close()
	ln, err := e.listen()
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.armIdle()
	e.mu.Unlock()
	if o.Ready != nil {
		o.Ready()
	}
	e.log.Info("engine ready", slog.String("abi", version.Version()), slog.Int("pid", os.Getpid()),
		slog.Bool("memory", e.cgroups.Memory()), slog.Bool("cpu", e.cgroups.CPU()))
	e.wg.Go(func() { e.accept(ln) })
	select {
	case <-ctx.Done():
	case <-e.stop:
	}
	return e.shutdown(ln)
}

// prepare makes the directories, takes the lock and moves to the directory of
// the control sockets.
func (e *Engine) prepare() (unlock func(), err error) {
	sockets := filepath.Join(e.o.Root, "ctl")
	for _, d := range []string{e.o.Root, sockets, filepath.Join(e.o.Root, "boxes")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("prepare engine directory: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(e.o.Root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open engine lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("lock engine directory: %w", err)
	}
	if err := os.Chdir(sockets); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("enter socket directory: %w", err)
	}
	// Sandboxes whose spawner died become children of the engine.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		e.log.Warn("become subreaper", slog.Any("error", err))
	}
	if !sentry.SeccompReady() {
		e.log.Warn("no precompiled seccomp program for this build; each start compiles one")
	}
	sum := sha256.Sum256([]byte(e.o.Root))
	e.cgroups = cgroup.Detect(cgroup.Mount, "caisson-"+hex.EncodeToString(sum[:4]))
	if e.build, err = selfDigest(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}

// selfDigest names this executable. The server unpacks it under its digest, so
// the file's name is enough; another build of the same file name is not.
func selfDigest() (string, error) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("find own executable: %w", err)
	}
	return filepath.Base(exe), nil
}

func (e *Engine) listen() (*net.UnixListener, error) {
	// The lock is ours, so a socket that exists is a dead engine's.
	_ = os.Remove(e.o.Socket)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.o.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(e.o.Socket, 0o600); err != nil {
		return nil, fmt.Errorf("protect socket: %w", errors.Join(err, ln.Close()))
	}
	return ln, nil
}

func (e *Engine) accept(ln *net.UnixListener) {
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		if err := checkPeer(c); err != nil {
			e.log.Warn("connection refused", slog.Any("error", err))
			_ = c.Close()
			continue
		}
		e.mu.Lock()
		if e.stopping {
			e.mu.Unlock()
			_ = c.Close()
			return
		}
		cn := newConn(e, wire.NewConn(c))
		e.conns[cn] = true
		e.armIdle()
		e.wg.Go(func() {
			cn.serve()
			e.mu.Lock()
			delete(e.conns, cn)
			e.armIdle()
			e.mu.Unlock()
		})
		e.mu.Unlock()
	}
}

// checkPeer admits root and the engine's own user only; the socket's mode says
// the same, and survives a change of the directory's.
func checkPeer(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not use the engine", cred.Uid)
	}
	return nil
}

// armIdle starts or stops the idle timer. The caller holds mu.
func (e *Engine) armIdle() {
	if e.o.IdleExit <= 0 {
		return
	}
	if e.idle != nil {
		e.idle.Stop()
		e.idle = nil
	}
	if len(e.conns) > 0 || e.live() > 0 || e.stopping {
		return
	}
	e.idle = time.AfterFunc(e.o.IdleExit, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.conns) == 0 && e.live() == 0 {
			e.log.Info("engine idle; exiting")
			e.halt()
		}
	})
}

// live counts boxes that have not ended. The caller holds mu.
func (e *Engine) live() int {
	n := 0
	for _, b := range e.boxes {
		if !b.ended() {
			n++
		}
	}
	return n
}

// halt makes Run return. The caller holds mu.
func (e *Engine) halt() {
	if !e.stopping {
		e.stopping = true
		close(e.stop)
	}
}

func (e *Engine) shutdown(ln *net.UnixListener) error {
	e.mu.Lock()
	e.halt()
	boxes := make([]*box, 0, len(e.boxes))
	for _, b := range e.boxes {
		boxes = append(boxes, b)
	}
	e.mu.Unlock()
	_ = ln.Close() // also removes the socket
	for _, b := range boxes {
		b.kill(wire.ReasonEngineLost, "the engine was stopped")
	}
	for _, b := range boxes {
		<-b.done
	}
	e.mu.Lock()
	for c := range e.conns {
		_ = c.w.Close()
	}
	e.mu.Unlock()
	e.wg.Wait()
	return nil
}
