package erofs_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// checkWithTools has the format's own checker judge the image.
func checkWithTools(t testing.TB, f *os.File) {
	t.Helper()
	for _, tool := range [][]string{{"fsck.erofs"}, {"dump.erofs", "-s"}} {
		path, err := exec.LookPath(tool[0])
		if err != nil {
			t.Logf("not checked with %s: %v (apt-get install erofs-utils)", tool[0], err)
			continue
		}
		if out, err := exec.Command(path, append(tool[1:], f.Name())...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", tool[0], err, out)
		}
	}
}

// mount mounts the image read-only with the kernel's own reader.
func mount(t *testing.T, f *os.File) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "erofs") {
		t.Skip("this kernel has no EROFS")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", f.Name(), dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// treeSum describes every file below dir: mode, owner, size, time, target, content.
func treeSum(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		st := info.Sys().(*syscall.Stat_t)
		line := info.Mode().String() + " " + hex.EncodeToString([]byte{byte(st.Uid), byte(st.Gid)}) + " " + info.ModTime().UTC().String()
		switch {
		case info.Mode().IsRegular():
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			line += " " + hex.EncodeToString(h.Sum(nil))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		out[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
