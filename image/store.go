package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxNotes bounds the notes of an image in bytes.
const maxNotes = 4 << 20

// Store is a directory of images. It is safe for concurrent use, also by
// several processes.
type Store struct {
	dir string
}

// Open returns the store in dir, which is made when missing.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	return &Store{dir: abs}, nil
}

// Dir returns the directory of the store.
func (s *Store) Dir() string { return s.dir }

// Put stores the image that write makes in the empty file it is given. The
// image appears complete or not at all; one that is stored already is returned
// as it is. A full disk is errdefs.ErrResourceExhausted and says where.
func (s *Store) Put(ctx context.Context, write func(*os.File) error) (Rootfs, error) {
	tmp, err := s.temp()
	if err != nil {
		return Rootfs{}, s.explain(err)
	}
	// Closing gives up the lock, so the name goes first.
	defer tmp.Close()
	defer os.Remove(tmp.Name())
	if err := write(tmp); err != nil {
		return Rootfs{}, s.explain(err)
	}
	// The disk works while the digest is being made.
	synced := make(chan error, 1)
	go func() { synced <- tmp.Sync() }()
	sum, size, err := hash(ctx, tmp)
	if serr := <-synced; serr != nil {
		return Rootfs{}, s.explain(fmt.Errorf("sync image: %w", serr))
	}
	if err != nil {
		return Rootfs{}, err
	}
	if err := tmp.Chmod(0o444); err != nil {
		return Rootfs{}, fmt.Errorf("protect image: %w", err)
	}
	if err := s.publish(tmp.Name(), sum); err != nil {
		return Rootfs{}, s.explain(err)
	}
	return Rootfs{Digest: digestPrefix + sum, Path: s.path(sum, imageSuffix), SizeBytes: size}, nil
}

// temp makes a file that GC knows to be in use by the lock on it.
func (s *Store) temp() (*os.File, error) {
	// GC waits meanwhile: it must not see the file before its lock.
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := os.CreateTemp(s.dir, tempPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("create image: %w", err)
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock new image: %w", err), os.Remove(f.Name()), f.Close())
	}
	return f, nil
}

func (s *Store) publish(tmp, sum string) error {
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	// A fresh time keeps GC away until the caller has recorded the digest.
	now := time.Now()
	final := s.path(sum, imageSuffix)
	err = os.Chtimes(final, now, now)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep stored image: %w", err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return fmt.Errorf("name image: %w", err)
	}
	return s.syncDir()
}

func (s *Store) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync image store: %w", err)
	}
	return nil
}

// Get returns the stored image of that digest, errdefs.ErrNotFound when there
// is none.
func (s *Store) Get(digest string) (Rootfs, error) {
	h, err := parseDigest(digest)
	if err != nil {
		return Rootfs{}, err
	}
	st, err := os.Lstat(s.path(h, imageSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return Rootfs{}, fmt.Errorf("image %s is not in %s: %w", digest, s.dir, errdefs.ErrNotFound)
	}
	if err != nil {
		return Rootfs{}, fmt.Errorf("get image: %w", err)
	}
	return Rootfs{Digest: digest, Path: s.path(h, imageSuffix), SizeBytes: st.Size()}, nil
}

// List returns all stored images, sorted by digest.
func (s *Store) List() ([]Rootfs, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var all []Rootfs
	for _, e := range entries {
		h, ok := strings.CutSuffix(e.Name(), imageSuffix)
		if !ok || !isHex(h) {
			continue
		}
		switch r, err := s.Get(digestPrefix + h); {
		case errdefs.IsNotFound(err): // removed meanwhile
		case err != nil:
			return nil, err
		default:
			all = append(all, r)
		}
	}
	return all, nil
}

// Verify reads the image again; errdefs.ErrDataLoss when the file is not what
// its digest says.
func (s *Store) Verify(ctx context.Context, digest string) error {
	r, err := s.Get(digest)
	if err != nil {
		return err
	}
	f, err := os.Open(r.Path)
	if err != nil {
		return fmt.Errorf("verify image: %w", err)
	}
	defer f.Close()
	sum, _, err := hash(ctx, f)
	if err != nil {
		return err
	}
	if digestPrefix+sum != digest {
		return fmt.Errorf("image %s has the content of sha256:%s; delete it and build again: %w", r.Path, sum, errdefs.ErrDataLoss)
	}
	return nil
}

// SetNotes keeps notes, a JSON document, beside a stored image, in place of
// earlier ones. GC removes them with the image.
func (s *Store) SetNotes(digest string, notes []byte) error {
	h, err := parseDigest(digest)
	if err != nil {
		return err
	}
	if len(notes) > maxNotes {
		return fmt.Errorf("notes of %d bytes, at most %d are kept: %w", len(notes), maxNotes, errdefs.ErrInvalidArgument)
	}
	tmp, err := s.temp()
	if err != nil {
		return s.explain(err)
	}
	defer tmp.Close()
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(notes)
	if err := errors.Join(err, tmp.Chmod(0o444), tmp.Sync()); err != nil {
		return s.explain(fmt.Errorf("write notes: %w", err))
	}
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.Get(digest); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), s.path(h, notesSuffix)); err != nil {
		return fmt.Errorf("name notes: %w", err)
	}
	return s.syncDir()
}

// Notes returns the notes of an image; errdefs.ErrNotFound when it has none.
func (s *Store) Notes(digest string) ([]byte, error) {
	h, err := parseDigest(digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(h, notesSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("image %s has no notes: %w", digest, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read notes: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxNotes))
	if err != nil {
		return nil, fmt.Errorf("read notes: %w", err)
	}
	return b, nil
}

func (s *Store) path(hex, suffix string) string {
	return filepath.Join(s.dir, hex+suffix)
}

func hash(ctx context.Context, f *os.File) (sum string, size int64, err error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return "", 0, context.Cause(ctx)
		}
		n, err := f.ReadAt(buf, size)
		h.Write(buf[:n])
		size += int64(n)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), size, nil
		}
		if err != nil {
			return "", 0, fmt.Errorf("read image: %w", err)
		}
	}
}

// lock takes the lock of the whole store: shared to add, exclusive to remove.
func (s *Store) lock(how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock image store: %w", err)
	}
	if err := flock(f, how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock image store: %w", err), f.Close())
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
