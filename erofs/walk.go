package erofs

import (
	"io/fs"
	"slices"
	"time"
)

// Entry is what Walk shows of an inode.
type Entry struct {
	// Mode has type and permission bits; changes to the latter are kept.
	Mode fs.FileMode
	// UID and GID may be changed.
	UID, GID uint32
	// Size is the length of a regular file in bytes.
	Size    int64
	ModTime time.Time
}

// Walk calls fn for path, which is followed when it is a symbolic link, and for
// all below it, which is not, in the order of names. fn may change permission
// bits and owners; an error of fn ends the walk. Directories must not change
// meanwhile. errdefs.ErrNotFound when path leads nowhere.
func (w *Writer) Walk(path string, fn func(path string, e *Entry) error) error {
	n, err := w.lookup(path)
	if err != nil {
		return err
	}
	return walkNode(path, n, fn)
}

func walkNode(path string, n *node, fn func(string, *Entry) error) error {
	e := Entry{
		Mode: fileMode(n.mode), UID: n.uid, GID: n.gid, Size: int64(n.size),
		ModTime: time.Unix(int64(n.mtime), int64(n.nsec)),
	}
	if err := fn(path, &e); err != nil {
		return err
	}
	n.mode = n.mode&typeMask | unixPerm(e.Mode)
	n.uid, n.gid = e.UID, e.GID
	names := make([]string, 0, len(n.kids))
	for name := range n.kids {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := walkNode(path+"/"+name, n.kids[name], fn); err != nil {
			return err
		}
	}
	return nil
}

func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, set := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= set
		}
	}
	switch mode & typeMask {
	case typeDir:
		m |= fs.ModeDir
	case typeLink:
		m |= fs.ModeSymlink
	case typeFifo:
		m |= fs.ModeNamedPipe
	case typeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case typeBlk:
		m |= fs.ModeDevice
	}
	return m
}
