package metadata

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxAttr bounds one attribute value and the list of names, as Linux does.
const maxAttr = 64 << 10

// Store reads and writes metadata. Safe for concurrent use.
type Store struct{ side *sidecar }

// New returns a store whose sidecar is kept in file; an empty name keeps it in
// memory only. Records of an earlier run are moved into attributes where that
// is possible now.
func New(file string) *Store {
	s := &Store{side: newSidecar(file)}
	s.side.adopt(setAll)
	return s
}

// Get returns the metadata of the file at path, following links; nil when there
// is none or it cannot be read.
func (s *Store) Get(path string) map[string]string {
	m := getAll(path)
	if side := s.side.get(path); side != nil {
		if m == nil {
			return side
		}
		for k, v := range side {
			m[k] = v
		}
	}
	return m
}

// Replace makes m the whole metadata of the open file f at path.
func (s *Store) Replace(f *os.File, path string, m map[string]string) error {
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	old := getAll(name)
	for k := range old {
		if _, keep := m[k]; keep {
			continue
		}
		if err := unix.Removexattr(name, attrPrefix+k); err != nil && !errors.Is(err, unix.ENODATA) {
			return &os.PathError{Op: "removexattr", Path: path, Err: err}
		}
	}
	err := setAll(name, m)
	if err == nil {
		s.side.set(path, nil)
		return nil
	}
	if !cannotHold(err) {
		return &os.PathError{Op: "setxattr", Path: path, Err: err}
	}
	s.side.set(path, m)
	return nil
}

// Moved follows a rename of a file or a tree.
func (s *Store) Moved(from, to string) { s.side.moved(from, to) }

// Removed forgets a file or a tree.
func (s *Store) Removed(path string) { s.side.removed(path) }

// cannotHold reports whether the file system lacks attributes, or room for
// these.
func cannotHold(err error) bool {
	for _, e := range []error{unix.ENOTSUP, unix.ENOSYS, unix.EPERM, unix.ENOSPC, unix.E2BIG, unix.EROFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func setAll(path string, m map[string]string) error {
	for k, v := range m {
		if err := unix.Setxattr(path, attrPrefix+k, []byte(v), 0); err != nil {
			return err
		}
	}
	return nil
}

func getAll(path string) map[string]string {
	// Most files have none: ask for the size first.
	n, err := unix.Listxattr(path, nil)
	if err != nil || n == 0 {
		return nil
	}
	buf := make([]byte, maxAttr)
	if n, err = unix.Listxattr(path, buf); err != nil {
		return nil
	}
	var m map[string]string
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		key, ok := strings.CutPrefix(string(name), attrPrefix)
		if !ok {
			continue
		}
		value := make([]byte, maxAttr)
		n, err := unix.Getxattr(path, string(name), value)
		if err != nil {
			continue
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[key] = strings.ToValidUTF8(string(value[:n]), "\uFFFD")
	}
	return m
}
