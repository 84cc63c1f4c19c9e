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
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

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
	root  *os.Root
	limit Limits

	mu       sync.Mutex                // guards reserved
	reserved map[identity.TeamID]int64 // of uploads under way
}

// Limits bound uploads, in bytes; 0 means no limit.
type Limits struct {
	// Space bounds all files together, Team those of one team.
	Space, Team int64
}

// Open returns the uploads in dir, which is made (mode 0700) if absent.
func Open(dir string, l Limits) (*Files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make upload directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open upload directory: %w", err)
	}
	return &Files{root: root, limit: l, reserved: map[identity.TeamID]int64{}}, nil
}

// Dir is the directory.
func (f *Files) Dir() string { return f.root.Name() }

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
// no space is ErrResourceExhausted, more than all of it apierr.ErrTooLarge.
func (f *Files) Put(ctx context.Context, team identity.TeamID, hash string, r io.Reader, size int64) (err error) {
	name, err := path(team, hash)
	if err != nil {
		return err
	}
	if err := f.reserve(team, size); err != nil {
		return err
	}
	defer f.release(team, size)
	out, temp, err := f.temp(team)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.root.Remove(temp) // else the sweep does
		}
	}()
	err = receive(ctx, out, r, size)
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

// temp makes a file of a team that has no name yet.
func (f *Files) temp(team identity.TeamID) (out *os.File, name string, err error) {
	if err := f.root.MkdirAll(string(team), 0o700); err != nil {
		return nil, "", fmt.Errorf("keep upload: %w", err)
	}
	name = string(team) + "/" + tempName + rand.Text()
	out, err = f.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("keep upload: %w", err)
	}
	return out, name, nil
}

// receive copies exactly size bytes.
func receive(ctx context.Context, out io.Writer, r io.Reader, size int64) error {
	n, err := io.Copy(out, io.LimitReader(r, size+1))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || err == nil && n != size {
		return fmt.Errorf("the upload has not the %d bytes that it announced: %w", size, errdefs.ErrInvalidArgument)
	}
	return err
}

// Spooled is an upload that is used at once and then gone.
type Spooled struct {
	*os.File
	Size  int64
	close func()
}

// Close frees its space.
func (s *Spooled) Close() error {
	s.close()
	return s.File.Close()
}

// Spool takes size bytes of r into a file without a name: nothing of it is left
// once it is closed or the process has died. Errors are those of Put.
func (f *Files) Spool(ctx context.Context, team identity.TeamID, r io.Reader, size int64) (_ *Spooled, err error) {
	if !teamForm.MatchString(string(team)) {
		return nil, fmt.Errorf("no team is called %.64q: %w", team, errdefs.ErrInvalidArgument)
	}
	if err := f.reserve(team, size); err != nil {
		return nil, err
	}
	done := sync.OnceFunc(func() { f.release(team, size) })
	out, name, err := f.temp(team)
	if err == nil {
		err = f.root.Remove(name)
	}
	if err == nil {
		err = receive(ctx, out, r, size)
	}
	if err != nil {
		done()
		if out != nil {
			err = errors.Join(err, out.Close())
		}
		return nil, fmt.Errorf("receive archive: %w", err)
	}
	return &Spooled{File: out, Size: size, close: done}, nil
}

// reserve makes room for size bytes, if need be at the cost of files that nobody
// has asked for lately: those of the team, when its own share is used up.
func (f *Files) reserve(team identity.TeamID, size int64) error {
	if size < 0 {
		return fmt.Errorf("the size of an upload must be known: %w", errdefs.ErrInvalidArgument)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := f.list()
	if err != nil {
		return err
	}
	if l := f.limit.Team; l > 0 {
		if err := f.makeRoom(all, &bound{team: team, most: l, name: "template.upload_space_per_team"}, size); err != nil {
			return err
		}
	}
	if l := f.limit.Space; l > 0 {
		if err := f.makeRoom(all, &bound{most: l, name: "template.upload_space"}, size); err != nil {
			return err
		}
	}
	if err := f.fits(size); err != nil {
		return err
	}
	f.reserved[team] += size
	return nil
}

// bound is a limit of a team's files, or of all where team is empty.
type bound struct {
	team identity.TeamID
	most int64
	name string
}

// makeRoom removes files, the oldest first, until size bytes fit a limit; mu is held.
// apierr.ErrTooLarge when they never do.
func (f *Files) makeRoom(all []kept, b *bound, size int64) error {
	if size > b.most { // no file need go for that, and waiting does not help
		e := apierr.New(apierr.ErrTooLarge, "an upload of %d bytes is above the limit of %d", size, b.most)
		e.Limit = b.name
		return e
	}
	var used int64
	for team, n := range f.reserved {
		if b.team == "" || team == b.team {
			used += n
		}
	}
	counts := func(e kept) bool {
		return !e.gone && (b.team == "" || strings.HasPrefix(e.name, string(b.team)+"/"))
	}
	for _, e := range all {
		if counts(e) {
			used += e.size
		}
	}
	free := time.Now().Add(-inUse)
	for i, e := range all {
		if size <= b.most-used || !e.at.Before(free) {
			break // the rest is younger
		}
		if !counts(e) || e.temp {
			continue
		}
		if err := f.root.Remove(e.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make room for an upload: %w", err)
		}
		all[i].gone = true
		used -= e.size
	}
	if size > b.most-used {
		e := apierr.New(errdefs.ErrResourceExhausted, "there is no room for an upload of %d bytes: %d of %d are in use, and what is not needed any more goes after %s", size, used, b.most, inUse)
		e.Limit = b.name
		return e
	}
	return nil
}

// fits refuses what the disk has no room for, before it is sent; mu is held.
func (f *Files) fits(size int64) error {
	d, err := f.root.Open(".")
	if err != nil {
		return fmt.Errorf("free space for uploads: %w", err)
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("free space for uploads: %w", err)
	}
	// What is reserved may be on the disk already, in part: this only errs early.
	var reserved int64
	for _, n := range f.reserved {
		reserved += n
	}
	if free := int64(st.Bavail) * st.Bsize; size > free-reserved {
		return fmt.Errorf("an upload of %d MiB, with %d MiB free: %w", size>>20, max(0, free-reserved)>>20, syscall.ENOSPC)
	}
	return nil
}

func (f *Files) release(team identity.TeamID, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reserved[team] -= size; f.reserved[team] <= 0 {
		delete(f.reserved, team)
	}
}

type kept struct {
	name string
	size int64
	at   time.Time
	temp bool
	gone bool // removed since it was listed
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
		all = append(all, kept{name: name, size: size, at: fi.ModTime(), temp: temp})
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
