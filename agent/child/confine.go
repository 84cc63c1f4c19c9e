package child

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// confined are the capabilities that exempt a process from RLIMIT_NPROC, in
// Linux and in gVisor alike.
var confined = []uintptr{unix.CAP_SYS_RESOURCE, unix.CAP_SYS_ADMIN}

// confineThread takes the confined capabilities out of the bounding and the
// inheritable set of the calling thread, so that no executable which it or its
// children run, set-uid root or not, has them. The thread's own permitted and
// effective sets stay, so that its forks are exempt. It also resets the nice
// value that commands inherit.
func confineThread() error {
	var errs []error
	for _, c := range confined {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err == nil && has == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			errs = append(errs, fmt.Errorf("drop capability %d from the bounding set: %w", c, err))
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		errs = append(errs, fmt.Errorf("read capabilities: %w", err))
		return errors.Join(errs...)
	}
	before := data
	for _, c := range confined {
		data[c/32].Inheritable &^= 1 << (c % 32)
	}
	if data != before {
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			errs = append(errs, fmt.Errorf("drop inheritable capabilities: %w", err))
		}
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 0)
	return errors.Join(errs...)
}
