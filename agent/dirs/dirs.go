// Package dirs creates directories for a user of the guest.
package dirs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MakeAll creates path, which must be absolute and clean, and its missing
// parents with mode 0755, owned by uid and gid. What exists is left as it is.
// created reports whether path itself is new. The error is a *os.PathError;
// ENOTDIR when something on the way is no directory.
//
// It walks by descriptors, so that a process of the guest which swaps a new
// directory for a link cannot make the agent change the owner of another file.
func MakeAll(path string, uid, gid uint32) (created bool, err error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if name == "" {
			continue
		}
		next, made, err := descend(dir, name, uid, gid)
		if err != nil {
			return false, &os.PathError{Op: "mkdir", Path: path, Err: err}
		}
		_ = unix.Close(dir)
		dir, created = next, made
	}
	return created, nil
}

// descend opens name in dir, creating it if it is missing.
func descend(dir int, name string, uid, gid uint32) (fd int, created bool, err error) {
	fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, false, err
	}
	err = unix.Mkdirat(dir, name, 0o755)
	if errors.Is(err, unix.EEXIST) {
		// Somebody was quicker, or it is a dangling link.
		fd, err = unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			err = unix.ENOTDIR
		}
		return fd, false, err
	}
	if err != nil {
		return -1, false, err
	}
	fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, err
	}
	if err := unix.Fchown(fd, int(uid), int(gid)); err != nil && os.Geteuid() == 0 {
		_ = unix.Close(fd)
		return -1, false, fmt.Errorf("own directory: %w", err)
	}
	return fd, true, nil
}
