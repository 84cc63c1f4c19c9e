package erofs_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/erofs"
)

func tempImage(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestBuild(t *testing.T) {
	t.Parallel()
	f := tempImage(t)
	mtime := time.Unix(1700000000, 5)
	stats, err := erofs.Build(f, []erofs.File{
		{Path: "/caisson-agent", Mode: 0o755, Data: []byte("#!agent"), ModTime: mtime},
		{Path: "a/b/empty", Mode: 0o600, UID: 1000, GID: 70000},
		{Path: "a/b/link", Mode: fs.ModeSymlink, Target: "../../caisson-agent"},
		{Path: "a/long", Mode: fs.ModeSymlink, Target: strings.Repeat("x", 4090)},
		{Path: "a/pipe", Mode: fs.ModeNamedPipe | 0o644},
		{Path: "a", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "sudo", Mode: fs.ModeSetuid | fs.ModeSetgid | 0o755, Reader: strings.NewReader("sudo and more"), Size: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := openImage(t, f)
	want := []string{
		"40755 0:0 0 /",
		"41777 0:0 0 /a",
		"40755 0:0 0 /a/b",
		"100600 1000:70000 0 /a/b/empty",
		"120777 0:0 19 /a/b/link -> ../../caisson-agent",
		"120777 0:0 4090 /a/long -> " + strings.Repeat("x", 4090),
		"10644 0:0 0 /a/pipe",
		"100755 0:0 7 /caisson-agent",
		"106755 0:0 4 /sudo",
	}
	if diff := cmp.Diff(want, r.list()); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if got := r.file("/caisson-agent"); got != "#!agent" {
		t.Errorf("agent = %q", got)
	}
	if e := r.entries["/caisson-agent"]; e.Mtime != 1700000000 || e.Nsec != 5 || e.Nlink != 1 {
		t.Errorf("agent inode = %+v", e)
	}
	if e := r.entries["/a"]; e.Nlink != 3 {
		t.Errorf("links of /a = %d, want 3", e.Nlink)
	}
	wantStats := erofs.Stats{Files: 3, Dirs: 3, Symlinks: 2, Others: 1, DataBytes: 11, ImageBytes: r.size}
	if diff := cmp.Diff(wantStats, stats); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
	checkWithTools(t, f)
}

func TestEmptyImage(t *testing.T) {
	t.Parallel()
	f := tempImage(t)
	if _, err := erofs.Build(f, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"40755 0:0 0 /"}, openImage(t, f).list()); diff != "" {
		t.Error(diff)
	}
	checkWithTools(t, f)
}

// TestLargeDirectories covers every way a directory's end can fall in a block.
func TestLargeDirectories(t *testing.T) {
	t.Parallel()
	f := tempImage(t)
	w, err := erofs.NewWriter(f, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	add := func(path string) {
		t.Helper()
		body := "body of " + path
		if err := w.Add(erofs.File{Path: path, Mode: 0o644, Data: []byte(body)}); err != nil {
			t.Fatal(err)
		}
		want[path] = body
	}
	for i := range 5000 {
		add(fmt.Sprintf("/big/%04d-%s", i, strings.Repeat("n", i%200)))
	}
	for i := range 40 {
		add(fmt.Sprintf("/names/%0255d", i))
	}
	// A directory of n entries of 12+name bytes, around one block's length.
	for n := range 120 {
		for i := range n + 250 {
			add(fmt.Sprintf("/d%03d/%03d", n, i))
		}
	}
	// Names that sort before "." and "..".
	for _, name := range []string{"!", "-", "+x", "...", ".a", " "} {
		add("/odd/" + name)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	r := openImage(t, f)
	for path, body := range want {
		if got := r.file(path); got != body {
			t.Fatalf("%s = %q, want %q", path, got, body)
		}
	}
	checkWithTools(t, f)
}

func TestWriterReadsBack(t *testing.T) {
	t.Parallel()
	w, err := erofs.NewWriter(tempImage(t), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []erofs.File{
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0\n")},
		{Path: "etc/mtab", Mode: fs.ModeSymlink, Target: "/etc/../etc/passwd"},
		{Path: "loop", Mode: fs.ModeSymlink, Target: "loop"},
	} {
		if err := w.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	got, err := w.ReadFile("/etc/mtab", 100)
	if err != nil || string(got) != "root:x:0:0\n" {
		t.Errorf("ReadFile(mtab) = %q, %v", got, err)
	}
	if _, err := w.ReadFile("/etc/passwd", 3); !errdefs.IsResourceExhausted(err) {
		t.Errorf("ReadFile beyond limit = %v", err)
	}
	if _, err := w.ReadFile("/etc/shadow", 3); !errdefs.IsNotFound(err) {
		t.Errorf("ReadFile(missing) = %v", err)
	}
	if _, err := w.ReadFile("/loop", 3); !errdefs.IsInvalidArgument(err) {
		t.Errorf("ReadFile(loop) = %v", err)
	}
	if err := w.Remove("/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	if w.Exists("etc/passwd") || w.Exists("/etc/mtab") || !w.Exists("/etc") {
		t.Error("Remove did not remove just the file")
	}
	if err := w.Add(erofs.File{Path: "etc", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(erofs.File{Path: "etc/x", Mode: 0o644}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("file below a file = %v", err)
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no /dev/full: %v", err)
	}
	defer full.Close()
	if _, err := erofs.Build(full, []erofs.File{{Path: "x", Data: []byte("x")}}); err == nil {
		t.Error("Build on a full disk succeeded")
	}
}

// zeroReader gives zeros with a mark every GiB.
type markReader struct{ pos int64 }

func (m *markReader) Read(p []byte) (int, error) {
	clear(p)
	for i := (1<<30 - m.pos%(1<<30)) % (1 << 30); i < int64(len(p)); i += 1 << 30 {
		p[i] = byte('A' + (m.pos+i)>>30)
	}
	m.pos += int64(len(p))
	return len(p), nil
}

func TestFileOver4GiB(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("copies 4 GiB of zeros")
	}
	f := tempImage(t)
	const size = 4<<30 + 17
	_, err := erofs.Build(f, []erofs.File{
		{Path: "huge", Mode: 0o644, Reader: &markReader{}, Size: size},
		{Path: "small", Mode: 0o644, Data: []byte("after")},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := openImage(t, f)
	e := r.entries["/huge"]
	if e.Size != size {
		t.Fatalf("size = %d, want %d", e.Size, int64(size))
	}
	for i := range int64(5) {
		if got := r.at(e.off+i<<30, 1)[0]; got != byte('A'+i) {
			t.Errorf("byte at %d GiB = %q", i, got)
		}
	}
	if got := r.file("/small"); got != "after" {
		t.Errorf("small = %q", got)
	}
}

func digest(t testing.TB, f *os.File) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestOverwrite: the image is the one that has the new content from the beginning,
// and nothing of the old one is left in it.
func TestOverwrite(t *testing.T) {
	t.Parallel()
	build := func(name, body, then string) *os.File {
		f := tempImage(t)
		w, err := erofs.NewWriter(f, erofs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range []erofs.File{
			{Path: name, Mode: 0o644, Data: []byte(body)}, {Path: "link", Mode: fs.ModeSymlink, Target: name}, {Path: "after", Data: []byte("after")},
		} {
			if err := w.Add(file); err != nil {
				t.Fatal(err)
			}
		}
		if then != "" {
			if err := w.Overwrite("link", []byte(then)); err != nil {
				t.Fatal(err)
			}
		}
		for path, data := range map[string]string{"link": "longer than it", "after": "", "nothing": "x"} {
			if err := w.Overwrite(path, []byte(data)); err == nil {
				t.Errorf("Overwrite(%s, %q) succeeded", path, data)
			}
		}
		if _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		if err := w.Overwrite("link", []byte(body)); err == nil {
			t.Error("Overwrite in a finished image succeeded")
		}
		return f
	}
	old, fresh := strings.Repeat("o", 5000), strings.Repeat("n", 5000)
	if a, b := digest(t, build("x", old, fresh)), digest(t, build("x", fresh, "")); a != b {
		t.Errorf("digest = %s, want %s", a, b)
	}
}
