package e2e_test

import (
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
		if err := os.Truncate(f, 1000); err != nil {
			t.Fatal(err)
		}
	}
}
