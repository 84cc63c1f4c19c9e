package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/archive"
)

// rootfs makes a small image.
func rootfs(t *testing.T) image.Rootfs {
	t.Helper()
	s, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Put(t.Context(), func(f *os.File) error {
		_, err := erofs.Build(f, []erofs.File{{Path: "bin/sh", Mode: 0o755, Data: []byte("shell")}, {Path: "etc/os-release", Mode: 0o644, Data: []byte("ID=debian\n")}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// source is a template to export; memory adds two files of memory.
func source(t *testing.T, r image.Rootfs) archive.Source {
	t.Helper()
	img, err := erofs.Open(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return archive.Source{
		Image: img, User: "app", Workdir: "/app", Env: map[string]string{"A": "b=c", "HOME": "/h"},
		About: archive.About{
			Name: "mine", Tag: "v1", Resources: archive.Resources{CPUs: 3, MemoryMiB: 700}, Start: "serve", Ready: "curl", Source: "template base",
			Rootfs: r.Digest, CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Recipe: &template.Manifest{Recipe: "key", Source: "debian"},
		},
	}
}

func withMemory(t *testing.T, s archive.Source, r image.Rootfs, seed identity.Seed) archive.Source {
	t.Helper()
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	dir := t.TempDir()
	sparse := append(make([]byte, 1<<20), "at the end"...)
	for name, body := range map[string][]byte{"checkpoint.img": []byte("state"), "pages.img": sparse} {
		if err := os.WriteFile(filepath.Join(dir, name), body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Memory = &archive.MemorySource{
		Seed: seed, Team: "default", Rootfs: open(r.Path),
		Artifact: snapshot.Artifact{ID: "old", Kind: snapshot.Memory, ABI: "abi", RootfsDigest: r.Digest, SizeBytes: 9},
		Files:    []*os.File{open(filepath.Join(dir, "checkpoint.img")), open(filepath.Join(dir, "pages.img"))},
		Names:    map[string]netip.Addr{"example.com": netip.MustParseAddr("240.0.0.1")},
	}
	return s
}

func write(t *testing.T, s archive.Source) []byte {
	t.Helper()
	e, err := archive.New(t.Context(), s)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	var b bytes.Buffer
	if err := e.Write(t.Context(), &b); err != nil {
		t.Fatalf("Write() = %v", err)
	}
	if int64(b.Len()) != e.Size() {
		t.Errorf("the archive has %d bytes, and Size() is %d", b.Len(), e.Size())
	}
	return b.Bytes()
}

func open(t *testing.T, raw []byte) (*archive.Archive, error) {
	t.Helper()
	return archive.Open(t.Context(), bytes.NewReader(raw), int64(len(raw)))
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	s := source(t, rootfs(t))
	raw := write(t, s)
	if !bytes.Equal(raw, write(t, s)) {
		t.Error("the same template gives another archive")
	}
	a, err := open(t, raw)
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	want := s.About
	want.Version = 1
	if diff := cmp.Diff(&want, a.About); diff != "" {
		t.Errorf("About (-want +got):\n%s", diff)
	}
	c := a.Config.Config
	if c.User != "app" || c.WorkingDir != "/app" || !slices.Equal(c.Env, []string{"A=b=c", "HOME=/h"}) || a.Config.Architecture != runtime.GOARCH {
		t.Errorf("configuration = %+v", a.Config)
	}
	if len(a.Layers) != 1 {
		t.Fatalf("%d layers", len(a.Layers))
	}
	r, err := a.OpenLayer(a.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := erofs.FromTar(t.Context(), r, out, erofs.Options{}); err != nil {
		t.Errorf("the layer cannot be read: %v", err)
	}
	if m, why, err := a.Memory(identity.NewSeed(), "default"); m != nil || why != "" || err != nil {
		t.Errorf("Memory() of an archive without = %v, %q, %v", m, why, err)
	}
}

// Other tools read the archive: go-containerregistry stands for them, as a layout and
// as what `docker save` writes.
func TestOtherTools(t *testing.T) {
	t.Parallel()
	r := rootfs(t)
	for _, name := range []string{"mine", "-no-name-of-an-image-"} {
		s := withMemory(t, source(t, r), r, identity.NewSeed())
		s.About.Name = name
		raw := write(t, s)
		dir := t.TempDir()
		path := filepath.Join(dir, "a.tar")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		img, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			t.Fatalf("as of docker save: %v", err)
		}
		if err := validate.Image(img); err != nil {
			t.Errorf("as of docker save: %v", err)
		}
		tr := tar.NewReader(bytes.NewReader(raw))
		for {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(tr)
			to := filepath.Join(dir, "layout", h.Name)
			if err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		ix, err := layout.ImageIndexFromPath(filepath.Join(dir, "layout"))
		if err != nil {
			t.Fatalf("as a layout: %v", err)
		}
		if err := validate.Index(ix); err != nil {
			t.Errorf("as a layout: %v", err)
		}
	}
}

// And we read theirs, also of several layers and without a layout.
func TestDockerArchive(t *testing.T) {
	t.Parallel()
	s := source(t, rootfs(t))
	raw := edit(t, write(t, s), func(files map[string][]byte) { delete(files, "index.json") })
	if _, err := open(t, raw); err != nil {
		t.Errorf("Open() = %v", err) // its layer is packed, which reading it will say
	}
	raw = edit(t, raw, func(files map[string][]byte) {
		files["manifest.json"] = bytes.Replace(files["manifest.json"], []byte(`"Layers":["blobs`), []byte(`"Layers":["x","blobs`), 1)
	})
	if _, err := open(t, raw); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Open() with more layers than the configuration has = %v", err)
	}
}

// edit changes files of an archive.
func edit(t *testing.T, raw []byte, change func(map[string][]byte)) []byte {
	t.Helper()
	files := map[string][]byte{}
	var order []string
	tr := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, rerr := io.ReadAll(tr)
		if err := errors.Join(err, rerr); err != nil {
			t.Fatal(err)
		}
		files[h.Name] = b
		order = append(order, h.Name)
	}
	change(files)
	for name := range files {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range order {
		body, ok := files[name]
		if !ok {
			continue
		}
		err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
		if err == nil {
			_, err = tw.Write(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// blobOf finds the name of the blob whose content has a word.
func blobOf(t *testing.T, files map[string][]byte, word string) string {
	t.Helper()
	for name, b := range files {
		if strings.HasPrefix(name, "blobs/") && bytes.Contains(b, []byte(word)) {
			return name
		}
	}
	t.Fatalf("no blob has %q", word)
	return ""
}

// sparseFile is an archive with a file that is all hole, which the standard writer does
// not make.
func sparseFile(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	var records string
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=index.json", "GNU.sparse.realsize=100"} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r) // two digits, a space and the end of the line
	}
	for _, body := range []string{records, "0\n" + strings.Repeat("\x00", 510)} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	// The first file becomes the header of the second.
	raw := b.Bytes()
	raw[156] = tar.TypeXHeader
	copy(raw[148:156], "        ")
	sum := 0
	for _, c := range raw[:512] {
		sum += int(c)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	good := write(t, source(t, rootfs(t)))
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	if _, err := gz.Write(good); err != nil || gz.Close() != nil {
		t.Fatal(err)
	}
	twice := func() []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for range 2 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "index.json"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	many := func() []byte {
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for i := range 10_001 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}()
	sparse := sparseFile(t)
	index := func(m v1.Manifest, config string) func(map[string][]byte) {
		return func(files map[string][]byte) {
			cfg := []byte(config)
			add := func(v any) v1.Descriptor {
				b, ok := v.([]byte)
				if !ok {
					b, _ = json.Marshal(v)
				}
				h, n, err := v1.SHA256(bytes.NewReader(b))
				if err != nil {
					t.Fatal(err)
				}
				files["blobs/sha256/"+h.Hex] = b
				return v1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: h, Size: n}
			}
			m.Config = add(cfg)
			var old v1.Manifest
			if err := json.Unmarshal(files[blobOf(t, files, `"schemaVersion"`)], &old); err != nil {
				t.Fatal(err)
			}
			if m.Layers == nil {
				m.Layers = old.Layers
			}
			files["index.json"], _ = json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{add(m)}})
		}
	}
	label := func(about string) string {
		b, _ := json.Marshal(map[string]any{
			"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{"Labels": map[string]string{archive.Label: about}},
		})
		return string(b)
	}
	for name, c := range map[string]struct {
		raw  []byte
		text string
		is   func(error) bool
	}{
		"empty":     {nil, "is no image", errdefs.IsInvalidArgument},
		"no tar":    {[]byte(strings.Repeat("no tar at all ", 100)), "damaged", errdefs.IsInvalidArgument},
		"packed":    {zipped.Bytes(), "packed with gzip", errdefs.IsInvalidArgument},
		"truncated": {good[:len(good)-2000], "damaged or truncated", errdefs.IsInvalidArgument},
		"cut short": {good[:700], "is no image", errdefs.IsInvalidArgument},
		"no image":  {edit(t, good, func(f map[string][]byte) { clear(f); f["etc/passwd"] = nil }), "is no image", errdefs.IsInvalidArgument},
		"sparse":    {sparse, "a sparse file", errdefs.IsInvalidArgument},
		"one layer, many times": {edit(t, good, func(f map[string][]byte) {
			layer := make([]byte, 1<<20)
			h, n, err := v1.SHA256(bytes.NewReader(layer))
			if err != nil {
				t.Fatal(err)
			}
			f["blobs/sha256/"+h.Hex] = layer
			index(v1.Manifest{Layers: slices.Repeat([]v1.Descriptor{{Digest: h, Size: n}}, 3)}, `{}`)(f)
		}), "twice those of the archive", errdefs.IsResourceExhausted},
		"two files": {twice, "two files", errdefs.IsInvalidArgument},
		"many":      {many, "more than 10000 files", errdefs.IsResourceExhausted},
		"huge text": {edit(t, good, func(f map[string][]byte) { f["index.json"] = make([]byte, 5<<20) }), "at most", errdefs.IsResourceExhausted},
		"no JSON":   {edit(t, good, func(f map[string][]byte) { f["index.json"] = []byte("{") }), "is not what it should be", errdefs.IsInvalidArgument},
		"changed configuration": {edit(t, good, func(f map[string][]byte) {
			n := blobOf(t, f, `"diff_ids"`)
			f[n] = bytes.Replace(f[n], []byte("serve"), []byte("sudo!"), 1)
		}), "has the content of sha256:", errdefs.IsInvalidArgument},
		"other machine": {edit(t, good, index(v1.Manifest{}, `{"architecture":"s390x","os":"linux"}`)), "is for \"linux\"/\"s390x\"", errdefs.IsInvalidArgument},
		"other platform in the index": {edit(t, good, func(f map[string][]byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(runtime.GOARCH), []byte("mips"), 1)
		}), "no image for linux/", errdefs.IsInvalidArgument},
		"no layers":  {edit(t, good, index(v1.Manifest{Layers: []v1.Descriptor{}}, `{}`)), "0 layers", errdefs.IsInvalidArgument},
		"no config":  {edit(t, good, index(v1.Manifest{}, `null`)), "no configuration", errdefs.IsInvalidArgument},
		"no blob":    {edit(t, good, index(v1.Manifest{Layers: []v1.Descriptor{{Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}}}}, `{}`)), "has not the", errdefs.IsInvalidArgument},
		"blob's way": {edit(t, good, index(v1.Manifest{Layers: []v1.Descriptor{{Digest: v1.Hash{Algorithm: "sha256", Hex: "../../etc/passwd"}}}}, `{}`)), "", errdefs.IsInvalidArgument},
		"version":    {edit(t, good, index(v1.Manifest{}, label(`{"version":9}`))), "version 9", errdefs.IsInvalidArgument},
		"label":      {edit(t, good, index(v1.Manifest{}, label(`no JSON`))), "the label", errdefs.IsInvalidArgument},
		"command":    {edit(t, good, index(v1.Manifest{}, label(`{"version":1,"start":"`+strings.Repeat("x", 40_000)+`"}`))), "longer than", errdefs.IsInvalidArgument},
		"source":     {edit(t, good, index(v1.Manifest{}, label(`{"version":1,"source":"`+strings.Repeat("x", 1025)+`"}`))), "source is longer", errdefs.IsInvalidArgument},
		"escape":     {edit(t, good, index(v1.Manifest{}, label(`{"version":1,"source":"\u001b[2J"}`))), "cannot be printed", errdefs.IsInvalidArgument},
		"resources":  {edit(t, good, index(v1.Manifest{}, label(`{"version":1,"resources":{"cpus":-1}}`))), "negative", errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := open(t, c.raw); !c.is(err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Open() = %v, want %q", err, c.text)
			}
		})
	}
	if _, err := open(t, edit(t, good, func(map[string][]byte) {})); err != nil {
		t.Errorf("what was not changed is refused: %v", err)
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	r, seed := rootfs(t), identity.NewSeed()
	good := write(t, withMemory(t, source(t, r), r, seed))
	swap := func(f map[string][]byte, from, to string) {
		var doc struct {
			Manifest []byte `json:"manifest"`
			MAC      string `json:"mac"`
		}
		if err := json.Unmarshal(f["caisson/memory.json"], &doc); err != nil {
			t.Fatal(err)
		}
		changed := bytes.ReplaceAll(doc.Manifest, []byte(from), []byte(to))
		if bytes.Equal(changed, doc.Manifest) {
			t.Fatalf("the manifest has no %q", from)
		}
		doc.Manifest = changed
		f["caisson/memory.json"], _ = json.Marshal(doc)
	}
	other := source(t, r)
	other.About.Start = "another command"
	for name, c := range map[string]struct {
		raw  []byte
		seed identity.Seed
		team identity.TeamID
		why  string
		bad  bool
	}{
		"ours":                 {good, seed, "default", "", false},
		"another installation": {good, identity.NewSeed(), "default", "another installation", false},
		"another team":         {good, seed, "other", "another team", false},
		"changed":              {edit(t, good, func(f map[string][]byte) { swap(f, `"abi":"abi"`, `"abi":"abc"`) }), seed, "default", "", true},
		"for another team":     {edit(t, good, func(f map[string][]byte) { swap(f, `"team":"default"`, `"team":"other"`) }), seed, "other", "", true},
		"below another template": {edit(t, write(t, other), func(f map[string][]byte) {
			edit(t, good, func(g map[string][]byte) { f["caisson/memory.json"] = g["caisson/memory.json"] })
		}), seed, "default", "", true},
		"no MAC": {edit(t, good, func(f map[string][]byte) {
			f["caisson/memory.json"] = bytes.Replace(f["caisson/memory.json"], []byte(`"mac":"`), []byte(`"mac":"0`), 1)
		}), seed, "default", "", true},
	} {
		a, err := open(t, c.raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		m, why, err := a.Memory(c.seed, c.team)
		usable := c.why == "" && !c.bad
		if (m != nil && err == nil) != usable || c.bad != errdefs.IsInvalidArgument(err) || !strings.HasPrefix(why, c.why) {
			t.Errorf("%s: Memory() = %v, %q, %v", name, m, why, err)
		}
		if usable {
			checkFiles(t, a, m, r)
		}
	}
}

// checkFiles compares what comes out with what went in.
func checkFiles(t *testing.T, a *archive.Archive, m *archive.Memory, r image.Rootfs) {
	t.Helper()
	if m.Artifact.ID != "" || m.Artifact.ABI != "abi" || m.Names["example.com"].String() != "240.0.0.1" {
		t.Errorf("memory = %+v", m)
	}
	s, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Put(t.Context(), func(f *os.File) error { return a.CopyRootfs(t.Context(), m, f) })
	if err != nil || got.Digest != r.Digest {
		t.Errorf("CopyRootfs() gives %s, %v, want %s", got.Digest, err, r.Digest)
	}
	for _, f := range m.Files {
		out, err := os.Create(filepath.Join(t.TempDir(), f.Name))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.CopyMemory(t.Context(), f, out); err != nil {
			t.Errorf("CopyMemory(%s) = %v", f.Name, err)
		}
		b, err := os.ReadFile(out.Name())
		if err != nil || f.Name == "pages.img" && (len(b) != 1<<20+10 || string(b[1<<20:]) != "at the end") || f.Name == "checkpoint.img" && string(b) != "state" {
			t.Errorf("%s has %d bytes, %v", f.Name, len(b), err)
		}
		out.Close()
	}
}

// The description of the memory is ours, its files are another's.
func TestMemoryFilesAreChecked(t *testing.T) {
	t.Parallel()
	r, seed := rootfs(t), identity.NewSeed()
	s := withMemory(t, source(t, r), r, seed)
	good := write(t, s)
	pages := s.Memory.Files[1].Name()
	for name, body := range map[string]string{"other": "tampe", "longer": "state and more", "shorter": "sta"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(pages), "checkpoint.img"), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		forged := write(t, s)
		raw := edit(t, good, func(f map[string][]byte) {
			edit(t, forged, func(g map[string][]byte) {
				f["caisson/memory/checkpoint.img.zst"] = g["caisson/memory/checkpoint.img.zst"]
			})
		})
		a, err := open(t, raw)
		if err != nil {
			t.Fatal(err)
		}
		m, _, err := a.Memory(seed, "default")
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.CopyMemory(t.Context(), m.Files[0], out); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: CopyMemory() = %v", name, err)
		}
		out.Close()
	}
}

func TestChangedWhileWriting(t *testing.T) {
	t.Parallel()
	r := rootfs(t)
	s := withMemory(t, source(t, r), r, identity.NewSeed())
	e, err := archive.New(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Memory.Files[0].Name(), []byte("stat!"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.Write(t.Context(), io.Discard); !errdefs.IsDataLoss(err) {
		t.Errorf("Write() = %v, want data loss", err)
	}
}
