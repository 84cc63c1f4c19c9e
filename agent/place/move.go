package place

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	copyBuffer = 256 << 10
	// maxDepth bounds the trees that Move copies: every level has two
	// descriptors open.
	maxDepth = 512
	maxAttr  = 64 << 10
)

// Move renames what p holds to the place to, whose directory must exist. It
// replaces a file, and is EEXIST for a directory. Across file systems (/tmp is
// one of its own) it copies, renames the copy into place and removes the
// source; when that fails on the way the source is whole and the destination
// as it was.
func (p *Place) Move(ctx context.Context, to *Place) error {
	st, err := p.lstat()
	if err == nil {
		err = p.removable(&st)
	}
	if err == nil {
		err = to.receptive(&st)
	}
	if err != nil {
		return p.failed("rename", err)
	}
	err = unix.Renameat(p.dir, p.name(), to.dir, to.name())
	if errors.Is(err, unix.EXDEV) {
		if err := p.copyTo(ctx, to); err != nil {
			return err
		}
		return removeAll(p.dir, p.name())
	}
	return p.failed("rename", err)
}

// receptive tells whether the file with the attributes from may be renamed to
// the place.
func (p *Place) receptive(from *unix.Stat_t) error {
	st, err := p.lstat()
	switch {
	case errors.Is(err, unix.ENOENT):
		return p.allowed(p.dir, search|write)
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR && (st.Dev != from.Dev || st.Ino != from.Ino):
		return unix.EEXIST
	}
	return p.removable(&st)
}

// copyTo makes the copy in a new directory that only root can enter, because
// it goes by names while it sets owners and modes.
func (p *Place) copyTo(ctx context.Context, to *Place) (err error) {
	temp, err := to.Temp()
	if err != nil {
		return err
	}
	defer temp.Close()
	private, err := temp.private()
	if err != nil {
		return to.failed("mkdir", err)
	}
	defer func() {
		_ = unix.Close(private)
		if rerr := removeAll(temp.dir, temp.name()); err == nil {
			err = rerr
		}
	}()
	c := copier{ctx: ctx}
	if err := unix.Fstat(private, &c.private); err != nil {
		return to.failed("stat", err)
	}
	const name = "copy"
	if err := c.entry(p.dir, p.name(), private, name, 0); err != nil {
		return p.failed("copy", err)
	}
	return to.failed("rename", unix.Renameat(private, name, to.dir, to.name()))
}

// private creates a directory of mode 0700 and opens it.
func (p *Place) private() (int, error) {
	if err := unix.Mkdirat(p.dir, p.name(), 0o700); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(p.dir, p.name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	ours, err := fresh(fd)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil && (!ours || st.Mode&0o077 != 0) {
		err = unix.EEXIST // somebody exchanged it
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// copier copies files, directories, links and fifos with owner, mode, times
// and user attributes.
type copier struct {
	ctx     context.Context
	private unix.Stat_t // where the copy is made
	buf     []byte
}

// entry copies what is called name in from to a new name in to.
func (c *copier) entry(from int, name string, to int, newName string, depth int) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if depth > maxDepth {
		return unix.ENAMETOOLONG
	}
	fd, err := unix.Openat(from, name, pathOnly, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.directory(from, name, to, newName, depth)
	case unix.S_IFREG:
		return c.file(from, name, to, newName)
	case unix.S_IFLNK:
		target, err := readLink(fd)
		if err == nil {
			err = unix.Symlinkat(target, to, newName)
		}
		if err != nil {
			return err
		}
	case unix.S_IFIFO:
		if err := unix.Mknodat(to, newName, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
	default:
		return unix.EINVAL
	}
	if err := unix.Fchownat(to, newName, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFIFO {
		if err := unix.Fchmodat(to, newName, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return setTimes(to, newName, &st)
}

// directory copies a directory with all in it.
func (c *copier) directory(from int, name string, to int, newName string, depth int) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	in, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(in), name)
	defer src.Close()
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return err
	}
	if st.Dev == c.private.Dev && st.Ino == c.private.Ino {
		return unix.EINVAL // a tree into itself
	}
	if err := unix.Mkdirat(to, newName, 0o700); err != nil {
		return err
	}
	out, err := unix.Openat(to, newName, flags, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(out) }()
	for {
		names, err := src.Readdirnames(1024)
		for _, n := range names {
			if err := c.entry(in, n, out, n, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	// Times last: filling it changes them.
	return c.finish(in, out, &st, to, newName)
}

// file copies a regular file.
func (c *copier) file(from int, name string, to int, newName string) error {
	in, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(in), name)
	defer src.Close()
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return err
	}
	if err := regular(&st); err != nil {
		return err
	}
	out, err := unix.Openat(to, newName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(out), newName)
	if c.buf == nil {
		c.buf = make([]byte, copyBuffer)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{contextReader{c.ctx, src}}, c.buf)
	if err == nil {
		err = c.finish(in, out, &st, to, newName)
	}
	return errors.Join(err, dst.Close())
}

// finish gives the copy out, which is called newName in to, what st and in say
// about the original.
func (c *copier) finish(in, out int, st *unix.Stat_t, to int, newName string) error {
	if err := unix.Fchown(out, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	// After chown, which clears set-uid bits.
	if err := unix.Fchmod(out, st.Mode&0o7777); err != nil {
		return err
	}
	copyAttrs(in, out)
	return setTimes(to, newName, st)
}

// contextReader ends a long copy with its request.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// copyAttrs copies user attributes; what the destination cannot hold the
// sidecar of package metadata keeps.
func copyAttrs(in, out int) {
	n, err := unix.Flistxattr(in, nil)
	if err != nil || n == 0 {
		return
	}
	names := make([]byte, maxAttr)
	if n, err = unix.Flistxattr(in, names); err != nil {
		return
	}
	value := make([]byte, maxAttr)
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		if n, err := unix.Fgetxattr(in, name, value); err == nil {
			_ = unix.Fsetxattr(out, name, value[:n], 0)
		}
	}
}

func setTimes(dir int, name string, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
