package place

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
)

// TestFresh tells a directory that was just made from one that was put in its
// place, which must not change its owner.
func TestFresh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tests := []struct {
		name  string
		in    string // a file in the directory
		other bool   // it belongs to another user
		want  bool
	}{
		{"empty", "", false, true},
		{"full", "f", false, false},
		{"hidden file", ".f", false, false},
		{"another's", "", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name)
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.in != "" {
				if err := os.WriteFile(filepath.Join(path, tt.in), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if tt.other {
				if os.Geteuid() != 0 {
					t.Skip("changing users needs root")
				}
				if err := os.Chown(path, 1, 1); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := fresh(int(f.Fd())); err != nil || got != tt.want {
				t.Errorf("fresh() = %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

// TestPrivate makes sure that nobody can enter where Move makes its copies.
func TestPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := NewWalker(account.NewDatabase()).Open(dir + "/p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	fd, err := p.private()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Stat(dir+"/p", &st); err != nil || st.Mode != unix.S_IFDIR|0o700 || int(st.Uid) != os.Geteuid() {
		t.Errorf("it is %d %o, %v", st.Uid, st.Mode, err)
	}
	if _, err := p.private(); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a second one = %v, want EEXIST", err)
	}
}

// TestCopyStaysOnItsSide copies a tree by the names in it, as Move does when a
// rename cannot, and finds the tree's own links and a copy within itself.
func TestCopyStaysOnItsSide(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/from/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/outside", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/outside", dir+"/from/sub/l"); err != nil {
		t.Fatal(err)
	}
	w := NewWalker(account.NewDatabase())
	place := func(path string) *Place {
		p, err := w.Open(dir + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	from := place("/from")
	if err := from.copyTo(t.Context(), place("/to")); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(dir + "/to/sub/l"); err != nil || target != dir+"/outside" {
		t.Errorf("copied link = %q, %v", target, err)
	}
	if err := from.copyTo(t.Context(), place("/from/sub/inside")); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a copy into itself = %v, want EINVAL", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := from.copyTo(ended, place("/never")); !errors.Is(err, context.Canceled) {
		t.Errorf("a copy for a request that has ended = %v", err)
	}
	for path, want := range map[string]int{"": 3, "/from/sub": 1, "/to/sub": 1} {
		if left, err := os.ReadDir(dir + path); err != nil || len(left) != want {
			t.Errorf("in %s: %v, %v, want %d", path, left, err, want)
		}
	}
}

// planted returns a directory of root's with a file only for root, and one of
// user 1 with a file f, a link fl to root's file and a link dl to its
// directory.
func planted(t *testing.T) (area, his string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changing users needs root")
	}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	area, his = dir+"/area", dir+"/his"
	err := errors.Join(os.Mkdir(area, 0o755), os.WriteFile(area+"/file", []byte("old"), 0o600), os.Mkdir(his, 0o755),
		os.WriteFile(his+"/f", nil, 0o644), os.Symlink(area+"/file", his+"/fl"), os.Symlink(area, his+"/dl"))
	for _, path := range []string{his, his + "/f", his + "/fl", his + "/dl"} {
		err = errors.Join(err, os.Lchown(path, 1, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	return area, his
}

// TestWriteSwapped writes a file that its owner keeps exchanging for a link.
func TestWriteSwapped(t *testing.T) {
	t.Parallel()
	area, his := planted(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, his+"/f", unix.AT_FDCWD, his+"/fl", unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange: %v", err)
				return
			}
		}
	})
	w := NewWalker(account.NewDatabase())
	results := map[bool]int{}
	for range 3000 {
		p, err := w.Open(his + "/f")
		if err != nil {
			t.Fatal(err)
		}
		f, _, err := p.Write(account.User{UID: 1, GID: 1})
		if err == nil {
			_ = f.Close()
		} else if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ELOOP) {
			t.Errorf("Write() = %v", err)
		}
		results[err == nil]++
		p.Close()
	}
	var st unix.Stat_t
	if err := unix.Stat(area+"/file", &st); err != nil || st.Uid != 0 || st.Size != 3 {
		t.Errorf("root's file belongs to %d and has %d bytes, %v; results %v", st.Uid, st.Size, err, results)
	}
}

// TestTempBehindLink refuses before anything appears in the directory.
func TestTempBehindLink(t *testing.T) {
	t.Parallel()
	_, his := planted(t)
	p, err := NewWalker(account.NewDatabase()).Open(his + "/dl/new")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	temp, err := p.Temp()
	if _, ok := errors.AsType[*LinkError](err); !ok {
		t.Errorf("Temp() = %v, want a LinkError", err)
	}
	if temp != nil {
		temp.Close()
	}
}
