package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/bundle"
	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/wire"
)

// minMemory leaves room for the sentry itself, which counts against the limit.
const minMemory = 64 << 20

// socketBuffer is the kernel buffer of each network socket, in bytes.
const socketBuffer = 4 << 20

// admit checks a create and registers its box.
func (e *Engine) admit(m wire.Message) (*box, error) {
	c, err := decode[wire.Create](m)
	if err != nil {
		return nil, err
	}
	if err := e.validate(c); err != nil {
		return nil, err
	}
	return e.register(c)
}

// create boots a registered box. On error nothing is left of it.
func (e *Engine) create(ctx context.Context, b *box) (reply, error) {
	if err := b.boot(ctx, b.request); err != nil {
		b.mu.Lock()
		err = errors.Join(err, b.release())
		b.info.State = wire.StateEnded
		b.mu.Unlock()
		close(b.done)
		close(b.booted)
		e.forget(b)
		return reply{}, err
	}
	e.wg.Go(b.watch)
	close(b.booted)
	b.mu.Lock()
	if b.reason != "" { // killed while it was booting
		b.signal()
	}
	info, state := b.info, b.reason
	files, err := dupAll(b.nic, b.agent)
	b.mu.Unlock()
	if err != nil {
		return reply{}, errors.Join(err, e.destroy(context.WithoutCancel(ctx), b.name))
	}
	if state != "" {
		closeFiles(files)
		return reply{}, &wire.Error{Code: wire.CodeUnavailable, Message: "the box was killed while it was created"}
	}
	return reply{body: wire.BoxReply{Box: info}, files: files}, nil
}

func (e *Engine) validate(c wire.Create) error {
	invalid := func(format string, a ...any) error {
		return &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf(format, a...)}
	}
	switch {
	case !wire.ValidID(c.ID):
		return invalid("box id %q is not 1 to 64 of a-z and 0-9", c.ID)
	case len(c.Hostname) > 64:
		return invalid("hostname is longer than 64 bytes")
	case c.DiskBytes < 0 || c.TmpBytes < 0 || c.MemoryBytes < 0 || c.CPUs < 0 || c.Processes < 0 || c.Files < 0:
		return invalid("a limit is negative")
	case c.MemoryBytes > 0 && c.MemoryBytes < minMemory:
		return invalid("memory of %d bytes is below the minimum of %d MiB", c.MemoryBytes, minMemory>>20)
	}
	for _, p := range []string{c.Rootfs, c.Agent, c.OverlayDir} {
		if !filepath.IsAbs(p) {
			return invalid("path %q is not absolute", p)
		}
	}
	if c.FilesFrom != "" && !filepath.IsAbs(c.FilesFrom) {
		return invalid("path %q is not absolute", c.FilesFrom)
	}
	return e.enforceable(c)
}

// enforceable refuses a limit that this host cannot enforce, unless the caller
// has said that it may go unenforced.
func (e *Engine) enforceable(c wire.Create) error {
	for _, l := range []struct {
		name string
		want bool
		can  bool
	}{
		{wire.LimitMemory, c.MemoryBytes > 0, e.cgroups.Memory()},
		{wire.LimitCPU, c.CPUs > 0, e.cgroups.CPU()},
	} {
		if l.want && !l.can && !slices.Contains(c.Unenforced, l.name) {
			return &wire.Error{Code: wire.CodeUnenforceable, Message: fmt.Sprintf(
				"the %s limit cannot be enforced: this user may not write control groups; "+
					"run as root, delegate a cgroup, or list %s in limits.unenforced", l.name, l.name)}
		}
	}
	return nil
}

func (e *Engine) register(c wire.Create) (*box, error) {
	b := &box{
		e: e, name: c.ID, dir: filepath.Join(e.o.Root, "boxes", c.ID), log: e.log.With(slog.String("box", c.ID)),
		booted: make(chan struct{}), done: make(chan struct{}),
		request: c,
		info:    wire.Box{ID: c.ID, State: wire.StateCreating, CreatedAt: time.Now().UTC(), Deadline: c.Deadline, Meta: c.Meta},
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping {
		return nil, &wire.Error{Code: wire.CodeUnavailable, Message: "the engine is stopping"}
	}
	if e.boxes[c.ID] != nil {
		return nil, &wire.Error{Code: wire.CodeAlreadyExists, Message: fmt.Sprintf("box %q exists", c.ID)}
	}
	e.boxes[c.ID] = b
	e.armIdle()
	return b, nil
}

// boot takes the box from nothing to a booted sandbox. What it has made when it
// fails is in the box's fields, and release removes it.
func (b *box) boot(ctx context.Context, c wire.Create) error {
	group, err := b.e.cgroups.Create(c.ID, cgroup.Limits{MemoryBytes: c.MemoryBytes, CPUs: c.CPUs})
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.group = group
	b.mu.Unlock()
	if err := bundle.Write(b.dir, c); err != nil {
		return err
	}
	// Written before the process exists, so that the next engine finds the
	// cgroups of one that died right here.
	if err := b.save(); err != nil {
		return err
	}
	given, err := b.open(c)
	defer closeFiles(given)
	if err != nil {
		return err
	}
	sentry, err := b.e.pool.Spawn(ctx, c, b.dir, group, given)
	if err != nil {
		return fmt.Errorf("%w%s", err, b.panicSuffix())
	}
	started, err := startTime(sentry.PID)
	if err != nil {
		b.log.Warn("sandbox ended while it booted", slog.Any("error", err))
	}
	watch, err := group.WatchOOM()
	if err != nil {
		b.log.Warn("memory events are not watched", slog.Any("error", err))
	}
	if watch != nil {
		b.e.wg.Go(func() {
			if watch.Wait() {
				b.kill(wire.ReasonOOM, "the memory limit was hit")
			}
		})
	}
	b.mu.Lock()
	b.sentry, b.started, b.oom = sentry, started, watch
	b.info.PID, b.info.State = sentry.PID, wire.StateCreated
	b.setDeadline(c.Deadline)
	b.mu.Unlock()
	if err := b.save(); err != nil {
		b.kill(wire.ReasonDestroyed, "its record could not be written")
		waitPIDFD(sentry.PIDFD)
		_, _ = sentry.Reap(context.WithoutCancel(ctx))
		return err
	}
	return nil
}

func (b *box) panicSuffix() string {
	if p := b.panicked(); p != "" {
		return ": " + p
	}
	return ""
}

// open makes the box's descriptors. It returns those that the sandbox gets, in
// the spawner's order, also when it fails.
func (b *box) open(c wire.Create) (given []*os.File, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	con, stdio, err := newConsole()
	if err != nil {
		return given, err
	}
	given = append(given, stdio)
	b.console = con
	b.e.wg.Go(con.drain)
	agent, agentPeer, err := pair(unix.SOCK_STREAM)
	if err != nil {
		return given, err
	}
	given = append(given, agentPeer)
	b.agent = agent
	if b.nic, b.nicPeer, err = pair(unix.SOCK_DGRAM); err != nil {
		return given, err
	}
	for _, f := range []*os.File{b.nic, b.nicPeer} {
		growBuffers(f)
	}
	for _, path := range []string{c.Rootfs, c.Agent} {
		f, err := openImage(path)
		if err != nil {
			return given, err
		}
		given = append(given, f)
	}
	layer, err := layerFile(c.OverlayDir)
	if err != nil {
		return given, err
	}
	given = append(given, layer)
	if b.layer, err = dup(layer); err != nil {
		return given, err
	}
	if c.FilesFrom == "" {
		return given, nil
	}
	for _, name := range wire.SavedFiles() {
		f, err := openImage(filepath.Join(c.FilesFrom, name))
		if err != nil {
			return given, err
		}
		given = append(given, f)
	}
	return given, nil
}

// openImage opens an EROFS image for reading.
func openImage(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &wire.Error{Code: wire.CodeInvalid, Message: "open image: " + err.Error()}
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		_ = f.Close()
		return nil, &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("image %s is not a regular file", path)}
	}
	return f, nil
}

// layerFile makes the nameless file behind a writable layer. It goes away with
// the last descriptor, whoever dies first.
func layerFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "layer"), nil
	}
	// Not every file system has nameless files.
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, fmt.Errorf("make writable layer: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, fmt.Errorf("make writable layer: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

func pair(kind int) (host, guest *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "host end"), os.NewFile(uintptr(fds[1]), "guest end"), nil
}

// growBuffers asks for large socket buffers, as far as privilege allows.
func growBuffers(f *os.File) {
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		for _, o := range []struct{ force, plain int }{
			{unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}, {unix.SO_RCVBUFFORCE, unix.SO_RCVBUF},
		} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.force, socketBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.plain, socketBuffer)
			}
		}
	})
}

// dupAll duplicates files for sending, so that the box can close its own.
func dupAll(files ...*os.File) ([]*os.File, error) {
	var out []*os.File
	for _, f := range files {
		d, err := dup(f)
		if err != nil {
			closeFiles(out)
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func dup(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, &wire.Error{Code: wire.CodeNotFound, Message: "the box has ended"}
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	fd := -1
	var derr error
	if err := rc.Control(func(orig uintptr) {
		fd, derr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	if derr != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", derr)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
