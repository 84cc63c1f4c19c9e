package erofs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/erofs"
)

// upper is a directory of an overlay that hides what is below it.
func upper(name string) item {
	d := dir(name, 0o755)
	d.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}
	return d
}

func merged(t *testing.T, base *os.File, o erofs.Options, layers ...[]item) (*os.File, error) {
	t.Helper()
	f := tempImage(t)
	w, err := erofs.NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddImage(t.Context(), base); err != nil {
		return f, err
	}
	for _, l := range layers {
		if err := w.AddTar(t.Context(), bytes.NewReader(archive(t, l...))); err != nil {
			return f, err
		}
	}
	_, err = w.Finish()
	return f, err
}

func TestAddImage(t *testing.T) {
	t.Parallel()
	items := []item{
		dir("./", 0o711), file("a", "one"), file("big", strings.Repeat("x", 10000)), hardlink("b", "a"), symlink("s", "a"),
		file("empty", ""), device(tar.TypeChar, "null", 1, 3), device(tar.TypeFifo, "pipe", 0, 0),
		symlink("long", strings.Repeat("l/", 2000)),
	}
	for i := range 700 {
		items = append(items, file(fmt.Sprintf("many/file-with-a-name-%03d", i), fmt.Sprint(i)))
	}
	base, _, err := fromTar(t, archive(t, items...), erofs.Options{Devices: erofs.KeepDevices})
	if err != nil {
		t.Fatal(err)
	}
	f, err := merged(t, base, erofs.Options{Overlay: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, got := openImage(t, base), openImage(t, f)
	if diff := cmp.Diff(want.list(), got.list()); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	for _, p := range []string{"/a", "/b", "/big", "/many/file-with-a-name-699"} {
		if got.file(p) != want.file(p) || got.entries[p].Nlink != want.entries[p].Nlink || got.entries[p].Mtime != want.entries[p].Mtime {
			t.Errorf("%s = %+v, want %+v", p, got.entries[p], want.entries[p])
		}
	}
	checkWithTools(t, f)
}

func TestOverlayOnImage(t *testing.T) {
	t.Parallel()
	base, _, err := fromTar(t, archive(t,
		file("kept", "1"), file("gone", strings.Repeat("g", 1<<20)), file("changed", "1"), file("d/x", "1"), file("d/y", "1"),
		file("hidden/old", "1"), file("was/dir/f", "1"), symlink("lib", "usr/lib"), file("usr/lib/l", "1"),
	), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := merged(t, base, erofs.Options{Overlay: true}, []item{
		dir("./", 0o755), device(tar.TypeChar, "./gone", 0, 0), file("./changed", "22"),
		dir("./d/", 0o700), hardlink("./d/x", "./gone"), file("./d/z", "2"), hardlink("./d/zz", "./d/z"),
		upper("./hidden/"), file("./hidden/new", "2"), file("./was", "a file now"),
		dir("./lib/", 0o755), file("./lib/own", "2"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"40755 0:0 0 /", "100644 0:0 2 /changed", "40700 0:0 0 /d", "100644 0:0 1 /d/y", "100644 0:0 1 /d/z", "100644 0:0 1 /d/zz",
		"40755 0:0 0 /hidden", "100644 0:0 1 /hidden/new", "100644 0:0 1 /kept", "40755 0:0 0 /lib", "100644 0:0 1 /lib/own",
		"40755 0:0 0 /usr", "40755 0:0 0 /usr/lib", "100644 0:0 1 /usr/lib/l", "100644 0:0 10 /was",
	}
	if diff := cmp.Diff(want, openImage(t, f).list()); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	checkWithTools(t, f)
	// The next generation has nothing of what this one replaced.
	next, err := merged(t, f, erofs.Options{Overlay: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, after := size(t, f), size(t, next)
	if before < 1<<20 || after > 1<<18 {
		t.Errorf("sizes of the generations = %d, %d; want the deleted file gone from the second", before, after)
	}
}

func size(t *testing.T, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

func TestAddImageRefuses(t *testing.T) {
	t.Parallel()
	base, _, err := fromTar(t, archive(t, file("d/f", "content"), symlink("s", "d/f")), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	good, err := io.ReadAll(io.NewSectionReader(base, 0, size(t, base)))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	meta := int(le.Uint32(good[1024+40:])) * erofs.BlockSize
	inode := func(b []byte, path string) []byte {
		return b[meta+int(openImage(t, base).entries[path].Nid)<<5:]
	}
	tests := map[string]func(b []byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"not an image":    func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
		"truncated":       func(b []byte) []byte { return b[:len(b)-erofs.BlockSize] },
		"data outside":    func(b []byte) []byte { le.PutUint32(inode(b, "/d/f")[16:], 1<<31); return b },
		"data in block 0": func(b []byte) []byte { le.PutUint32(inode(b, "/d/f")[16:], 0); return b },
		"huge file":       func(b []byte) []byte { le.PutUint64(inode(b, "/d/f")[8:], 1<<40); return b },
		"huge directory":  func(b []byte) []byte { le.PutUint64(inode(b, "/d")[8:], 1<<40); return b },
		"unknown type":    func(b []byte) []byte { le.PutUint16(inode(b, "/d/f")[4:], 0o050644); return b },
		"other format":    func(b []byte) []byte { le.PutUint16(inode(b, "/d/f")[0:], 3); return b },
		"directory in a loop": func(b []byte) []byte {
			// The entry of d points at the root, which has been read already.
			root := inode(b, "/")
			le.PutUint64(root[64+2*12:], openImage(t, base).entries["/"].Nid)
			return b
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := damage(bytes.Clone(good))
			if len(b) > 2048 && name != "not an image" {
				s := b[1024:4096]
				le.PutUint32(s[4:], 0)
				le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
			}
			f := tempImage(t)
			if _, err := f.Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := merged(t, f, erofs.Options{}); !errdefs.IsInvalidArgument(err) && !errdefs.IsResourceExhausted(err) {
				t.Errorf("AddImage = %v, want it refused", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w, err := erofs.NewWriter(tempImage(t), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddImage(ctx, base); !errors.Is(err, context.Canceled) {
		t.Errorf("AddImage with a cancelled context = %v", err)
	}
	if _, err := merged(t, base, erofs.Options{Limits: erofs.Limits{Entries: 2}}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("AddImage beyond a limit = %v", err)
	}
}
