// Package seccompgen compiles the seccomp program that package sentry embeds.
// Only its generator and the tests import it.
package seccompgen

import (
	"encoding/json"
	"fmt"
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
// no host file system, no host network.
func Program() ([]byte, error) {
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
	return json.Marshal(prog)
}
