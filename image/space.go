package image

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CheckSpace tells early that need bytes will not fit the disk of the store:
// errdefs.ErrResourceExhausted, naming the directory, what is needed and what
// is free.
func (s *Store) CheckSpace(need int64) error {
	return CheckSpace(s.dir, need)
}

// CheckSpace is Store.CheckSpace for any directory.
func CheckSpace(dir string, need int64) error {
	free, err := freeBytes(dir)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("%s needs %d MiB of disk and has %d MiB free: free some, or choose another directory: %w",
			dir, need>>20, free>>20, errdefs.ErrResourceExhausted)
	}
	return nil
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// explain makes a full disk recognisable.
func (s *Store) explain(err error) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	free, ferr := freeBytes(s.dir)
	if ferr != nil {
		return errors.Join(err, ferr)
	}
	return fmt.Errorf("no space for an image in %s, %d MiB free: %w: %w", s.dir, free>>20, err, errdefs.ErrResourceExhausted)
}
