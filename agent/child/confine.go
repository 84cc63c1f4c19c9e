package child

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confined are the capabilities that exempt a process from RLIMIT_NPROC, in
// Linux and in gVisor alike.
var confined = []uintptr{unix.CAP_SYS_RESOURCE, unix.CAP_SYS_ADMIN}

// confine takes the confined capabilities out of the bounding and the
// inheritable set of every thread of this process, so that no executable which
// it or its children run, set-uid root or not, has them. Permitted and
// effective sets stay, so that its own forks are exempt.
func confine() error {
	for _, c := range confined {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			return fmt.Errorf("read capability %d of the bounding set: %w", c, err)
		}
		if has == 0 {
			continue
		}
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, errno)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	before := data
	for _, c := range confined {
		data[c/32].Inheritable &^= 1 << (c % 32)
	}
	if data == before {
		return nil
	}
	// The threads of a process that has just started are all alike.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&hdr)
	pin.Pin(&data)
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return fmt.Errorf("drop inheritable capabilities: %w", errno)
	}
	return nil
}
