package daemon

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/wire"
)

const recordFile = "box.json"

// maxRecord bounds what is read of one record file.
const maxRecord = 1 << 20

// record is what a later engine needs to clear up after this one.
type record struct {
	Box wire.Box `json:"box"`
	// Name is the box's own, which is that of the directory.
	Name    string   `json:"name"`
	Started uint64   `json:"started,omitempty"` // kernel start time of Box.PID
	Cgroups []string `json:"cgroups,omitempty"`
}

// save writes the box's record. A crash of the host ends all boxes anyway, so
// nothing is forced to disk; the rename keeps the file whole.
func (b *box) save() error {
	b.mu.Lock()
	r := record{Box: b.info, Name: b.name, Started: b.started}
	if b.group != nil && b.info.State != wire.StateEnded {
		r.Cgroups = b.group.Dirs()
	}
	b.mu.Unlock()
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	path := filepath.Join(b.dir, recordFile)
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// forget drops an ended box and its directory. Several may call it; the id is
// free for another box when the first call has done its work, so no later call
// may touch it.
func (e *Engine) forget(b *box) {
	b.forgotten.Do(func() {
		if err := os.RemoveAll(b.dir); err != nil {
			b.log.Error("remove box directory", slog.Any("error", err))
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.boxes[b.info.ID] == b {
			delete(e.boxes, b.info.ID)
		}
		e.armIdle()
	})
}

// recover reads the records of an earlier engine. Sandboxes that still run have
// lost their engine, and with it deadlines and control: they are killed and
// reported as engine_lost.
func (e *Engine) recover() error {
	dir := filepath.Join(e.o.Root, "boxes")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	for _, ent := range entries {
		path := filepath.Join(dir, ent.Name())
		r, err := readRecord(path)
		if err != nil || r.Name != ent.Name() || !wire.ValidID(r.Name) || !wire.ValidID(r.Box.ID) {
			e.log.Warn("drop unreadable record", slog.String("box", ent.Name()), slog.Any("error", err))
			_ = os.RemoveAll(path)
			continue
		}
		e.adopt(path, r)
	}
	// What was made and not recorded.
	e.killStrays()
	if err := e.cgroups.Sweep(); err != nil {
		e.log.Error("remove cgroups of lost boxes", slog.Any("error", err))
	}
	// Control sockets of dead sandboxes; the directory is the current one.
	stale, err := filepath.Glob("runsc-*.sock")
	if err != nil {
		return fmt.Errorf("list control sockets: %w", err)
	}
	for _, s := range stale {
		_ = os.Remove(s)
	}
	return nil
}

func readRecord(dir string) (record, error) {
	var r record
	path := filepath.Join(dir, recordFile)
	fi, err := os.Stat(path)
	if err != nil {
		return r, err
	}
	if fi.Size() > maxRecord {
		return r, errors.New("record is too large")
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	err = json.Unmarshal(raw, &r)
	r.Name = cmp.Or(r.Name, r.Box.ID) // as an engine wrote it that knew no claims
	return r, err
}

// adopt enters a recorded box as ended, after killing what is left of it.
func (e *Engine) adopt(dir string, r record) {
	b := &box{
		e: e, name: r.Name, dir: dir, log: e.log.With(slog.String("box", r.Box.ID)), info: r.Box,
		booted: make(chan struct{}), done: make(chan struct{}),
	}
	close(b.booted)
	close(b.done)
	e.boxes[r.Box.ID] = b
	if r.Box.State == wire.StateEnded {
		return
	}
	// A copy of a directory brings records of boxes that are another engine's.
	if r.Box.PID > 0 && e.runsBox(r.Box.PID) {
		killRecorded(r.Box.PID, r.Started)
	}
	if err := cgroup.RemoveDirs(e.cgroups.Own(r.Cgroups)); err != nil {
		b.log.Error("remove cgroup of lost box", slog.Any("error", err))
	}
	b.info.State = wire.StateEnded
	b.info.Exit = &wire.Exit{Reason: wire.ReasonEngineLost, At: time.Now().UTC(), Detail: "the engine process died"}
	if err := b.save(); err != nil {
		b.log.Error("keep record of lost box", slog.Any("error", err))
	}
	b.log.Info("box ended", slog.String("reason", wire.ReasonEngineLost))
}

// killRecorded kills process pid if it is the one that was recorded, and waits
// until it has ended.
func killRecorded(pid int, started uint64) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// The pidfd pins the process, so the comparison cannot be overtaken.
	if now, err := startTime(pid); err != nil || now != started {
		return
	}
	if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) != nil {
		return
	}
	const patience = 5 * time.Second
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
}

// stat returns the fields of /proc/PID/stat that follow the command name, so
// that index 0 is the state.
func stat(pid int) ([][]byte, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	i := bytes.LastIndexByte(raw, ')')
	f := bytes.Fields(raw[i+1:])
	if i < 0 || len(f) < 20 {
		return nil, fmt.Errorf("process %d: short stat", pid)
	}
	return f, nil
}

// startTime is when process pid started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// killStrays kills sandbox processes of this directory, whoever started them:
// where there are no control groups, nothing else finds one that was not
// recorded any more. No box of this engine may exist.
func (e *Engine) killStrays() {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		e.log.Error("list processes", slog.Any("error", err))
		return
	}
	for _, ent := range entries {
		pid, err := strconv.Atoi(ent.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		started, err := startTime(pid)
		if err != nil {
			continue
		}
		if e.runsBox(pid) {
			e.log.Warn("kill process of lost box", slog.Int("pid", pid))
			killRecorded(pid, started)
		}
	}
}

// runsBox reports whether a process is a sandbox of this directory.
func (e *Engine) runsBox(pid int) bool {
	args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && bytes.Contains(args, []byte("\x00--bundle="+filepath.Join(e.o.Root, "boxes")+"/"))
}

// children lists the direct children of this process.
func children() []int {
	parent := os.Getpid()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, ent := range entries {
		pid, err := strconv.Atoi(ent.Name())
		if err != nil {
			continue
		}
		if f, err := stat(pid); err == nil && string(f[1]) == strconv.Itoa(parent) {
			out = append(out, pid)
		}
	}
	return out
}
