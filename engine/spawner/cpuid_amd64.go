package spawner

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// archSetCPUID is arch_prctl(2)'s ARCH_SET_CPUID.
const archSetCPUID = 0x1012

// allowCPUID keeps gVisor from making the CPUID instruction fault in the
// guest: this process and all that it starts get ENODEV from
// arch_prctl(ARCH_SET_CPUID), as on the many processors that cannot do it, and
// gVisor goes on without. glibc executes CPUID some eighty times at the start
// of every program, and each fault is a signal and two switches between guest
// and sentry: a third of the cost of a short command. What the guest learns is
// the host's model and topology (docs/threat-model.md).
//
// The filter costs nothing elsewhere: the kernel skips it for every system call
// that it always allows.
func allowCPUID() error {
	const (
		offNr   = 0 // struct seccomp_data
		offArch = 4
		offArg0 = 16 // low half, little endian
	)
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offArch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offNr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_ARCH_PRCTL, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offArg0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: archSetCPUID, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENODEV)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&prog[0])
	if err := setFilter(&fprog); err != unix.EACCES {
		return wrapFilter(err)
	}
	// Without CAP_SYS_ADMIN. Nothing that this process starts needs more
	// privilege than it has.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return wrapFilter(setFilter(&fprog))
}

func setFilter(p *unix.SockFprog) error {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(p)))
	if errno != 0 {
		return errno
	}
	return nil
}

func wrapFilter(err error) error {
	if err != nil {
		return fmt.Errorf("install filter: %w", err)
	}
	return nil
}
