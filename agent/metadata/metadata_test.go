package metadata_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/metadata"
)

// replace uploads m to path.
func replace(t *testing.T, s *metadata.Store, path string, m map[string]string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Replace(f, path, m); err != nil {
		t.Fatal(err)
	}
}

// attributeless returns a directory whose file system refuses user attributes.
func attributeless(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); err != nil {
		t.Skipf("no file system without attributes: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	probe := filepath.Join(dir, "probe")
	if err := os.WriteFile(probe, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if unix.Setxattr(probe, "user.x", nil, 0) == nil {
		t.Skip("ramfs takes attributes here")
	}
	return dir
}

func TestSidecar(t *testing.T) {
	t.Parallel()
	dir := attributeless(t)
	side := filepath.Join(t.TempDir(), "state", "metadata.json")
	s := metadata.New(side)
	a := filepath.Join(dir, "a")
	want := map[string]string{"k": "v"}
	replace(t, s, a, want)
	check := func(name, path string, want map[string]string) {
		t.Helper()
		if diff := cmp.Diff(want, s.Get(path)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	check("written", a, want)
	if err := os.Rename(a, a+"2"); err != nil {
		t.Fatal(err)
	}
	check("moved by a command", a+"2", want)
	if err := os.WriteFile(a, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	check("another file of the old name", a, nil)

	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	replace(t, s, sub+"/f", want)
	if err := os.Rename(sub, sub+"2"); err != nil {
		t.Fatal(err)
	}
	s.Moved(sub, sub+"2")
	check("tree moved", sub+"2/f", want)

	s = metadata.New(side)
	check("after a restart", a+"2", want)
	check("after a restart, in the tree", sub+"2/f", want)

	replace(t, s, a+"2", nil)
	check("cleared", a+"2", nil)
	if err := os.RemoveAll(sub + "2"); err != nil {
		t.Fatal(err)
	}
	s.Removed(sub + "2")
	if _, err := os.Stat(side); err == nil {
		t.Error("the sidecar is kept although it holds nothing")
	}
}

// TestAdopt moves the sidecar's records into attributes once they can be held.
func TestAdopt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, side := filepath.Join(dir, "f"), filepath.Join(dir, "side.json")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.x", nil, 0); err != nil {
		t.Skipf("no attributes here: %v", err)
	}
	if err := os.WriteFile(side, []byte(`{"`+path+`":{"id":{"Dev":1,"Ino":1},"metadata":{"k":"v"}},"/none":{"metadata":{"x":"y"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := metadata.New(side)
	if diff := cmp.Diff(map[string]string{"k": "v"}, s.Get(path)); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(side); err == nil {
		t.Error("the sidecar is kept although it holds nothing")
	}
}

// FuzzFromHeader keeps the contract's bounds whatever the client sends.
func FuzzFromHeader(f *testing.F) {
	f.Add("X-Metadata-Author", "mish")
	f.Add("x-metadata-", "")
	f.Add("X-Metadata-"+strings.Repeat("k", 246), strings.Repeat("v", 3850))
	f.Add("X-Metadata-K", "\x7f")
	f.Fuzz(func(t *testing.T, name, value string) {
		h := http.Header{}
		h.Set(name, value)
		m, err := metadata.FromHeader(h)
		if err != nil {
			if m != nil {
				t.Fatal("metadata together with an error")
			}
			return
		}
		for k, v := range m {
			if k == "" || len(k) > 246 || k != strings.ToLower(k) || len(k)+len(v) > 4096 || strings.ContainsFunc(k+v, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
				t.Fatalf("FromHeader accepted %q: %q", k, v)
			}
		}
	})
}
