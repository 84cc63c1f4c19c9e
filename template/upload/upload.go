// Package upload keeps the archives that recipes copy from: one directory a
// team, one file a hash. The bytes are a guest's business: nothing here looks
// into an archive, and nothing on the host unpacks one.
//
// Package queue decides who may upload; this package bounds the space.
package upload

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
)

const (
	// inUse is how long a file that was asked for is safe from being removed for
	// another one: longer than a build waits and takes.
	inUse    = 6 * time.Hour
	tempName = ".tmp-"
	// tempAge is when an upload that was not finished is rubbish.
	tempAge = 24 * time.Hour
)

var (
	hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
	teamForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)
)

// Files keeps uploads in a directory. It is safe for concurrent use, also by
// several processes.
type Files struct {
	root *os.Root
	// space bounds all files together, in bytes; 0 means no limit.
	space int64

	mu       sync.Mutex // guards reserved
	reserved int64      // of uploads under way
}

// Open returns the uploads in dir, which is made (mode 0700) if absent.
func Open(dir string, space int64) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make upload directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open upload directory: %w", err)
	}
	return &Files{root: root, space: space}, nil
}

// Close closes the directory.
func (f *Files) Close() error { return f.root.Close() }

func path(team identity.TeamID, hash string) (string, error) {
	if !teamForm.MatchString(string(team)) || !hashForm.MatchString(hash) {
		return "", fmt.Errorf("no file has the name %.64q: %w", hash, errdefs.ErrInvalidArgument)
	}
	return string(team) + "/" + hash, nil
}

// Has says whether a team has uploaded the files of a hash; they stay for at
// least six hours from now.
func (f *Files) Has(team identity.TeamID, hash string) (bool, error) {
	name, err := path(team, hash)
	if err != nil {
		return false, err
	}
	t := time.Now()
	err = f.root.Chtimes(name, t, t)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Put keeps size bytes of r as the files of a hash, all of them or nothing; what
// was there is replaced. Fewer bytes, or more, are errdefs.ErrInvalidArgument;
// no space is ErrResourceExhausted.
func (f *Files) Put(ctx context.Context, team identity.TeamID, hash string, r io.Reader, size int64) (err error) {
	name, err := path(team, hash)
	if err != nil {
		return err
	}
	if err := f.reserve(size); err != nil {
		return err
	}
	defer f.release(size)
	if err := f.root.MkdirAll(string(team), 0o700); err != nil {
		return fmt.Errorf("keep upload: %w", err)
	}
	temp := string(team) + "/" + tempName + rand.Text()
	out, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("keep upload: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.root.Remove(temp) // else the sweep does
		}
	}()
	n, err := io.Copy(out, io.LimitReader(r, size+1))
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && n != size {
		err = fmt.Errorf("the upload has not the %d bytes that it announced: %w", size, errdefs.ErrInvalidArgument)
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("keep upload: %w", err)
	}
	if err := f.root.Rename(temp, name); err != nil {
		return fmt.Errorf("keep upload: %w", err)
	}
	return nil
}

// reserve makes room for size bytes, if need be at the cost of files that nobody
// has asked for lately.
func (f *Files) reserve(size int64) error {
	if size < 0 {
		return fmt.Errorf("the size of an upload must be known: %w", errdefs.ErrInvalidArgument)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.space > 0 {
		all, err := f.list()
		if err != nil {
			return err
		}
		var used int64
		for _, e := range all {
			used += e.size
		}
		free := time.Now().Add(-inUse)
		for _, e := range all {
			if used+f.reserved+size <= f.space || !e.at.Before(free) {
				break // the rest is younger
			}
			if err := f.root.Remove(e.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("make room for an upload: %w", err)
			}
			used -= e.size
		}
		if used+f.reserved+size > f.space {
			e := apierr.New(errdefs.ErrResourceExhausted, "there is no room for an upload of %d bytes: %d of %d are in use, and what is not needed any more goes after %s", size, used+f.reserved, f.space, inUse)
			e.Limit = "template.upload_space"
			return e
		}
	}
	f.reserved += size
	return nil
}

func (f *Files) release(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reserved -= size
}

type kept struct {
	name string
	size int64
	at   time.Time
	temp bool
}

// list returns the complete files and the others, the oldest first.
func (f *Files) list() ([]kept, error) {
	var all []kept
	err := fs.WalkDir(f.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		temp := strings.HasPrefix(d.Name(), tempName)
		size := fi.Size()
		if temp {
			size = 0 // it is reserved
		}
		all = append(all, kept{name, size, fi.ModTime(), temp})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list uploads: %w", err)
	}
	slices.SortFunc(all, func(a, b kept) int { return a.at.Compare(b.at) })
	return all, nil
}

// Sweep removes the files that nobody has asked for since before, and what
// uploads left that were not finished.
func (f *Files) Sweep(before time.Time) error {
	all, err := f.list()
	if err != nil {
		return err
	}
	rubbish := time.Now().Add(-tempAge)
	for _, e := range all {
		if e.temp && e.at.Before(rubbish) || !e.temp && e.at.Before(before) {
			if err := f.root.Remove(e.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove upload: %w", err)
			}
		}
	}
	return nil
}

// Open returns the archive of a hash, gzipped whether it was uploaded so or not.
// errdefs.ErrNotFound when there is none. The caller closes it.
func (f *Files) Open(team identity.TeamID, hash string) (io.ReadCloser, error) {
	name, err := path(team, hash)
	if err != nil {
		return nil, err
	}
	file, err := f.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("files with hash %s: %w", hash, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open upload: %w", err)
	}
	in := bufio.NewReaderSize(file, 64<<10)
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		return struct {
			io.Reader
			io.Closer
		}{in, file}, nil
	}
	r, w := io.Pipe()
	z := &zipped{PipeReader: r, file: file, done: make(chan struct{})}
	go func() {
		defer close(z.done)
		gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err == nil {
			_, err = io.Copy(gz, in)
			err = errors.Join(err, gz.Close())
		}
		w.CloseWithError(err)
	}()
	return z, nil
}

// zipped compresses a file as it is read.
type zipped struct {
	*io.PipeReader
	file io.Closer
	done chan struct{}
}

// Close ends the compression and closes the file.
func (z *zipped) Close() error {
	err := z.PipeReader.Close()
	<-z.done
	return errors.Join(err, z.file.Close())
}
