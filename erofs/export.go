package erofs

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// WriteTar writes all of the image as a tar stream, in the order of names, a
// directory before what is in it: the same image gives the same bytes. Times are
// exact to the nanosecond, further names of a file are hard links. errdefs.ErrInvalidArgument
// for an image that is damaged, errdefs.ErrResourceExhausted for one that is
// beyond the default Limits.
func (i *Image) WriteTar(ctx context.Context, w io.Writer) error {
	t := &tarExport{image: i, out: tar.NewWriter(w), named: map[uint64]string{}, limits: Limits{}.withDefaults()}
	root, err := i.Root()
	if err != nil {
		return err
	}
	if err := t.write(ctx, "", root, 0); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return t.out.Close()
}

// tarExport is one WriteTar.
type tarExport struct {
	image   *Image
	out     *tar.Writer
	named   map[uint64]string // the first name of files that have several
	limits  Limits
	entries int
}

func (t *tarExport) write(ctx context.Context, name string, n Inode, depth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if t.entries++; t.entries > t.limits.Entries || depth > t.limits.Depth {
		return exhausted("the image has more than %d entries, or more than %d directories in each other", t.limits.Entries, t.limits.Depth)
	}
	if first, ok := t.named[n.nid]; ok && !n.Mode.IsDir() {
		return t.out.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: first, ModTime: n.ModTime, Format: tar.FormatPAX})
	}
	if n.raw.nlink > 1 && !n.Mode.IsDir() {
		t.named[n.nid] = name
	}
	h, err := t.header(name, n)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if err := t.out.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if n.Mode.IsRegular() {
		_, err := io.Copy(t.out, &ctxReader{ctx: ctx, r: t.image.Data(n)})
		return err
	}
	for kid, open := range t.image.Kids(n) {
		k, err := open()
		if err != nil {
			return fmt.Errorf("%q: %w", path.Join(name, kid), err)
		}
		if err := t.write(ctx, path.Join(name, kid), k, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (t *tarExport) header(name string, n Inode) (*tar.Header, error) {
	h := &tar.Header{
		Name: name, Mode: int64(unixPerm(n.Mode)), Uid: int(n.UID), Gid: int(n.GID), ModTime: n.ModTime, Format: tar.FormatPAX,
	}
	switch n.Mode.Type() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, n.Size
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		if name == "" {
			h.Name = "./"
		}
	case fs.ModeSymlink:
		target, err := t.image.Target(n)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		h.Typeflag = tar.TypeBlock
		if n.Mode&fs.ModeCharDevice != 0 {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = int64(n.Major), int64(n.Minor)
	default:
		return nil, invalid("inode %d has an unknown type", n.nid)
	}
	return h, nil
}
