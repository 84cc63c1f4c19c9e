package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

// Numbers of the on-disk format.
const (
	superMagic   = 0xE0F5E1E2
	superOffset  = 1024
	compatSum    = 1  // superblock checksum present
	blockBits    = 12 // log2 of BlockSize
	slotBits     = 5  // log2 of the unit of inode numbers
	inodeSize    = 64
	direntSize   = 12
	formatPlain  = 1        // extended inode, data in blocks of its own
	formatInline = 1 | 2<<1 // extended inode, the last part of the data behind it
	// rootSlot leaves inode number 0 free, which readdir would hide.
	rootSlot = inodeSize >> slotBits
)

// Finish writes the directories, the inodes and the superblock. The image is
// complete when it returns without error; it is not yet synced to disk.
func (w *Writer) Finish() (Stats, error) {
	if w.done {
		return Stats{}, fmt.Errorf("image is finished: %w", errdefs.ErrFailedPrecondition)
	}
	w.done = true
	l := &layout{out: w.out}
	if err := l.write(w.tree.root); err != nil {
		return Stats{}, err
	}
	if err := w.out.close(); err != nil {
		return Stats{}, err
	}
	if err := w.super(l); err != nil {
		return Stats{}, err
	}
	if w.dropped > 0 {
		w.warnings = append(w.warnings, fmt.Sprintf("%d further warnings", w.dropped))
	}
	l.stats.ImageBytes = w.out.len()
	l.stats.Warnings = w.warnings
	return l.stats, nil
}

// layout places inodes and directories behind the file data.
type layout struct {
	out   *spool
	nodes []*node // in the order of their inode numbers
	pos   uint64  // next free byte of the inode area
	start uint32  // first block of the inode area
	dirs  uint64  // blocks of long directories
	stats Stats
}

func (l *layout) write(root *node) error {
	l.pos = rootSlot << slotBits
	l.number(root)
	metaBlocks := (l.pos + BlockSize - 1) / BlockSize
	first := uint64(l.out.len() / BlockSize)
	if first+metaBlocks+l.dirs >= 1<<32-1 {
		return exhausted("image exceeds %d blocks", int64(1<<32-1))
	}
	l.start = uint32(first)
	next := uint32(first + metaBlocks)
	for _, n := range l.nodes {
		if n.isDir() || n.isSymlink() {
			if b := blocksApart(n.size); b > 0 {
				n.block = next
				next += uint32(b)
			}
		}
	}
	if err := l.inodes(); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if blocksApart(n.size) == 0 || !n.isDir() && !n.isSymlink() {
			continue
		}
		data := payload(n)
		if _, err := l.out.Write(data[:len(data)-inlineTail(n.size)]); err != nil {
			return err
		}
		if err := l.out.pad(); err != nil {
			return err
		}
	}
	return nil
}

// number gives every inode below n its place, depth first in the order of
// names, so that a directory's inodes lie together. Depth is bounded by Limits.
func (l *layout) number(n *node) {
	switch n.mode & typeMask {
	case typeDir:
		l.stats.Dirs++
		n.names = make([]string, 0, len(n.kids)+2)
		n.names = append(n.names, ".", "..")
		for name := range n.kids {
			n.names = append(n.names, name)
		}
		slices.Sort(n.names)
		n.size = dirBytes(n.names)
	case typeReg:
		l.stats.Files++
		l.stats.DataBytes += int64(n.size)
	case typeLink:
		l.stats.Symlinks++
	default:
		l.stats.Others++
	}
	need := uint64(inodeSize)
	if n.isDir() || n.isSymlink() {
		need += uint64(inlineTail(n.size))
		l.dirs += blocksApart(n.size)
	}
	l.pos = (l.pos + 1<<slotBits - 1) &^ (1<<slotBits - 1)
	// Neither an inode nor what lies behind it may cross a block boundary.
	if l.pos%BlockSize+need > BlockSize {
		l.pos = (l.pos + BlockSize - 1) &^ (BlockSize - 1)
	}
	n.nid = l.pos >> slotBits
	l.pos += need
	l.nodes = append(l.nodes, n)
	for _, name := range n.names {
		if kid := n.kids[name]; kid != nil && kid.nid == 0 {
			l.number(kid)
		}
	}
}

// inlineTail returns how many bytes at the end of a payload of size bytes lie
// behind the inode.
func inlineTail(size uint64) int {
	if t := size % BlockSize; t <= BlockSize-inodeSize {
		return int(t)
	}
	return 0
}

// blocksApart returns how many blocks a payload needs besides its inline tail.
func blocksApart(size uint64) uint64 {
	return (size - uint64(inlineTail(size)) + BlockSize - 1) / BlockSize
}

func (l *layout) inodes() error {
	var buf [inodeSize]byte
	at := uint64(0)
	for i, n := range l.nodes {
		pos := n.nid << slotBits
		if _, err := l.out.Write(zeros[:pos-at]); err != nil {
			return err
		}
		encodeInode(buf[:], n, uint32(i+1))
		if _, err := l.out.Write(buf[:]); err != nil {
			return err
		}
		at = pos + inodeSize
		if !n.isDir() && !n.isSymlink() {
			continue
		}
		if tail := inlineTail(n.size); tail > 0 {
			data := payload(n)
			if _, err := l.out.Write(data[len(data)-tail:]); err != nil {
				return err
			}
			at += uint64(tail)
		}
	}
	return l.out.pad()
}

func encodeInode(b []byte, n *node, ino uint32) {
	clear(b)
	le := binary.LittleEndian
	format := uint16(formatPlain)
	where := n.block
	switch n.mode & typeMask {
	case typeDir, typeLink:
		if inlineTail(n.size) > 0 {
			format = formatInline
		}
	case typeChar, typeBlk:
		where = n.rdev
	}
	le.PutUint16(b[0:], format)
	le.PutUint16(b[4:], uint16(n.mode))
	le.PutUint64(b[8:], n.size)
	le.PutUint32(b[16:], where)
	le.PutUint32(b[20:], ino)
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], n.mtime)
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], n.nlink)
}

// payload returns what a symbolic link or a directory holds.
func payload(n *node) []byte {
	if n.isSymlink() {
		return []byte(n.target)
	}
	return dirData(n)
}

// blockNames returns how many of names fit one directory block, and how many
// bytes they take.
func blockNames(names []string) (count, size int) {
	for _, name := range names {
		if size+direntSize+len(name) > BlockSize {
			break
		}
		size += direntSize + len(name)
		count++
	}
	return count, size
}

// dirBytes returns the length of a directory of the sorted names: every block
// but the last is full.
func dirBytes(names []string) uint64 {
	total := uint64(0)
	for len(names) > 0 {
		count, size := blockNames(names)
		names = names[count:]
		if len(names) > 0 {
			size = BlockSize
		}
		total += uint64(size)
	}
	return total
}

// dirData encodes a directory: in each block first the entries, then their
// names, in byte order of the names throughout.
func dirData(n *node) []byte {
	out := make([]byte, 0, n.size)
	for names := n.names; len(names) > 0; {
		count, size := blockNames(names)
		start := len(out)
		if count < len(names) {
			out = append(out, zeros[:]...)
		} else {
			out = append(out, zeros[:size]...)
		}
		block := out[start:]
		off := count * direntSize
		for i, name := range names[:count] {
			kid := n.kid(name)
			e := block[i*direntSize:]
			binary.LittleEndian.PutUint64(e, kid.nid)
			binary.LittleEndian.PutUint16(e[8:], uint16(off))
			e[10] = direntType(kid.mode)
			off += copy(block[off:], name)
		}
		names = names[count:]
	}
	return out
}

func (n *node) kid(name string) *node {
	switch name {
	case ".":
		return n
	case "..":
		return n.parent
	}
	return n.kids[name]
}

func direntType(mode uint32) byte {
	switch mode & typeMask {
	case typeReg:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlk:
		return 4
	case typeFifo:
		return 5
	}
	return 7 // symbolic link
}

// super writes block 0.
func (w *Writer) super(l *layout) error {
	var b [BlockSize]byte
	s := b[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatSum)
	s[12] = blockBits
	le.PutUint16(s[14:], rootSlot)
	le.PutUint64(s[16:], uint64(len(l.nodes)))
	le.PutUint64(s[24:], uint64(buildSeconds(w.opts.BuildTime)))
	le.PutUint32(s[36:], uint32(w.out.len()/BlockSize))
	le.PutUint32(s[40:], l.start)
	sum := ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli))
	le.PutUint32(s[4:], sum)
	if _, err := w.out.f.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}

func buildSeconds(t time.Time) int64 {
	if t.IsZero() || t.Unix() < 0 {
		return 0
	}
	return t.Unix()
}
