// Package seccompgen compiles the seccomp program that package sentry embeds.
// Only its generator and the tests import it.
package seccompgen

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/runsc/boot/filter/config"

	_ "gvisor.dev/gvisor/pkg/sentry/platform/platforms" // registers systrap
)

// rules is gVisor's own rule set with its run-time variables left open; the
// exported twin fills in this process's id.
//
//go:linkname rules gvisor.dev/gvisor/runsc/boot/filter/config.rules
func rules(opt config.Options, vars precompiledseccomp.Values) (seccomp.SyscallRules, seccomp.SyscallRules)

// Program returns the program as JSON for the engine's configuration: systrap,
// no host file system, no host network. It must be called in process 1 of a PID
// namespace, as Command starts one: systrap's rules contain the number of the
// process that compiles them, and the sandbox process is number 1.
func Program() ([]byte, error) {
	if pid := os.Getpid(); pid != 1 {
		return nil, fmt.Errorf("seccomp program must be compiled in process 1, not %d", pid)
	}
	p, err := platform.Lookup("systrap")
	if err != nil {
		return nil, fmt.Errorf("look up platform: %w", err)
	}
	opt := config.Options{Platform: p.PrecompiledSeccompInfo()[0]}
	var names []string
	for name := range opt.Vars() {
		names = append(names, name)
	}
	prog, err := precompiledseccomp.Precompile(opt.ConfigKey(), names, func(vars precompiledseccomp.Values) *seccomp.Program {
		allow, deny := rules(opt, vars)
		return &seccomp.Program{
			RuleSets: []seccomp.RuleSet{
				{Rules: deny.Copy()},
				{Rules: allow.Copy(), Action: seccomp.Allow},
			},
			Options: config.SeccompOptions(opt),
		}
	})
	if err != nil {
		return nil, fmt.Errorf("precompile seccomp program: %w", err)
	}
	// Precompile leaves placeholders where the variables go, different ones each
	// time; rendering overwrites them.
	for _, offsets := range prog.VarOffsets {
		for _, o := range offsets {
			prog.Bytecode32[o] = 0
		}
	}
	return json.Marshal(prog)
}

// Command returns a command that runs this executable again, with args, as
// process 1 of a PID namespace. It needs no privilege.
func Command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	cmd.Stderr = os.Stderr
	return cmd
}
