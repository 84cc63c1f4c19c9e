package erofs_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sort"
	"strings"
	"testing"
)

// entry is what the test reader finds at a path.
type entry struct {
	Mode     uint32
	UID, GID uint32
	Size     uint64
	Mtime    uint64
	Nsec     uint32
	Nlink    uint32
	Rdev     uint32
	Nid      uint64
	Target   string
	off      int64
}

// reader reads images independently of the writer: it knows the format only.
type reader struct {
	t       testing.TB
	f       *os.File
	size    int64
	meta    int64
	root    uint64
	entries map[string]entry
	seen    map[uint64]bool
}

func openImage(t testing.TB, f *os.File) *reader {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{t: t, f: f, size: st.Size(), entries: map[string]entry{}, seen: map[uint64]bool{}}
	b := r.at(0, 4096)
	s := b[1024:]
	le := binary.LittleEndian
	if got := le.Uint32(s); got != 0xE0F5E1E2 {
		t.Fatalf("magic = %#x", got)
	}
	sum := le.Uint32(s[4:])
	le.PutUint32(s[4:], 0)
	if got := ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)); got != sum {
		t.Fatalf("superblock checksum = %#x, want %#x", sum, got)
	}
	if got := le.Uint32(s[80:]); got != 0 {
		t.Fatalf("incompatible features = %#x, want none", got)
	}
	if got := int64(le.Uint32(s[36:])) * 4096; got != r.size {
		t.Fatalf("superblock says %d bytes, file has %d", got, r.size)
	}
	r.meta = int64(le.Uint32(s[40:])) * 4096
	r.root = uint64(le.Uint16(s[14:]))
	r.walk("", r.root, r.root, 0)
	if got := le.Uint64(s[16:]); got != uint64(len(r.seen)) {
		t.Fatalf("superblock says %d inodes, found %d", got, len(r.seen))
	}
	return r
}

func (r *reader) at(off int64, n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := r.f.ReadAt(b, off); err != nil {
		r.t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	return b
}

func (r *reader) inode(nid uint64) (entry, []byte) {
	r.t.Helper()
	le := binary.LittleEndian
	off := r.meta + int64(nid)<<5
	if off%4096+64 > 4096 {
		r.t.Fatalf("inode %d crosses a block", nid)
	}
	b := r.at(off, 64)
	format := le.Uint16(b)
	if le.Uint16(b[2:]) != 0 {
		r.t.Fatalf("inode %d has attributes", nid)
	}
	e := entry{
		Mode: uint32(le.Uint16(b[4:])), Size: le.Uint64(b[8:]), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]),
		Mtime: le.Uint64(b[32:]), Nsec: le.Uint32(b[40:]), Nlink: le.Uint32(b[44:]), Nid: nid,
	}
	raw := le.Uint32(b[16:])
	e.off = int64(raw) * 4096
	switch e.Mode & 0o170000 {
	case 0o100000:
		if format != 1 {
			r.t.Fatalf("regular inode %d has format %d", nid, format)
		}
		return e, nil
	case 0o020000, 0o060000:
		e.Rdev = raw
		return e, nil
	case 0o040000, 0o120000:
	default:
		return e, nil
	}
	switch format {
	case 1:
		return e, r.at(e.off, int(e.Size))
	case 5:
		tail := int(e.Size % 4096)
		if tail == 0 || off%4096+64+int64(tail) > 4096 {
			r.t.Fatalf("inode %d has a bad inline tail of %d", nid, tail)
		}
		head := r.at(e.off, int(e.Size)-tail)
		return e, append(head, r.at(off+64, tail)...)
	}
	r.t.Fatalf("inode %d has format %d", nid, format)
	return e, nil
}

func (r *reader) walk(path string, nid, parent uint64, depth int) {
	r.t.Helper()
	e, data := r.inode(nid)
	if e.Mode&0o170000 == 0o120000 {
		e.Target = string(data)
	}
	key := path
	if key == "" {
		key = "/"
	}
	r.entries[key] = e
	isDir := e.Mode&0o170000 == 0o040000
	if r.seen[nid] && isDir {
		r.t.Fatalf("directory %q has two names", path)
	}
	r.seen[nid] = true
	if !isDir {
		return
	}
	if depth > 600 {
		r.t.Fatalf("directory %q is too deep", path)
	}
	last := ""
	for len(data) > 0 {
		block := data[:min(len(data), 4096)]
		data = data[len(block):]
		count := int(binary.LittleEndian.Uint16(block[8:])) / 12
		for i := range count {
			d := block[i*12:]
			start := int(binary.LittleEndian.Uint16(d[8:]))
			end := len(block)
			if i+1 < count {
				end = int(binary.LittleEndian.Uint16(d[20:]))
			}
			name := string(block[start:end])
			if i+1 == count {
				name, _, _ = strings.Cut(name, "\x00")
			}
			if name <= last || len(name) > 255 {
				r.t.Fatalf("directory %q: %q follows %q", path, name, last)
			}
			last = name
			kid := binary.LittleEndian.Uint64(d)
			switch name {
			case ".":
				if kid != nid {
					r.t.Fatalf("%s/. = %d, want %d", path, kid, nid)
				}
			case "..":
				if kid != parent {
					r.t.Fatalf("%s/.. = %d, want %d", path, kid, parent)
				}
			default:
				r.walk(path+"/"+name, kid, nid, depth+1)
				types := map[uint32]byte{0o100000: 1, 0o040000: 2, 0o020000: 3, 0o060000: 4, 0o010000: 5, 0o120000: 7}
				if got, want := d[10], types[r.entries[path+"/"+name].Mode&0o170000]; got != want {
					r.t.Fatalf("type of %s/%s = %d, want %d", path, name, got, want)
				}
			}
		}
	}
}

func (r *reader) file(path string) string {
	r.t.Helper()
	e, ok := r.entries[path]
	if !ok {
		r.t.Fatalf("%s is not in the image, which has %v", path, r.paths())
	}
	return string(r.at(e.off, int(e.Size)))
}

func (r *reader) paths() []string {
	var out []string
	for p := range r.entries {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

// list renders the tree for comparison: mode owner size path and more.
func (r *reader) list() []string {
	var out []string
	for _, p := range r.paths() {
		e := r.entries[p]
		size := e.Size
		if e.Mode&0o170000 == 0o040000 {
			size = 0
		}
		line := fmt.Sprintf("%o %d:%d %d %s", e.Mode, e.UID, e.GID, size, p)
		if e.Target != "" {
			line += " -> " + e.Target
		}
		if e.Rdev != 0 {
			line += fmt.Sprintf(" dev %#x", e.Rdev)
		}
		out = append(out, line)
	}
	return out
}
