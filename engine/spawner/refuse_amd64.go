package spawner

import "golang.org/x/sys/unix"

const (
	auditArch    = unix.AUDIT_ARCH_X86_64
	archSetCPUID = 0x1012 // arch_prctl(2): ARCH_SET_CPUID
)

var refuseOnArch = []refusal{{unix.SYS_ARCH_PRCTL, archSetCPUID, unix.ENODEV}}
