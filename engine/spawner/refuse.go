package spawner

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusal is a system call that is refused for one value of its first argument.
type refusal struct {
	nr, arg uint32
	errno   unix.Errno
}

// registerPrivateExpedited is MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED.
const registerPrivateExpedited = 1 << 4

// refusals are calls by which gVisor would make boxes slower and nothing safer.
// All of them may fail, and gVisor goes on without.
//
// arch_prctl(ARCH_SET_CPUID) (refuseOnArch, amd64 only) makes the CPUID
// instruction fault in the guest. glibc executes it some eighty times at the
// start of every program, and each fault is a signal and two switches between
// guest and sentry: half the cost of a short command. Many processors cannot do
// it at all. What the guest learns is the host's model and topology
// (docs/threat-model.md).
//
// membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) waits for an RCU grace
// period, some 10 ms, in each of the three programs that a boot executes. Only
// gVisor's KVM platform uses what it registers.
var refusals = append([]refusal{
	{unix.SYS_MEMBARRIER, registerPrivateExpedited, unix.ENOSYS},
}, refuseOnArch...)

// refuse makes refusals fail in this process and all that it starts. The filter
// costs nothing elsewhere: the kernel skips it for every system call that it
// always allows.
func refuse() error {
	const (
		offNr   = 0 // struct seccomp_data
		offArch = 4
		offArg0 = 16 // the low half, little endian
	)
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	give := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	prog := []unix.SockFilter{load(offArch), unless(auditArch, uint8(5*len(refusals)))}
	for _, r := range refusals {
		prog = append(prog, load(offNr), unless(r.nr, 3), load(offArg0), unless(r.arg, 1),
			give(unix.SECCOMP_RET_ERRNO|uint32(r.errno)))
	}
	prog = append(prog, give(unix.SECCOMP_RET_ALLOW))
	err := setFilter(prog)
	if errors.Is(err, unix.EACCES) {
		// Without CAP_SYS_ADMIN. Nothing that this process starts needs more
		// privilege than it has.
		if err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err == nil {
			err = setFilter(prog)
		}
	}
	if err != nil {
		return fmt.Errorf("install seccomp filter: %w", err)
	}
	return nil
}

// setFilter applies prog to all threads.
func setFilter(prog []unix.SockFilter) error {
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&p)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return errno
	}
	return nil
}
