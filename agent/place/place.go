// Package place finds the files that requests name, and changes them, in a file
// system that others change at the same time. It knows nothing of requests.
//
// The agent is root and a request has root's power over every path that it
// names: that is the protocol. A symbolic link is different, because it makes
// the request mean what the owner of the link wants. So a path is walked by
// descriptors, one component at a time, and from a link on the agent does no
// more than the owner of that link could do itself: search, read, create and
// remove as far as mode bits let it. Links of root are simply followed. What
// was found is then used by its descriptor or as a name in an open directory,
// never by its path again.
package place

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/caisson-dev/caisson/agent/account"
)

const (
	// maxLinks is how many links a path may lead through, as in Linux.
	maxLinks = 40

	pathOnly = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	pathDir  = pathOnly | unix.O_DIRECTORY
)

// LinkError says that a path leads through a link whose owner may not do there
// what was asked. It is EACCES.
type LinkError struct{ Owner string }

// Error is fit for clients.
func (e *LinkError) Error() string {
	return fmt.Sprintf("permission denied: a link on the way belongs to '%s', who has no right to this", e.Owner)
}

// Unwrap makes it EACCES.
func (*LinkError) Unwrap() error { return unix.EACCES }

// Walker finds places. Safe for concurrent use.
type Walker struct{ accounts *account.Database }

// NewWalker returns a walker that asks accounts for the groups of the owners of
// links.
func NewWalker(accounts *account.Database) *Walker { return &Walker{accounts} }

// Place is a name in an open directory; whether anything is there is another
// matter. Not safe for concurrent use.
type Place struct {
	w    *Walker
	path string // as it was asked for
	dir  int    // descriptor of the directory
	// rest is what is still to be walked, the name itself last; empty when the
	// place is the directory itself. The first linked of them were read from a
	// link.
	rest   []string
	linked int
	links  int
	// via are the owners of the links that led here, other than root.
	via []account.User
}

// Open returns the place of path, which must be absolute. Links are followed
// on the way, the last component is not looked at. The caller closes it.
// Errors are *os.PathError.
func (w *Walker) Open(path string) (*Place, error) { return w.walk(path, nil) }

// Make is Open, but creates missing directories on the way with mode 0755,
// owned by u. What exists is left as it is.
func (w *Walker) Make(path string, u account.User) (*Place, error) { return w.walk(path, &u) }

// MakeAll creates the directory path with its parents, as Make does. created
// reports whether path itself is new. It is ENOTDIR when something on the way,
// or at path, is no directory.
func (w *Walker) MakeAll(path string, u account.User) (created bool, err error) {
	p, err := w.walk(path, &u)
	if err != nil {
		return false, err
	}
	defer p.Close()
	if len(p.rest) == 0 {
		return false, nil
	}
	if created, err = p.step(&u); err == nil {
		for len(p.rest) > 0 && err == nil { // path is a link
			_, err = p.step(&u)
		}
	}
	return created, p.failed("mkdir", err)
}

func (w *Walker) walk(path string, u *account.User) (*Place, error) {
	p := &Place{w: w, path: path, dir: -1, rest: components(path)}
	err := p.enter(unix.Open("/", pathDir, 0))
	if err == nil {
		err = p.advance(u)
	}
	if err != nil {
		p.Close()
		return nil, p.failed("open", err)
	}
	return p, nil
}

// Close releases the directory.
func (p *Place) Close() {
	if p.dir >= 0 {
		_ = unix.Close(p.dir)
	}
	p.dir = -1
}

// Follow moves the place to where the link that it holds leads, so that it is
// no link any more. Directories on the way must exist; what the last link
// leads to need not. A place that holds no link stays.
func (p *Place) Follow() error {
	for len(p.rest) > 0 {
		st, err := p.lstat()
		if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return nil
		}
		if err == nil {
			err = p.link()
		}
		if errors.Is(err, unix.ENOTDIR) {
			continue // no link any more
		}
		if err == nil {
			err = p.advance(nil)
		}
		if err != nil {
			return p.failed("open", err)
		}
	}
	return nil
}

// advance walks until only the name is left.
func (p *Place) advance(u *account.User) error {
	for len(p.rest) > 1 || len(p.rest) == 1 && p.rest[0] == ".." {
		if _, err := p.step(u); err != nil {
			return err
		}
	}
	return nil
}

// step walks one component, which it creates for u when u is not nil. After a
// link its target is what is to be walked next.
func (p *Place) step(u *account.User) (created bool, err error) {
	fd, err := unix.Openat(p.dir, p.rest[0], pathDir, 0)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return false, p.link()
	case errors.Is(err, unix.ENOENT) && u != nil && p.linked > 0:
		return false, unix.ENOTDIR // a dangling link stays one
	case errors.Is(err, unix.ENOENT) && u != nil:
		if fd, created, err = p.mkdir(p.rest[0], *u); err != nil {
			return false, err
		}
	}
	if created {
		p.via = nil // the right to make it was the last that mattered
	}
	if err := p.enter(fd, err); err != nil {
		return false, err
	}
	p.rest = p.rest[1:]
	p.linked = max(p.linked-1, 0)
	return created, nil
}

// enter makes fd the directory, which the owners of links must be able to
// search.
func (p *Place) enter(fd int, err error) error {
	if err != nil {
		return err
	}
	if p.dir >= 0 {
		_ = unix.Close(p.dir)
	}
	p.dir = fd
	return p.allowed(fd, search)
}

// link puts the target of the link that comes next in its place. It is ENOTDIR
// when it is no link.
func (p *Place) link() error {
	// Owner and target must be of the same link, whatever has the name by then.
	fd, err := unix.Openat(p.dir, p.rest[0], pathOnly, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return unix.ENOTDIR
	}
	if p.links++; p.links > maxLinks {
		return unix.ELOOP
	}
	target, err := readLink(fd)
	if err != nil {
		return err
	}
	into := components(target)
	p.rest = append(slices.Clip(into), p.rest[1:]...)
	p.linked = len(into) + max(p.linked-1, 0)
	p.bind(st.Uid)
	if target[0] == '/' {
		return p.enter(unix.Open("/", pathDir, 0))
	}
	return p.allowed(p.dir, search)
}

func readLink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	switch {
	case err != nil:
		return "", err
	case n == 0:
		return "", unix.ENOENT
	case n == len(buf):
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}

// mkdir creates a directory and opens it. A directory that another process put
// in its place does not become u's.
func (p *Place) mkdir(name string, u account.User) (fd int, created bool, err error) {
	if err := p.allowed(p.dir, search|write); err != nil {
		return -1, false, err
	}
	if err := unix.Mkdirat(p.dir, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, false, err
	} else if err == nil {
		created = true
	}
	fd, err = unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil || !created {
		return fd, false, err
	}
	if created, err = fresh(fd); err == nil && created {
		err = chown(fd, u)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, false, err
	}
	return fd, created, nil
}

// fresh reports whether the open directory can be one that the agent has just
// made: its own, and empty. Nobody gains by owning another one of that kind.
func fresh(dir int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return false, err
	}
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(dir, buf)
	if err != nil {
		return false, err
	}
	_, entries, _ := unix.ParseDirent(buf[:n], 1, nil)
	return entries == 0 && int(st.Uid) == os.Geteuid(), nil
}

// chown does nothing for an agent that is not root.
func chown(fd int, u account.User) error {
	if err := unix.Fchown(fd, int(u.UID), int(u.GID)); err != nil && os.Geteuid() == 0 {
		return fmt.Errorf("own: %w", err)
	}
	return nil
}

// failed wraps err for callers; nil stays nil.
func (p *Place) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: p.path, Err: err}
}

// components returns the names in path, without empty ones and dots. In an
// absolute path nothing is above the root.
func components(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// name returns the last component, "." when the place is the directory itself.
func (p *Place) name() string {
	if len(p.rest) == 0 {
		return "."
	}
	return p.rest[0]
}

func (p *Place) lstat() (st unix.Stat_t, err error) {
	err = unix.Fstatat(p.dir, p.name(), &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}
