package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Collected tells what GC removed.
type Collected struct {
	Images     []Rootfs
	TempFiles  int
	FreedBytes int64
}

// GC removes every image whose digest is not in keep and that was put longer
// than minAge ago, notes without an image, and what processes that died left
// half written. minAge covers the time between Put and the recording of the
// digest; a few minutes are plenty. Sandboxes that run from a removed image
// keep it until they end.
func (s *Store) GC(ctx context.Context, keep []string, minAge time.Duration) (Collected, error) {
	kept := make(map[string]bool, len(keep))
	for _, digest := range keep {
		h, err := parseDigest(digest)
		if err != nil {
			return Collected{}, fmt.Errorf("collect images: %w", err)
		}
		kept[h] = true
	}
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return Collected{}, err
	}
	defer unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return Collected{}, fmt.Errorf("collect images: %w", err)
	}
	var c Collected
	limit := time.Now().Add(-minAge)
	for _, e := range entries {
		if ctx.Err() != nil {
			return c, context.Cause(ctx)
		}
		if err := s.collect(&c, e, kept, limit); err != nil {
			return c, fmt.Errorf("collect images: %w", err)
		}
	}
	return c, nil
}

func (s *Store) collect(c *Collected, e fs.DirEntry, kept map[string]bool, limit time.Time) error {
	path := filepath.Join(s.dir, e.Name())
	if strings.HasPrefix(e.Name(), tempPrefix) {
		removed, err := removeStale(path)
		if removed {
			c.TempFiles++
		}
		return err
	}
	if h, ok := strings.CutSuffix(e.Name(), notesSuffix); ok && isHex(h) {
		if _, err := os.Lstat(s.path(h, imageSuffix)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return remove(path)
	}
	h, ok := strings.CutSuffix(e.Name(), imageSuffix)
	if !ok || !isHex(h) || kept[h] {
		return nil
	}
	st, err := e.Info()
	if err != nil || st.ModTime().After(limit) {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	c.Images = append(c.Images, Rootfs{Digest: digestPrefix + h, Path: path, SizeBytes: st.Size()})
	c.FreedBytes += st.Size()
	return remove(s.path(h, notesSuffix))
}

// remove removes a file that may be gone already.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeStale removes a temporary file unless its writer still lives.
func removeStale(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, err
	}
	return true, os.Remove(path)
}
