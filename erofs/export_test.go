package erofs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/erofs"
)

func exported(t *testing.T, f *os.File) []byte {
	t.Helper()
	img, err := erofs.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	var b bytes.Buffer
	if err := img.WriteTar(t.Context(), &b); err != nil {
		t.Fatalf("WriteTar() = %v", err)
	}
	return b.Bytes()
}

func TestWriteTar(t *testing.T) {
	t.Parallel()
	suid := file("bin/sudo", "program")
	suid.Format, suid.Mode, suid.Uid, suid.Gid, suid.ModTime = tar.FormatPAX, 0o6755, 70000, 3_000_000, time.Unix(1700000000, 123456789)
	items := []item{
		dir("./", 0o711), suid, file("a", "one"), hardlink("z/b", "a"), symlink("z/s", "../a"), file("empty", ""),
		device(tar.TypeChar, "null", 1, 3), device(tar.TypeBlock, "disk", 8, 300), device(tar.TypeFifo, "pipe", 0, 0),
		symlink("long", strings.Repeat("l/", 2000)), file("z/.wh.a", "a name like that of a whiteout"),
		file("not\xff utf-8", "x"), file(strings.Repeat("d/", 120)+strings.Repeat("n", 255), "deep"), dir("none", 0o1777),
		file("big", strings.Repeat("x", 3<<20)),
	}
	for i := range 700 {
		items = append(items, file(fmt.Sprintf("many/file-with-a-name-%03d", i), fmt.Sprint(i)))
	}
	first, _, err := fromTar(t, archive(t, items...), erofs.Options{Devices: erofs.KeepDevices})
	if err != nil {
		t.Fatal(err)
	}
	raw := exported(t, first)
	second, _, err := fromTar(t, raw, erofs.Options{Devices: erofs.KeepDevices})
	if err != nil {
		t.Fatalf("the archive cannot be read back: %v", err)
	}
	if diff := cmp.Diff(openImage(t, first).list(), openImage(t, second).list()); diff != "" {
		t.Errorf("tree (-first +second):\n%s", diff)
	}
	// Times, contents and links are in the bytes.
	if !bytes.Equal(raw, exported(t, second)) {
		t.Error("the archive of the archive's image is another one")
	}
	if e := openImage(t, second).entries["/bin/sudo"]; e.Nsec != 123456789 || e.Mode != 0o106755 {
		t.Errorf("inode = %+v", e)
	}
	if e := openImage(t, second).entries["/z/b"]; e.Nlink != 2 {
		t.Errorf("the hard link has %d names, want 2", e.Nlink)
	}
}

func TestWriteTarEnds(t *testing.T) {
	t.Parallel()
	f, _, err := fromTar(t, archive(t, file("a", "one")), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if err := img.WriteTar(ctx, &bytes.Buffer{}); !errors.Is(err, gone) {
		t.Errorf("WriteTar() = %v, want the cause", err)
	}
}
