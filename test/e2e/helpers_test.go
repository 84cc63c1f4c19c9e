package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/internal/testenv"
)

func sscan(s string, into ...any) (int, error) { return fmt.Sscan(s, into...) }

// waitFor polls a condition that has no event to wait for.
func waitFor(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// damage cuts what lies in a server's vault short.
func damage(t *testing.T, s *testenv.Server) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Data, "snapshots", "*", "checkpoint.img"))
	if err != nil || len(files) == 0 {
		t.Fatalf("nothing to damage: %v, %v", files, err)
	}
	for _, f := range files {
		// Not in place: it may be a link to what other servers have.
		b, err := os.ReadFile(f)
		if err == nil {
			err = errors.Join(os.Remove(f), os.WriteFile(f, b[:min(len(b), 1000)], 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
