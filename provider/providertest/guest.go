package providertest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/snapshot"
)

// GuestTool is where BuildRootfs puts the toolbox, and GuestUser the account it
// makes beside root.
const (
	GuestTool = "/bin/toolbox"
	GuestUser = "user"
)

// BuildTool compiles the toolbox for this host and returns its path.
func BuildTool(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "toolbox")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path,
		"github.com/caisson-dev/caisson/provider/providertest/toolbox")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build toolbox: %v\n%s", err, out)
	}
	return path
}

// BuildRootfs writes a minimal root filesystem with the toolbox in it.
func BuildRootfs(t testing.TB) image.Rootfs {
	t.Helper()
	tool, err := os.ReadFile(BuildTool(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "rootfs.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := []erofs.File{
		{Path: "bin/toolbox", Mode: 0o755, Data: tool},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nuser:x:1000:\n")},
		{Path: "etc/resolv.conf", Mode: 0o644, Data: []byte("nameserver 10.0.0.1\n")},
		{Path: "etc/hosts", Mode: 0o644, Data: []byte("127.0.0.1 localhost\n")},
		{Path: "home/user", Mode: fs.ModeDir | 0o755, UID: 1000, GID: 1000},
	}
	for _, d := range []string{"root", "proc", "sys", "dev", "tmp", "run", "var"} {
		files = append(files, erofs.File{Path: d, Mode: fs.ModeDir | 0o755})
	}
	stats, err := erofs.Build(f, files)
	if err != nil {
		t.Fatalf("build rootfs: %v", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return image.Rootfs{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Path: f.Name(), SizeBytes: stats.ImageBytes}
}

func newVault(t *testing.T) *snapshot.Local {
	t.Helper()
	v, err := snapshot.NewLocal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
