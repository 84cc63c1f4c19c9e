package child

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syscall.ForkExec resets some sixty signal handlers one system call at a time
// and reports errors through a pipe. In a sandbox, where each call is a switch
// to the sentry and back, that costs more than the command does. Here the
// kernel resets the handlers (CLONE_CLEAR_SIGHAND, Linux 5.5 and gVisor), and
// the child, which shares this memory until it executes, writes its error into
// it.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// vfork is clone3(2) with CLONE_VFORK and CLONE_VM on the caller's stack.
//
//go:noescape
func vfork(args *cloneArgs, size uintptr) (pid, errno uintptr)

// cloneArgs is the first version of struct clone_args (CLONE_ARGS_SIZE_VER0).
type cloneArgs struct {
	flags, pidFD, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// image is all that the child needs, made before the fork: it may neither
// allocate nor grow its stack.
type image struct {
	clone     cloneArgs
	path      *byte
	argv, env **byte
	dir       *byte
	files     [3]uintptr
	tty       bool
	setIDs    bool
	uid, gid  uintptr
	groups    *uint32
	groupsLen uintptr
	noSignals uint64

	errno syscall.Errno // the child's
}

// errNoVfork says that spec must be started by syscall.ForkExec.
var errNoVfork = errors.New("clone3 with CLONE_CLEAR_SIGHAND is not available")

// vforkExec starts s and returns its pid. The new process has no signal
// blocked, and its soft limit of open files is this process's.
func vforkExec(s Spec) (int, error) {
	m, err := newImage(s)
	if err != nil {
		return 0, err
	}
	// As syscall.ForkExec: no descriptor without close-on-exec is made meanwhile.
	syscall.ForkLock.Lock()
	beforeFork() // blocks all signals of this thread
	pid, errno := cloneAndExec(m)
	afterFork()
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(m)
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL || errno == unix.EPERM:
		return 0, errNoVfork
	case errno != 0:
		return 0, errno
	case m.errno != 0:
		var status syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(int(pid), &status, 0, nil); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		return 0, m.errno
	}
	return int(pid), nil
}

func newImage(s Spec) (*image, error) {
	m := &image{
		clone: cloneArgs{
			flags:      unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_CLEAR_SIGHAND,
			exitSignal: uint64(unix.SIGCHLD),
		},
		files:  [3]uintptr{s.Stdin, s.Stdout, s.Stderr},
		tty:    s.TTY,
		setIDs: os.Geteuid() == 0,
		uid:    uintptr(s.User.UID), gid: uintptr(s.User.GID),
		groups: unsafe.SliceData(s.User.Groups), groupsLen: uintptr(len(s.User.Groups)),
	}
	for _, f := range m.files {
		if f <= 2 { // would be overwritten before it is copied
			return nil, errNoVfork
		}
	}
	var err error
	if m.path, err = syscall.BytePtrFromString(s.Path); err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	argv, err := syscall.SlicePtrFromStrings(s.Args)
	if err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	env, err := syscall.SlicePtrFromStrings(s.Env)
	if err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	m.argv, m.env = &argv[0], &env[0]
	if s.Dir != "" {
		if m.dir, err = syscall.BytePtrFromString(s.Dir); err != nil {
			return nil, fmt.Errorf("directory: %w", err)
		}
	}
	return m, nil
}

// cloneAndExec returns only in the parent, and there at once: the child works
// in this very frame while the parent waits for it.
//
//go:noinline
//go:norace
//go:nosplit
func cloneAndExec(m *image) (uintptr, syscall.Errno) {
	pid, errno := vfork(&m.clone, unsafe.Sizeof(m.clone))
	if errno != 0 || pid != 0 {
		return pid, syscall.Errno(errno)
	}
	become(m)
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 253, 0, 0)
	}
}

// become turns the child into the program. When it returns, m.errno says why it
// could not.
//
//go:norace
//go:nosplit
func become(m *image) {
	if _, _, m.errno = syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0); m.errno != 0 {
		return
	}
	if m.setIDs {
		if _, _, m.errno = syscall.RawSyscall(syscall.SYS_SETGROUPS, m.groupsLen, uintptr(unsafe.Pointer(m.groups)), 0); m.errno != 0 {
			return
		}
		if _, _, m.errno = syscall.RawSyscall(syscall.SYS_SETGID, m.gid, 0, 0); m.errno != 0 {
			return
		}
		if _, _, m.errno = syscall.RawSyscall(syscall.SYS_SETUID, m.uid, 0, 0); m.errno != 0 {
			return
		}
	}
	if m.dir != nil {
		if _, _, m.errno = syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(m.dir)), 0, 0); m.errno != 0 {
			return
		}
	}
	for i := range m.files {
		if _, _, m.errno = syscall.RawSyscall(syscall.SYS_DUP3, m.files[i], uintptr(i), 0); m.errno != 0 {
			return
		}
	}
	if m.tty {
		if _, _, m.errno = syscall.RawSyscall(syscall.SYS_IOCTL, 0, syscall.TIOCSCTTY, 1); m.errno != 0 {
			return
		}
	}
	// No handler of this process is left in the child, so a signal cannot run
	// one here.
	if _, _, m.errno = syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(&m.noSignals)), 0, unsafe.Sizeof(m.noSignals), 0, 0); m.errno != 0 {
		return
	}
	_, _, m.errno = syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(m.path)),
		uintptr(unsafe.Pointer(m.argv)), uintptr(unsafe.Pointer(m.env)))
}
