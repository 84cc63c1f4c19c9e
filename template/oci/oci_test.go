package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/oci"
)

// server is a registry on this machine.
type server struct {
	host  string
	blobs atomic.Int64 // requests for layers and configurations
}

// serve starts a registry; with a password it answers nobody else.
func serve(t *testing.T, user, password string) *server {
	t.Helper()
	s := &server{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); password != "" && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s.blobs.Add(1)
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(h.Close)
	u, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.host = u.Host
	return s
}

func (s *server) push(t *testing.T, repo string, img v1.Image, opts ...remote.Option) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, opts...); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

type item struct {
	tar.Header
	body string
}

func file(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(body))}, body}
}

func link(name, to string) item {
	return item{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}

func pack(t *testing.T, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		err := w.WriteHeader(&i.Header)
		if err == nil {
			_, err = io.WriteString(w, i.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layer(t *testing.T, items ...item) v1.Layer {
	t.Helper()
	raw := pack(t, items...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t *testing.T, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// small is an image that can be a sandbox's.
func small(t *testing.T, more ...v1.Layer) v1.Image {
	t.Helper()
	base := layer(t, file("bin/busybox", "program"), link("bin/sh", "busybox"), file("etc/os-release", "ID=alpine\n"), file("etc/old", "old"))
	return imageOf(t, v1.Config{Env: []string{"PATH=/bin", "HOME=/wrong", "A=b=c", "broken"}}, append([]v1.Layer{base}, more...)...)
}

func puller(t *testing.T, change func(*oci.Options)) (*oci.Puller, *image.Store) {
	t.Helper()
	images, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	o := oci.Options{
		Dir: filepath.Join(t.TempDir(), "index"), Images: images,
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}
	if change != nil {
		change(&o)
	}
	p, err := oci.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, images
}

func quiet(string) {}

func pull(t *testing.T, p *oci.Puller, ref string) (rootfs image.Rootfs, env map[string]string) {
	t.Helper()
	b, err := p.Pull(t.Context(), template.ImageSource{Ref: ref}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return b.Rootfs, b.Env
}

// content reads files of a root filesystem back; a missing one is "-".
func content(t *testing.T, r image.Rootfs, paths ...string) []string {
	t.Helper()
	in, err := os.Open(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w, err := erofs.NewWriter(out, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddImage(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range paths {
		b, err := w.ReadFile(p, 1<<20)
		if err != nil {
			b = []byte("-")
		}
		got = append(got, string(b))
	}
	return got
}

// TestFamilies: which package manager an image has is told from what it says of
// itself, in the file or behind the link that distributions put there.
func TestFamilies(t *testing.T) {
	t.Parallel()
	s := serve(t, "", "")
	p, _ := puller(t, func(*oci.Options) {})
	for name, tt := range map[string]struct{ release, want string }{
		"debian":   {"PRETTY_NAME=\"Debian GNU/Linux 13\"\nID=debian\n", "debian"},
		"ubuntu":   {"ID=ubuntu\nID_LIKE=debian\n", "debian"},
		"mint":     {"ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "debian"},
		"fedora":   {"NAME=\"Fedora Linux\"\nID=fedora\n", "fedora"},
		"rocky":    {"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "fedora"},
		"ubi":      {"ID=\"rhel\"\nID_LIKE=\"fedora\"\n", "fedora"},
		"amazon":   {"ID=\"amzn\"\nID_LIKE=\"fedora\"\n", "fedora"},
		"arch":     {"ID=arch\nBUILD_ID=rolling\n", "arch"},
		"manjaro":  {"ID=manjaro\nID_LIKE=arch\n", "arch"},
		"alpine":   {"ID=alpine\n", "alpine"},
		"opensuse": {"ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", ""},
		"nothing":  {"", ""},
	} {
		img := imageOf(t, v1.Config{}, layer(t, file("bin/sh", "#!"), file("usr/lib/os-release", tt.release), link("etc/os-release", "../usr/lib/os-release")))
		b, err := p.Pull(t.Context(), template.ImageSource{Ref: s.push(t, name+":1", img)}, quiet)
		if err != nil || b.Family != tt.want {
			t.Errorf("the family of %s = %q, %v, want %q", name, b.Family, err, tt.want)
		}
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	s := serve(t, "", "")
	img := small(t, layer(t, file("etc/.wh.old", ""), file("etc/new", "new")), layer(t))
	ref := s.push(t, "some/image:v1", img)
	var dir string
	p, images := puller(t, func(o *oci.Options) { dir = o.Dir })
	first, err := p.Pull(t.Context(), template.ImageSource{Ref: ref}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"PATH": "/bin", "A": "b=c"}, first.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if first.User != "user" || first.Workdir != "" || first.Family != "alpine" || len(first.Missing) == 0 {
		t.Errorf("base = %+v", first)
	}
	got := content(t, first.Rootfs, "bin/sh", "etc/new", "etc/old", "etc/resolv.conf")
	if diff := cmp.Diff([]string{"program", "new", "-", "nameserver 10.0.0.1\n"}, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if passwd := content(t, first.Rootfs, "etc/passwd")[0]; !strings.Contains(passwd, "\nuser:x:1000:") {
		t.Errorf("passwd = %q", passwd)
	}
	// Again, and by digest: nothing is fetched but the manifest.
	before := s.blobs.Load()
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, again := range []string{ref, s.host + "/some/image@" + digest.String()} {
		b, err := p.Pull(t.Context(), template.ImageSource{Ref: again}, quiet)
		if err != nil || b.Rootfs != first.Rootfs || !cmp.Equal(b.Env, first.Env) || !cmp.Equal(b.Missing, first.Missing) {
			t.Errorf("Pull(%s) = %+v, %v", again, b, err)
		}
	}
	if n := s.blobs.Load() - before; n != 0 {
		t.Errorf("%d blobs were fetched again", n)
	}
	keep, err := oci.KeepImages(t.Context(), dir, time.Hour)
	if err != nil || !cmp.Equal(keep, []string{first.Rootfs.Digest}) {
		t.Errorf("KeepImages = %v, %v", keep, err)
	}
	// What was collected is made again.
	if err := os.Remove(first.Rootfs.Path); err != nil {
		t.Fatal(err)
	}
	if again, _ := pull(t, p, ref); again.Digest != first.Rootfs.Digest {
		t.Errorf("made again = %s, want %s", again.Digest, first.Rootfs.Digest)
	}
	if _, err := images.Get(first.Rootfs.Digest); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	s := serve(t, "", "")
	img := small(t)
	s.push(t, "library/debian:stable", img)
	s.push(t, "proxy/library/node:lts", img)
	s.push(t, "mine:latest", img)
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved.tar")
	tag, err := name.NewTag("saved:latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(saved, tag, img); err != nil {
		t.Fatal(err)
	}
	arch := func(name string) *v1.Platform { return &v1.Platform{OS: "linux", Architecture: name} }
	other := imageOf(t, v1.Config{}, layer(t, file("bin/sh", "of another machine")))
	path, err := layout.Write(filepath.Join(dir, "layout"), mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: arch("s390x")}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: arch(runtime.GOARCH)}}))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := template.Build{Status: template.Ready, User: "user", Env: map[string]string{"FROM": "template"}}
	p, _ := puller(t, func(o *oci.Options) {
		o.Mirrors = map[string]string{"docker.io": s.host}
		o.Aliases = map[string]string{
			"e2bdev/base": "template:base", "node:lts": s.host + "/proxy/library/node:lts", "saved": "tar:" + saved,
			"laid-out": "oci:" + string(path), "gone": "tar:" + filepath.Join(dir, "none.tar"), "missing": "template:none",
		}
		o.Templates = func(_ context.Context, name string) (template.Build, error) {
			if name != "base" {
				return tmpl, fmt.Errorf("template %s: %w", name, errdefs.ErrNotFound)
			}
			return tmpl, nil
		}
	})
	want := ""
	for _, ref := range []string{
		"debian:stable", "docker.io/library/debian:stable", "node:lts", "docker.io/library/node:lts", "saved", "saved:latest",
		"laid-out", s.host + "/mine",
	} {
		r, _ := pull(t, p, ref)
		if want == "" {
			want = r.Digest
		}
		if r.Digest != want {
			t.Errorf("Pull(%s) = %s, want %s", ref, r.Digest, want)
		}
	}
	for _, ref := range []string{"e2bdev/base", "e2bdev/base:latest"} {
		if _, env := pull(t, p, ref); env["FROM"] != "template" {
			t.Errorf("Pull(%s) has the environment %v", ref, env)
		}
	}
	for ref, is := range map[string]func(error) bool{
		"gone": errdefs.IsNotFound, "missing": errdefs.IsNotFound, s.host + "/none": errdefs.IsNotFound,
		"UPPER CASE": errdefs.IsInvalidArgument, "": errdefs.IsInvalidArgument, strings.Repeat("x", 2000): errdefs.IsInvalidArgument,
		// Paths on the server are the operator's to name.
		"tar:" + saved: errdefs.IsInvalidArgument, "oci:" + string(path): errdefs.IsInvalidArgument, "template:base": isErr,
	} {
		if _, err := p.Pull(t.Context(), template.ImageSource{Ref: ref}, quiet); !is(err) {
			t.Errorf("Pull(%.80q) = %v", ref, err)
		}
	}
}

func isErr(err error) bool { return err != nil }

func TestCredentials(t *testing.T) {
	t.Parallel()
	const password = "the-password"
	s := serve(t, "me", password)
	open := serve(t, "", "")
	open.push(t, "a/b:1", small(t))
	auth := remote.WithAuth(&authn.Basic{Username: "me", Password: password})
	ref := s.push(t, "a/b:1", small(t), auth)
	p, _ := puller(t, nil)
	for _, src := range []template.ImageSource{{Ref: ref}, {Ref: ref, Username: "me", Password: "wrong-" + password}} {
		_, err := p.Pull(t.Context(), src, quiet)
		if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "credentials") {
			t.Errorf("Pull with %q = %v", src.Username, err)
		}
		if strings.Contains(err.Error(), password) {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	if _, err := p.Pull(t.Context(), template.ImageSource{Ref: ref, Username: "me", Password: password}, quiet); err != nil {
		t.Errorf("Pull with credentials = %v", err)
	}
	// A mirror is not told them.
	var told atomic.Bool
	spy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			told.Store(true)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer spy.Close()
	m, _ := puller(t, func(o *oci.Options) {
		o.Mirrors = map[string]string{"docker.io": strings.TrimPrefix(spy.URL, "http://")}
	})
	_, err := m.Pull(t.Context(), template.ImageSource{Ref: "alpine", Username: "me", Password: password}, quiet)
	if err == nil || told.Load() {
		t.Errorf("mirror: error %v, credentials sent: %v", err, told.Load())
	}
}

// TestPrivateAddress: the server dials no address for a user that the operator
// did not allow.
func TestPrivateAddress(t *testing.T) {
	t.Parallel()
	s := serve(t, "", "")
	ref := s.push(t, "a/b:1", small(t))
	p, _ := puller(t, func(o *oci.Options) { o.AllowPrivate = nil })
	_, err := p.Pull(t.Context(), template.ImageSource{Ref: ref}, quiet)
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "images.allow_private") {
		t.Errorf("Pull from a loopback address = %v", err)
	}
	if s.blobs.Load() > 0 {
		t.Error("the registry was reached")
	}
}

// TestHostileImages: each is refused with a reason and leaves nothing.
func TestHostileImages(t *testing.T) {
	t.Parallel()
	s := serve(t, "", "")
	sh := file("bin/sh", "#!")
	device := item{tar.Header{Typeflag: tar.TypeChar, Name: "dev/mem", Devmajor: 1, Devminor: 1}, ""}
	many := make([]item, 0, 2001)
	for i := range 2001 {
		many = append(many, item{tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprint("d", i), Mode: 0o755}, ""})
	}
	zeros := strings.Repeat("\x00", 1<<20)
	var bomb []item
	for i := range 100 {
		bomb = append(bomb, file(fmt.Sprint("z", i), zeros))
	}
	otherArch := imageOf(t, v1.Config{}, layer(t, sh))
	c, err := otherArch.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Architecture = "s390x"
	if otherArch, err = mutate.ConfigFile(otherArch, c); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		img   v1.Image
		is    func(error) bool
		words string
	}{
		{"traversal", imageOf(t, v1.Config{}, layer(t, sh, file("../../etc/passwd", "x"))), errdefs.IsInvalidArgument, "climbs"},
		{"hard link out", imageOf(t, v1.Config{}, layer(t, sh, item{tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "../../etc/shadow"}, ""})), errdefs.IsInvalidArgument, "climbs"},
		{"hard link to nothing", imageOf(t, v1.Config{}, layer(t, sh, item{tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/shadow"}, ""})), errdefs.IsInvalidArgument, "comes not before it"},
		{"whiteout that climbs", imageOf(t, v1.Config{}, layer(t, sh, file("../.wh.x", ""))), errdefs.IsInvalidArgument, "climbs"},
		{"entries", imageOf(t, v1.Config{}, layer(t, sh), layer(t, many...)), errdefs.IsResourceExhausted, "more than 2000"},
		{"bytes", imageOf(t, v1.Config{}, layer(t, sh), layer(t, bomb...)), errdefs.IsResourceExhausted, "exceed"},
		{"no archive", imageOf(t, v1.Config{}, static.NewLayer([]byte(strings.Repeat("junk", 300)), types.OCIUncompressedLayer)), errdefs.IsInvalidArgument, "damaged"},
		{"not files", imageOf(t, v1.Config{}, static.NewLayer([]byte("x"), "application/vnd.other")), errdefs.IsInvalidArgument, "not that of files"},
		{"no shell", imageOf(t, v1.Config{}, layer(t, file("app", "x"))), errdefs.IsInvalidArgument, "has no /bin/sh"},
		{"a shell that leads nowhere", imageOf(t, v1.Config{}, layer(t, link("bin/sh", "/nowhere"))), errdefs.IsInvalidArgument, "has no /bin/sh"},
		{"no layers", imageOf(t, v1.Config{}), errdefs.IsInvalidArgument, "has 0 layers"},
		{"another machine's", otherArch, errdefs.IsInvalidArgument, "is for linux/s390x"},
		{"environment", imageOf(t, v1.Config{Env: []string{"A=" + strings.Repeat("x", 70<<10)}}, layer(t, sh)), errdefs.IsInvalidArgument, "environment"},
		{"configuration", imageOf(t, v1.Config{Labels: map[string]string{"l": strings.Repeat("x", 5<<20)}}, layer(t, sh)), errdefs.IsInvalidArgument, "configuration of"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, images := puller(t, func(o *oci.Options) { o.Limits = erofs.Limits{Entries: 2000, Bytes: 32 << 20} })
			ref := s.push(t, fmt.Sprintf("hostile/i%d:1", i), tt.img)
			_, err := p.Pull(t.Context(), template.ImageSource{Ref: ref}, quiet)
			if err == nil || !tt.is(err) || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("Pull = %v, want another kind or %q", err, tt.words)
			}
			if all, err := images.List(); err != nil || len(all) > 0 {
				t.Errorf("images left behind = %v, %v", all, err)
			}
			if left, _ := filepath.Glob(filepath.Join(images.Dir(), ".tmp-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	// A device is left out and the rest taken.
	p, _ := puller(t, nil)
	r, _ := pull(t, p, s.push(t, "device:1", imageOf(t, v1.Config{}, layer(t, sh, device, file("f", "x")))))
	if got := content(t, r, "f", "dev/mem"); !cmp.Equal(got, []string{"x", "-"}) {
		t.Errorf("beside a device = %q", got)
	}
}

// TestLayerOfAnotherContent: a registry that sends something else than the
// manifest names is found out.
func TestLayerOfAnotherContent(t *testing.T) {
	t.Parallel()
	s := serve(t, "", "")
	good := layer(t, file("bin/sh", "good"))
	evil := pack(t, file("bin/sh", "evil"))
	digest, err := good.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s.push(t, "a:1", imageOf(t, v1.Config{}, good))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, digest.String()) {
			_, _ = w.Write(evil)
			return
		}
		resp, err := http.Get("http://" + s.host + r.URL.Path)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	defer proxy.Close()
	p, images := puller(t, nil)
	_, err = p.Pull(t.Context(), template.ImageSource{Ref: strings.TrimPrefix(proxy.URL, "http://") + "/a:1"}, quiet)
	if err == nil {
		t.Error("Pull took another layer")
	}
	if all, err := images.List(); err != nil || len(all) > 0 {
		t.Errorf("images left behind = %v, %v", all, err)
	}
}

func TestCancelledPull(t *testing.T) {
	t.Parallel()
	gone := errors.New("cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	held := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel(gone)
		<-r.Context().Done()
	}))
	defer held.Close()
	p, _ := puller(t, nil)
	if _, err := p.Pull(ctx, template.ImageSource{Ref: strings.TrimPrefix(held.URL, "http://") + "/a:1"}, quiet); !errors.Is(err, gone) {
		t.Errorf("Pull = %v, want the cause", err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]oci.Options{
		"alias":  {Aliases: map[string]string{"a": "NOT AN IMAGE"}},
		"path":   {Aliases: map[string]string{"a": "tar:relative"}},
		"mirror": {Mirrors: map[string]string{"docker.io": "no mirror"}},
	} {
		o.Dir = t.TempDir()
		if _, err := oci.New(o); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: New = %v", name, err)
		}
	}
}
