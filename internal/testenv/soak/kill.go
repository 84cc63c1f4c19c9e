package soak

import (
	"syscall"

	"github.com/caisson-dev/caisson/internal/testenv"
)

func kill9(pid int) bool { return syscall.Kill(pid, syscall.SIGKILL) == nil }

// spawners are the engine's children that are no sandboxes.
func spawners(engines []int) []int { return testenv.ChildrenOf(engines) }
