package sentry

import (
	"encoding/json"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	"gvisor.dev/gvisor/runsc/boot/filter"
)

// gVisor's published module carries no precompiled seccomp programs, so every
// sandbox would compile its filter at start and at restore (10 ms and more).
// The table is package-private; the program of our one configuration is put in
// from outside. If gVisor renames the variable, linking fails; if it changes
// the configuration key, SeccompReady is false and gVisor compiles as before.
//
//go:linkname precompiled gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var precompiled map[string]precompiledseccomp.Program

// Platform is the only gVisor platform in use. KVM is not chosen even where
// /dev/kvm exists: under nested virtualisation it can hang at the first guest
// instruction.
const Platform = "systrap"

// SeccompOptions are the filter options that follow from Flags.
func SeccompOptions() (filter.Options, error) {
	p, err := platform.Lookup(Platform)
	if err != nil {
		return filter.Options{}, err
	}
	return filter.Options{Platform: p.PrecompiledSeccompInfo()[0]}, nil
}

// SeccompReady reports whether a precompiled filter exists for our options.
func SeccompReady() bool {
	opt, err := SeccompOptions()
	if err != nil {
		return false
	}
	registerSeccomp()
	_, ok := filter.GetPrecompiled(opt.ConfigKey())
	return ok
}

// registerSeccomp fills gVisor's table. A program that does not decode is left
// out: gVisor then compiles the filter itself, never runs without one.
func registerSeccomp() {
	filter.GetPrecompiled("") // creates the table
	var p precompiledseccomp.Program
	if len(seccompProgram) > 0 && json.Unmarshal(seccompProgram, &p) == nil && precompiled != nil {
		precompiled[p.Name] = p
	}
}
