package place

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
)

// Write opens the place's regular file for writing, empty and owned by u, and
// creates it, with mode 0666 less the umask, when it is missing. A link is
// followed. A file that a link led to, and that the link's owner does not own,
// keeps its owner. created reports whether the file is new. A fifo or a device
// is EINVAL and not touched, a directory EISDIR.
func (p *Place) Write(u account.User) (f *os.File, created bool, err error) {
	for range maxLinks { // others may create and remove it all the time
		if f, err = p.create(u); err == nil || !errors.Is(err, unix.EEXIST) {
			return f, err == nil, err
		}
		f, err = p.open(unix.O_WRONLY, write)
		switch {
		case err == nil:
			if err := p.empty(f, u); err != nil {
				_ = f.Close()
				return nil, false, err
			}
			return f, false, nil
		case errors.Is(err, unix.ELOOP):
			if err := p.Follow(); err != nil {
				return nil, false, err
			}
		case !errors.Is(err, unix.ENOENT):
			return nil, false, err
		}
	}
	return nil, false, p.failed("open", unix.ELOOP)
}

// Read opens the place's regular file for reading. A link is followed. What is
// not regular is EINVAL, or EISDIR, and not touched.
func (p *Place) Read() (*os.File, error) {
	if err := p.Follow(); err != nil {
		return nil, err
	}
	return p.open(unix.O_RDONLY, read)
}

// create makes a new file, owned by u.
func (p *Place) create(u account.User) (*os.File, error) {
	if len(p.rest) == 0 {
		return nil, p.failed("open", unix.EISDIR)
	}
	if _, err := p.lstat(); err == nil && len(p.via) > 0 {
		// Whether there may be a new file must not matter to an existing one.
		return nil, p.failed("open", unix.EEXIST)
	}
	if err := p.allowed(p.dir, search|write); err != nil {
		return nil, p.failed("open", err)
	}
	fd, err := unix.Openat(p.dir, p.name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, p.failed("open", err)
	}
	f := os.NewFile(uintptr(fd), p.path)
	if err := chown(fd, u); err != nil {
		_ = f.Close()
		p.Discard()
		return nil, p.failed("open", err)
	}
	return f, nil
}

// open opens the place's regular file, for which the owners of links need the
// rights want. A link is ELOOP.
func (p *Place) open(flags int, want uint32) (*os.File, error) {
	st, err := p.lstat()
	if err == nil {
		err = regular(&st)
	}
	if err != nil {
		return nil, p.failed("open", err)
	}
	// Should it have become a fifo or a terminal by now, opening must neither
	// wait nor make it the agent's own.
	flags |= unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(p.dir, p.name(), flags, 0)
	if err != nil {
		return nil, p.failed("open", err)
	}
	if err = unix.Fstat(fd, &st); err == nil {
		err = regular(&st)
	}
	if err == nil {
		err = p.allowed(fd, want)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, p.failed("open", err)
	}
	return os.NewFile(uintptr(fd), p.path), nil
}

func regular(st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFLNK:
		return unix.ELOOP
	}
	return unix.EINVAL
}

// empty truncates f and gives it to u.
func (p *Place) empty(f *os.File, u account.User) error {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return p.failed("stat", err)
	}
	if st.Size > 0 {
		if err := unix.Ftruncate(fd, 0); err != nil {
			return p.failed("truncate", err)
		}
	}
	if st.Uid == u.UID && st.Gid == u.GID || !p.owned(&st) {
		return nil
	}
	return p.failed("chown", chown(fd, u))
}

// Discard removes a file that Write has just created there, if it can.
func (p *Place) Discard() { _ = unix.Unlinkat(p.dir, p.name(), 0) }

// Temp returns a place beside p whose name nothing else has. What the owners of
// links may do there was judged then.
func (p *Place) Temp() (*Place, error) {
	if err := p.allowed(p.dir, search|write); err != nil {
		return nil, p.failed("open", err)
	}
	dir, err := unix.FcntlInt(uintptr(p.dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, p.failed("open", err)
	}
	return &Place{w: p.w, path: p.path, dir: dir, rest: []string{".caisson-" + rand.Text()}}, nil
}

// RemoveAll removes what is there with all below it; nothing there is fine.
// Links are removed, not followed.
func (p *Place) RemoveAll() error {
	st, err := p.lstat()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		err = p.removable(&st)
	}
	if err != nil {
		return p.failed("remove", err)
	}
	return removeAll(p.dir, p.name())
}

// removeAll removes the tree name in dir.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	// It has no constructor for a descriptor.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}
