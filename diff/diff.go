// Package diff compares the files of two points: what is in an image, with the
// layer that a sandbox has written on top of it. It makes a list of changes, and
// of text files unified diffs as patch and git read them.
//
// Images and layers are read as the archives they are: nothing is unpacked, and
// no link is followed. What the layers hold was made by guests; it is bounded
// before it is kept. Getting the layers is sandbox's business; this package
// imports erofs alone.
package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/caisson-dev/caisson/erofs"
)

// Point is one of the two things to compare.
type Point struct {
	// Image is the path of the image, Digest its name: with equal digests what
	// no layer touches is not read.
	Image, Digest string
	// Layer is a tar stream as provider.LayerExporter writes it; nil when there
	// is none.
	Layer *os.File
}

// Kind says what happened to a path.
type Kind string

// The kinds of changes.
const (
	Added   Kind = "added"
	Removed Kind = "removed"
	Changed Kind = "changed"
)

// Meta is what is known of a file beside its content.
type Meta struct {
	// Type is file, directory, symlink, fifo, char or block.
	Type string
	// Mode holds permissions, set-uid, set-gid and sticky as Linux numbers them.
	Mode     uint32
	UID, GID uint32
	// Size is the length of a file in bytes.
	Size int64
	// Target is where a symbolic link points, Device "major:minor".
	Target, Device string
}

// Change is one path that differs. Times of change are not compared.
type Change struct {
	// Path has no leading slash; "." is the root.
	Path string
	Kind Kind
	// Before and After are nil where there is nothing.
	Before, After *Meta
	// Content says that the content of a file differs, and not only what is
	// known beside it.
	Content bool
	// Binary and Large say why the content of a file is not in the patch.
	Binary, Large bool
	// Insertions and Deletions count lines of text.
	Insertions, Deletions int
	// Patch is the change as git writes it; empty where that has no words for it
	// or the limit of all patches is reached.
	Patch string
}

// Options bound a comparison and say what is not compared; zero members mean the
// defaults named.
type Options struct {
	// Ignore names paths that are left out, with all below them.
	Ignore []string
	// Begin and End are the first and the last line of a block that is left out of
	// texts in etc/, where both are set.
	Begin, End string
	// Changes is how many are listed. Default 20,000.
	Changes int
	// Entries is how many entries a layer may have. Default 500,000.
	Entries int
	// FileBytes is how long a file may be whose text is compared. Default 1 MiB.
	FileBytes int64
	// PatchBytes bounds all patches together. Default 8 MiB; negative makes
	// none, and counts no lines.
	PatchBytes int
}

func (o Options) withDefaults() Options {
	if o.Changes <= 0 {
		o.Changes = 20_000
	}
	if o.Entries <= 0 {
		o.Entries = 500_000
	}
	if o.FileBytes <= 0 {
		o.FileBytes = 1 << 20
	}
	if o.PatchBytes == 0 {
		o.PatchBytes = 8 << 20
	}
	return o
}

// Report is the result of a comparison, in the order of paths.
type Report struct {
	Changes []Change
	// Truncated says that there are more changes than are listed,
	// PatchesLeftOut of how many the patch did not fit.
	Truncated      bool
	PatchesLeftOut int
}

// Compare lists what changed from a to b. A layer that is damaged is
// errdefs.ErrInvalidArgument, one beyond a limit errdefs.ErrResourceExhausted.
func Compare(ctx context.Context, a, b Point, o Options) (_ Report, err error) {
	c := &comparison{options: o.withDefaults(), sameImage: a.Digest == b.Digest && a.Digest != ""}
	var roots [2]view
	for i, p := range []Point{a, b} {
		s, err := open(ctx, p, c.options)
		if err != nil {
			return Report{}, err
		}
		defer func() { err = errors.Join(err, s.image.Close()) }()
		root, err := s.image.Root()
		if err != nil {
			return Report{}, err
		}
		roots[i] = view{side: s, layer: s.layer, base: &root}
	}
	if err := c.walk(ctx, ".", roots[0], roots[1]); err != nil && !errors.Is(err, errEnough) {
		return Report{}, err
	}
	return c.report, nil
}

var errEnough = errors.New("as many changes as are listed")

type comparison struct {
	options   Options
	sameImage bool
	patched   int
	report    Report
}

// walk compares what is at a path, and all below it.
func (c *comparison) walk(ctx context.Context, path string, a, b view) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if c.untouched(a, b) || slices.Contains(c.options.Ignore, path) {
		return nil
	}
	if err := c.entry(path, a, b); err != nil {
		return fmt.Errorf("compare %.200q: %w", path, err)
	}
	left, err := a.kids()
	if err != nil {
		return fmt.Errorf("read %.200q: %w", path, err)
	}
	right, err := b.kids()
	if err != nil {
		return fmt.Errorf("read %.200q: %w", path, err)
	}
	names := make([]string, 0, len(left))
	for name := range left {
		names = append(names, name)
	}
	for name := range right {
		if _, ok := left[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		below := name
		if path != "." {
			below = path + "/" + name
		}
		if err := c.walk(ctx, below, left[name], right[name]); err != nil {
			return err
		}
	}
	return nil
}

// untouched says that neither layer has anything here or below.
func (c *comparison) untouched(a, b view) bool {
	return c.sameImage && a.layer == nil && b.layer == nil && a.base != nil && b.base != nil && a.base.Same(*b.base)
}

// entry notes how the file at path itself differs.
func (c *comparison) entry(path string, a, b view) error {
	before, err := a.meta()
	if err != nil {
		return err
	}
	after, err := b.meta()
	if err != nil {
		return err
	}
	ch := Change{Path: path, Before: before, After: after}
	switch {
	case before == nil && after == nil:
		return nil
	case before == nil:
		ch.Kind, ch.Content = Added, after.Type == "file"
	case after == nil:
		ch.Kind, ch.Content = Removed, before.Type == "file"
	default:
		ch.Kind = Changed
		if ch.Content, err = c.contentDiffers(a, b, before, after); err != nil {
			return err
		}
		if ch.Content && c.sameBut(path, a, b, before, after) {
			ch.Content, after.Size = false, before.Size
		}
		if *before == *after && !ch.Content {
			return nil
		}
	}
	if len(c.report.Changes) >= c.options.Changes {
		c.report.Truncated = true
		return errEnough
	}
	if err := c.patch(&ch, a, b); err != nil {
		return err
	}
	c.report.Changes = append(c.report.Changes, ch)
	return nil
}

func (c *comparison) contentDiffers(a, b view, before, after *Meta) (bool, error) {
	if before.Type != "file" || after.Type != "file" {
		return before.Type == "file" || after.Type == "file", nil
	}
	if before.Size != after.Size {
		return true, nil
	}
	if c.sameImage && a.layer == nil && b.layer == nil && a.base.Same(*b.base) {
		return false, nil
	}
	same, err := equal(a.data(), b.data())
	return !same, err
}

// sameBut says whether two texts differ in the block alone that is left out.
func (c *comparison) sameBut(path string, a, b view, before, after *Meta) bool {
	if c.options.Begin == "" || c.options.End == "" || !strings.HasPrefix(path, "etc/") || before.Type != "file" || after.Type != "file" {
		return false
	}
	var texts [2]string
	for i, v := range []view{a, b} {
		size := []int64{before.Size, after.Size}[i]
		if size > c.options.FileBytes {
			return false
		}
		data, err := io.ReadAll(io.LimitReader(v.data(), size))
		if err != nil {
			return false
		}
		texts[i] = c.without(string(data))
	}
	return texts[0] == texts[1]
}

// without is a text without the block.
func (c *comparison) without(text string) string {
	before, rest, ok := strings.Cut(text, c.options.Begin)
	if !ok {
		return text
	}
	_, after, ok := strings.Cut(rest, c.options.End)
	if !ok {
		return text
	}
	return before + after
}

func equal(a, b io.Reader) (bool, error) {
	var x, y [64 << 10]byte
	for {
		n, err := io.ReadFull(a, x[:])
		m, oerr := io.ReadFull(b, y[:])
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		switch {
		case ended && (errors.Is(oerr, io.EOF) || errors.Is(oerr, io.ErrUnexpectedEOF)):
			return true, nil
		case err != nil && !ended:
			return false, err
		case oerr != nil:
			return false, oerr
		}
	}
}

// patch adds to a change what git has words for: files and symbolic links.
func (c *comparison) patch(ch *Change, a, b view) error {
	if c.options.PatchBytes < 0 {
		return nil
	}
	old, err := c.text(a, ch.Before, ch)
	if err != nil {
		return err
	}
	now, err := c.text(b, ch.After, ch)
	if err != nil {
		return err
	}
	if old == nil && now == nil {
		return nil
	}
	if ch.Before != nil && ch.After != nil && ch.Before.Type != ch.After.Type {
		// One goes and another comes, in git's words.
		for _, half := range []Change{{Path: ch.Path, Kind: Removed, Before: ch.Before}, {Path: ch.Path, Kind: Added, After: ch.After}} {
			half.Binary, half.Large, half.Content = ch.Binary, ch.Large, true
			from, to := old, []byte(nil)
			if half.Kind == Added {
				from, to = nil, now
			}
			if from != nil || to != nil {
				ch.Patch += gitPatch(&half, from, to)
				ch.Insertions, ch.Deletions = ch.Insertions+half.Insertions, ch.Deletions+half.Deletions
			}
		}
	} else {
		ch.Patch = gitPatch(ch, old, now)
	}
	if c.patched+len(ch.Patch) > c.options.PatchBytes {
		ch.Patch = ""
		c.report.PatchesLeftOut++
		return nil
	}
	c.patched += len(ch.Patch)
	return nil
}

// text is what git would keep of a file: nil for what it cannot, and for what
// does not exist; empty but not nil for what is not shown.
func (c *comparison) text(v view, m *Meta, ch *Change) ([]byte, error) {
	if m == nil {
		return nil, nil
	}
	switch m.Type {
	case "symlink":
		return []byte(m.Target), nil
	case "file":
	default:
		return nil, nil
	}
	if !ch.Content {
		return []byte{}, nil // only what is known beside it differs
	}
	if m.Size > c.options.FileBytes {
		ch.Large = true
		return []byte{}, nil
	}
	data, err := io.ReadAll(io.LimitReader(v.data(), m.Size))
	if err != nil {
		return nil, err
	}
	if isBinary(data) {
		ch.Binary = true
		return []byte{}, nil
	}
	if data == nil {
		data = []byte{}
	}
	return data, nil
}

// octal is a mode as git writes it, but with all of the permission bits.
func octal(m *Meta) string {
	kind := "100"
	if m.Type == "symlink" {
		return "120000"
	}
	perm := "644"
	if m.Mode&0o111 != 0 {
		perm = "755"
	}
	return kind + perm
}

// gitPatch is one change with its header.
func gitPatch(ch *Change, old, now []byte) string {
	var out strings.Builder
	from, to := quote("a/"+ch.Path), quote("b/"+ch.Path)
	fmt.Fprintf(&out, "diff --git %s %s\n", from, to)
	switch {
	case ch.Before == nil:
		fmt.Fprintf(&out, "new file mode %s\n", octal(ch.After))
		from = "/dev/null"
	case ch.After == nil:
		fmt.Fprintf(&out, "deleted file mode %s\n", octal(ch.Before))
		to = "/dev/null"
	case octal(ch.Before) != octal(ch.After):
		fmt.Fprintf(&out, "old mode %s\nnew mode %s\n", octal(ch.Before), octal(ch.After))
	}
	if ch.Binary || ch.Large {
		fmt.Fprintf(&out, "Binary files %s and %s differ\n", from, to)
		return out.String()
	}
	if bytes.Equal(old, now) {
		if ch.Kind == Changed && octal(ch.Before) == octal(ch.After) {
			return "" // owners and other bits: git has no words for them
		}
		return out.String()
	}
	body, ins, del := unified(old, now)
	ch.Insertions, ch.Deletions = ins, del
	fmt.Fprintf(&out, "--- %s\n+++ %s\n%s", from, to, body)
	return out.String()
}

// quote writes a path as git does: in quotes when it has anything but plain
// characters.
func quote(path string) string {
	plain := func(r rune) bool { return r < 0x20 || r == '"' || r == '\\' || r == 0x7f || r == '\uFFFD' }
	if !strings.ContainsFunc(path, plain) {
		return path
	}
	var out strings.Builder
	out.WriteByte('"')
	for i := range len(path) {
		switch c := path[i]; {
		case c == '"' || c == '\\':
			out.WriteByte('\\')
			out.WriteByte(c)
		case c < 0x20 || c >= 0x7f:
			out.WriteString(`\` + fmt.Sprintf("%03s", strconv.FormatUint(uint64(c), 8)))
		default:
			out.WriteByte(c)
		}
	}
	out.WriteByte('"')
	return out.String()
}

func permissions(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	for bit, set := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			p |= set
		}
	}
	return p
}

func (s *side) baseMeta(n erofs.Inode) (*Meta, error) {
	m := &Meta{Mode: permissions(n.Mode), UID: n.UID, GID: n.GID}
	switch t := n.Mode.Type(); {
	case t == 0:
		m.Type, m.Size = "file", n.Size
	case t.IsDir():
		m.Type = "directory"
	case t == fs.ModeSymlink:
		to, err := s.image.Target(n)
		if err != nil {
			return nil, err
		}
		m.Type, m.Target, m.Mode = "symlink", to, 0o777
	case t == fs.ModeNamedPipe:
		m.Type = "fifo"
	default:
		m.Type, m.Device = "block", fmt.Sprintf("%d:%d", n.Major, n.Minor)
		if t&fs.ModeCharDevice != 0 {
			m.Type = "char"
		}
	}
	return m, nil
}
