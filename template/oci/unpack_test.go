package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/archive"
	"github.com/caisson-dev/caisson/template/oci"
)

// exported is the archive of a template whose files are items.
func exported(t *testing.T, images *image.Store, items ...item) []byte {
	t.Helper()
	r, err := images.Put(t.Context(), func(f *os.File) error {
		_, err := erofs.FromTar(t.Context(), bytes.NewReader(pack(t, items...)), f, erofs.Options{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	e, err := archive.New(t.Context(), archive.Source{
		Image: img, User: "app", Workdir: "/app", Env: map[string]string{"HOME": "/h", "A": "b"},
		About: archive.About{Name: "mine", Rootfs: r.Digest, Recipe: &template.Manifest{Recipe: "key of base", Packages: []template.Package{{Name: "sed"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func openArchive(t *testing.T, raw []byte) *archive.Archive {
	t.Helper()
	a, err := archive.Open(t.Context(), bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestUnpackTemplate(t *testing.T) {
	t.Parallel()
	p, images := puller(t, nil)
	raw := exported(t, images, file("bin/sh", "sh"), file("etc/hosts", "own"), file("etc/.wh.kept", "x"), file("etc/kept", "y"))
	u, err := p.Unpack(t.Context(), openArchive(t, raw), quiet)
	if err != nil {
		t.Fatalf("Unpack() = %v", err)
	}
	if diff := cmp.Diff(oci.Unpacked{Rootfs: u.Rootfs, User: "app", Workdir: "/app", Env: map[string]string{"HOME": "/h", "A": "b"}}, u); diff != "" {
		t.Errorf("Unpack() (-want +got):\n%s", diff)
	}
	// Nothing is made a sandbox's that was one: no file differs.
	got := content(t, u.Rootfs, "bin/sh", "etc/hosts", "etc/.wh.kept", "etc/kept", "etc/passwd", "etc/resolv.conf")
	if diff := cmp.Diff([]string{"sh", "own", "x", "y", "-", "-"}, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// By the key of a recipe stock templates are found: it is nobody's to give.
	m, err := template.LoadManifest(images, u.Rootfs.Digest)
	if err != nil || m.Recipe != "" || len(m.Packages) != 0 {
		t.Errorf("notes = %+v, %v", m, err)
	}
}

// What this server has built is not described anew by an archive of the same files.
func TestUnpackKeepsNotes(t *testing.T) {
	t.Parallel()
	p, images := puller(t, nil)
	raw := exported(t, images, file("bin/sh", "sh"))
	u, err := p.Unpack(t.Context(), openArchive(t, raw), quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := images.SetNotes(u.Rootfs.Digest, []byte(`{"recipe":"ours"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Unpack(t.Context(), openArchive(t, raw), quiet); err != nil {
		t.Fatal(err)
	}
	if m, err := template.LoadManifest(images, u.Rootfs.Digest); err != nil || m.Recipe != "ours" {
		t.Errorf("notes = %+v, %v", m, err)
	}
}

func TestUnpackImage(t *testing.T) {
	t.Parallel()
	p, _ := puller(t, nil)
	img := small(t, layer(t, file("etc/.wh.old", ""), file("etc/new", "new")))
	path := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("some/image:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a := openArchive(t, raw)
	// This library packs layers, which `docker save` does not: they are not what
	// the configuration names.
	if _, err := p.Unpack(t.Context(), a, quiet); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Unpack() of layers with another digest = %v", err)
	}
	raw = unpacked(t, raw)
	u, err := p.Unpack(t.Context(), openArchive(t, raw), quiet)
	if err != nil {
		t.Fatalf("Unpack() = %v", err)
	}
	if diff := cmp.Diff(oci.Unpacked{Rootfs: u.Rootfs, User: "user", Env: map[string]string{"PATH": "/bin", "A": "b=c"}}, u); diff != "" {
		t.Errorf("Unpack() (-want +got):\n%s", diff)
	}
	got := content(t, u.Rootfs, "bin/sh", "etc/new", "etc/old", "etc/resolv.conf")
	if diff := cmp.Diff([]string{"program", "new", "-", "nameserver 10.0.0.1\n"}, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// unpacked has the layers of an archive plain.
func unpacked(t *testing.T, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	tw := tar.NewWriter(&out)
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
		if err == nil && strings.HasSuffix(h.Name, ".tar.gz") {
			b = gunzip(t, b)
		}
		h.Size = int64(len(b))
		if err == nil {
			err = tw.WriteHeader(h)
		}
		if err == nil {
			_, err = tw.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnpackRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		items  []item
		change func([]byte) []byte
		limits erofs.Limits
		text   string
		is     func(error) bool
	}{
		"no shell": {items: []item{file("etc/x", "")}, text: "no /bin/sh", is: errdefs.IsInvalidArgument},
		"changed layer": {
			items: []item{file("bin/sh", "sh")}, text: "", is: errdefs.IsInvalidArgument,
			change: func(b []byte) []byte { // a bit in the middle of the last file, which is the layer
				at := bytes.LastIndex(b, []byte{0x1f, 0x8b}) + 40
				b[at] ^= 4
				return b
			},
		},
		"too many":    {items: []item{file("bin/sh", "sh"), file("a", ""), file("b", "")}, limits: erofs.Limits{Entries: 3}, is: errdefs.IsResourceExhausted},
		"too large":   {items: []item{file("bin/sh", strings.Repeat("x", 9000))}, limits: erofs.Limits{Bytes: 8192}, is: errdefs.IsResourceExhausted},
		"a long path": {items: []item{file("bin/sh", ""), file(strings.Repeat("d/", 30)+"x", "")}, limits: erofs.Limits{PathBytes: 20}, is: errdefs.IsResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, source := puller(t, nil)
			raw := exported(t, source, c.items...)
			if c.change != nil {
				raw = c.change(raw)
			}
			p, images := puller(t, func(o *oci.Options) { o.Limits = c.limits })
			if _, err := p.Unpack(t.Context(), openArchive(t, raw), quiet); !c.is(err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Unpack() = %v", err)
			}
			if all, err := images.List(); err != nil || len(all) > 0 {
				t.Errorf("images left behind = %v, %v", all, err)
			}
			if tmp, _ := filepath.Glob(filepath.Join(images.Dir(), ".tmp-*")); len(tmp) > 0 {
				t.Errorf("left behind: %v", tmp)
			}
		})
	}
}

// An image's configuration may name anything.
func TestDescribeRefuses(t *testing.T) {
	t.Parallel()
	about, err := json.Marshal(archive.About{Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]v1.Config{
		"user":        {User: "a b"},
		"long user":   {User: strings.Repeat("u", 200)},
		"relative":    {WorkingDir: "app"},
		"NUL":         {WorkingDir: "/a\x00b"},
		"environment": {Env: []string{"A=" + strings.Repeat("x", 70_000)}},
	} {
		c.Labels = map[string]string{archive.Label: string(about)}
		a := &archive.Archive{Config: &v1.ConfigFile{Config: c}, About: &archive.About{}}
		if _, err := oci.Describe(a); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: Describe() = %v", name, err)
		}
	}
}

// A team that knows an image, even its whole manifest, gets it only where the
// registry that has it says so: what another team has pulled with its login does not count.
func TestAnothersImage(t *testing.T) {
	t.Parallel()
	s := serve(t, "team-a", "secret")
	img := small(t)
	login := remote.WithAuth(&authn.Basic{Username: "team-a", Password: "secret"})
	ref := s.push(t, "private/image:v1", img, login)
	p, _ := puller(t, nil)
	mine, err := p.Pull(t.Context(), template.ImageSource{Ref: ref, Username: "team-a", Password: "secret"}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{ref, s.host + "/private/image@" + digest.String()} {
		for _, password := range []string{"", "wrong"} {
			src := template.ImageSource{Ref: r, Password: password}
			if password != "" {
				src.Username = "team-b"
			}
			if b, err := p.Pull(t.Context(), src, quiet); !errdefs.IsPermissionDenied(err) {
				t.Errorf("Pull(%s) without the login = %+v, %v", r, b, err)
			}
		}
	}
	// A registry of their own serves the manifest, and has no layers.
	own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
			_, _ = w.Write(manifest)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer own.Close()
	u, err := url.Parse(own.URL)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := p.Pull(t.Context(), template.ImageSource{Ref: u.Host + "/private/image:v1"}, quiet); err == nil {
		t.Errorf("Pull() from a registry without the layers = %+v, which is %s", b, mine.Rootfs.Digest)
	}
	// Who may read it still gets it without another download.
	before := s.blobs.Load()
	again, err := p.Pull(t.Context(), template.ImageSource{Ref: ref, Username: "team-a", Password: "secret"}, quiet)
	if err != nil || again.Rootfs != mine.Rootfs || s.blobs.Load() != before {
		t.Errorf("Pull() again = %+v, %v, with %d blobs fetched", again, err, s.blobs.Load()-before)
	}
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
