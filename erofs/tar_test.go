package erofs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/erofs"
)

// item is one archive entry of a test.
type item struct {
	tar.Header
	body string
}

func dir(name string, mode int64) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name, body string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body: body}
}

func symlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func device(kind byte, name string, major, minor int64) item {
	return item{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o666, Devmajor: major, Devminor: minor}}
}

func archive(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Size = int64(len(i.body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func fromTar(t testing.TB, tarball []byte, o erofs.Options) (*os.File, erofs.Stats, error) {
	t.Helper()
	f := tempImage(t)
	stats, err := erofs.FromTar(t.Context(), bytes.NewReader(tarball), f, o)
	return f, stats, err
}

func TestFromTar(t *testing.T) {
	t.Parallel()
	owned := file("usr/bin/sudo", "#!")
	owned.Mode, owned.Uid, owned.Gid = 0o4755, 1000, 4294967294
	tests := []struct {
		name  string
		opts  erofs.Options
		items []item
		want  []string
	}{
		{"plain", erofs.Options{}, []item{dir("./", 0o700), dir("./a/", 0o1777), file("./a/f", "x"), owned}, []string{
			"40700 0:0 0 /", "41777 0:0 0 /a", "100644 0:0 1 /a/f", "40755 0:0 0 /usr", "40755 0:0 0 /usr/bin",
			"104755 1000:4294967294 2 /usr/bin/sudo",
		}},
		{"absolute paths and doubled slashes", erofs.Options{}, []item{file("//etc///passwd", "x")}, []string{
			"40755 0:0 0 /", "40755 0:0 0 /etc", "100644 0:0 1 /etc/passwd",
		}},
		{"later entries win", erofs.Options{}, []item{
			file("f", "one"), file("f", "second"), dir("d", 0o700), file("d/x", "x"), dir("d", 0o711),
			file("e/x", "x"), symlink("e", "d"),
		}, []string{
			"40755 0:0 0 /", "40711 0:0 0 /d", "100644 0:0 1 /d/x", "120777 0:0 1 /e -> d", "100644 0:0 6 /f",
		}},
		{"directory replaces file", erofs.Options{}, []item{file("f", "x"), dir("f", 0o755), file("f/g", "y")}, []string{
			"40755 0:0 0 /", "40755 0:0 0 /f", "100644 0:0 1 /f/g",
		}},
		{"parents through links stay inside", erofs.Options{}, []item{
			symlink("lib", "usr/lib"), dir("usr/lib", 0o755), file("lib/a", "a"),
			symlink("up", "../../../../usr"), file("up/b", "b"),
			symlink("abs", "/usr/./lib"), file("abs/c", "c"), symlink("new", "/made/here"), file("new/d", "d"),
		}, []string{
			"40755 0:0 0 /", "120777 0:0 10 /abs -> /usr/./lib", "120777 0:0 7 /lib -> usr/lib", "40755 0:0 0 /made",
			"40755 0:0 0 /made/here", "100644 0:0 1 /made/here/d", "120777 0:0 10 /new -> /made/here",
			"120777 0:0 15 /up -> ../../../../usr", "40755 0:0 0 /usr", "100644 0:0 1 /usr/b", "40755 0:0 0 /usr/lib",
			"100644 0:0 1 /usr/lib/a", "100644 0:0 1 /usr/lib/c",
		}},
		{"devices kept", erofs.Options{Devices: erofs.KeepDevices}, []item{
			device(tar.TypeChar, "dev/null", 1, 3), device(tar.TypeBlock, "dev/x", 0xfff, 0xfffff), device(tar.TypeFifo, "p", 0, 0),
		}, []string{
			"40755 0:0 0 /", "40755 0:0 0 /dev", "20666 0:0 0 /dev/null dev 0x103", "60666 0:0 0 /dev/x dev 0xffffffff", "10666 0:0 0 /p",
		}},
		{"devices dropped", erofs.Options{Devices: erofs.DropDevices}, []item{device(tar.TypeChar, "null", 1, 3), file("f", "")}, []string{
			"40755 0:0 0 /", "100644 0:0 0 /f",
		}},
		{"excluded", erofs.Options{Exclude: func(p string) bool { return strings.HasPrefix(p, "dev/") }}, []item{
			device(tar.TypeChar, "./dev/null", 1, 3), dir("dev", 0o700),
		}, []string{"40755 0:0 0 /", "40700 0:0 0 /dev"}},
		{"whiteout names are ordinary in one archive", erofs.Options{}, []item{file(".wh.x", "")}, []string{
			"40755 0:0 0 /", "100644 0:0 0 /.wh.x",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, _, err := fromTar(t, archive(t, tt.items...), tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, openImage(t, f).list()); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			checkWithTools(t, f)
		})
	}
}

func TestHardLinks(t *testing.T) {
	t.Parallel()
	f, stats, err := fromTar(t, archive(t,
		file("a", "shared"), hardlink("d/b", "./a"), hardlink("c", "/d/b"), hardlink("c", "c"),
		symlink("s", "a"), hardlink("s2", "s"),
		file("x/y", "kept"), hardlink("x", "x/y"),
		file("gone", "1"), hardlink("still", "gone"), file("gone", "22"),
	), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := openImage(t, f)
	for _, p := range []string{"/a", "/c", "/d/b"} {
		if e := r.entries[p]; e.Nid != r.entries["/a"].Nid || e.Nlink != 3 || r.file(p) != "shared" {
			t.Errorf("%s = %+v, %q", p, e, r.file(p))
		}
	}
	if e := r.entries["/s2"]; e.Target != "a" || e.Nlink != 2 {
		t.Errorf("link to a symbolic link = %+v", e)
	}
	if e := r.entries["/x"]; r.file("/x") != "kept" || e.Nlink != 1 {
		t.Errorf("link over its own parent = %+v", e)
	}
	if r.file("/still") != "1" || r.file("/gone") != "22" || r.entries["/still"].Nlink != 1 {
		t.Errorf("link to a replaced file = %q", r.file("/still"))
	}
	if stats.Files != 4 || stats.Symlinks != 1 {
		t.Errorf("stats = %+v", stats)
	}
	checkWithTools(t, f)
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 256)
	negative := archive(t, file("f", "x"))
	copy(negative[124:136], "-0000000001\x00")
	badOwner := file("f", "")
	badOwner.Uid = 1 << 40
	sparse := file("f", "")
	small := erofs.Options{Limits: erofs.Limits{Entries: 10, Bytes: 8192, PathBytes: 100, Depth: 5}}
	many := make([]item, 11)
	for i := range many {
		many[i] = file("same", "")
	}
	tests := []struct {
		name string
		tar  []byte
		opts erofs.Options
		is   func(error) bool
		text string
	}{
		{"climbing path", archive(t, file("a/../../etc/passwd", "x")), erofs.Options{}, errdefs.IsInvalidArgument, "climbs"},
		{"climbing target of a hard link", archive(t, hardlink("a", "../../etc/passwd")), erofs.Options{}, errdefs.IsInvalidArgument, "climbs"},
		{"hard link to nothing", archive(t, hardlink("a", "/etc/passwd")), erofs.Options{}, errdefs.IsInvalidArgument, "before"},
		{"hard link to a directory", archive(t, dir("d", 0o755), hardlink("d/a", "d")), erofs.Options{}, errdefs.IsInvalidArgument, "directory"},
		{"hard link to the root", archive(t, hardlink("d/a", ".")), erofs.Options{}, errdefs.IsInvalidArgument, "directory"},
		{"hard link as root", archive(t, file("a", ""), hardlink("./", "a")), erofs.Options{}, errdefs.IsInvalidArgument, "root"},
		{"circle of links", archive(t, symlink("a", "b"), symlink("b", "a"), file("a/x", "")), erofs.Options{}, errdefs.IsInvalidArgument, "circle"},
		{"link to itself", archive(t, symlink("a", "a/a"), file("a/x", "")), erofs.Options{}, errdefs.IsInvalidArgument, "circle"},
		{"links that double", doubling(t), erofs.Options{}, errdefs.IsInvalidArgument, ""},
		{"file as directory", archive(t, file("f", ""), file("f/x", "")), erofs.Options{}, errdefs.IsInvalidArgument, "not a directory"},
		{"file as directory through a link", archive(t, file("f", ""), symlink("l", "f"), file("l/x", "")), erofs.Options{}, errdefs.IsInvalidArgument, "not a directory"},
		{"root as file", archive(t, file(".", "x")), erofs.Options{}, errdefs.IsInvalidArgument, "root"},
		{"root as link", archive(t, symlink("/", "/etc")), erofs.Options{}, errdefs.IsInvalidArgument, "root"},
		{"character device", archive(t, device(tar.TypeChar, "null", 1, 3)), erofs.Options{}, errdefs.IsInvalidArgument, "device"},
		{"block device", archive(t, device(tar.TypeBlock, "sda", 8, 0)), erofs.Options{}, errdefs.IsInvalidArgument, "device"},
		{"device out of range", archive(t, device(tar.TypeBlock, "sda", 1<<12, 0)), erofs.Options{Devices: erofs.KeepDevices}, errdefs.IsInvalidArgument, "range"},
		{"unknown type", archive(t, device('Z', "z", 0, 0)), erofs.Options{}, errdefs.IsInvalidArgument, "type"},
		{"long name", archive(t, file(long, "")), erofs.Options{}, errdefs.IsInvalidArgument, "256 bytes"},
		{"long name in a target", archive(t, symlink("l", long+"/x"), file("l/x", "")), erofs.Options{}, errdefs.IsInvalidArgument, "256 bytes"},
		{"empty target", archive(t, symlink("l", "")), erofs.Options{}, errdefs.IsInvalidArgument, "target"},
		{"negative size", fixSum(negative), erofs.Options{}, errdefs.IsInvalidArgument, ""},
		{"owner out of range", archive(t, badOwner), erofs.Options{}, errdefs.IsInvalidArgument, "range"},
		{"truncated content", archive(t, file("f", strings.Repeat("x", 5000)))[:2000], erofs.Options{}, errdefs.IsInvalidArgument, ""},
		{"no archive", []byte(strings.Repeat("not a tar ", 200)), erofs.Options{}, errdefs.IsInvalidArgument, "damaged"},
		{"nothing", nil, erofs.Options{}, errdefs.IsInvalidArgument, "empty"},
		{"no entry", archive(t), erofs.Options{}, errdefs.IsInvalidArgument, "empty"},
		{"xz", []byte("\xfd7zXZ\x00......"), erofs.Options{}, errdefs.IsInvalidArgument, "xz"},
		{"bzip2", []byte("BZh91AY&SY"), erofs.Options{}, errdefs.IsInvalidArgument, "bzip2"},
		{"zip", []byte("PK\x03\x04...."), erofs.Options{}, errdefs.IsInvalidArgument, "zip"},
		{"damaged gzip", []byte("\x1f\x8b\x08\x00garbage..."), erofs.Options{}, errdefs.IsInvalidArgument, ""},
		{"damaged zstd", []byte("\x28\xb5\x2f\xfdgarbage..."), erofs.Options{}, errdefs.IsInvalidArgument, ""},
		{"gzip with a wrong sum", flipped(gzipped(t, archive(t, file("f", "x")))), erofs.Options{}, errdefs.IsInvalidArgument, ""},
		{"too many entries", archive(t, many...), small, errdefs.IsResourceExhausted, "10 entries"},
		{"too many implied directories", archive(t, file("a/b/c/d/e", ""), file("f/g/h/i/j", "")), small, errdefs.IsResourceExhausted, "10 inodes"},
		{"too deep", archive(t, file("1/2/3/4/5/6", "")), small, errdefs.IsResourceExhausted, "deep"},
		{"too deep through links", archive(t, dir("1/2/3/4", 0o755), symlink("l", "1/2/3/4"), dir("l/5", 0o755), dir("l/5/6", 0o755)), small, errdefs.IsResourceExhausted, "deep"},
		{"path too long", archive(t, file(strings.Repeat("a/", 51)+"b", "")), small, errdefs.IsResourceExhausted, "path"},
		{"target too long", archive(t, symlink("l", strings.Repeat("a/", 51))), small, errdefs.IsInvalidArgument, "target"},
		{"too many bytes at once", archive(t, file("f", strings.Repeat("x", 8193))), small, errdefs.IsResourceExhausted, "8192"},
		{"too many bytes in blocks", archive(t, file("f", "x"), file("g", "x"), file("h", "x")), small, errdefs.IsResourceExhausted, "8192"},
		{"replaced bytes count", archive(t, file("f", "x"), file("f", "x"), file("f", "x")), small, errdefs.IsResourceExhausted, "8192"},
		{"claimed size beyond the limit", hugeClaim(t, sparse), erofs.Options{}, errdefs.IsResourceExhausted, "exceed"},
		{"gzip bomb", gzipped(t, archive(t, file("f", strings.Repeat("\x00", 100<<20)))), erofs.Options{}, errdefs.IsResourceExhausted, "200 times"},
		{"zstd bomb", zstdPacked(t, archive(t, file("f", strings.Repeat("\x00", 100<<20)))), erofs.Options{}, errdefs.IsResourceExhausted, "200 times"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f, _, err := fromTar(t, tt.tar, tt.opts)
			if err == nil || !tt.is(err) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("FromTar = %v", err)
			}
			if st, serr := f.Stat(); serr != nil || st.Size() > 100<<20 {
				t.Errorf("image has %d bytes, %v", st.Size(), serr)
			}
		})
	}
}

// doubling is an archive whose links double the path at every step.
func doubling(t *testing.T) []byte {
	items := []item{dir("d", 0o755), symlink("l0", "d")}
	for i := range 39 {
		items = append(items, symlink(fmt.Sprintf("l%d", i+1), strings.Repeat(fmt.Sprintf("l%d/../", i), 600)))
	}
	return archive(t, append(items, file("l39/x", ""))...)
}

// hugeClaim is an archive whose one file claims far more than is there.
func hugeClaim(t *testing.T, i item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	i.Size = 1 << 62
	if err := w.WriteHeader(&i.Header); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixSum sets the checksum of the first header.
func fixSum(b []byte) []byte {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdPacked(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func flipped(b []byte) []byte {
	b[len(b)-5] ^= 1
	return b
}

func TestCompressedAndDeterministic(t *testing.T) {
	t.Parallel()
	var items []item
	for i := range 500 {
		items = append(items, file(fmt.Sprintf("d%d/%d", i%7, i), strings.Repeat(fmt.Sprint(i), i)))
	}
	plain := archive(t, items...)
	want := ""
	for name, b := range map[string][]byte{"plain": plain, "again": plain, "gzip": gzipped(t, plain), "zstd": zstdPacked(t, plain)} {
		f, _, err := fromTar(t, b, erofs.Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := digest(t, f)
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("%s: digest %s, want %s", name, got, want)
		}
	}
}

func TestLayers(t *testing.T) {
	t.Parallel()
	f := tempImage(t)
	w, err := erofs.NewWriter(f, erofs.Options{Whiteouts: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range [][]item{
		{file("a", "1"), file("b/x", "1"), file("b/y", "1"), file("c/d/e", "1"), file("k", "1")},
		{file(".wh.a", ""), file("b/new", "2"), file("b/.wh..wh..opq", ""), file("c/.wh.d", ""), file("c/d/f", "2"), file("gone/.wh.x", "")},
		{file("k", "3"), file(".wh.k", "")},
	} {
		if err := w.AddTar(t.Context(), bytes.NewReader(archive(t, layer...))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"40755 0:0 0 /", "40755 0:0 0 /b", "100644 0:0 1 /b/new", "40755 0:0 0 /c", "40755 0:0 0 /c/d",
		"100644 0:0 1 /c/d/f", "100644 0:0 1 /k",
	}
	if diff := cmp.Diff(want, openImage(t, f).list()); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	for _, bad := range []string{".wh.", ".wh...", ".wh.."} {
		w, err := erofs.NewWriter(tempImage(t), erofs.Options{Whiteouts: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AddTar(t.Context(), bytes.NewReader(archive(t, file(bad, "")))); !errdefs.IsInvalidArgument(err) {
			t.Errorf("whiteout %q = %v", bad, err)
		}
	}
}

func TestAttributesWarn(t *testing.T) {
	t.Parallel()
	ping := file("bin/ping", "x")
	ping.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01", "SCHILY.xattr.user.note": "n"}
	f, stats, err := fromTar(t, archive(t, ping), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"bin/ping: file capabilities were dropped"}, stats.Warnings); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	openImage(t, f) // refuses attributes
}

func TestTimes(t *testing.T) {
	t.Parallel()
	before, after, late := file("before", ""), file("after", ""), file("late", "")
	before.ModTime = time.Unix(-5, 0)
	after.ModTime, after.Format = time.Unix(1700000000, 123456789), tar.FormatPAX
	late.ModTime, late.Format = time.Unix(1<<50, 0), tar.FormatGNU
	f, _, err := fromTar(t, archive(t, before, after, late), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := openImage(t, f)
	got := map[string][2]uint64{}
	for _, p := range []string{"/before", "/after", "/late"} {
		got[p] = [2]uint64{r.entries[p].Mtime, uint64(r.entries[p].Nsec)}
	}
	want := map[string][2]uint64{"/before": {}, "/after": {1700000000, 123456789}, "/late": {253402300799, 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("times (-want +got):\n%s", diff)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("asked to stop")
	pr, pw := io.Pipe()
	go func() {
		b := archive(t, file("f", strings.Repeat("x", 1<<20)))
		_, _ = pw.Write(b[:len(b)/2])
		cancel(cause)
		_, _ = pw.Write(b[len(b)/2:])
		pw.Close()
	}()
	_, err := erofs.FromTar(ctx, pr, tempImage(t), erofs.Options{})
	pr.Close()
	if !errors.Is(err, cause) {
		t.Errorf("FromTar = %v, want the cause", err)
	}
}

// TestKernelAgrees mounts an image of 4,000 files and compares it with what tar
// itself would unpack.
func TestKernelAgrees(t *testing.T) {
	t.Parallel()
	var items []item
	for i := range 4000 {
		f := file(fmt.Sprintf("d%d/s%d/%04d-%s", i%13, i%40, i, strings.Repeat("n", i%120)), strings.Repeat(fmt.Sprintf("%d\n", i), i%3000))
		f.Uid, f.Gid, f.Mode, f.ModTime = i%7, i%5, int64(0o600+i%64), time.Unix(1600000000+int64(i), 0)
		items = append(items, f)
		switch i % 50 {
		case 0:
			items = append(items, symlink(fmt.Sprintf("l/%d", i), f.Name))
		case 1:
			items = append(items, hardlink(fmt.Sprintf("h/%d", i), f.Name))
		}
	}
	b := archive(t, items...)
	f, _, err := fromTar(t, b, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkWithTools(t, f)
	mounted := mount(t, f)
	plain := t.TempDir()
	if err := os.WriteFile(filepath.Join(plain, "in.tar"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(plain, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", tree, "--numeric-owner", "-xpf", filepath.Join(plain, "in.tar")).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	want, got := treeSum(t, tree), treeSum(t, mounted)
	// Implied directories have no time in the archive.
	for _, m := range []map[string]string{want, got} {
		for p, line := range m {
			if strings.HasPrefix(line, "d") {
				m[p] = line[:10]
			}
		}
	}
	if len(want) < 4000 {
		t.Fatalf("only %d entries were compared", len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree (-tar +image):\n%s", diff)
	}
}

// FuzzFromTar: whatever the archive, the writer either refuses it as the
// caller's fault or makes an image that reads back whole.
func FuzzFromTar(f *testing.F) {
	for _, items := range [][]item{
		{dir("d", 0o755), file("d/f", "body"), symlink("l", "d/f"), hardlink("h", "d/f")},
		{symlink("a", "b"), symlink("b", "../a"), file("a/x", "1")},
		{file("../x", ""), file("/abs", "")},
		{device(tar.TypeChar, "null", 1, 3), device(tar.TypeFifo, "p", 0, 0)},
		{file("f", "1"), file("f/g", "2"), dir("f", 0o700), file("f/g", "3"), hardlink("f", "f/g")},
		{file("a/.wh.b", ""), file("a/.wh..wh..opq", ""), file("a/b", "")},
		{symlink("x", "y/../z"), dir("x/w", 0o1777)},
	} {
		b := archive(f, items...)
		f.Add(b)
		f.Add(gzipped(f, b))
		f.Add(zstdPacked(f, b))
		f.Add(b[:len(b)/3])
	}
	opts := erofs.Options{
		Devices: erofs.KeepDevices, Whiteouts: true,
		Limits: erofs.Limits{Entries: 200, Bytes: 1 << 20, Depth: 20},
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		img := os.NewFile(uintptr(fd), "image")
		defer img.Close()
		stats, err := erofs.FromTar(t.Context(), bytes.NewReader(b), img, opts)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		r := openImage(t, img)
		if got := stats.Files + stats.Dirs + stats.Symlinks + stats.Others; got != len(r.seen) || got > 201 {
			t.Fatalf("stats count %d inodes, image has %d", got, len(r.seen))
		}
		if r.size > 4<<20 {
			t.Fatalf("image has %d bytes", r.size)
		}
	})
}
