package erofs

import (
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"
)

// errStopped ends reading a directory early.
var errStopped = errors.New("stopped")

// Image is an image that this package wrote, opened to be read. It is safe for
// concurrent use.
type Image struct {
	f *os.File
	r *imageReader
}

// Inode is one file of an Image. Equal inodes of one image are the same file.
type Inode struct {
	// Mode has type and permission bits.
	Mode     fs.FileMode
	UID, GID uint32
	// Size is the length of a regular file in bytes.
	Size    int64
	ModTime time.Time
	// Major and Minor name a device.
	Major, Minor uint32

	nid uint64
	raw rawInode
}

// Same reports whether two inodes of one image are the same file.
func (n Inode) Same(o Inode) bool { return n.nid == o.nid }

// Open opens an image; errdefs.ErrInvalidArgument for a file that is none.
func Open(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := newImageReader(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Image{f, r}, nil
}

// Close closes the image.
func (i *Image) Close() error { return i.f.Close() }

// Root is the root directory.
func (i *Image) Root() (Inode, error) { return i.inode(i.r.root) }

func (i *Image) inode(nid uint64) (Inode, error) {
	raw, err := i.r.inode(nid)
	if err != nil {
		return Inode{}, err
	}
	n := Inode{Mode: fileMode(raw.mode), UID: raw.uid, GID: raw.gid, ModTime: raw.mtime, nid: nid, raw: raw}
	switch raw.mode & typeMask {
	case typeReg:
		n.Size = int64(raw.size)
		if at := int64(raw.where) * BlockSize; n.Size < 0 || n.Size > 0 && (at < BlockSize || at > i.r.size || n.Size > i.r.size-at) {
			return Inode{}, invalid("a file's data lie outside of the image")
		}
	case typeChar, typeBlk:
		n.Major, n.Minor = raw.where>>8&0xfff, raw.where&0xff|raw.where>>12&0xfff00
	}
	return n, nil
}

// Kids yields the entries of a directory; of anything else there are none. It
// ends after the first error.
func (i *Image) Kids(dir Inode) iter.Seq2[string, func() (Inode, error)] {
	return func(yield func(string, func() (Inode, error)) bool) {
		fail := func(err error) { yield("", func() (Inode, error) { return Inode{}, err }) }
		if !dir.Mode.IsDir() {
			return
		}
		data, err := i.r.payload(dir.raw, maxDirBytes)
		if err != nil {
			fail(err)
			return
		}
		err = eachDirent(data, func(name string, nid uint64) error {
			if name == "." || name == ".." {
				return nil
			}
			if !yield(name, func() (Inode, error) { return i.inode(nid) }) {
				return errStopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, errStopped) {
			fail(err)
		}
	}
}

// Target is where a symbolic link points.
func (i *Image) Target(n Inode) (string, error) {
	b, err := i.r.payload(n.raw, maxTarget)
	return string(b), err
}

// Data reads a regular file.
func (i *Image) Data(n Inode) *io.SectionReader {
	return io.NewSectionReader(i.f, int64(n.raw.where)*BlockSize, n.Size)
}
