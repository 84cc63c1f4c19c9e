package template

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/erofs"
)

func writer(t *testing.T, files ...erofs.File) *erofs.Writer {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "x.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := erofs.NewWriter(f, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if err := w.Add(file); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func text(path, body string) erofs.File {
	return erofs.File{Path: path, Mode: 0o644, Data: []byte(body)}
}

func entryOf(t *testing.T, w *erofs.Writer, path string) erofs.Entry {
	t.Helper()
	var got erofs.Entry
	first := true
	err := w.Walk(path, func(_ string, e *erofs.Entry) error {
		if first {
			got, first = *e, false
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func content(t *testing.T, w *erofs.Writer, path string) string {
	t.Helper()
	b, err := w.ReadFile(path, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAddUser(t *testing.T) {
	t.Parallel()
	const passwd, group, shadow = "root:x:0:0:root:/root:/bin/bash\n", "root:x:0:\nshadow:x:42:\nsudo:x:27:ann\n", "root:*:19000:0:99999:7:::\n"
	tests := []struct {
		name   string
		files  []erofs.File
		passwd string
		group  string
		owner  uint32
	}{
		{
			"debian",
			[]erofs.File{text("etc/passwd", passwd), text("etc/group", group), text("bin/bash", "")},
			passwd + "user:x:1000:1000::/home/user:/bin/bash\n", "root:x:0:\nshadow:x:42:\nsudo:x:27:ann,user\nuser:x:1000:\n", 1000,
		},
		{
			"id taken",
			[]erofs.File{text("etc/passwd", passwd+"node:x:1000:1000::/home/node:/bin/sh"), text("etc/group", "root:x:0:\nx:x:1001:")},
			passwd + "node:x:1000:1000::/home/node:/bin/sh\nuser:x:1002:1002::/home/user:/bin/sh\n", "root:x:0:\nx:x:1001:\nuser:x:1002:\n", 1002,
		},
		{
			"user there",
			[]erofs.File{text("etc/passwd", passwd+"user:x:70:71::/u:/bin/sh\n"), text("etc/group", group)},
			passwd + "user:x:70:71::/u:/bin/sh\n", group, 70,
		},
		{
			"nothing there", nil,
			"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "root:x:0:\nuser:x:1000:\n", 1000,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := writer(t, append(tt.files, text("etc/shadow", shadow), text("usr/bin/sudo", ""), text("etc/skel/.bashrc", "rc"),
				text("etc/skel/.bash_logout", "clear"), erofs.File{Path: "etc/skel/sub", Mode: fs.ModeDir | 0o755},
				erofs.File{Path: "usr/local/bin/x", Mode: 0o755, Data: []byte("x")},
				erofs.File{Path: "usr/local/man", Mode: fs.ModeSymlink, Target: "share/man"})...)
			if err := addUser(w); err != nil {
				t.Fatal(err)
			}
			if got := content(t, w, "etc/passwd"); got != tt.passwd {
				t.Errorf("passwd = %q, want %q", got, tt.passwd)
			}
			if tt.name != "nothing there" {
				if got := content(t, w, "etc/group"); got != tt.group {
					t.Errorf("group = %q, want %q", got, tt.group)
				}
			}
			if e := entryOf(t, w, "home/user"); e.UID != tt.owner || e.Mode != fs.ModeDir|0o755 {
				t.Errorf("home = %+v", e)
			}
			if e := entryOf(t, w, "home/user/.bashrc"); e.UID != tt.owner || content(t, w, "home/user/.bashrc") != "rc" {
				t.Errorf(".bashrc = %+v", e)
			}
			if w.Exists("home/user/.bash_logout") {
				t.Error(".bash_logout was copied; it forks when a command calls exit")
			}
			if e := entryOf(t, w, "etc/sudoers.d/user"); e.Mode != 0o440 || e.UID != 0 || !strings.Contains(content(t, w, "etc/sudoers.d/user"), "NOPASSWD: ALL") {
				t.Errorf("sudoers = %+v", e)
			}
			for path, mode := range map[string]fs.FileMode{"code": fs.ModeDir | 0o777, "usr/local": fs.ModeDir | 0o777, "usr/local/bin": fs.ModeDir | 0o777, "usr/local/bin/x": 0o777} {
				if e := entryOf(t, w, path); e.Mode != mode {
					t.Errorf("mode of %s = %v, want %v", path, e.Mode, mode)
				}
			}
		})
	}
}

func TestShadowStaysProtected(t *testing.T) {
	t.Parallel()
	w := writer(t, text("etc/passwd", "root:x:0:0::/:/bin/sh\n"), text("etc/group", "shadow:x:42:\n"), text("etc/shadow", "root:*:1::::::"))
	if err := addUser(w); err != nil {
		t.Fatal(err)
	}
	if e := entryOf(t, w, "etc/shadow"); e.Mode != 0o640 || e.GID != 42 {
		t.Errorf("shadow = %+v", e)
	}
	if got := content(t, w, "etc/shadow"); got != "root:*:1::::::\nuser:*:19000:0:99999:7:::\n" {
		t.Errorf("shadow = %q", got)
	}
}

func TestSkeleton(t *testing.T) {
	t.Parallel()
	// An image whose resolver is a link out of etc, and whose tmp is closed.
	w := writer(t, erofs.File{Path: "etc/resolv.conf", Mode: fs.ModeSymlink, Target: "../run/systemd/resolve/stub"},
		erofs.File{Path: "tmp", Mode: fs.ModeDir | 0o700, UID: 7}, text("etc/machine-id", "0123456789abcdef\n"))
	if err := skeleton(w); err != nil {
		t.Fatal(err)
	}
	if got := content(t, w, "etc/resolv.conf"); got != "nameserver 10.0.0.1\n" {
		t.Errorf("resolv.conf = %q", got)
	}
	if got := content(t, w, "etc/machine-id"); got != "" {
		t.Errorf("machine-id = %q, want none", got)
	}
	if e := entryOf(t, w, "tmp"); e.Mode != fs.ModeDir|fs.ModeSticky|0o777 || e.UID != 0 {
		t.Errorf("tmp = %+v", e)
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "var/tmp", ".caisson"} {
		if !entryOf(t, w, dir).Mode.IsDir() {
			t.Errorf("%s is not a directory", dir)
		}
	}
	if err := skeleton(writer(t, text("etc", "a file"))); !errdefs.IsInvalidArgument(err) {
		t.Errorf("skeleton over a file = %v", err)
	}
}

func TestBadAccounts(t *testing.T) {
	t.Parallel()
	for _, passwd := range []string{"user:x\n", "user:x:a:b::\n", "user:x:99999999999:1::\n"} {
		if err := addUser(writer(t, text("etc/passwd", passwd))); !errdefs.IsInvalidArgument(err) {
			t.Errorf("addUser with %q = %v", passwd, err)
		}
	}
}

// TestBaseLeaksNothing: what names the build host is not in the image.
func TestBaseLeaksNothing(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"etc/apt/apt.conf.d/99mmdebstrap": true, "etc/apt/sources.list": true, "etc/apt/auth.conf.d/x": true,
		"var/log/dpkg.log": true, "dev/null": true, "usr/lib/python3.11/EXTERNALLY-MANAGED": true,
		"etc/apt/apt.conf.d/70debconf": false, "var/lib/dpkg/status": false, "usr/bin/python3": false, "dev": false, "etc/apt/keyrings/x": false,
	} {
		if got := excludeFromBase(path); got != want {
			t.Errorf("excludeFromBase(%q) = %v, want %v", path, got, want)
		}
	}
	w := writer(t, text("etc/resolv.conf", "nameserver 192.0.2.1\n"), text("etc/hosts", "192.0.2.1 builder\n"), text("etc/hostname", "builder\n"))
	if err := finaliseBase(w, BaseOptions{Suite: "bookworm"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/apt/sources.list"} {
		if got := content(t, w, path); strings.Contains(got, "192.0.2.1") || strings.Contains(got, "builder") {
			t.Errorf("%s = %q", path, got)
		}
	}
	if got := content(t, w, "etc/profile"); strings.Contains(got, "$(") || strings.Contains(got, "`") {
		t.Errorf("profile forks: %q", got)
	}
}
