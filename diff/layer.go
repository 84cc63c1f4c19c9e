package diff

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/erofs"
)

const (
	maxPath  = 4095
	maxDepth = 255
	// maxNames bounds what the names and targets of one layer take together.
	maxNames = 64 << 20
)

// node is what a layer has at a path.
type node struct {
	meta Meta
	// at is where the content of a file begins in the archive.
	at int64
	// gone hides what the image has, opaque what it has below.
	gone, opaque bool
	kids         map[string]*node
}

// side is one opened Point.
type side struct {
	image *erofs.Image
	file  *os.File
	layer *node
}

func open(ctx context.Context, p Point, o Options) (*side, error) {
	s := &side{file: p.Layer}
	if p.Layer != nil {
		if _, err := p.Layer.Seek(0, io.SeekStart); err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		root, err := index(ctx, p.Layer, o.Entries)
		if err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		s.layer = root
	}
	image, err := erofs.Open(p.Image)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	s.image = image
	return s, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// index reads the headers of an archive.
func index(ctx context.Context, f io.ReadSeeker, most int) (*node, error) {
	root := &node{meta: Meta{Type: "directory"}, kids: map[string]*node{}}
	tr := tar.NewReader(f)
	names := 0
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return root, nil
		}
		if err != nil {
			return nil, invalid("archive is damaged: %w", err)
		}
		if names += len(h.Name) + len(h.Linkname); n >= most || names > maxNames {
			return nil, fmt.Errorf("more than %d files were changed: %w", n, errdefs.ErrResourceExhausted)
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if err := root.put(h, at); err != nil {
			return nil, fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
}

// parts splits a path of an archive; none climbs.
func parts(name string) ([]string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return nil, invalid("a path of %d bytes, or with a NUL byte", len(name))
	}
	var out []string
	for p := range strings.SplitSeq(name, "/") {
		switch p {
		case "", ".":
		case "..":
			return nil, invalid("a path that climbs")
		default:
			out = append(out, p)
		}
	}
	if len(out) > maxDepth {
		return nil, invalid("a path that is %d deep", len(out))
	}
	return out, nil
}

// find returns the node of a path, nil when there is none.
func (n *node) find(path []string) *node {
	for _, p := range path {
		if n == nil {
			return nil
		}
		n = n.kids[p]
	}
	return n
}

func (n *node) put(h *tar.Header, at int64) error {
	path, err := parts(h.Name)
	if err != nil {
		return err
	}
	if h.Size < 0 || h.Uid < 0 || h.Gid < 0 || h.Uid > math.MaxUint32 || h.Gid > math.MaxUint32 {
		return invalid("a header with impossible numbers")
	}
	fresh := &node{at: at, meta: Meta{Mode: uint32(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid)}}
	switch m := &fresh.meta; h.Typeflag {
	case tar.TypeReg:
		m.Type, m.Size = "file", h.Size
	case tar.TypeDir:
		m.Type = "directory"
		fresh.kids = map[string]*node{}
		for _, space := range []string{"trusted", "user"} {
			fresh.opaque = fresh.opaque || h.PAXRecords["SCHILY.xattr."+space+".overlay.opaque"] == "y"
		}
	case tar.TypeSymlink:
		if len(h.Linkname) > maxPath {
			return invalid("a link of %d bytes", len(h.Linkname))
		}
		m.Type, m.Target, m.Mode = "symlink", h.Linkname, 0o777
	case tar.TypeFifo:
		m.Type = "fifo"
	case tar.TypeChar, tar.TypeBlock:
		m.Type, m.Device = "char", fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor)
		if h.Typeflag == tar.TypeBlock {
			m.Type = "block"
		}
		fresh.gone = h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0
	case tar.TypeLink:
		to, err := parts(h.Linkname)
		if err != nil {
			return err
		}
		if fresh = n.find(to); fresh == nil || fresh.kids != nil {
			return invalid("a link to what is not there")
		}
	default:
		return invalid("entries of type %q are not known", h.Typeflag)
	}
	if len(path) == 0 {
		n.meta, n.opaque = fresh.meta, fresh.opaque
		return nil
	}
	dir := n.find(path[:len(path)-1])
	if dir == nil || dir.kids == nil {
		return invalid("an entry whose directory is not there")
	}
	dir.kids[path[len(path)-1]] = fresh
	return nil
}

// view is what a side shows at a path: of layer and image, either or both, or
// nothing.
type view struct {
	side  *side
	layer *node
	base  *erofs.Inode
}

func (v view) meta() (*Meta, error) {
	switch {
	case v.layer != nil && v.layer.gone:
		return nil, nil
	case v.layer != nil:
		return new(v.layer.meta), nil
	case v.base != nil:
		return v.side.baseMeta(*v.base)
	}
	return nil, nil
}

// data reads the content of a file.
func (v view) data() io.Reader {
	if v.layer != nil {
		return io.NewSectionReader(v.side.file, v.layer.at, v.layer.meta.Size)
	}
	return v.side.image.Data(*v.base)
}

// kids are the entries of a directory.
func (v view) kids() (map[string]view, error) {
	out := map[string]view{}
	if v.layer != nil && v.layer.kids == nil {
		return out, nil
	}
	if v.base != nil && (v.layer == nil || !v.layer.opaque) {
		for name, get := range v.side.image.Kids(*v.base) {
			inode, err := get()
			if err != nil {
				return nil, err
			}
			out[name] = view{side: v.side, base: &inode}
		}
	}
	if v.layer != nil {
		for name, n := range v.layer.kids {
			if n.gone {
				delete(out, name)
				continue
			}
			k := view{side: v.side, layer: n}
			if below := out[name].base; below != nil && below.Mode.IsDir() && n.kids != nil {
				k.base = below
			}
			out[name] = k
		}
	}
	return out, nil
}
