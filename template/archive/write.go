package archive

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/caisson-dev/caisson/erofs"
)

// Source is what is exported.
type Source struct {
	Image *erofs.Image
	About About
	// User, Workdir and Env are those of the template's sandboxes.
	User, Workdir string
	Env           map[string]string
	// Memory is nil where none is exported.
	Memory *MemorySource
}

// Export is an archive that is ready to be written: its length and its digests
// are known. Nothing of it lies on a disk.
type Export struct {
	entries []entry
	size    int64
}

// Size is the length of the archive in bytes.
func (e *Export) Size() int64 { return e.size }

// entry is one file of an archive, whose content is written twice: once to know
// its length and digest, which must stand before it.
type entry struct {
	name   string
	size   int64
	digest string // hex
	write  func(ctx context.Context, w io.Writer) error
}

// fileTime is the time of every file: the same template gives the same archive.
//
//nolint:gochecknoglobals // a constant in all but syntax
var fileTime = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)

// New reads all that is to be exported once, to know the archive's digests and
// length. Image, and what Memory names, must stay open and as they are until
// the archive is written.
func New(ctx context.Context, s Source) (*Export, error) {
	plain := newCounter(io.Discard)
	layer, err := measure(ctx, "", func(ctx context.Context, w io.Writer) error {
		return zipped(w, func(w io.Writer) error { return s.Image.WriteTar(ctx, io.MultiWriter(w, plain)) })
	})
	if err != nil {
		return nil, fmt.Errorf("read the root filesystem: %w", err)
	}
	layer.name = blobDir + layer.digest
	layer.write = func(ctx context.Context, w io.Writer) error {
		return zipped(w, func(w io.Writer) error { return s.Image.WriteTar(ctx, w) })
	}
	s.About.Version, s.About.Source = version, printable(s.About.Source)
	about, err := json.Marshal(s.About)
	if err != nil {
		return nil, fmt.Errorf("encode template: %w", err)
	}
	config, err := literal("", s.config(string(about), plain.digest()))
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	config.name = blobDir + config.digest
	e := &Export{}
	if e.entries, err = s.envelope(string(about), config, layer); err != nil {
		return nil, err
	}
	if s.Memory != nil {
		more, err := s.Memory.entries(ctx, s.About.Rootfs, config.digest)
		if err != nil {
			return nil, err
		}
		e.entries = append(e.entries, more...)
	}
	return e, e.measure()
}

// config is the image's configuration.
func (s Source) config(about, diffID string) v1.ConfigFile {
	c := v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: v1.Time{Time: s.About.CreatedAt.UTC()},
		Config: v1.Config{
			User: s.User, WorkingDir: s.Workdir, Cmd: []string{"/bin/sh"}, Labels: map[string]string{Label: about},
		},
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{{Algorithm: "sha256", Hex: diffID}}},
		History: []v1.History{{Created: v1.Time{Time: s.About.CreatedAt.UTC()}, CreatedBy: "caisson template export"}},
	}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		c.Config.Env = append(c.Config.Env, name+"="+s.Env[name])
	}
	return c
}

// envelope are the files of an image with one layer.
func (s Source) envelope(about string, config, layer entry) ([]entry, error) {
	hash := func(e entry) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: e.digest} }
	manifest, err := literal("", v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config:      v1.Descriptor{MediaType: types.OCIConfigJSON, Size: config.size, Digest: hash(config)},
		Layers:      []v1.Descriptor{{MediaType: types.OCILayer, Size: layer.size, Digest: hash(layer)}},
		Annotations: map[string]string{Label: about},
	})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	manifest.name = blobDir + manifest.digest
	ref := s.imageName()
	index, err1 := literal(indexFile, v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Size: manifest.size, Digest: hash(manifest),
			Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
			Annotations: map[string]string{
				"org.opencontainers.image.ref.name": ref.TagStr(), "io.containerd.image.name": "docker.io/" + ref.RepositoryStr() + ":" + ref.TagStr(),
			},
		}},
	})
	docker, err2 := literal(dockerFile, []dockerImage{{
		Config: config.name, RepoTags: []string{ref.RepositoryStr() + ":" + ref.TagStr()}, Layers: []string{layer.name},
	}})
	layout, err3 := literal(layoutFile, map[string]string{"imageLayoutVersion": "1.0.0"})
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	return []entry{layout, index, docker, manifest, config, layer}, nil
}

// imageName is what tools for images call the template: names of templates may
// be none of theirs.
func (s Source) imageName() name.Tag {
	ref, err := name.NewTag("caisson/" + s.About.Name + ":" + cmp.Or(s.About.Tag, "default"))
	if err != nil {
		ref, _ = name.NewTag("caisson/template:latest") // a constant that is one
	}
	return ref
}

// dockerImage is one image in the manifest of `docker save`.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// zipped hands fn a writer whose bytes come out as every tool for images can read
// them.
func zipped(w io.Writer, fn func(io.Writer) error) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	err = fn(z)
	return errors.Join(err, z.Close())
}

// compressed hands fn a writer whose bytes come out compressed, for ourselves. One goroutine
// alone, so that the same bytes come out every time.
func compressed(w io.Writer, fn func(io.Writer) error) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	err = fn(z)
	return errors.Join(err, z.Close())
}

// counter has the length and the digest of what went through it.
type counter struct {
	io.Writer
	n   int64
	sum interface {
		io.Writer
		Sum(b []byte) []byte
	}
}

func newCounter(w io.Writer) *counter { return &counter{Writer: w, sum: sha256.New()} }

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	_, _ = c.sum.Write(p[:n]) // a hash never fails
	return n, err
}

func (c *counter) digest() string { return hex.EncodeToString(c.sum.Sum(nil)) }

// measure writes an entry to nowhere.
func measure(ctx context.Context, name string, write func(context.Context, io.Writer) error) (entry, error) {
	c := newCounter(io.Discard)
	if err := write(ctx, c); err != nil {
		return entry{}, err
	}
	return entry{name: name, size: c.n, digest: c.digest(), write: write}, nil
}

// literal is an entry with a JSON document.
func literal(name string, v any) (entry, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return entry{}, err
	}
	if len(b) > maxText {
		return entry{}, fmt.Errorf("%s has %d bytes, at most %d can be read back: %w", name, len(b), maxText, errdefs.ErrResourceExhausted)
	}
	return measure(context.Background(), name, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

func (e entry) header() *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Size: e.size, ModTime: fileTime}
}

// measure finds the length of the archive.
func (e *Export) measure() error {
	const block, trailer = 512, 1024
	c := newCounter(io.Discard)
	var content int64
	for _, x := range e.entries {
		// A writer of its own for each: the content is only counted.
		if err := tar.NewWriter(c).WriteHeader(x.header()); err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		content += (x.size + block - 1) / block * block
	}
	e.size = c.n + content + trailer
	return nil
}

// Write writes the archive, Size bytes. errdefs.ErrDataLoss when what is
// exported was changed meanwhile.
func (e *Export) Write(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	for _, x := range e.entries {
		if err := t.WriteHeader(x.header()); err != nil {
			return fmt.Errorf("write %s: %w", x.name, err)
		}
		c := newCounter(t)
		err := x.write(ctx, c)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, tar.ErrWriteTooLong) || err == nil && c.digest() != x.digest {
			return fmt.Errorf("%s is not what it was when its digest was made: %w", x.name, errdefs.ErrDataLoss)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", x.name, err)
		}
	}
	return t.Close()
}
