package erofs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// AddTar adds all entries of the tar stream r, plain or compressed with gzip or
// zstd, and reads r to its end. A later entry replaces an earlier one of the
// same path; parents that are symbolic links are followed inside the image.
// With Options.Whiteouts each call is one layer. Errors are those of FromTar.
func (w *Writer) AddTar(ctx context.Context, r io.Reader) error {
	w.tree.layer++
	w.gone = map[string]bool{}
	plain, err := decompress(&ctxReader{ctx: ctx, r: r}, w.opts.Limits)
	if err != nil {
		return err
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	seen := 0
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(ctx, err)
		}
		seen++
		if err := w.count(); err != nil {
			return err
		}
		if err := w.addEntry(h, &contentReader{ctx: ctx, r: tr}); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
	if seen == 0 && !w.opts.Whiteouts && !w.opts.Overlay {
		return invalid("archive is empty")
	}
	// What follows is padding. Reading it lets the other end of a pipe finish
	// and checks the checksum of a compressed stream.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return damaged(ctx, err)
	}
	return nil
}

// damaged gives a read error its kind: limits and cancellation keep theirs.
func damaged(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errdefs.IsResourceExhausted(err) || errdefs.IsInvalidArgument(err) {
		return err
	}
	return fmt.Errorf("archive is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
}

// contentReader gives the errors of reading an entry's content their kind.
type contentReader struct {
	ctx context.Context //nolint:containedctx // bound to one entry
	r   io.Reader
}

func (c *contentReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		err = damaged(c.ctx, err)
	}
	return n, err
}

// ctxReader ends a stream when its context ends.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // bound to one call of AddTar
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func (w *Writer) addEntry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse, //nolint:staticcheck // old archives have TypeRegA
		tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
	default:
		return invalid("entries of type %q are not supported", h.Typeflag)
	}
	parts, err := w.tree.clean(h.Name)
	if err != nil {
		return err
	}
	name := strings.Join(parts, "/")
	if w.opts.Exclude != nil && name != "" && w.opts.Exclude(name) {
		return nil
	}
	if w.opts.Whiteouts {
		if base, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			return w.whiteout(parts, base)
		}
	}
	if w.opts.Overlay && w.deletes(name, h) {
		return w.whiteout(parts, path.Base(name))
	}
	m, err := headerMeta(h)
	if err != nil {
		return err
	}
	if w.opts.Overlay && h.Typeflag == tar.TypeDir && opaque(h) {
		if err := w.whiteout(append(parts, ""), ".wh..opq"); err != nil {
			return err
		}
	}
	w.warnAttributes(name, h)
	switch h.Typeflag {
	case tar.TypeDir:
		return w.addDir(name, m)
	case tar.TypeSymlink:
		return w.addSymlink(name, h.Linkname, m)
	case tar.TypeLink:
		return w.addHardlink(name, h.Linkname)
	case tar.TypeFifo:
		return w.addSpecial(name, typeFifo, 0, m)
	case tar.TypeChar, tar.TypeBlock:
		return w.addDevice(name, h, m)
	}
	return w.addRegular(name, content, h.Size, m)
}

// deletes reports whether an overlay's entry stands for a deleted file. All of
// them may be hard links of one.
func (w *Writer) deletes(name string, h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeChar:
		if h.Devmajor != 0 || h.Devminor != 0 {
			return false
		}
	case tar.TypeLink:
		target, err := w.tree.clean(h.Linkname)
		if err != nil || !w.gone[strings.Join(target, "/")] {
			return false
		}
	default:
		return false
	}
	w.gone[name] = true
	return true
}

// opaque reports whether an overlay's directory hides the one below it.
func opaque(h *tar.Header) bool {
	for _, space := range []string{"trusted", "user"} {
		if h.PAXRecords["SCHILY.xattr."+space+".overlay.opaque"] == "y" {
			return true
		}
	}
	return false
}

func headerMeta(h *tar.Header) (meta, error) {
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 {
		return meta{}, invalid("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	return meta{
		perm:  uint32(h.Mode & permMask),
		uid:   uint32(h.Uid),
		gid:   uint32(h.Gid),
		mtime: h.ModTime,
	}, nil
}

// warnAttributes names extended attributes that change what a file can do.
func (w *Writer) warnAttributes(name string, h *tar.Header) {
	for _, prefix := range []string{"SCHILY.xattr.", "LIBARCHIVE.xattr."} {
		if _, ok := h.PAXRecords[prefix+"security.capability"]; ok {
			w.warn("%s: file capabilities were dropped", name)
		}
		if _, ok := h.PAXRecords[prefix+"system.posix_acl_access"]; ok {
			w.warn("%s: the access control list was dropped", name)
		}
	}
}

func (w *Writer) addDevice(name string, h *tar.Header, m meta) error {
	switch w.opts.Devices {
	case DropDevices:
		w.warn("%s: the device node was dropped", name)
		return nil
	case KeepDevices:
	case RefuseDevices:
		fallthrough
	default:
		return invalid("device nodes are not allowed")
	}
	if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
		return invalid("device %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	major, minor := uint32(h.Devmajor), uint32(h.Devminor)
	kind := uint32(typeChar)
	if h.Typeflag == tar.TypeBlock {
		kind = typeBlk
	}
	// The encoding that Linux calls "new": 12 bits of major between the low 8
	// and the high 12 bits of minor.
	return w.addSpecial(name, kind, minor&0xff|major<<8|minor&^0xff<<12, m)
}

// whiteout removes what earlier layers put at base in the directory of parts.
func (w *Writer) whiteout(parts []string, base string) error {
	dir, err := w.tree.walk(parts[:len(parts)-1], true, false)
	if err != nil || dir == nil || !dir.isDir() {
		return err
	}
	if base != ".wh..opq" {
		if base == "" || base == "." || base == ".." {
			return invalid("whiteout names nothing")
		}
		w.tree.prune(dir, base)
		return nil
	}
	names := make([]string, 0, len(dir.kids))
	for name := range dir.kids {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		w.tree.prune(dir, name)
	}
	return nil
}
