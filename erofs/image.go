package erofs

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"time"
)

// maxDirBytes bounds one directory of an image that is read.
const maxDirBytes = 256 << 20

// AddImage adds all of an image that this package wrote, as one layer: what a
// Writer adds afterwards lies on top of it. The data of files that are still in
// use are copied, so that nothing of what earlier images replaced comes along.
// errdefs.ErrInvalidArgument for a file that is no such image.
func (w *Writer) AddImage(ctx context.Context, f *os.File) error {
	w.tree.layer++
	r, err := newImageReader(f)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	if err := r.load(ctx, w, r.root, w.tree.root, 0); err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	// In the order of the file: one pass of the disk.
	slices.SortFunc(r.files, func(a, b imageFile) int { return cmp.Compare(a.from, b.from) })
	for _, file := range r.files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.copyFile(r, file); err != nil {
			return fmt.Errorf("read image: %w", err)
		}
	}
	return nil
}

// copyFile takes the data of a file over from another image.
func (w *Writer) copyFile(r *imageReader, file imageFile) error {
	size := int64(file.n.size)
	if size > w.opts.Limits.Bytes-w.data {
		return exhausted("file data exceed %d bytes", w.opts.Limits.Bytes)
	}
	at := int64(file.from) * BlockSize
	if at < BlockSize || at > r.size || size > r.size-at {
		return invalid("a file's data lie outside of the image")
	}
	block, err := w.block()
	if err != nil {
		return err
	}
	file.n.block = block
	if _, err := io.Copy(w.out, io.NewSectionReader(r.f, at, size)); err != nil {
		return err
	}
	w.data += (size + BlockSize - 1) / BlockSize * BlockSize
	return w.out.pad()
}

// imageReader reads the tree of an image back.
type imageReader struct {
	f     *os.File
	size  int64
	meta  int64 // where the inodes begin
	root  uint64
	nodes map[uint64]*node // by inode number, for hard links
	files []imageFile
}

// imageFile is a regular file whose data have not been copied yet.
type imageFile struct {
	n    *node
	from uint32
}

func newImageReader(f *os.File) (*imageReader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var b [BlockSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return nil, invalid("no superblock: %w", err)
	}
	s := b[superOffset:]
	le := binary.LittleEndian
	sum := le.Uint32(s[4:])
	le.PutUint32(s[4:], 0)
	if le.Uint32(s) != superMagic || s[12] != blockBits || le.Uint32(s[80:]) != 0 ||
		sum != ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)) {
		return nil, invalid("not an image that was written here")
	}
	r := &imageReader{
		f: f, size: st.Size(), meta: int64(le.Uint32(s[40:])) * BlockSize, root: uint64(le.Uint16(s[14:])),
		nodes: map[uint64]*node{},
	}
	if r.size != int64(le.Uint32(s[36:]))*BlockSize {
		return nil, invalid("image has %d bytes, its superblock says %d blocks", r.size, le.Uint32(s[36:]))
	}
	return r, nil
}

// load reads the inode nid into n, a directory of the tree, and all below it.
func (r *imageReader) load(ctx context.Context, w *Writer, nid uint64, n *node, depth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if depth > w.opts.Limits.Depth {
		return exhausted("directories are more than %d deep", w.opts.Limits.Depth)
	}
	raw, err := r.inode(nid)
	if err != nil {
		return err
	}
	if !raw.isDir() {
		return invalid("inode %d is no directory", nid)
	}
	raw.meta().apply(n, w.tree.layer)
	data, err := r.payload(raw, maxDirBytes)
	if err != nil {
		return err
	}
	return eachDirent(data, func(name string, kid uint64) error {
		if name == "." || name == ".." {
			return nil
		}
		if err := w.count(); err != nil {
			return err
		}
		return r.entry(ctx, w, n, name, kid, depth)
	})
}

// entry puts the inode nid into dir.
func (r *imageReader) entry(ctx context.Context, w *Writer, dir *node, name string, nid uint64, depth int) error {
	if known := r.nodes[nid]; known != nil {
		if known.isDir() {
			return invalid("directory %q has two names", name)
		}
		return w.tree.link(dir, name, known)
	}
	raw, err := r.inode(nid)
	if err != nil {
		return err
	}
	n := &node{mode: raw.mode & typeMask, size: raw.size}
	switch n.mode {
	case typeDir:
		n = newDir(dir, raw.mode, w.tree.layer)
		r.nodes[nid] = n
		if err := w.tree.link(dir, name, n); err != nil {
			return err
		}
		return r.load(ctx, w, nid, n, depth+1)
	case typeLink:
		target, err := r.payload(raw, maxTarget)
		if err != nil {
			return err
		}
		n.target = string(target)
	case typeReg:
		if n.size > 0 {
			r.files = append(r.files, imageFile{n, raw.where})
		}
	case typeChar, typeBlk:
		n.size, n.rdev = 0, raw.where
	case typeFifo:
		n.size = 0
	default:
		return invalid("inode %d has an unknown type", nid)
	}
	raw.meta().apply(n, w.tree.layer)
	r.nodes[nid] = n
	return w.tree.link(dir, name, n)
}

// rawInode is an inode as it lies in an image.
type rawInode struct {
	format   uint16
	mode     uint32
	size     uint64
	where    uint32
	uid, gid uint32
	mtime    time.Time
	nlink    uint32
	off      int64
}

func (i rawInode) isDir() bool { return i.mode&typeMask == typeDir }

func (i rawInode) meta() meta {
	return meta{perm: i.mode & permMask, uid: i.uid, gid: i.gid, mtime: i.mtime}
}

func (r *imageReader) inode(nid uint64) (rawInode, error) {
	if nid > uint64(r.size)>>slotBits {
		return rawInode{}, invalid("inode %d lies outside of the image", nid)
	}
	var b [inodeSize]byte
	off := r.meta + int64(nid)<<slotBits
	if _, err := r.f.ReadAt(b[:], off); err != nil {
		return rawInode{}, invalid("inode %d: %w", nid, err)
	}
	le := binary.LittleEndian
	i := rawInode{
		format: le.Uint16(b[0:]), mode: uint32(le.Uint16(b[4:])), size: le.Uint64(b[8:]), where: le.Uint32(b[16:]),
		uid: le.Uint32(b[24:]), gid: le.Uint32(b[28:]), mtime: time.Unix(int64(le.Uint64(b[32:])), int64(le.Uint32(b[40:]))), nlink: le.Uint32(b[44:]), off: off,
	}
	if i.format != formatPlain && i.format != formatInline || le.Uint16(b[2:]) != 0 {
		return rawInode{}, invalid("inode %d has a form that is not written here", nid)
	}
	return i, nil
}

// payload reads what a directory or a symbolic link holds.
func (r *imageReader) payload(i rawInode, limit uint64) ([]byte, error) {
	if i.size > limit || i.size > uint64(r.size) {
		return nil, invalid("a directory or link of %d bytes", i.size)
	}
	tail := 0
	if i.format == formatInline {
		tail = inlineTail(i.size)
	}
	b := make([]byte, i.size)
	head := b[:len(b)-tail]
	if _, err := r.f.ReadAt(head, int64(i.where)*BlockSize); len(head) > 0 && err != nil {
		return nil, invalid("read a directory or link: %w", err)
	}
	if _, err := r.f.ReadAt(b[len(head):], i.off+inodeSize); tail > 0 && err != nil {
		return nil, invalid("read a directory or link: %w", err)
	}
	return b, nil
}

// eachDirent calls fn for the entries of a directory.
func eachDirent(data []byte, fn func(name string, nid uint64) error) error {
	le := binary.LittleEndian
	for len(data) > 0 {
		block := data[:min(len(data), BlockSize)]
		data = data[len(block):]
		if len(block) < direntSize {
			return invalid("a directory block of %d bytes", len(block))
		}
		first := int(le.Uint16(block[8:]))
		if first < direntSize || first%direntSize != 0 || first > len(block) {
			return invalid("a directory block is damaged")
		}
		for e := 0; e < first; e += direntSize {
			from, to := int(le.Uint16(block[e+8:])), len(block)
			if e+direntSize < first {
				to = int(le.Uint16(block[e+direntSize+8:]))
			}
			if from < first || from >= to || to > len(block) {
				return invalid("a directory block is damaged")
			}
			name := block[from:to]
			// The last name of a block that is not the last ends at its padding.
			for i, c := range name {
				if c == 0 {
					name = name[:i]
					break
				}
			}
			if len(name) == 0 || len(name) > MaxName {
				return invalid("a name of %d bytes in a directory", len(name))
			}
			if err := fn(string(name), le.Uint64(block[e:])); err != nil {
				return err
			}
		}
	}
	return nil
}
