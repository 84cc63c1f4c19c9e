package filesystem

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/caisson-dev/caisson/gen/filesystem"
)

// entry describes the file at path without following a final link, except that
// type and mode of a link are those of its target.
func (s *Service) entry(path string) (*pb.EntryInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return s.describe(path, fi), nil
}

func (s *Service) describe(path string, fi fs.FileInfo) *pb.EntryInfo {
	e := &pb.EntryInfo{
		Name:         wireText(filepath.Base(path)),
		Type:         fileType(fi.Mode()),
		Path:         wireText(path),
		Size:         fi.Size(),
		Mode:         uint32(fi.Mode().Perm()),
		Permissions:  permissions(fi.Mode()),
		ModifiedTime: timestamppb.New(fi.ModTime()),
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		e.Owner = s.sess.Accounts.UserName(st.Uid)
		e.Group = s.sess.Accounts.GroupName(st.Gid)
	}
	if fi.Mode()&fs.ModeSymlink == 0 {
		e.Metadata = wireMap(s.meta.Get(path))
		return e
	}
	e.IsSymlink = true
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		if raw, err := os.Readlink(path); err == nil {
			if !filepath.IsAbs(raw) {
				raw = filepath.Join(filepath.Dir(path), raw)
			}
			e.SymlinkTarget = new(wireText(raw))
		}
		return e
	}
	e.SymlinkTarget = new(wireText(target))
	if ti, err := os.Stat(target); err == nil {
		e.Type = fileType(ti.Mode())
		e.Mode = uint32(ti.Mode().Perm())
		e.Metadata = wireMap(s.meta.Get(target))
	}
	return e
}

// wireText makes a file name fit for a protobuf string, which must be UTF-8.
func wireText(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func wireMap(m map[string]string) map[string]string {
	for k, v := range m {
		if fixed := wireText(k); fixed != k {
			delete(m, k)
			m[fixed] = v
		}
	}
	return m
}

func fileType(m fs.FileMode) pb.FileType {
	switch {
	case m.IsRegular():
		return pb.FileType_FILE_TYPE_FILE
	case m.IsDir():
		return pb.FileType_FILE_TYPE_DIRECTORY
	case m&fs.ModeSymlink != 0:
		return pb.FileType_FILE_TYPE_SYMLINK
	}
	return pb.FileType_FILE_TYPE_UNSPECIFIED
}

// permissions is ten characters, the first of which is Go's letter of the type
// ("L" for a link), as the E2B agent has it.
func permissions(m fs.FileMode) string {
	text := m.Perm().String() // "-rw-r--r--"
	kind := "-"
	switch {
	case m.IsDir():
		kind = "d"
	case m&fs.ModeSymlink != 0:
		kind = "L"
	case m&fs.ModeNamedPipe != 0:
		kind = "p"
	case m&fs.ModeSocket != 0:
		kind = "S"
	case m&fs.ModeDevice != 0:
		kind = "D"
	}
	return kind + text[1:]
}

// list walks root to depth in lexical order. A root that is a link to a
// directory is followed; paths are reported under root as it was given.
func (s *Service) list(ctx context.Context, root string, depth int) ([]*pb.EntryInfo, error) {
	actual, err := realDir(root)
	if err != nil {
		return nil, err
	}
	var entries []*pb.EntryInfo
	err = filepath.WalkDir(actual, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if path == actual {
			return err
		}
		if err != nil {
			// Gone or unreadable meanwhile: the entry itself was reported.
			return nil
		}
		rest, err := filepath.Rel(actual, path)
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		e := s.describe(path, fi)
		e.Path = wireText(filepath.Join(root, rest))
		entries = append(entries, e)
		if d.IsDir() && strings.Count(rest, "/")+1 >= depth {
			return fs.SkipDir
		}
		return nil
	})
	return entries, err
}

// realDir resolves links in path, which must be a directory.
func realDir(path string) (string, error) {
	fi, err := os.Stat(path) // tells a loop, which EvalSymlinks does not
	if err != nil {
		return "", err
	}
	if !fi.IsDir() {
		return "", &os.PathError{Op: "open", Path: path, Err: syscall.ENOTDIR}
	}
	return filepath.EvalSymlinks(path)
}
