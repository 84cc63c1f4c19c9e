package setup

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/caisson-dev/caisson/agent/account"
)

const (
	maxPath = 4095
	maxName = 255
	// freeBytes is how much may come out of an archive before maxRatio counts.
	freeBytes = 64 << 20
	maxRatio  = 200
	modeMask  = 0o7777
)

// Copy unpacks a tar archive, plain or packed with gzip, and puts what Source
// names in it at Dest.
type Copy struct {
	// Source is a path in the archive, perhaps with wildcards from some component
	// on: what lies below the components before it is taken, "" is all.
	Source string `json:"source"`
	// Dest is absolute. A file is put into it when it ends with a slash or is a
	// directory; a directory is merged with it.
	Dest string `json:"dest"`
	// User, perhaps with :GROUP, owns what is written; names or numbers. Mode is
	// its permission bits unless negative.
	User string `json:"user"`
	Mode int64  `json:"mode"`
	// Entries and Bytes bound the archive.
	Entries int   `json:"entries"`
	Bytes   int64 `json:"bytes"`
}

// unpacking is one run of a Copy. Nothing is written through a link that came
// from the archive: its entries mean what their names say. Links that were there
// before are followed, as the recipe's author means them.
type unpacking struct {
	Copy
	g      Guest
	owner  account.User
	prefix string // of names in the archive, without slashes around it
	// links are the names of symbolic links in the archive, files what was
	// written, by name in the archive.
	links map[string]bool
	files map[string]string
	res   Result
	seen  int
	bytes int64
}

func (g Guest) copy(c Copy, in io.Reader) (Result, error) {
	owner, err := g.owner(c.User)
	if err != nil {
		return Result{}, err
	}
	if !filepath.IsAbs(c.Dest) || strings.IndexByte(c.Dest, 0) >= 0 {
		return Result{}, refuse("destination %q is not absolute", c.Dest)
	}
	prefix, err := fixedPart(c.Source)
	if err != nil {
		return Result{}, err
	}
	u := &unpacking{
		Copy: c, g: g, owner: owner, prefix: prefix, links: map[string]bool{}, files: map[string]string{},
		res: Result{Changed: true},
	}
	plain, err := gunzip(in)
	if err != nil {
		return Result{}, err
	}
	tr := tar.NewReader(plain)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Result{}, damaged(err)
		}
		if err := u.entry(h, blamed{tr}); err != nil {
			return Result{}, err
		}
	}
	// The rest is padding; reading it checks the checksum of a packed archive.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return Result{}, damaged(err)
	}
	if u.res.Files == 0 {
		return Result{}, refuse("the archive has nothing of %q", c.Source)
	}
	return u.res, nil
}

// blamed gives errors of reading an archive their kind.
type blamed struct{ r io.Reader }

func (b blamed) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(err)
	}
	return n, err
}

func damaged(err error) error {
	if errors.Is(err, ErrRefused) {
		return err
	}
	return refuse("the archive is damaged: %v", err)
}

// fixedPart returns the components of a source before the first with a
// wildcard.
func fixedPart(source string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(source, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", refuse("source %q climbs with ..", source)
		case strings.ContainsAny(part, "*?[{"):
			return strings.Join(parts, "/"), nil
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "/"), nil
}

// gunzip returns the tar stream in r, and refuses to let it grow beyond reason.
func gunzip(r io.Reader) (io.Reader, error) {
	in := &counter{r: r}
	br := bufio.NewReaderSize(in, 64<<10)
	head, err := br.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(head) < 2 || head[0] != 0x1f || head[1] != 0x8b {
		return br, nil
	}
	z, err := gzip.NewReader(br)
	if err != nil {
		return nil, damaged(err)
	}
	return &ratio{r: z, in: in}, nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

type ratio struct {
	r   io.Reader
	in  *counter
	out int64
}

func (r *ratio) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.out += int64(n)
	if r.out > freeBytes && r.out/maxRatio > r.in.n {
		return 0, refuse("the archive grows more than %d times when unpacked", maxRatio)
	}
	return n, err
}

func (u *unpacking) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if u.seen++; u.seen > u.Entries {
		return refuse("the archive has more than %d entries", u.Entries)
	}
	name, err := u.clean(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeGNUSparse:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return refuse("entry %q is a device", short(h.Name))
	default:
		return refuse("entry %q has the type %q, which is not supported", short(h.Name), h.Typeflag)
	}
	// Compared this way, no size can overflow the sum.
	if h.Size < 0 || h.Size > u.Bytes-u.bytes {
		return refuse("the archive holds more than %d bytes", u.Bytes)
	}
	u.bytes += h.Size
	if h.Typeflag == tar.TypeSymlink {
		u.links[name] = true
	} else {
		delete(u.links, name)
	}
	to, ok, err := u.place(name, h.Typeflag)
	if err != nil || !ok {
		return err
	}
	if err := u.write(name, to, h, content); err != nil {
		return fmt.Errorf("entry %q: %w", short(h.Name), plain(err))
	}
	u.res.Files++
	return nil
}

func short(name string) string { return name[:min(len(name), 200)] }

// clean refuses names that leave the archive, by themselves or through one of
// its links.
func (u *unpacking) clean(name string) (string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return "", refuse("entry %q has an impossible name", short(name))
	}
	if path.IsAbs(name) {
		return "", refuse("entry %q leaves the archive: its path is absolute", short(name))
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", refuse("entry %q leaves the archive with ..", short(name))
		case len(part) > maxName:
			return "", refuse("entry %q has a name of %d bytes", short(name), len(part))
		}
		if len(parts) > 0 && u.links[strings.Join(parts, "/")] {
			return "", refuse("entry %q leads through the symbolic link %q of the archive", short(name), strings.Join(parts, "/"))
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "/"), nil
}

// place returns where the entry goes; false when it is not asked for.
func (u *unpacking) place(name string, kind byte) (string, bool, error) {
	dest := filepath.Clean(u.Dest)
	if u.prefix == "" {
		return filepath.Join(dest, name), true, nil
	}
	if rest, ok := strings.CutPrefix(name, u.prefix+"/"); ok {
		return filepath.Join(dest, rest), true, nil
	}
	if name != u.prefix {
		return "", false, nil
	}
	if kind == tar.TypeDir {
		return dest, true, nil
	}
	fi, err := os.Stat(u.g.at(dest))
	if strings.HasSuffix(u.Dest, "/") || err == nil && fi.IsDir() {
		return filepath.Join(dest, path.Base(name)), true, nil
	}
	return dest, true, nil
}

func (u *unpacking) write(name, to string, h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return u.mkdir(to, h)
	}
	if to == "/" {
		return refuse("the root must be a directory")
	}
	if _, err := u.g.mkdirAll(filepath.Dir(to), u.owner); err != nil {
		return err
	}
	fi, err := os.Lstat(u.g.at(to))
	switch {
	case err == nil && fi.IsDir():
		return refuse("%s is a directory", to)
	case err == nil:
		if err := os.Remove(u.g.at(to)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath {
			return refuse("a symbolic link has a target of %d bytes", len(h.Linkname))
		}
		if err := os.Symlink(h.Linkname, u.g.at(to)); err != nil {
			return err
		}
		return own(u.g.at(to), u.owner)
	case tar.TypeLink:
		target, err := u.clean(h.Linkname)
		if err != nil {
			return err
		}
		from, ok := u.files[target]
		if !ok {
			return refuse("a hard link leads to %q, which is no file of the archive before it", short(h.Linkname))
		}
		u.files[name] = to
		return os.Link(u.g.at(from), u.g.at(to))
	}
	u.files[name] = to
	u.res.Bytes += h.Size
	return u.file(to, h, content)
}

// mkdir makes a directory. One that is there keeps its owner and mode: a recipe
// that copies onto / does not mean to own it.
func (u *unpacking) mkdir(to string, h *tar.Header) error {
	changed, err := u.g.mkdirAll(to, u.owner)
	if err != nil || !changed {
		return err
	}
	return syscall.Chmod(u.g.at(to), u.mode(h))
}

func (u *unpacking) file(to string, h *tar.Header, content io.Reader) error {
	f, err := os.OpenFile(u.g.at(to), os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, content)
	if err == nil && n != h.Size {
		err = refuse("content ends after %d of %d bytes", n, h.Size)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// The owner first: changing it drops the set-uid bit.
	if err := own(u.g.at(to), u.owner); err != nil {
		return err
	}
	if err := syscall.Chmod(u.g.at(to), u.mode(h)); err != nil {
		return err
	}
	return os.Chtimes(u.g.at(to), h.ModTime, h.ModTime)
}

func (u *unpacking) mode(h *tar.Header) uint32 {
	if u.Mode >= 0 {
		return uint32(u.Mode & modeMask)
	}
	return uint32(h.Mode & modeMask)
}
