package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/wire"
)

// launchTimeout bounds start and restore; loading a large checkpoint from a
// slow disk stays far below.
const launchTimeout = 2 * time.Minute

func decode[T any](m wire.Message) (T, error) {
	var v T
	if err := json.Unmarshal(m.Body, &v); err != nil {
		return v, &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("decode %s: %v", m.Op, err)}
	}
	return v, nil
}

// dispatch runs one operation, except create. The files of the message are closed by the
// caller afterwards.
func (e *Engine) dispatch(ctx context.Context, m wire.Message, files []*os.File) (reply, error) {
	switch m.Op {
	case wire.OpKill:
		r, err := decode[wire.ByID](m)
		if err != nil {
			return reply{}, err
		}
		return reply{}, e.destroy(ctx, r.ID)
	case wire.OpList:
		return reply{body: wire.ListReply{Boxes: e.list()}}, nil
	case wire.OpShutdown:
		r, err := decode[wire.Shutdown](m)
		if err != nil {
			return reply{}, err
		}
		return reply{}, e.requestStop(r.Force)
	}
	return e.onBox(ctx, m, files)
}

// onBox runs the operations that need a live box.
func (e *Engine) onBox(ctx context.Context, m wire.Message, files []*os.File) (reply, error) {
	r, err := decode[wire.Launch](m) // of other operations it is the id
	if err != nil {
		return reply{}, err
	}
	b, err := e.alive(ctx, r.Box())
	if err != nil {
		return reply{}, err
	}
	switch m.Op {
	case wire.OpStart, wire.OpRestore:
		ctx, cancel := context.WithTimeoutCause(ctx, launchTimeout,
			&wire.Error{Code: wire.CodeUnavailable, Message: "the sandbox did not start in time"})
		defer cancel()
		if m.Op == wire.OpRestore {
			return reply{}, b.restore(ctx, files)
		}
		return reply{}, b.start(ctx)
	case wire.OpCheckpoint:
		c, err := decode[wire.Checkpoint](m)
		if err != nil {
			return reply{}, err
		}
		return reply{}, b.checkpoint(ctx, files, c.Kill)
	case wire.OpSaveFiles:
		return reply{}, b.saveFiles(ctx, files)
	case wire.OpExportLayer:
		return reply{}, b.exportLayer(ctx, files)
	case wire.OpStats:
		return reply{body: b.stats()}, nil
	case wire.OpAttach:
		return b.attach()
	case wire.OpExec:
		x, err := decode[wire.Exec](m)
		if err != nil {
			return reply{}, err
		}
		pid, err := b.exec(ctx, x, files)
		return reply{body: wire.ExecReply{PID: pid}}, err
	case wire.OpWaitPID:
		w, err := decode[wire.WaitPID](m)
		if err != nil {
			return reply{}, err
		}
		ws, err := b.waitPID(ctx, w.PID)
		return reply{body: wire.WaitReply{Status: ws}}, err
	case wire.OpSetDeadline:
		d, err := decode[wire.SetDeadline](m)
		if err != nil {
			return reply{}, err
		}
		b.mu.Lock()
		b.setDeadline(d.Deadline)
		b.mu.Unlock()
		return reply{}, b.save()
	}
	return reply{}, &wire.Error{Code: wire.CodeInvalid, Message: fmt.Sprintf("unknown operation %q", m.Op)}
}

// destroy kills a box, waits for its end and forgets it.
func (e *Engine) destroy(ctx context.Context, id string) error {
	b, err := e.lookup(id)
	if err != nil {
		return nil // destroying twice is no error
	}
	b.kill(wire.ReasonDestroyed, "")
	select {
	case <-b.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	e.forget(b)
	return nil
}

func (e *Engine) list() []wire.Box {
	e.mu.Lock()
	boxes := make([]*box, 0, len(e.boxes))
	for _, b := range e.boxes {
		boxes = append(boxes, b)
	}
	e.mu.Unlock()
	out := make([]wire.Box, 0, len(boxes))
	for _, b := range boxes {
		out = append(out, b.snapshot())
	}
	slices.SortFunc(out, func(a, b wire.Box) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (e *Engine) requestStop(force bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := e.live(); n > 0 && !force {
		return &wire.Error{Code: wire.CodePrecondition, Message: fmt.Sprintf("%d boxes are running", n)}
	}
	// The reply is on its way before the connection closes.
	time.AfterFunc(50*time.Millisecond, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.halt()
	})
	return nil
}

func (b *box) attach() (reply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	files, err := dupAll(b.nic, b.agent)
	if err != nil {
		return reply{}, err
	}
	return reply{body: wire.BoxReply{Box: b.info}, files: files}, nil
}

func (b *box) stats() wire.Stats {
	b.mu.Lock()
	group, pid, disk := b.group, b.info.PID, allocated(b.layer)
	b.mu.Unlock()
	var s cgroup.Stats
	if group != nil && len(group.Dirs()) > 0 {
		s = group.Stats()
	} else {
		s = treeStats(pid)
	}
	return wire.Stats{
		CPUNanos: s.CPUNanos, MemoryBytes: s.MemoryBytes, CacheBytes: s.CacheBytes, DiskBytes: disk,
		MemoryMaxBytes: s.MemoryMaxBytes, Processes: s.Processes,
	}
}

// allocated is what a file takes on the disk, which is less than its length
// where it has holes; zero for a box whose file is closed.
func allocated(f *os.File) int64 {
	if f == nil {
		return 0
	}
	fi, err := f.Stat()
	if err != nil {
		return 0
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	const sector = 512 // the unit of st_blocks, whatever the file system's is
	return st.Blocks * sector
}
