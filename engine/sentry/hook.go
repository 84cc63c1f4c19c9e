package sentry

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// HookFailed is the exit status when the hook could not do its work. A box
// without its limits must not run.
const HookFailed = 97

// HookFile lies in the bundle directory of every box.
const HookFile = "hook.json"

// Hook is what the sandbox process does to itself before gVisor starts.
type Hook struct {
	// Cgroups are directories whose cgroup.procs it joins.
	Cgroups []string `json:"cgroups,omitempty"`
	// OOMScoreAdj makes the kernel prefer boxes over the engine when the whole
	// host runs out of memory.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
}

// runHook applies the hook in the first of the two "boot" executions, the one
// that still sees the host's file system: it is told by "--setup-root", which
// the second one gets as "--setup-root=false".
func runHook() error {
	if !slices.Contains(os.Args, "boot") || !slices.Contains(os.Args, "--setup-root") {
		return nil
	}
	h, err := readHook(os.Args)
	if err != nil {
		return err
	}
	for _, dir := range h.Cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	if h.OOMScoreAdj != 0 {
		// Lowering is refused to the unprivileged, raising never is.
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(h.OOMScoreAdj)), 0); err != nil {
			return fmt.Errorf("set oom score: %w", err)
		}
	}
	return nil
}

func readHook(args []string) (Hook, error) {
	var bundle string
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "--bundle="); ok {
			bundle = v
		}
	}
	raw, err := os.ReadFile(filepath.Join(bundle, HookFile))
	if err != nil {
		return Hook{}, fmt.Errorf("read hook: %w", err)
	}
	var h Hook
	if err := json.Unmarshal(raw, &h); err != nil {
		return Hook{}, fmt.Errorf("decode hook: %w", err)
	}
	return h, nil
}
