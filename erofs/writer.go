package erofs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const maxWarnings = 100

// Writer makes one image, from any mix of archives and single files. It is not
// safe for concurrent use. After an error the image is of no use.
type Writer struct {
	tree     *tree
	out      *spool
	opts     Options
	entries  int
	data     int64 // bytes of data blocks
	warnings []string
	dropped  int // warnings beyond maxWarnings
	done     bool
	gone     map[string]bool // what the archive being read deletes, of an overlay
}

// NewWriter begins an image in out, a regular file, which is truncated. The
// caller keeps ownership of out.
func NewWriter(out *os.File, opts Options) (*Writer, error) {
	if err := out.Truncate(0); err != nil {
		return nil, fmt.Errorf("truncate image: %w", err)
	}
	opts.Limits = opts.Limits.withDefaults()
	w := &Writer{tree: newTree(opts.Limits), out: newSpool(out), opts: opts}
	// Block 0 belongs to the superblock, which is written last.
	if _, err := w.out.Write(zeros[:]); err != nil {
		return nil, err
	}
	return w, nil
}

// meta is what an entry says about its inode.
type meta struct {
	perm     uint32
	uid, gid uint32
	mtime    time.Time
}

// maxTime is the end of the year 9999; later times are clamped to it.
const maxTime = 253402300799

func (m meta) apply(n *node, layer int) {
	n.mode = n.mode&typeMask | m.perm&permMask
	n.uid, n.gid = m.uid, m.gid
	n.mtime, n.nsec = 0, 0
	if sec := m.mtime.Unix(); !m.mtime.IsZero() && sec >= 0 {
		n.mtime = uint64(min(sec, maxTime))
		n.nsec = uint32(m.mtime.Nanosecond())
	}
	n.layer = layer
}

// Add puts one file into the image, in place of what had that path; a directory
// over a directory only changes its metadata.
func (w *Writer) Add(f File) error {
	if err := w.count(); err != nil {
		return err
	}
	m := meta{perm: unixPerm(f.Mode), uid: f.UID, gid: f.GID, mtime: f.ModTime}
	var err error
	switch f.Mode.Type() {
	case fs.ModeDir:
		err = w.addDir(f.Path, m)
	case fs.ModeSymlink:
		err = w.addSymlink(f.Path, f.Target, m)
	case fs.ModeNamedPipe:
		err = w.addSpecial(f.Path, typeFifo, 0, m)
	case 0:
		r, size := f.Reader, f.Size
		if r == nil {
			r, size = strings.NewReader(string(f.Data)), int64(len(f.Data))
		}
		err = w.addRegular(f.Path, r, size, m)
	default:
		err = invalid("type %v is not supported", f.Mode.Type())
	}
	if err != nil {
		return fmt.Errorf("add %q: %w", f.Path, err)
	}
	return nil
}

func unixPerm(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		p |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		p |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		p |= 0o1000
	}
	return p
}

// Remove takes path and all below it out of the image. Removing what is not
// there is no error.
func (w *Writer) Remove(path string) error {
	parts, err := w.tree.clean(path)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return invalid("the root cannot be removed")
	}
	dir, err := w.tree.walk(parts[:len(parts)-1], true, false)
	if err != nil || dir == nil || !dir.isDir() {
		return err
	}
	w.tree.unlink(dir, parts[len(parts)-1])
	return nil
}

// Chmod changes permission bits and owner of what is at path, following
// symbolic links inside the image; errdefs.ErrNotFound when nothing is there.
func (w *Writer) Chmod(path string, mode fs.FileMode, uid, gid uint32) error {
	n, err := w.lookup(path)
	if err != nil {
		return err
	}
	n.mode = n.mode&typeMask | unixPerm(mode)
	n.uid, n.gid = uid, gid
	return nil
}

// Exists says whether path leads to something, following symbolic links inside
// the image.
func (w *Writer) Exists(path string) bool {
	_, err := w.lookup(path)
	return err == nil
}

// ReadFile returns the content of the regular file at path, at most limit
// bytes of it, following symbolic links inside the image. A missing file is
// errdefs.ErrNotFound, a longer one errdefs.ErrResourceExhausted.
func (w *Writer) ReadFile(path string, limit int64) ([]byte, error) {
	n, err := w.lookup(path)
	if err != nil {
		return nil, err
	}
	if !n.isRegular() {
		return nil, invalid("%q is not a regular file", path)
	}
	if n.size > uint64(limit) {
		return nil, exhausted("%q has %d bytes, at most %d are read", path, n.size, limit)
	}
	if err := w.out.flush(); err != nil {
		return nil, err
	}
	b := make([]byte, n.size)
	if _, err := w.out.f.ReadAt(b, int64(n.block)*BlockSize); err != nil && len(b) > 0 && err != io.EOF {
		return nil, fmt.Errorf("read back %q: %w", path, err)
	}
	return b, nil
}

// Overwrite replaces the content of the regular file at path by data of the same
// length, where it lies: nothing of what was there stays in the image, as it does
// when a file is added in place of another. Links are followed as in ReadFile.
func (w *Writer) Overwrite(path string, data []byte) error {
	n, err := w.lookup(path)
	if err != nil {
		return err
	}
	if w.done || !n.isRegular() || n.size != uint64(len(data)) {
		return invalid("%q is not a regular file of %d bytes in an unfinished image", path, len(data))
	}
	if len(data) == 0 {
		return nil
	}
	if err := w.out.flush(); err != nil {
		return err
	}
	if _, err := w.out.f.WriteAt(data, int64(n.block)*BlockSize); err != nil {
		return fmt.Errorf("overwrite %q: %w", path, err)
	}
	return nil
}

// ReadDir returns the names in the directory at path, unsorted.
func (w *Writer) ReadDir(path string) ([]string, error) {
	n, err := w.lookup(path)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, invalid("%q is not a directory", path)
	}
	names := make([]string, 0, len(n.kids))
	for name := range n.kids {
		names = append(names, name)
	}
	return names, nil
}

func (w *Writer) lookup(path string) (*node, error) {
	parts, err := w.tree.clean(path)
	if err != nil {
		return nil, err
	}
	n, err := w.tree.walk(parts, true, false)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, fmt.Errorf("%q: %w", path, errdefs.ErrNotFound)
	}
	return n, nil
}

func (w *Writer) count() error {
	if w.done {
		return fmt.Errorf("image is finished: %w", errdefs.ErrFailedPrecondition)
	}
	if w.entries++; w.entries > w.opts.Limits.Entries {
		return exhausted("more than %d entries", w.opts.Limits.Entries)
	}
	return nil
}

func (w *Writer) warn(format string, args ...any) {
	if len(w.warnings) >= maxWarnings {
		w.dropped++
		return
	}
	w.warnings = append(w.warnings, fmt.Sprintf(format, args...))
}

// place finds where path goes; parts is empty for the root.
func (w *Writer) place(path string) (dir *node, name string, err error) {
	parts, err := w.tree.clean(path)
	if err != nil {
		return nil, "", err
	}
	if len(parts) == 0 {
		return nil, "", nil
	}
	dir, err = w.tree.parent(parts)
	return dir, parts[len(parts)-1], err
}

func (w *Writer) addDir(path string, m meta) error {
	dir, name, err := w.place(path)
	if err != nil {
		return err
	}
	if dir == nil {
		m.apply(w.tree.root, w.tree.layer)
		return nil
	}
	n := dir.kids[name]
	if n == nil || !n.isDir() {
		n = newDir(dir, m.perm, w.tree.layer)
		if err := w.tree.link(dir, name, n); err != nil {
			return err
		}
	}
	m.apply(n, w.tree.layer)
	return nil
}

// insert puts a new inode that is not a directory at path.
func (w *Writer) insert(path string, n *node, m meta) error {
	dir, name, err := w.place(path)
	if err != nil {
		return err
	}
	if dir == nil {
		return invalid("the root must be a directory")
	}
	m.apply(n, w.tree.layer)
	return w.tree.link(dir, name, n)
}

func (w *Writer) addSymlink(path, target string, m meta) error {
	if target == "" || len(target) > w.opts.Limits.PathBytes || strings.IndexByte(target, 0) >= 0 {
		return invalid("symbolic link has a target that is empty, holds a NUL byte or is longer than %d bytes", w.opts.Limits.PathBytes)
	}
	m.perm = 0o777
	return w.insert(path, &node{mode: typeLink, target: target, size: uint64(len(target))}, m)
}

func (w *Writer) addSpecial(path string, kind, rdev uint32, m meta) error {
	return w.insert(path, &node{mode: kind, rdev: rdev}, m)
}

func (w *Writer) addRegular(path string, r io.Reader, size int64, m meta) error {
	if size < 0 {
		return invalid("negative size")
	}
	// Compared before rounding up, so that no size can overflow the sum.
	if size > w.opts.Limits.Bytes-w.data {
		return exhausted("file data exceed %d bytes", w.opts.Limits.Bytes)
	}
	n := &node{mode: typeReg, size: uint64(size)}
	if size > 0 {
		block, err := w.block()
		if err != nil {
			return err
		}
		n.block = block
	}
	// The tree is changed first: a bad path costs no disk.
	if err := w.insert(path, n, m); err != nil {
		return err
	}
	c, err := io.Copy(w.out, io.LimitReader(r, size))
	if w.out.err != nil {
		return w.out.err
	}
	if err != nil {
		return fmt.Errorf("read content: %w", err)
	}
	if c != size {
		return invalid("content ends after %d of %d bytes", c, size)
	}
	w.data += (size + BlockSize - 1) / BlockSize * BlockSize
	return w.out.pad()
}

// block returns the number of the next block to be written.
func (w *Writer) block() (uint32, error) {
	b := w.out.len() / BlockSize
	if b >= 1<<32-1 {
		return 0, exhausted("image exceeds %d blocks", int64(1<<32-1))
	}
	return uint32(b), nil
}

// addHardlink makes path another name of what is at target already.
func (w *Writer) addHardlink(path, target string) error {
	parts, err := w.tree.clean(target)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	n, err := w.tree.walk(parts, false, false)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if n == nil {
		return invalid("hard link to %q, which comes not before it", target)
	}
	if n.isDir() {
		return invalid("hard link to the directory %q", target)
	}
	dir, name, err := w.place(path)
	if err != nil {
		return err
	}
	if dir == nil {
		return invalid("the root must be a directory")
	}
	if dir.kids[name] == n {
		return nil
	}
	n.layer = w.tree.layer
	return w.tree.link(dir, name, n)
}
