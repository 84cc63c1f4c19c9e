package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/snapshot"
)

const (
	// maxMemoryFiles bounds the files of an artifact.
	maxMemoryFiles = 16
	// maxNames bounds the names that the guest's memory has addresses of.
	maxNames = 10_000
	// zstdWindow bounds the memory that unpacking takes.
	zstdWindow = 128 << 20
)

// What a MAC is made of; kinds end in a slash.
const (
	macKind          = "template-memory/"
	installationKind = "installation/"
)

// MemorySource is the saved memory of a template.
type MemorySource struct {
	Seed identity.Seed
	Team identity.TeamID
	// Artifact is the memory, Files its open files.
	Artifact snapshot.Artifact
	Files    []*os.File
	// Rootfs is the image file that it lies on.
	Rootfs *os.File
	// Names are what the guest had resolved.
	Names map[string]netip.Addr
}

// Memory is what an archive says of the memory in it.
type Memory struct {
	Version int `json:"version"`
	// Installation and Team are who can take it up.
	Installation string          `json:"installation"`
	Team         identity.TeamID `json:"team"`
	// Config is the digest of the image's configuration: nothing that the archive
	// says of the template can be changed below the memory.
	Config string `json:"config"`
	// Artifact has no ID.
	Artifact snapshot.Artifact     `json:"artifact"`
	Rootfs   MemoryFile            `json:"rootfs"`
	Names    map[string]netip.Addr `json:"names,omitempty"`
	Files    []MemoryFile          `json:"files"`
}

// MemoryFile is one file, as it is unpacked.
type MemoryFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"` // hex
}

// sealed is the document: the MAC is over the very bytes of the manifest.
type sealed struct {
	Manifest []byte `json:"manifest"`
	MAC      string `json:"mac"`
}

func macOf(seed identity.Seed, manifest []byte) string {
	sum := sha256.Sum256(manifest)
	return seed.Derive(macKind, hex.EncodeToString(sum[:])).Reveal()
}

// installation names the owner of a seed and tells nothing of it.
func installation(seed identity.Seed) string { return seed.Derive(installationKind, "id").Reveal() }

// entries reads the memory once and returns its files.
func (m *MemorySource) entries(ctx context.Context, rootfs, config string) ([]entry, error) {
	if m.Artifact.RootfsDigest != rootfs {
		return nil, fmt.Errorf("the memory lies on image %s, not %s: %w", m.Artifact.RootfsDigest, rootfs, errdefs.ErrFailedPrecondition)
	}
	about := Memory{
		Version: version, Installation: installation(m.Seed), Team: m.Team, Config: config, Artifact: m.Artifact, Names: m.Names,
	}
	about.Artifact.ID = ""
	rootfsEntry, f, err := packFile(ctx, rootfsFile, m.Rootfs)
	if err != nil {
		return nil, fmt.Errorf("read the image: %w", err)
	}
	about.Rootfs = f
	out := []entry{{}, rootfsEntry}
	for _, file := range m.Files {
		e, f, err := packFile(ctx, memoryDir+filepath.Base(file.Name())+packed, file)
		if err != nil {
			return nil, fmt.Errorf("read the memory: %w", err)
		}
		about.Files, out = append(about.Files, f), append(out, e)
	}
	manifest, err := json.Marshal(about)
	if err != nil {
		return nil, fmt.Errorf("encode memory: %w", err)
	}
	out[0], err = literal(memoryFile, sealed{Manifest: manifest, MAC: macOf(m.Seed, manifest)})
	return out, err
}

// packFile is an entry with a file, compressed; holes cost next to nothing.
func packFile(ctx context.Context, name string, file *os.File) (entry, MemoryFile, error) {
	fi, err := file.Stat()
	if err != nil {
		return entry{}, MemoryFile{}, err
	}
	size := fi.Size()
	plain := newCounter(io.Discard)
	pack := func(out func(io.Writer) io.Writer) func(context.Context, io.Writer) error {
		return func(ctx context.Context, w io.Writer) error {
			return compressed(w, func(w io.Writer) error {
				_, err := io.Copy(out(w), &contextReader{ctx: ctx, r: io.NewSectionReader(file, 0, size)})
				return err
			})
		}
	}
	e, err := measure(ctx, name, pack(func(w io.Writer) io.Writer { return io.MultiWriter(w, plain) }))
	if err != nil {
		return entry{}, MemoryFile{}, err
	}
	e.write = pack(func(w io.Writer) io.Writer { return w })
	return e, MemoryFile{Name: filepath.Base(file.Name()), Size: size, Digest: plain.digest()}, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context //nolint:containedctx // bound to one copy
	r   io.Reader
}

// Read implements io.Reader.
func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Memory returns what the archive says of the memory in it, when it was saved by
// this installation for this team; else nil and, if there is some, why it cannot
// be taken up. errdefs.ErrInvalidArgument for one of ours that was changed.
func (a *Archive) Memory(seed identity.Seed, team identity.TeamID) (m *Memory, why string, err error) {
	if _, ok := a.files[memoryFile]; !ok {
		return nil, "", nil
	}
	var doc sealed
	if err := a.decode(memoryFile, &doc); err != nil {
		return nil, "", err
	}
	m = &Memory{}
	if err := json.Unmarshal(doc.Manifest, m); err != nil {
		return nil, "", invalid("%s is damaged: %w", memoryFile, err)
	}
	sum := sha256.Sum256(doc.Manifest)
	switch ours := m.Installation == installation(seed); {
	case !seed.Derive(macKind, hex.EncodeToString(sum[:])).Equal(doc.MAC):
		if ours {
			return nil, "", invalid("the memory's description was changed since this installation wrote it: its MAC is wrong")
		}
		return nil, "another installation saved it", nil
	case m.Version != version:
		return nil, "another version of Caisson wrote it", nil
	case m.Team != team:
		return nil, "another team saved it", nil
	}
	// From here on the words are ours; what they are about is checked nevertheless.
	switch {
	case m.Config != a.config:
		return nil, "", invalid("the memory belongs to another template than the archive's")
	case m.Artifact.Kind != snapshot.Memory || m.Artifact.RootfsDigest != "sha256:"+m.Rootfs.Digest:
		return nil, "", invalid("the memory does not lie on the archive's image")
	case len(m.Files) == 0 || len(m.Files) > maxMemoryFiles || len(m.Names) > maxNames:
		return nil, "", invalid("the memory has %d files and %d names", len(m.Files), len(m.Names))
	case slices.ContainsFunc(m.Files, func(f MemoryFile) bool { return !nameForm.MatchString(f.Name) || f.Size < 0 }):
		return nil, "", invalid("the memory has a file with a name or a size that it cannot have")
	}
	return m, "", nil
}

// Bytes is what the memory's files and its image take on disk at most.
func (m *Memory) Bytes() int64 {
	n := m.Rootfs.Size
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}

// CopyRootfs writes the image that the memory lies on to out.
// errdefs.ErrInvalidArgument when it is not the one that was saved.
func (a *Archive) CopyRootfs(ctx context.Context, m *Memory, out *os.File) error {
	return a.copyFile(ctx, rootfsFile, m.Rootfs, out)
}

// CopyMemory writes one file of the memory to out. Errors are CopyRootfs'.
func (a *Archive) CopyMemory(ctx context.Context, f MemoryFile, out *os.File) error {
	return a.copyFile(ctx, memoryDir+f.Name+packed, f, out)
}

// copyFile unpacks a file into out, with holes where there are only zeros.
func (a *Archive) copyFile(ctx context.Context, name string, f MemoryFile, out *os.File) error {
	r, err := a.open(name)
	if err != nil {
		return err
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderMaxMemory(zstdWindow))
	if err != nil {
		return invalid("%s: %w", name, err)
	}
	defer z.Close()
	sum := newCounter(io.Discard)
	buf := make([]byte, 64<<10)
	in := io.LimitReader(z, f.Size+1)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(in, buf)
		at := sum.n
		_, _ = sum.Write(buf[:n])
		if sum.n > f.Size {
			break
		}
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && sum.n == f.Size {
			break
		}
		if err != nil {
			return invalid("%s is damaged: %w", name, err)
		}
	}
	if sum.n != f.Size || !strings.EqualFold(sum.digest(), f.Digest) {
		return invalid("%s is not what was saved: its content has another digest", name)
	}
	return out.Truncate(f.Size)
}
