package e2e_test

import (
	"fmt"
	"testing"
	"time"
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
