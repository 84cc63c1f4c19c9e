package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

const (
	maxLayers = 512
	// maxConfig bounds an image's configuration, maxEnv its environment.
	maxConfig = 4 << 20
	maxEnv    = 64 << 10
	// maxOSRelease bounds what is read of a distribution's name.
	maxOSRelease = 64 << 10
)

// convert makes the root filesystem of an image, unless that was done before with
// one from the same place. The caller has the manifest from there: who may read that
// may read the layers.
func (p *Puller) convert(ctx context.Context, ref, where string, img v1.Image, log func(string)) (builder.Base, error) {
	m, err := img.Manifest()
	if err != nil {
		return builder.Base{}, fmt.Errorf("read manifest: %w", err)
	}
	digest, err := img.Digest()
	if err != nil {
		return builder.Base{}, fmt.Errorf("read manifest: %w", err)
	}
	known := found{Where: where, Manifest: digest.String()}
	if f, ok := p.index.load(where, known.Manifest); ok {
		if rootfs, err := p.o.Images.Get(f.Rootfs); err == nil {
			return f.base(ref, rootfs), nil
		}
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return builder.Base{}, refuse("image %s has %d layers; 1 to %d are allowed", ref, len(m.Layers), maxLayers)
	}
	if known.Env, err = configOf(ref, img, m); err != nil {
		return builder.Base{}, err
	}
	imgLayers, err := img.Layers()
	if err != nil {
		return builder.Base{}, fmt.Errorf("read layers: %w", err)
	}
	if len(imgLayers) != len(m.Layers) {
		return builder.Base{}, refuse("image %s has %d layers, and its manifest names %d", ref, len(imgLayers), len(m.Layers))
	}
	var layers []layer
	for i, l := range imgLayers {
		layers = append(layers, layer{m.Layers[i], l.Compressed})
	}
	rootfs, err := p.write(ctx, writing{
		source: "image " + ref, layers: layers, whiteouts: true, log: log, warn: log,
		finish: func(w *erofs.Writer) error {
			if err := known.inspect(ref, w); err != nil {
				return err
			}
			return template.Finalise(w)
		},
	})
	if err != nil {
		return builder.Base{}, err
	}
	known.Rootfs = rootfs.Digest
	return known.base(ref, rootfs), p.index.save(known)
}

// layer is one layer of an image, from wherever it comes.
type layer struct {
	v1.Descriptor
	open func() (io.ReadCloser, error)
}

// writing is a root filesystem that is to be made.
type writing struct {
	source string // for people
	layers []layer
	// whiteouts says that layers may delete what is below them.
	whiteouts bool
	// finish completes the tree, or refuses it.
	finish func(*erofs.Writer) error
	log    func(string)
	// warn is told what an image cannot hold, and was left out.
	warn func(string)
}

// write makes one image of layers.
func (p *Puller) write(ctx context.Context, o writing) (image.Rootfs, error) {
	// Nothing is taken from what an archive says of its recipe and packages: the notes
	// are for all teams that have the same image, and by them stock templates are found.
	notes := template.Manifest{Source: o.source, CreatedAt: time.Now().UTC()}
	rootfs, err := p.o.Images.Put(ctx, func(out *os.File) error {
		w, err := erofs.NewWriter(out, erofs.Options{Limits: p.o.Limits, Devices: erofs.DropDevices, Whiteouts: o.whiteouts})
		if err != nil {
			return err
		}
		for i, l := range o.layers {
			o.log(fmt.Sprintf("layer %d/%d, %d KiB", i+1, len(o.layers), l.Size>>10))
			if err := addLayer(ctx, w, l); err != nil {
				return fmt.Errorf("layer %d: %w", i+1, err)
			}
		}
		if err := o.finish(w); err != nil {
			return err
		}
		stats, err := w.Finish()
		notes.Files, notes.DataBytes, notes.Warnings = stats.Files, stats.DataBytes, stats.Warnings
		return err
	})
	if err != nil {
		return rootfs, err
	}
	text, err := json.MarshalIndent(notes, "", " ")
	if err != nil {
		return rootfs, fmt.Errorf("encode manifest: %w", err)
	}
	for _, warning := range notes.Warnings[:min(len(notes.Warnings), 10)] {
		o.warn(warning)
	}
	// The same image may have been built or pulled here: then that is what is known of it.
	if known, err := template.LoadManifest(p.o.Images, rootfs.Digest); err == nil && known.Source != archiveNotes {
		return rootfs, nil
	} else if err != nil && !errdefs.IsNotFound(err) {
		return rootfs, err
	}
	return rootfs, p.o.Images.SetNotes(rootfs.Digest, text)
}

// configOf checks an image's configuration and returns its environment.
func configOf(ref string, img v1.Image, m *v1.Manifest) (map[string]string, error) {
	if m.Config.Size > maxConfig {
		return nil, refuse("image %s has a configuration of %d bytes", ref, m.Config.Size)
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	want := platform()
	if c.OS != "" && c.OS != want.OS || c.Architecture != "" && c.Architecture != want.Architecture {
		return nil, refuse("image %s is for %s/%s, this machine needs %s/%s", ref, c.OS, c.Architecture, want.OS, want.Architecture)
	}
	return environment(ref, c.Config.Env, "HOME", "USER", "LOGNAME") // the agent knows better where a user is at home
}

// environment reads the variables of an image, but some.
func environment(ref string, pairs []string, but ...string) (map[string]string, error) {
	env := map[string]string{}
	size := 0
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" || strings.IndexByte(pair, 0) >= 0 {
			continue
		}
		if size += len(pair); size > maxEnv {
			return nil, refuse("image %s has an environment of more than %d bytes", ref, maxEnv)
		}
		if !slices.Contains(but, name) {
			env[name] = value
		}
	}
	return env, nil
}

// addLayer reads one layer and checks that it is what the manifest names.
func addLayer(ctx context.Context, w *erofs.Writer, l layer) error {
	switch l.MediaType {
	case types.DockerLayer, types.DockerUncompressedLayer, types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd,
		types.DockerForeignLayer, types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer:
	default:
		return refuse("its type %.80q is not that of files", l.MediaType)
	}
	r, err := l.open()
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	in := io.TeeReader(io.LimitReader(r, l.Size+1), h)
	if err := w.AddTar(ctx, in); err != nil {
		return err
	}
	// What a compressor leaves behind its last block counts too.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); l.Digest.Algorithm != "sha256" || got != l.Digest.Hex {
		return refuse("its content has the digest sha256:%s, not %s", got, l.Digest)
	}
	return nil
}

// inspect refuses what cannot be a sandbox, and notes what is missing for
// comfort.
func (f *found) inspect(ref string, w *erofs.Writer) error {
	if err := bootable(ref, w); err != nil {
		return err
	}
	f.Family = family(w)
	f.Missing = missing(w)
	return nil
}

// bootable refuses a tree that no command can be run in.
func bootable(ref string, w *erofs.Writer) error {
	if !w.Exists("bin/sh") {
		return refuse("image %s has no /bin/sh, which every template needs: take one of a distribution instead", ref)
	}
	return nil
}

// family is which package manager a distribution has, "" when unknown.
func family(w *erofs.Writer) string {
	b, err := w.ReadFile("etc/os-release", maxOSRelease)
	if err != nil {
		return ""
	}
	var ids []string
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "ID" || key == "ID_LIKE" {
			ids = append(ids, strings.Fields(strings.Trim(value, `"'`))...)
		}
	}
	for _, id := range ids {
		switch id {
		case "debian", "ubuntu":
			return builder.FamilyDebian
		case "fedora", "rhel", "centos":
			return builder.FamilyFedora
		case "alpine":
			return builder.FamilyAlpine
		case "arch":
			return builder.FamilyArch
		}
	}
	return ""
}

// missing lists those of the tools that clients count on which are not there.
func missing(w *erofs.Writer) []string {
	var out []string
	for _, tool := range builder.Tools() {
		found := false
		for _, dir := range []string{"bin/", "usr/bin/", "sbin/", "usr/sbin/", "usr/local/bin/"} {
			found = found || w.Exists(dir+tool)
		}
		if !found {
			out = append(out, tool)
		}
	}
	return out
}
