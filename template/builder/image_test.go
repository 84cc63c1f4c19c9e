package builder_test

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/provider/providertest"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
	"github.com/caisson-dev/caisson/template/oci"
)

// hostLayer is a layer of this machine's shell and tools, and more.
func hostLayer(t *testing.T, more ...item) v1.Layer {
	t.Helper()
	var items []item
	seen := map[string]bool{}
	add := func(to, from string) {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item{tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(to, "/"), Mode: 0o755, Size: int64(len(b))}, string(b)})
	}
	for _, tool := range hostTools() {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			t.Fatal(err)
		}
		add("bin/"+tool, path)
		libs, _ := exec.Command("ldd", path).Output() // none for a static one
		for field := range strings.FieldsSeq(string(libs)) {
			if strings.HasPrefix(field, "/") && !seen[field] {
				seen[field] = true
				add(field, field)
			}
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range append(items, more...) {
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
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func script(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(body))}, body}
}

// push serves an image of layers and returns its name.
func push(t *testing.T, layers ...v1.Layer) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config.Env = "linux", runtime.GOARCH, []string{"FROM_IMAGE=yes"}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/distribution:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// pulling makes the world's builder take images from registries on this machine.
func (w *world) pulling() {
	w.t.Helper()
	p, err := oci.New(oci.Options{
		Dir: filepath.Join(w.dir, "index"), Images: w.images, AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Close)
	w.reopen(func(o *builder.Options) { o.Puller = p })
}

// TestFromImage builds on images of distributions that have all, that have
// nothing, and whose package manager installs what is missing.
func TestFromImage(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	w.pulling()
	install := "#!/bin/sh\necho installing $*; mkdir -p /etc/sudoers.d; for t in bash sudo curl ss pgrep git; do ln -sf sh /bin/$t; done\n"
	tests := []struct {
		name  string
		more  []item
		words []string
		sudo  string
	}{
		{
			"alpine",
			[]item{file("etc/os-release", "NAME=x\nID=alpine\n"), script("sbin/apk", install)},
			[]string{"0 info installing add --no-cache bash ca-certificates curl git iproute2 procps sudo\n"},
			"user ALL=(ALL:ALL) NOPASSWD: ALL\n",
		},
		{
			"debian-like",
			[]item{file("etc/os-release", "ID=devuan\nID_LIKE=\"debian\"\n"), script("bin/apt-get", install)},
			[]string{"0 info installing install -q -y --no-install-recommends bash ca-certificates curl git iproute2 procps sudo\n"},
			"user ALL=(ALL:ALL) NOPASSWD: ALL\n",
		},
		{
			"fedora-like",
			[]item{file("etc/os-release", "ID=fedora\n"), script("usr/bin/dnf", install)},
			[]string{"0 info installing -y install bash ca-certificates curl git iproute procps-ng sudo\n"},
			"user ALL=(ALL:ALL) NOPASSWD: ALL\n",
		},
		{
			"arch",
			[]item{
				file("etc/os-release", "ID=arch\n"), file("etc/pacman.conf", "[options]\nHoldPkg = pacman\n"),
				script("usr/bin/pacman", "#!/bin/sh\ngrep -q '^DisableSandbox$' /etc/pacman.conf || { echo Landlock is not supported >&2; exit 1; }\n"+install),
			},
			[]string{"0 info installing -Sy --noconfirm --needed bash ca-certificates curl git iproute2 procps-ng sudo\n"},
			"user ALL=(ALL:ALL) NOPASSWD: ALL\n",
		},
		{
			"mirror out of reach",
			[]item{file("etc/os-release", "ID=alpine\n"), script("sbin/apk", "#!/bin/sh\necho no mirror >&2; exit 4\n")},
			[]string{"0 warn no mirror\n", "0 warn [base] the image lacks bash, sudo, curl, ss, pgrep, git and cannot be installed", "0 warn [base] without bash"},
			"",
		},
		{"unknown", []item{file("etc/os-release", "ID=other\n")}, []string{"0 warn [base] the image lacks bash, sudo, curl, ss, pgrep, git\n"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			plan := template.Plan{Build: "b", Image: template.ImageSource{Ref: push(t, hostLayer(t, tt.more...))}, Steps: []template.Step{
				step("RUN", "id -un > who; pwd >> who; echo $FROM_IMAGE >> who"),
			}}
			a := w.must(plan)
			for _, words := range tt.words {
				if !strings.Contains(w.text(), words) {
					t.Errorf("the log lacks %q:\n%s", words, w.text())
				}
			}
			got := w.try(a, "root", "cat /home/user/who; cat /etc/sudoers.d/user 2>/dev/null | head -n 1")
			if want := "user\n/home/user\nyes\n" + tt.sudo; got != want {
				t.Errorf("in the sandbox = %q, want %q", got, want)
			}
			if a.User != "user" || a.Workdir != "/home/user" || a.Env["FROM_IMAGE"] != "yes" {
				t.Errorf("artifacts = %+v", a)
			}
			again := w.must(plan)
			if again.Rootfs != a.Rootfs || !slices.Contains(w.cachedSteps(), 1) {
				t.Errorf("again: %v, cached %v", again.Rootfs, w.cachedSteps())
			}
			if left := w.leftovers(); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestArchWithAllTools: pacman works in the steps of a build on an image that
// lacks nothing, too.
func TestArchWithAllTools(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	w.pulling()
	more := []item{
		file("etc/os-release", "ID=arch\n"), file("etc/pacman.conf", "[options]\nHoldPkg = pacman\n"),
		script("usr/bin/pacman", "#!/bin/sh\ngrep -q '^DisableSandbox$' /etc/pacman.conf || { echo Landlock is not supported >&2; exit 1; }\necho installed\n"),
	}
	for _, tool := range builder.Tools() {
		more = append(more, script("bin/"+tool, "#!/bin/sh\nexec /bin/sh \"$@\"\n"))
	}
	w.must(template.Plan{Build: "b", Image: template.ImageSource{Ref: push(t, hostLayer(t, more...))}, Steps: []template.Step{
		step("RUN", "/usr/bin/pacman -S it", "root"),
	}})
	if !strings.Contains(w.text(), "installed") || strings.Contains(w.text(), "lacks") {
		t.Errorf("the log is\n%s", w.text())
	}
}

// TestNetwork: steps reach what the builds' own policy names, by name, and
// nothing else.
func TestNetwork(t *testing.T) {
	w := newWorld(t, builder.Limits{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "from the mirror") }))
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.77.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("127.77.0.9")
	guard, err := gateway.New(gateway.Config{
		Ceiling:      egress.Policy{Version: 1, Default: egress.Allow},
		Hosts:        map[string][]netip.Addr{"mirror.test": {addr}, "other.test": {addr}},
		AllowPrivate: []gateway.Exception{{Prefix: netip.PrefixFrom(addr, 32)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	policy := egress.Policy{Version: 1, Default: egress.Deny, Rules: []egress.Rule{{Hosts: []string{"mirror.test"}, Verdict: egress.Allow}}}
	w.reopen(func(o *builder.Options) { o.Guard, o.Policy = guard, policy })
	tool, err := os.ReadFile(providertest.BuildTool(t))
	if err != nil {
		t.Fatal(err)
	}
	files := archives(map[string][]byte{"tool": pack(t, item{tar.Header{Typeflag: tar.TypeReg, Name: "toolbox", Mode: 0o755, Size: int64(len(tool))}, string(tool)})})
	w.must(template.Plan{Build: "b", Base: w.base(), Files: files, Steps: []template.Step{
		copyStep("tool", "toolbox", "/bin/toolbox", "root"),
		step("RUN", "toolbox dial mirror.test:"+port+` "$(printf 'GET / HTTP/1.0\r\nHost: mirror.test\r\n\r\n.')"`),
		step("RUN", "toolbox resolve other.test; toolbox dial "+l.Addr().String()+` "$(printf 'GET / HTTP/1.0\r\n\r\n.')" || true`),
	}})
	text := w.text()
	if !strings.Contains(text, "2 info from the mirror\n") {
		t.Errorf("the mirror was not reached:\n%s", text)
	}
	if strings.Contains(text, "3 info from the mirror") || !strings.Contains(text, "3 info failed:") {
		t.Errorf("more than the mirror was reached:\n%s", text)
	}
}
