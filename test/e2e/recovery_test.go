package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// remains lists all that sandboxes of the server have on the host: files,
// control groups, mounts, processes.
func remains(t *testing.T, s *testenv.Server) []string {
	t.Helper()
	left, err := s.BoxFiles()
	if err != nil {
		t.Fatal(err)
	}
	groups, err := s.Cgroups()
	if err != nil {
		t.Fatal(err)
	}
	left = append(left, groups...)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.Data) {
			left = append(left, strings.TrimSpace(line))
		}
	}
	for _, pid := range s.Processes("/boxes/") {
		left = append(left, fmt.Sprint("process ", pid))
	}
	return left
}

// killEngine kills the engine, and with helpers also the spawners, before they
// can end what they have started.
func killEngine(t *testing.T, s *testenv.Server, helpers bool) {
	t.Helper()
	pids := s.Processes("daemon")
	if len(pids) == 0 {
		t.Fatal("no engine found")
	}
	if helpers {
		spawners := testenv.ChildrenOf(pids)
		if len(spawners) == 0 {
			t.Fatal("the engine has no spawners")
		}
		pids = append(spawners, pids...)
		// Stopped first: none sees another's end.
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// Whatever dies, in whatever order: the sandboxes that cannot go on have ended
// with a reason, and nothing of them is left.
func TestNothingIsLeftAfterKills(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		kill func(*testing.T, *testenv.Server)
		// restart says that the server was killed.
		restart bool
	}{
		{"engine", func(t *testing.T, s *testenv.Server) { killEngine(t, s, false) }, false},
		{"engine and spawners", func(t *testing.T, s *testenv.Server) { killEngine(t, s, true) }, false},
		{"server, then engine", func(t *testing.T, s *testenv.Server) { s.Kill9(); killEngine(t, s, false) }, true},
		{"engine, then server", func(t *testing.T, s *testenv.Server) { killEngine(t, s, false); s.Kill9() }, true},
		{"server, then engine and spawners", func(t *testing.T, s *testenv.Server) { s.Kill9(); killEngine(t, s, true) }, true},
		{"engine and spawners, then server", func(t *testing.T, s *testenv.Server) { killEngine(t, s, true); s.Kill9() }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := own(t)
			boxes := []testenv.Box{create(t, s, nil), create(t, s, nil)}
			sh(t, s, boxes[0], "sleep 1000 >/dev/null 2>&1 & dd if=/dev/zero of=/home/user/f bs=1M count=4 2>/dev/null")
			tc.kill(t, s)
			if tc.restart {
				if err := s.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for _, b := range boxes {
				if n := ended(t, s, b.ID, 20*time.Second); n.Reason != "engine_lost" {
					t.Errorf("reason = %q, want engine_lost", n.Reason)
				}
			}
			var left []string
			defer func() {
				if t.Failed() {
					t.Logf("left: %q", left)
				}
			}()
			waitFor(t, 10*time.Second, "nothing to be left", func() bool { left = remains(t, s); return len(left) == 0 })
			made := create(t, s, nil)
			quick(t, s, made)
			if err := s.Kill(t.Context(), made); err != nil {
				t.Fatal(err)
			}
			waitFor(t, 10*time.Second, "nothing to be left of a new one", func() bool { left = remains(t, s); return len(left) == 0 })
		})
	}
}
