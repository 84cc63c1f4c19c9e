package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxLayers bounds the layers of an image.
const maxLayers = 512

// Archive is one that was opened to be read: its envelope has been checked, the
// content of its layers has not.
type Archive struct {
	f     io.ReaderAt
	size  int64
	files map[string]member
	// layerBytes is what all layers have together.
	layerBytes int64
	// config is the digest of the configuration, as hex.
	config string

	// Config is the image's configuration.
	Config *v1.ConfigFile
	// Layers are the image's, the lowest first.
	Layers []Layer
	// About is nil for an image that no template was exported to.
	About *About
}

// Layer is one layer: whoever reads it compares the content with the descriptor.
type Layer struct {
	v1.Descriptor
	name string
}

// member is one file of the archive: its place and its length.
type member struct {
	index int
	size  int64
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// Open reads the envelope of an archive of size bytes: one of Export, an OCI
// layout, or what `docker save` writes. f must stay open. Errors are
// errdefs.ErrInvalidArgument for a file that is none, is damaged or truncated, or
// is of another platform than this one; errdefs.ErrResourceExhausted beyond a limit.
func Open(ctx context.Context, f io.ReaderAt, size int64) (*Archive, error) {
	a := &Archive{f: f, size: size, files: map[string]member{}}
	if err := a.list(ctx); err != nil {
		return nil, err
	}
	var err error
	switch {
	case a.has(indexFile):
		err = a.openLayout()
	case a.has(dockerFile):
		err = a.openDocker()
	default:
		err = invalid("the archive is no image: it has neither %s nor %s; a root filesystem alone is built with `caisson template build --from-tar`", indexFile, dockerFile)
	}
	if err != nil {
		return nil, err
	}
	if len(a.Layers) == 0 || len(a.Layers) > maxLayers {
		return nil, invalid("the image has %d layers; 1 to %d are allowed", len(a.Layers), maxLayers)
	}
	if c := a.Config; c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return nil, invalid("the image is for %.40q/%.40q, this machine needs linux/%s", c.OS, c.Architecture, runtime.GOARCH)
	}
	return a, a.readAbout()
}

func (a *Archive) has(name string) bool { _, ok := a.files[name]; return ok }

// list finds the files. Links mean nothing here: a name that is one is no file.
func (a *Archive) list(ctx context.Context) error {
	magic := make([]byte, 6)
	n, _ := a.f.ReadAt(magic, 0)
	for kind, prefix := range map[string]string{"gzip": "\x1f\x8b", "zstd": "\x28\xb5\x2f\xfd", "xz": "\xfd7zXZ\x00", "bzip2": "BZh"} {
		if strings.HasPrefix(string(magic[:n]), prefix) {
			return invalid("the archive is packed with %s: unpack it first (the layers in it may be packed)", kind)
		}
	}
	t := tar.NewReader(io.NewSectionReader(a.f, 0, a.size))
	left := a.size
	for i := 0; ; i++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return invalid("the archive is damaged or truncated: %w", err)
		}
		if i >= maxEntries {
			return fmt.Errorf("the archive has more than %d files: %w", maxEntries, errdefs.ErrResourceExhausted)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		// A sparse file is longer than what there is of it.
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return invalid("the archive has a sparse file %.200q", h.Name)
			}
		}
		if left -= h.Size; left < 0 {
			return invalid("the archive is damaged or truncated: its files are longer than it is")
		}
		name := path.Clean(h.Name)
		if a.has(name) {
			return invalid("the archive has two files %.200q", name)
		}
		a.files[name] = member{index: i, size: h.Size}
	}
}

// open returns the content of a file.
func (a *Archive) open(name string) (io.Reader, error) {
	m, ok := a.files[name]
	if !ok {
		return nil, invalid("the archive has no file %.200q", name)
	}
	// Skipping is a seek each; there are few files.
	t := tar.NewReader(io.NewSectionReader(a.f, 0, a.size))
	for range m.index + 1 {
		if _, err := t.Next(); err != nil {
			return nil, invalid("the archive is damaged: %w", err)
		}
	}
	return t, nil
}

// text reads a whole document.
func (a *Archive) text(name string) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if n := a.files[name].size; n > maxText {
		return nil, fmt.Errorf("%.200q has %d bytes, at most %d are read: %w", name, n, maxText, errdefs.ErrResourceExhausted)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err != nil {
		return nil, invalid("%.200q is damaged or truncated: %w", name, err)
	}
	return b, nil
}

func (a *Archive) decode(name string, into any) error {
	b, err := a.text(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return invalid("%.200q is not what it should be: %w", name, err)
	}
	return nil
}

// blob decodes a document that is named by its digest.
func (a *Archive) blob(d v1.Hash, into any) error {
	name, err := blobName(d)
	if err != nil {
		return err
	}
	b, err := a.text(name)
	if err != nil {
		return err
	}
	c := newCounter(io.Discard)
	_, _ = c.Write(b)
	if c.digest() != d.Hex {
		return invalid("%s has the content of sha256:%s", name, c.digest())
	}
	if err := json.Unmarshal(b, into); err != nil {
		return invalid("%s is not what it should be: %w", name, err)
	}
	return nil
}

func blobName(d v1.Hash) (string, error) {
	if d.Algorithm != "sha256" || len(d.Hex) != 64 || strings.Trim(d.Hex, "0123456789abcdef") != "" {
		return "", invalid("the image has a digest %.80q that is no SHA-256", d.String())
	}
	return blobDir + d.Hex, nil
}

// openLayout reads an OCI layout.
func (a *Archive) openLayout() error {
	var index v1.IndexManifest
	if err := a.decode(indexFile, &index); err != nil {
		return err
	}
	d, err := a.image(index, 0)
	if err != nil {
		return err
	}
	var m v1.Manifest
	if err := a.blob(d, &m); err != nil {
		return err
	}
	a.config = m.Config.Digest.Hex
	if err := a.blob(m.Config.Digest, &a.Config); err != nil {
		return err
	}
	for _, l := range m.Layers {
		name, err := blobName(l.Digest)
		if err != nil {
			return err
		}
		if err := a.addLayer(l, name); err != nil {
			return err
		}
	}
	return a.checkConfig()
}

func (a *Archive) addLayer(d v1.Descriptor, name string) error {
	m, ok := a.files[name]
	if !ok || m.size != d.Size {
		return invalid("the archive has not the %d bytes of the layer %.200q", d.Size, name)
	}
	if len(a.Layers) >= maxLayers {
		return invalid("the image has more than %d layers", maxLayers)
	}
	// The same layer may be there twice, and is then read twice.
	if a.layerBytes += d.Size; a.layerBytes > 2*a.size {
		return fmt.Errorf("the image's layers have more than %d bytes, twice those of the archive: %w", 2*a.size, errdefs.ErrResourceExhausted)
	}
	a.Layers = append(a.Layers, Layer{Descriptor: d, name: name})
	return nil
}

func (a *Archive) checkConfig() error {
	if a.Config == nil {
		return invalid("the image has no configuration")
	}
	return nil
}

// maxNesting bounds indexes within indexes.
const maxNesting = 4

// image finds the manifest of this platform.
func (a *Archive) image(index v1.IndexManifest, depth int) (v1.Hash, error) {
	for _, d := range index.Manifests {
		if d.Platform != nil && !d.Platform.Satisfies(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}) {
			continue
		}
		switch {
		case d.MediaType.IsImage():
			return d.Digest, nil
		case d.MediaType.IsIndex() && depth < maxNesting:
			var inner v1.IndexManifest
			if err := a.blob(d.Digest, &inner); err != nil {
				return v1.Hash{}, err
			}
			return a.image(inner, depth+1)
		}
	}
	return v1.Hash{}, invalid("the archive has no image for linux/%s", runtime.GOARCH)
}

// openDocker reads what `docker save` wrote before it knew layouts: layers are
// plain, and named by what they hold.
func (a *Archive) openDocker() error {
	var images []dockerImage
	if err := a.decode(dockerFile, &images); err != nil {
		return err
	}
	if len(images) != 1 {
		return invalid("the archive has %d images: save one", len(images))
	}
	b, err := a.text(path.Clean(images[0].Config))
	if err != nil {
		return err
	}
	c := newCounter(io.Discard)
	_, _ = c.Write(b)
	a.config = c.digest()
	if err := json.Unmarshal(b, &a.Config); err != nil {
		return invalid("the image's configuration is not what it should be: %w", err)
	}
	if err := a.checkConfig(); err != nil {
		return err
	}
	if ids := a.Config.RootFS.DiffIDs; len(ids) != len(images[0].Layers) {
		return invalid("the image has %d layers, and its configuration names %d", len(images[0].Layers), len(ids))
	}
	for i, name := range images[0].Layers {
		d := v1.Descriptor{MediaType: types.DockerUncompressedLayer, Digest: a.Config.RootFS.DiffIDs[i], Size: a.files[path.Clean(name)].size}
		if err := a.addLayer(d, path.Clean(name)); err != nil {
			return err
		}
	}
	return nil
}

// OpenLayer returns the bytes of a layer, as they lie in the archive.
func (a *Archive) OpenLayer(l Layer) (io.ReadCloser, error) {
	r, err := a.open(l.name)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

// readAbout reads the label.
func (a *Archive) readAbout() error {
	text, ok := a.Config.Config.Labels[Label]
	if !ok {
		return nil
	}
	var about About
	if err := json.Unmarshal([]byte(text), &about); err != nil {
		return invalid("the label %s is not what it should be: %w", Label, err)
	}
	r := about.Resources
	switch {
	case about.Version != version:
		return invalid("the template was exported by another version of Caisson, whose archives (version %d) are not read here", about.Version)
	case len(about.Start) > maxCommand || len(about.Ready) > maxCommand || strings.ContainsRune(about.Start+about.Ready, 0):
		return invalid("the template's start or ready command is longer than %d bytes, or holds a NUL", maxCommand)
	case about.Source != printable(about.Source):
		return invalid("the template's source is longer than %d bytes, or holds what cannot be printed", maxSource)
	case r.CPUs < 0 || r.MemoryMiB < 0 || r.DiskMiB < 0 || r.Processes < 0:
		return invalid("the template's resources are negative")
	}
	a.About = &about
	return nil
}

// printable is a source as it may stand in an archive: other teams see it in lists and
// on their terminals.
func printable(source string) string {
	source = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, source)
	if len(source) > maxSource {
		source = strings.ToValidUTF8(source[:maxSource], "")
	}
	return source
}
