package spawner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/server"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/runsc/config"

	"github.com/caisson-dev/caisson/engine/bundle"
	"github.com/caisson-dev/caisson/engine/cgroup"
	"github.com/caisson-dev/caisson/engine/sentry"
	"github.com/caisson-dev/caisson/engine/wire"
)

// nobody is the user and group of every sandbox process, inside its user
// namespace and, when the engine is root, on the host.
const nobody = 65534

// oomScoreAdj is the kernel's bias against boxes, of at most 1000.
const oomScoreAdj = "500"

// Linux capability numbers.
const (
	capSetPCap   = 8
	capSysChroot = 18
	capSysPtrace = 19
	capSysAdmin  = 21
)

// command collects arguments and the descriptors they refer to.
type command struct {
	args  []string
	files []*os.File
}

// give passes a descriptor and returns its number in the new process.
func (c *command) give(f *os.File) int {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

func (c *command) flag(name, value string) { c.args = append(c.args, "--"+name+"="+value) }

func (c *command) giveFlag(name string, files ...*os.File) {
	for _, f := range files {
		c.flag(name, strconv.Itoa(c.give(f)))
	}
}

// start runs "boot" for one box and returns when the sentry has booted and
// answers on its control socket; nothing of the guest has run then. It does what
// gVisor's own sandbox.New does for this one configuration: no gofer, images as
// descriptors, new namespaces, no privilege on the host. sandbox.New itself
// cannot open EROFS submounts without a gofer, takes the guest's streams from
// this process, and links 46 MB of an unrelated program into the binary.
func start(conf *config.Config, req spawnRequest, files []*os.File) (int, error) {
	if len(files) != spawnFiles && len(files) != spawnFiles+savedFiles {
		return 0, fmt.Errorf("spawn: got %d files, want %d or %d", len(files), spawnFiles, spawnFiles+savedFiles)
	}
	stdio, control, root, agent, layer := files[0], files[1], files[2], files[3], files[4]
	// The sentry's seccomp filter does not let it do this itself.
	pgalloc.IMAWorkAroundForMemFile(layer.Fd())
	own, err := openOwn(conf, req)
	if err != nil {
		return 0, err
	}
	defer own.close()

	c := &command{args: conf.ToFlags()}
	// First: a saved kernel knows it by its number, which must be the same however
	// the box was started.
	controlFD := c.give(control)
	c.giveFlag("panic-log-fd", own.panicLog)
	if own.debugLog != nil {
		c.giveFlag("debug-log-fd", own.debugLog)
	}
	c.args = append(c.args, "boot", "--setup-root")
	c.flag("bundle", req.Bundle)
	c.giveFlag("spec-fd", own.spec)
	c.giveFlag("controller-fd", own.control)
	c.giveFlag("start-sync-fd", own.syncWrite)
	c.giveFlag("io-fds", root, agent)
	c.giveFlag("gofer-filestore-fds", layer)
	mounts := bundle.Mounts(req.Create)
	c.flag("gofer-mount-confs", mounts.String())
	c.giveFlag("stdio-fds", stdio, stdio, stdio)
	memory := uint64(req.Create.MemoryBytes)
	if memory == 0 {
		memory = hostMemory()
	}
	// The first is what the guest sees; the second is what gVisor sizes tmpfs
	// mounts by that have no size of their own, such as /dev.
	c.flag("total-memory", strconv.FormatUint(memory, 10))
	c.flag("total-host-memory", strconv.FormatUint(memory, 10))
	c.flag("cpu-num", strconv.Itoa(req.Create.CPUs))
	c.flag("pass-fd", fmt.Sprintf("%d:%d", controlFD, wire.ControlFD))
	c.giveFlag("fs-restore-fds", files[spawnFiles:]...)
	c.args = append(c.args, req.Create.ID)

	cmd := exec.Command("/proc/self/exe", c.args...)
	cmd.Args[0] = sentry.Argv0 + "-sandbox"
	cmd.ExtraFiles = c.files
	cmd.Env = []string{}
	cmd.SysProcAttr = attributes(conf.Rootless)
	if err := startInside(cmd, req); err != nil {
		return 0, fmt.Errorf("start sandbox process: %w", err)
	}
	// From here on the process is waited for by its number, not through cmd.
	pid := cmd.Process.Pid
	_ = cmd.Process.Release()
	// Boxes go before the engine and the server when the host runs out of
	// memory. Not being allowed to is harmless.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(oomScoreAdj), 0)
	_ = own.syncWrite.Close() // so that the end of the process ends the read
	if n, err := own.syncRead.Read(make([]byte, 1)); n != 1 {
		_ = unix.Kill(pid, unix.SIGKILL)
		return 0, fmt.Errorf("sandbox process did not boot (%s): %w", waitStatus(pid), err)
	}
	return pid, nil
}

// startInside starts cmd as a member of the box's control groups from its first
// instruction. With v2 the kernel does that; with v1 a child inherits the groups
// of the thread that forks it, so this thread visits them. The caller has locked
// the thread.
func startInside(cmd *exec.Cmd, req spawnRequest) error {
	if len(req.Cgroups) == 0 {
		return cmd.Start()
	}
	if req.V2 {
		dir, err := os.Open(req.Cgroups[0])
		if err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
		return cmd.Start()
	}
	// "0" is the calling thread. Its number would do the same, but for a thread
	// other than the caller the kernel first waits for an RCU grace period, some
	// 10 ms, and does not look whether it is another.
	const self = "0"
	var err error
	for _, d := range req.Cgroups {
		if err = cgroup.Write(d, "tasks", self); err != nil {
			err = fmt.Errorf("enter cgroup: %w", err)
			break
		}
	}
	if err == nil {
		err = cmd.Start()
	}
	for _, d := range req.Cgroups {
		if lerr := cgroup.Write(filepath.Dir(d), "tasks", self); lerr != nil {
			// The next box must not start in this one's group.
			fmt.Fprintln(os.Stderr, "caisson-engine: leave cgroup:", lerr)
			os.Exit(1)
		}
	}
	return err
}

// attributes puts the sandbox into namespaces of its own: no host network, no
// host processes, and a user namespace in which it is nobody. The capabilities
// are those that it needs to leave the host's file system; gVisor drops them
// before the guest runs.
func attributes(rootless bool) *syscall.SysProcAttr {
	uid, gid := nobody, nobody
	if rootless {
		uid, gid = os.Getuid(), os.Getgid()
	}
	return &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID |
			unix.CLONE_NEWNET | unix.CLONE_NEWUSER,
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		UidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: gid, Size: 1}},
		AmbientCaps: []uintptr{capSysAdmin, capSysChroot, capSetPCap, capSysPtrace},
	}
}

// ownFiles are the descriptors that the spawner makes for one start.
type ownFiles struct {
	panicLog, debugLog, spec, control, syncRead, syncWrite *os.File
}

func openOwn(conf *config.Config, req spawnRequest) (o *ownFiles, err error) {
	o = &ownFiles{}
	defer func() {
		if err != nil {
			o.close()
		}
	}()
	if o.spec, err = os.Open(filepath.Join(req.Bundle, bundle.SpecFile)); err != nil {
		return o, fmt.Errorf("open specification: %w", err)
	}
	if o.panicLog, err = logFile(req.Bundle, bundle.PanicLog); err != nil {
		return o, err
	}
	if conf.Debug {
		if o.debugLog, err = logFile(req.Bundle, "debug.log"); err != nil {
			return o, err
		}
	}
	fd, err := server.CreateSocket(bundle.ControlSocket(req.Create.ID))
	if err != nil {
		return o, fmt.Errorf("make control socket: %w", err)
	}
	o.control = os.NewFile(uintptr(fd), "control")
	if o.syncRead, o.syncWrite, err = os.Pipe(); err != nil {
		return o, fmt.Errorf("make start pipe: %w", err)
	}
	return o, nil
}

func (o *ownFiles) close() {
	for _, f := range []*os.File{o.panicLog, o.debugLog, o.spec, o.control, o.syncRead, o.syncWrite} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func logFile(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

func hostMemory() uint64 {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0
	}
	return si.Totalram * uint64(si.Unit)
}

// waitStatus reaps a process that is ending and describes how it ended.
func waitStatus(pid int) string {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err.Error()
		}
		break
	}
	if ws.Exited() {
		return fmt.Sprintf("exit status %d", ws.ExitStatus())
	}
	return ws.Signal().String()
}
