package gvisor_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/provider/providertest"
	"github.com/caisson-dev/caisson/snapshot"
)

const rootlessEnv = "CAISSON_TEST_ROOTLESS_DIR"

// TestRootless runs rootlessBody as a user without any privilege.
func TestRootless(t *testing.T) {
	if os.Getenv(rootlessEnv) != "" {
		rootlessBody(t, os.Getenv(rootlessEnv))
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	const uid = 12345
	dir, err := os.MkdirTemp("", "gvisor-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rootfs := providertest.BuildRootfs(t)
	for from, to := range map[string]string{rootfs.Path: "rootfs.erofs", os.Args[0]: "test"} {
		if err := copyFile(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(within(t), filepath.Join(dir, "test"), "-test.run=^TestRootless$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{rootlessEnv + "=" + dir, "TMPDIR=" + dir, "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("as user %d: %v", uid, err)
	}
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func rootlessBody(t *testing.T, dir string) {
	if b, err := os.ReadFile("/proc/sys/kernel/unprivileged_userns_clone"); err == nil && b[0] == '0' {
		t.Skip("this kernel gives no user namespaces to the unprivileged")
	}
	p, data := fresh(t)
	rootfs := image.Rootfs{Digest: "sha256:test", Path: filepath.Join(dir, "rootfs.erofs")}
	if slices.Contains(p.Capabilities().Limits, provider.LimitMemory) {
		t.Errorf("Capabilities() = %+v, want no memory limit without privilege", p.Capabilities())
	}
	s := spec("limited", rootfs)
	s.Resources = provider.Resources{MemoryMiB: 256, CPUs: 1}
	if _, err := p.Create(within(t), s); !errors.Is(err, provider.ErrUnenforceable) {
		t.Errorf("Create(memory limit) = %v, want ErrUnenforceable", err)
	}
	b := create(t, p, spec("one", rootfs))
	if got := run(t, b, "echo", "unprivileged"); got != "unprivileged" {
		t.Errorf("echo = %q", got)
	}
	if st, err := b.Stats(within(t)); err != nil || st.Processes < 2 || st.MemoryBytes == 0 {
		t.Errorf("Stats() = %+v, %v", st, err)
	}
	v := vault(t.TempDir())
	a, err := b.Snapshot(within(t), snapshot.Memory, v)
	if err != nil {
		t.Fatalf("Snapshot() = %v", err)
	}
	clone, err := p.Restore(within(t), spec("two", rootfs), a, v)
	if err != nil {
		t.Fatalf("Restore() = %v", err)
	}
	for _, b := range []provider.Box{b, clone} {
		if err := b.Destroy(within(t)); err != nil {
			t.Errorf("Destroy() = %v", err)
		}
	}
	if left := leftovers(t, data); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
	// What the configuration lists may go unenforced.
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p2, err := gvisor.New(within(t), gvisor.Config{DataDir: data, Unenforced: []provider.Limit{provider.LimitMemory, provider.LimitCPU}})
	if err != nil {
		t.Fatal(err)
	}
	defer p2.Close()
	nb, err := p2.Create(within(t), s)
	if err != nil {
		t.Fatalf("Create(memory limit that may go unenforced) = %v", err)
	}
	if err := nb.Destroy(within(t)); err != nil {
		t.Errorf("Destroy() = %v", err)
	}
}

type vault string

func (v vault) Dir(_ context.Context, id snapshot.ID) (string, error) {
	dir := filepath.Join(string(v), string(id))
	return dir, os.MkdirAll(dir, 0o700)
}

func (v vault) Delete(_ context.Context, id snapshot.ID) error {
	return os.RemoveAll(filepath.Join(string(v), string(id)))
}

func (vault) Sync(context.Context, snapshot.ID) error { return nil }

func (vault) List(context.Context) ([]snapshot.Stored, error) { return nil, fs.ErrInvalid }

func (vault) Export(context.Context, snapshot.Artifact, io.Writer) error { return fs.ErrInvalid }
