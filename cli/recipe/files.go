package recipe

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// Tree is a directory that recipes copy from, without what its .dockerignore
// leaves out. Nothing outside of it is ever read: links are copied as links.
type Tree struct {
	root   *os.Root
	ignore *patternmatcher.PatternMatcher
}

// OpenTree opens a directory. The caller closes it.
func OpenTree(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	var patterns []string
	f, err := root.Open(".dockerignore")
	if err == nil {
		patterns, err = ignorefile.ReadAll(io.LimitReader(f, maxFile))
		err = errors.Join(err, f.Close())
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	var ignore *patternmatcher.PatternMatcher
	if err == nil {
		ignore, err = patternmatcher.New(patterns)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf(".dockerignore: %w", err), root.Close())
	}
	return &Tree{root, ignore}, nil
}

// Close closes the directory.
func (t *Tree) Close() error { return t.root.Close() }

// entry is a file that a pattern matches.
type entry struct {
	path string // relative to the tree, with slashes
	info fs.FileInfo
}

// match lists what a pattern means, sorted: what it names, and below it all.
func (t *Tree) match(pattern string) ([]entry, error) {
	pattern = path.Clean(filepath.ToSlash(pattern))
	if path.IsAbs(pattern) || pattern == ".." || strings.HasPrefix(pattern, "../") {
		return nil, fmt.Errorf("%q lies outside of the directory of the recipe: %w", pattern, errdefs.ErrInvalidArgument)
	}
	want := strings.Split(pattern, "/")
	for _, w := range want {
		if _, err := path.Match(w, ""); err != nil {
			return nil, fmt.Errorf("%q is not a pattern: %w", pattern, errdefs.ErrInvalidArgument)
		}
	}
	var out []entry
	err := fs.WalkDir(t.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == "." {
			return nil
		}
		ignored, err := t.ignore.MatchesOrParentMatches(p) //nolint:staticcheck // one path at a time is what is needed
		if err != nil {
			return err
		}
		if ignored {
			if d.IsDir() && !t.ignore.Exclusions() {
				return fs.SkipDir
			}
			return nil
		}
		if pattern != "." && !matches(want, strings.Split(p, "/")) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		out = append(out, entry{p, info})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("nothing matches %q: %w", pattern, errdefs.ErrNotFound)
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	return out, nil
}

// matches says whether a pattern names a path or something above it. ** is any
// number of directories.
func matches(want, have []string) bool {
	if len(want) == 0 {
		return true
	}
	if want[0] == "**" {
		for i := range len(have) + 1 {
			if (i < len(have) || len(want) == 1) && matches(want[1:], have[i:]) {
				return true
			}
		}
		return false
	}
	if len(have) == 0 {
		return false
	}
	ok, err := path.Match(want[0], have[0])
	return ok && err == nil && matches(want[1:], have[1:])
}

// Hash is the name that the files of a COPY have: it changes with the operands
// and with any path, mode, size or content, and is made the way E2B's SDKs make
// theirs.
func (t *Tree) Hash(s Source) (string, error) {
	entries, err := t.match(s.Pattern)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintf(h, "COPY %s %s", s.Pattern, s.Dest)
	for _, e := range entries {
		io.WriteString(h, e.path) //nolint:errcheck // a hash never fails to write
		st, ok := e.info.Sys().(*syscall.Stat_t)
		if !ok {
			return "", fmt.Errorf("%s has no mode on this system: %w", e.path, errdefs.ErrNotImplemented)
		}
		io.WriteString(h, strconv.FormatUint(uint64(st.Mode), 10)) //nolint:errcheck // see above
		io.WriteString(h, strconv.FormatInt(st.Size, 10))          //nolint:errcheck // see above
		switch {
		case e.info.Mode().IsRegular():
			f, err := t.root.Open(e.path)
			if err == nil {
				_, err = io.Copy(h, f)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				return "", err
			}
		case e.info.Mode()&fs.ModeSymlink != 0:
			target, err := t.root.Readlink(e.path)
			if err != nil {
				return "", err
			}
			io.WriteString(h, target) //nolint:errcheck // see above
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Archive writes the files of a COPY to w as a gzipped tar. Sockets, devices and
// the like are errdefs.ErrInvalidArgument.
func (t *Tree) Archive(s Source, w io.Writer) error {
	entries, err := t.match(s.Pattern)
	if err != nil {
		return err
	}
	gz := gzip.NewWriter(w)
	out := tar.NewWriter(gz)
	for _, e := range entries {
		if err := t.pack(out, e); err != nil {
			return fmt.Errorf("pack %s: %w", e.path, err)
		}
	}
	return errors.Join(out.Close(), gz.Close())
}

func (t *Tree) pack(out *tar.Writer, e entry) error {
	target := ""
	var err error
	switch kind := e.info.Mode().Type(); kind {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = t.root.Readlink(e.path); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a %s cannot be copied: %w", kind, errdefs.ErrInvalidArgument)
	}
	h, err := tar.FileInfoHeader(e.info, target)
	if err != nil {
		return err
	}
	h.Name = e.path
	if e.info.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	h.Format = tar.FormatPAX
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	if !e.info.Mode().IsRegular() {
		return nil
	}
	f, err := t.root.Open(e.path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(out, f, h.Size)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("became shorter while it was read: %w", errdefs.ErrUnavailable)
	}
	return err
}
