package embedded_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/caisson-dev/caisson/internal/embedded"
)

func TestUnpack(t *testing.T) {
	t.Parallel()
	a, err := embedded.Agent()
	if errors.Is(err, embedded.ErrAbsent) {
		t.Skipf("nothing is embedded: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "programs")
	// Several processes may do this at once.
	paths := make([]string, 4)
	var wg sync.WaitGroup
	for i := range paths {
		wg.Go(func() {
			p, err := a.Unpack(dir)
			if err != nil {
				t.Errorf("Unpack() = %v", err)
			}
			paths[i] = p
		})
	}
	wg.Wait()
	for _, p := range paths[1:] {
		if p != paths[0] {
			t.Errorf("Unpack() = %s and %s", paths[0], p)
		}
	}
	want, err := a.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(paths[0])
	if err != nil || string(got) != string(want) {
		t.Errorf("unpacked file has %d bytes, %v, want %d", len(got), err, len(want))
	}
	if fi, err := os.Stat(paths[0]); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("unpacked file: %v, %v, want mode 0755", fi, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v, want the program alone", entries, err)
	}
}
