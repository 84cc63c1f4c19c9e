package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/internal/testenv"
)

// openFiles counts what a server has open.
func openFiles(t *testing.T, s *testenv.Server) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A server that may open no more files refuses creates and says why; what runs
// goes on, and when it may again all is well.
func TestOutOfFiles(t *testing.T) {
	t.Parallel()
	s := own(t, "--set", "pool.templates=base=0", "--set", "pool.demand=0")
	b := create(t, s, nil)
	pid := sh(t, s, b, counting).Stdout
	var was unix.Rlimit
	if err := unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Skipf("the limit of the server cannot be read: %v", err)
	}
	asleep := create(t, s, nil)
	sh(t, s, asleep, "echo kept > /tmp/f")
	if err := s.API(t.Context(), http.MethodPost, "/sandboxes/"+asleep.ID+"/pause", nil, nil); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t, s)
	low := unix.Rlimit{Cur: uint64(before + 3), Max: was.Max}
	if err := unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Skipf("the limit of the server cannot be lowered: %v", err)
	}
	refused := 0
	var fit []testenv.Box // found what little was left
	for range 4 {
		made, err := s.Create(t.Context(), nil)
		if err == nil {
			fit = append(fit, made)
			continue
		}
		t.Logf("create: %v", err)
		if status(err) == http.StatusServiceUnavailable && strings.Contains(err.Error(), "file descriptor") {
			refused++
		}
	}
	if refused == 0 || refused+len(fit) < 4 {
		t.Errorf("%d of 4 creates were refused with the reason, %d succeeded", refused, len(fit))
	}
	err := s.API(t.Context(), http.MethodPost, "/v2/sandboxes/"+asleep.ID+"/connect", map[string]any{"timeout": 300}, nil)
	if status(err) != http.StatusServiceUnavailable {
		t.Errorf("resume: %v, want 503", err)
	}
	if got := sh(t, s, b, grows(pid)); got.Stdout != "counts\n" {
		t.Errorf("the sandbox meanwhile: %+v", got)
	}
	if err := unix.Prlimit(s.PID(), unix.RLIMIT_NOFILE, &was, nil); err != nil {
		t.Fatal(err)
	}
	connect(t, s, asleep.ID)
	if got := sh(t, s, asleep, "cat /tmp/f"); got.Stdout != "kept\n" {
		t.Errorf("the paused one afterwards: %+v", got)
	}
	other := create(t, s, nil)
	if got := sh(t, s, other, "echo well"); got.Stdout != "well\n" {
		t.Errorf("afterwards %+v", got)
	}
	for _, b := range append(fit, other, asleep) {
		if err := s.Kill(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	// What the refused creates had opened is closed, and no box of theirs is left.
	waitFor(t, 10*time.Second, "the server to close what it opened", func() bool { return openFiles(t, s) <= before+4 && boxes(t, s) == 1 })
}
