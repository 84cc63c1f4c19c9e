package erofs

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// File types and permission bits as Linux writes them in an inode's mode.
const (
	typeMask = 0o170000
	typeFifo = 0o010000
	typeChar = 0o020000
	typeDir  = 0o040000
	typeBlk  = 0o060000
	typeReg  = 0o100000
	typeLink = 0o120000
	permMask = 0o007777

	// maxTarget is the longest target that Linux and gVisor read back.
	maxTarget = 4095
	// maxHops bounds the symbolic links followed in one path, as Linux does.
	maxHops = 40
)

// node is an inode. Hard links share one.
type node struct {
	mode     uint32
	uid, gid uint32
	mtime    uint64
	nsec     uint32
	nlink    uint32
	rdev     uint32
	size     uint64
	block    uint32 // first block of data
	depth    int    // of a directory, below the root
	layer    int    // the archive that last set this node
	target   string
	kids     map[string]*node
	parent   *node
	// Set when the image is laid out.
	names []string // of kids, sorted
	nid   uint64
}

func (n *node) isDir() bool     { return n.mode&typeMask == typeDir }
func (n *node) isSymlink() bool { return n.mode&typeMask == typeLink }
func (n *node) isRegular() bool { return n.mode&typeMask == typeReg }

func newDir(parent *node, perm uint32, layer int) *node {
	d := &node{mode: typeDir | perm&permMask, nlink: 2, kids: map[string]*node{}, parent: parent, layer: layer}
	if parent == nil {
		d.parent = d
		return d
	}
	d.depth = parent.depth + 1
	return d
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func exhausted(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrResourceExhausted)...)
}

// tree is the filesystem as it grows.
type tree struct {
	root   *node
	inodes int
	layer  int
	limits Limits
}

func newTree(l Limits) *tree {
	return &tree{root: newDir(nil, 0o755, 0), inodes: 1, limits: l}
}

// clean splits a path into its components, relative to the root. A path that
// climbs is refused rather than clamped: no honest archive has one.
func (t *tree) clean(name string) ([]string, error) {
	if len(name) > t.limits.PathBytes {
		return nil, exhausted("path of %d bytes, at most %d are allowed", len(name), t.limits.PathBytes)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, invalid("path %q holds a NUL byte", name)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return nil, invalid("path %q climbs with ..", name)
		case len(p) > MaxName:
			return nil, invalid("name of %d bytes in a path, at most %d are allowed", len(p), MaxName)
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) > t.limits.Depth {
		return nil, exhausted("path %.80q… is %d deep, at most %d are allowed", name, len(parts), t.limits.Depth)
	}
	return parts, nil
}

// walk follows parts from dir and returns the node there, or nil when there is
// none. Symbolic links are followed inside the tree, never outside, the last
// component only when follow is set. With mk set missing directories are made.
func (t *tree) walk(parts []string, follow, mk bool) (*node, error) {
	cur := t.root
	hops := 0
	todo := append([]string(nil), parts...)
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if !cur.isDir() {
			return nil, nil
		}
		if name == ".." {
			cur = cur.parent
			continue
		}
		kid := cur.kids[name]
		if kid == nil {
			if !mk {
				return nil, nil
			}
			var err error
			if kid, err = t.mkdir(cur, name); err != nil {
				return nil, err
			}
		}
		if !kid.isSymlink() || (len(todo) == 0 && !follow) {
			cur = kid
			continue
		}
		if hops++; hops > maxHops {
			return nil, invalid("path %q runs in a circle of symbolic links", strings.Join(parts, "/"))
		}
		if strings.HasPrefix(kid.target, "/") {
			cur = t.root
		}
		todo = append(splitTarget(kid.target), todo...)
		if len(todo) > maxTarget {
			return nil, invalid("path %q is too long with its symbolic links followed", strings.Join(parts, "/"))
		}
	}
	return cur, nil
}

func splitTarget(target string) []string {
	var parts []string
	for p := range strings.SplitSeq(target, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return parts
}

// parent returns the directory that is to hold the last of parts, made when
// missing. A parent that is something else is an error.
func (t *tree) parent(parts []string) (*node, error) {
	dir, err := t.walk(parts[:len(parts)-1], true, true)
	if err != nil {
		return nil, err
	}
	if dir == nil || !dir.isDir() {
		return nil, invalid("path %q has a parent that is not a directory", strings.Join(parts, "/"))
	}
	return dir, nil
}

func (t *tree) mkdir(dir *node, name string) (*node, error) {
	if len(name) > MaxName {
		return nil, invalid("name of %d bytes in a link's target, at most %d are allowed", len(name), MaxName)
	}
	d := newDir(dir, 0o755, t.layer)
	return d, t.link(dir, name, d)
}

// link puts n into dir, in place of what had that name.
func (t *tree) link(dir *node, name string, n *node) error {
	if n.isDir() && n.depth > t.limits.Depth {
		return exhausted("directories are more than %d deep", t.limits.Depth)
	}
	if n.nlink == 0 || n.isDir() {
		t.inodes++
		if t.inodes > t.limits.Entries {
			return exhausted("image holds more than %d inodes", t.limits.Entries)
		}
	}
	// Counted first: what is unlinked may hold the last other name of n.
	if n.isDir() {
		dir.nlink++
	} else {
		n.nlink++
	}
	t.unlink(dir, name)
	dir.kids[name] = n
	return nil
}

// unlink removes name and all below it from dir. Data blocks already written
// stay in the image unused.
func (t *tree) unlink(dir *node, name string) {
	n := dir.kids[name]
	if n == nil {
		return
	}
	delete(dir.kids, name)
	if !n.isDir() {
		if n.nlink--; n.nlink == 0 {
			t.inodes--
		}
		return
	}
	for k := range n.kids {
		t.unlink(n, k)
	}
	dir.nlink--
	t.inodes--
}

// prune removes from dir what earlier layers put at name, and keeps what this
// layer did.
func (t *tree) prune(dir *node, name string) {
	n := dir.kids[name]
	if n == nil {
		return
	}
	if n.isDir() {
		for k := range n.kids {
			t.prune(n, k)
		}
	}
	if n.layer < t.layer && len(n.kids) == 0 {
		t.unlink(dir, name)
	}
}
