package filesystem

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// move renames. Across file systems (/tmp is one of its own) it copies beside
// the destination, renames the copy into place and removes the source; when
// that fails on the way the source is whole and the destination as it was.
func move(ctx context.Context, from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	if from == to || strings.HasPrefix(to, from+"/") {
		return &os.PathError{Op: "rename", Path: from, Err: syscall.EINVAL}
	}
	temp := filepath.Join(filepath.Dir(to), ".caisson-"+rand.Text())
	if err := copyTree(ctx, from, temp); err != nil {
		_ = os.RemoveAll(temp)
		return err
	}
	if err := os.Rename(temp, to); err != nil {
		_ = os.RemoveAll(temp)
		return err
	}
	return os.RemoveAll(from)
}

// copyTree copies files, directories, links and fifos with owner, mode, times
// and user attributes.
func copyTree(ctx context.Context, from, to string) error {
	type stamp struct {
		path string
		st   *syscall.Stat_t
	}
	var dirs []stamp
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("stat %s: no attributes", path)
		}
		target := filepath.Join(to, rest)
		if err := copyOne(path, target, st); err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, stamp{target, st})
			return nil
		}
		return setTimes(target, st)
	})
	// Directories last: filling them changes their times.
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = setTimes(dirs[i].path, dirs[i].st)
	}
	return err
}

func copyOne(from, to string, st *syscall.Stat_t) error {
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
	case syscall.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
		return os.Lchown(to, int(st.Uid), int(st.Gid))
	case syscall.S_IFIFO:
		if err := unix.Mkfifo(to, 0o600); err != nil {
			return &os.PathError{Op: "mkfifo", Path: to, Err: err}
		}
	case syscall.S_IFREG:
		if err := copyFile(from, to); err != nil {
			return err
		}
	default:
		return &os.PathError{Op: "copy", Path: from, Err: syscall.EINVAL}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	// After chown, which clears set-uid bits.
	if err := syscall.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	copyAttrs(from, to)
	return nil
}

func copyFile(from, to string) error {
	src, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 256<<10))
	return errors.Join(err, dst.Close())
}

// copyAttrs copies user attributes; what the destination cannot hold the
// sidecar of package metadata keeps.
func copyAttrs(from, to string) {
	n, err := unix.Llistxattr(from, nil)
	if err != nil || n == 0 {
		return
	}
	names := make([]byte, 64<<10)
	if n, err = unix.Llistxattr(from, names); err != nil {
		return
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		if n, err := unix.Lgetxattr(from, name, value); err == nil {
			_ = unix.Lsetxattr(to, name, value[:n], 0)
		}
	}
}

func setTimes(path string, st *syscall.Stat_t) error {
	times := []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimes", Path: path, Err: err}
	}
	return nil
}
