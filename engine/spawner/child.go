// Package spawner starts sandbox processes. gVisor's control client and its
// network stack open descriptors that are not close-on-exec, so a fork in the
// busy engine would leak one box's sockets into another. Each spawner is
// therefore a child process that starts one sandbox at a time and does nothing
// else; Pool is the engine's view of several of them.
package spawner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"

	"github.com/caisson-dev/caisson/engine/sentry"
	"github.com/caisson-dev/caisson/engine/wire"
)

const (
	opSpawn = "spawn"
	opReap  = "reap"
	// socketFD is the spawner's connection to the engine.
	socketFD = 3
)

// spawnRequest starts the sandbox of a written bundle. Its files are, in order:
// standard streams, the agent's end of the control channel, root image, agent
// image, file behind the writable layer, and, when the layer starts with saved
// content, the four files of that.
type spawnRequest struct {
	Create wire.Create `json:"create"`
	Bundle string      `json:"bundle"`
	// Cgroups are the control groups to start in: one of v2, or several of v1.
	Cgroups []string `json:"cgroups,omitempty"`
	V2      bool     `json:"v2,omitempty"`
}

const (
	spawnFiles = 5
	savedFiles = 4
)

// spawnReply comes with one file: a pidfd of the sandbox.
type spawnReply struct {
	PID int `json:"pid"`
}

type reapRequest struct {
	PID int `json:"pid"`
}

type reapReply struct {
	Status uint32 `json:"status"`
}

// Options configure a spawner process.
type Options struct {
	// Debug makes the sentry write a debug log into its bundle directory.
	Debug    bool
	Rootless bool
}

// flags is gVisor's configuration. The working directory holds the control
// sockets, so that their paths are short wherever the data directory is.
func flags(o Options) []string {
	f := []string{
		"--root=.",
		"--platform=" + sentry.Platform,
		"--network=sandbox",
		"--ignore-cgroups",
		"--host-settings=ignore",
		"--directfs=false",
		"--net-raw=false",
		"--allow-suid=true",
		"--restore-spec-validation=ignore", // the server checks image and ABI
	}
	if o.Debug {
		f = append(f, "--debug")
	}
	if o.Rootless {
		f = append(f, "--rootless")
	}
	return f
}

type child struct {
	conf *config.Config
	conn *wire.Conn

	mu   sync.Mutex
	pids map[int]bool // started and not yet reaped
}

// Serve runs a spawner process until the engine closes the connection. Then it
// kills every sandbox it started: a dead engine enforces no deadline.
func Serve(o Options) error {
	log.SetTarget(&log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	fs := flag.NewFlagSet("spawner", flag.ContinueOnError)
	config.RegisterFlags(fs)
	if err := fs.Parse(flags(o)); err != nil {
		return fmt.Errorf("parse gvisor flags: %w", err)
	}
	conf, err := config.NewFromFlags(fs)
	if err != nil {
		return fmt.Errorf("configure gvisor: %w", err)
	}
	f := os.NewFile(socketFD, "engine")
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("open engine connection: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("descriptor 3 is not a unix socket")
	}
	// Whatever the engine had open when it forked must not reach a sandbox.
	if err := unix.CloseRange(3, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	if err := widenTable(); err != nil {
		return err
	}
	if err := refuse(); err != nil {
		// Slower, no less safe.
		fmt.Fprintln(os.Stderr, "caisson-engine:", err)
	}
	ch := &child{conf: conf, conn: wire.NewConn(uc), pids: make(map[int]bool)}
	return ch.run()
}

// widenTable makes the descriptor table of this process, and so of every box,
// large from its start. gVisor puts a box's streams at descriptors from 256 on,
// and a table that grows while a process has threads waits for an RCU grace
// period, some 10 ms.
func widenTable() error {
	const high = 300
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	defer func() { _ = unix.Close(null) }()
	if err := unix.Dup3(null, high, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("widen descriptor table: %w", err)
	}
	return nil
}

type job struct {
	id    uint64
	req   spawnRequest
	files []*os.File
}

func (c *child) run() error {
	jobs := make(chan job)
	var wg sync.WaitGroup
	wg.Go(func() {
		// A sandbox inherits the control groups of the thread that forks it.
		runtime.LockOSThread()
		for j := range jobs {
			c.spawn(j)
		}
	})
	err := c.receive(jobs)
	close(jobs)
	wg.Wait()
	c.killAll()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// receive reaps at once, also while a sandbox is starting, and hands the rest
// to the one goroutine that starts sandboxes.
func (c *child) receive(jobs chan<- job) error {
	for {
		m, files, err := c.conn.Receive()
		if err != nil {
			return err
		}
		switch m.Op {
		case opReap:
			closeFiles(files)
			c.reap(m)
		case opSpawn:
			j := job{id: m.ID, files: files}
			if err := json.Unmarshal(m.Body, &j.req); err != nil {
				return fmt.Errorf("decode spawn request: %w", err)
			}
			jobs <- j
		default:
			closeFiles(files)
			return fmt.Errorf("unknown operation %q", m.Op)
		}
	}
}

func (c *child) spawn(j job) {
	defer closeFiles(j.files)
	pid, err := start(c.conf, j.req, j.files)
	if err != nil {
		_ = c.conn.Send(wire.Message{ID: j.id, Error: wire.AsError(err)})
		return
	}
	c.mu.Lock()
	c.pids[pid] = true
	c.mu.Unlock()
	// The process is our unreaped child, so its number cannot be another's.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		c.wait(pid)
		_ = c.conn.Send(wire.Message{ID: j.id, Error: wire.AsError(fmt.Errorf("open pidfd: %w", err))})
		return
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	_ = c.conn.Send(wire.Message{ID: j.id, Body: wire.Encode(spawnReply{PID: pid})}, pidfd)
}

func (c *child) reap(m wire.Message) {
	var req reapRequest
	if err := json.Unmarshal(m.Body, &req); err != nil {
		_ = c.conn.Send(wire.Message{ID: m.ID, Error: wire.AsError(err)})
		return
	}
	c.mu.Lock()
	known := c.pids[req.PID]
	c.mu.Unlock()
	if !known {
		err := &wire.Error{Code: wire.CodeNotFound, Message: fmt.Sprintf("process %d is not a child", req.PID)}
		_ = c.conn.Send(wire.Message{ID: m.ID, Error: err})
		return
	}
	_ = c.conn.Send(wire.Message{ID: m.ID, Body: wire.Encode(reapReply{Status: uint32(c.wait(req.PID))})})
}

// wait reaps a child that has ended or is about to.
func (c *child) wait(pid int) unix.WaitStatus {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	c.mu.Lock()
	delete(c.pids, pid)
	c.mu.Unlock()
	return ws
}

func (c *child) killAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for pid := range c.pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
