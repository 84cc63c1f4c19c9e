package template

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/erofs"
)

func etc(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	bookworm = "ID=debian\nVERSION_CODENAME=bookworm\n"
	signed   = "[signed-by=" + debianKeyring + "]"
)

func TestHostSources(t *testing.T) {
	t.Parallel()
	public := publicSources("bookworm")
	tests := []struct {
		name   string
		files  map[string]string
		mirror string
		want   string
	}{
		{"no files", nil, "", public},
		{"another distribution", map[string]string{
			"os-release": "ID=ubuntu\nVERSION_CODENAME=noble\n", "apt/sources.list": "deb http://m.example/ubuntu noble main\n",
		}, "", public},
		{"another suite", map[string]string{
			"os-release": "ID=debian\nVERSION_CODENAME=trixie\n", "apt/sources.list": "deb http://m.example/debian trixie main\n",
		}, "", public},
		{"one-line", map[string]string{
			"os-release": bookworm,
			"apt/sources.list": "# deb http://old.example/debian bookworm main\n" +
				"deb http://m.example/debian bookworm main contrib # ours\n" +
				"deb [arch=amd64 check-valid-until=no] http://m.example/debian-security bookworm-security main\n" +
				"deb-src http://m.example/debian bookworm main\n" +
				"deb http://m.example/debian bookworm-backports main\n" +
				"deb http://apt.example/corp bookworm main\n",
			"apt/sources.list.d/docker.list":    "deb [signed-by=/etc/apt/keyrings/docker.gpg] https://d.example/linux/debian bookworm stable\n",
			"apt/sources.list.d/hashi.list":     "deb [signed-by=/usr/share/keyrings/hashicorp-archive-keyring.gpg] https://h.example/debian bookworm main\n",
			"apt/sources.list.d/x.list.dpkgnew": "deb http://n.example/debian bookworm main\n",
		}, "", "deb " + signed + " http://m.example/debian bookworm main\n" +
			"deb [signed-by=" + debianKeyring + " check-valid-until=no] http://m.example/debian-security bookworm-security main\n"},
		{"deb822", map[string]string{
			"os-release": bookworm,
			"apt/sources.list.d/debian.sources": "Types: deb deb-src\n# a comment\nURIs: http://m.example/repo\nSuites: bookworm\n bookworm-updates\n" +
				"Components: main\nSigned-By: " + debianKeyring + "\n\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n\n" +
				"Types: deb\nURIs: http://key.example/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n",
		}, "", "deb " + signed + " http://m.example/repo bookworm main\ndeb " + signed + " http://m.example/repo bookworm-updates main\n"},
		{"updates alone", map[string]string{
			"os-release": bookworm, "apt/sources.list": "deb http://m.example/debian bookworm-updates main\n",
		}, "", public},
		{
			"mirror wins",
			map[string]string{"os-release": bookworm, "apt/sources.list": "deb http://m.example/debian bookworm main\n"},
			"https://u:p@x.example/debian/", "deb " + signed + " https://u:p@x.example/debian bookworm main\n" +
				"deb " + signed + " https://u:p@x.example/debian bookworm-updates main\n" +
				"deb " + signed + " https://u:p@x.example/debian-security bookworm-security main\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := aptHost{etc: etc(t, tt.files)}.sources("bookworm", tt.mirror)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostOptions(t *testing.T) {
	t.Parallel()
	dir := etc(t, map[string]string{"apt/auth.conf.d/x.conf": ""})
	h := aptHost{etc: dir, config: `APT "";
APT::Install-Recommends "1";
Acquire "";
Acquire::http "";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::internal.example "DIRECT";
Acquire::https::CAInfo "/etc/ssl/corp.pem";
Acquire::https::Verify-Peer "true";
Acquire::Languages "none";
Acquire::Retries "5";
Acquire::Check-Valid-Until "false";
DPkg::Post-Invoke:: "rm -rf /";
`}
	want := []string{
		`Acquire::Check-Valid-Until "false";`, `Acquire::Retries "5";`, `Acquire::http::Proxy "http://proxy.example:3128";`,
		`Acquire::http::Proxy::internal.example "DIRECT";`, `Acquire::https::CAInfo "/etc/ssl/corp.pem";`, `Acquire::https::Verify-Peer "true";`,
		fmt.Sprintf("Dir::Etc::netrcparts %q;", filepath.Join(dir, "apt/auth.conf.d")),
	}
	if diff := cmp.Diff(want, h.options()); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"Get:1 http://m.example/debian x":             "Get:1 http://m.example/debian x",
		"E: http://u:p@m.example/d https://t@n/ end":  "E: http://redacted@m.example/d https://redacted@n/ end",
		"http://u:p@m.example":                        "http://redacted@m.example",
		"http://u:p@ss@m.example/a@b":                 "http://redacted@m.example/a@b",
		"nothing here":                                "nothing here",
		"http://":                                     "http://",
		`Acquire::http::Proxy "http://a:b@proxy:80";`: `Acquire::http::Proxy "http://redacted@proxy:80";`,
	} {
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestBuildLogProgress(t *testing.T) {
	t.Parallel()
	var got []Progress
	log := &buildLog{progress: func(p Progress) { got = append(got, p) }}
	// Written in odd pieces, as a pipe would.
	text := "I: automatically chosen mode: root\nI: running apt-get update...\nGet:1 http://u:p@m.example bookworm InRelease\n" +
		"0 upgraded, 2 newly installed, 0 to remove\nGet:1 http://m.example a\nGet:2 http://m.example b\n" +
		"Unpacking a ...\r\nSetting up a\x1b[31m ...\nSetting up b ...\n\nI: creating tarball...\nI: done"
	for len(text) > 0 {
		n := min(7, len(text))
		if _, err := log.Write([]byte(text[:n])); err != nil {
			t.Fatal(err)
		}
		text = text[n:]
	}
	log.Close()
	want := []Progress{
		{StageResolve, 0, 0, "I: automatically chosen mode: root"},
		{StageResolve, 0, 0, "I: running apt-get update..."},
		{StageResolve, 0, 0, "Get:1 http://redacted@m.example bookworm InRelease"},
		{StageDownload, 0, 2, "0 upgraded, 2 newly installed, 0 to remove"},
		{StageDownload, 1, 2, "Get:1 http://m.example a"},
		{StageDownload, 2, 2, "Get:2 http://m.example b"},
		{StageInstall, 0, 2, "Unpacking a ..."},
		{StageInstall, 1, 2, "Setting up a [31m ..."},
		{StageInstall, 2, 2, "Setting up b ..."},
		{StageWrite, 0, 0, "I: creating tarball..."},
		{StageWrite, 0, 0, "I: done"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}

// script is a stand-in for mmdebstrap.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mmdebstrap")
	// A child that another test forks meanwhile would hold the file open for
	// writing, and it could not be executed.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDebootstrapErrors(t *testing.T) {
	t.Parallel()
	full := fmt.Errorf("write image: disk full: %w", errdefs.ErrResourceExhausted)
	readAll := func(r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && len(b) == 0 {
			return fmt.Errorf("archive is empty: %w", errdefs.ErrInvalidArgument)
		}
		return err
	}
	tests := []struct {
		name, script string
		use          func(io.Reader) error
		is           func(error) bool
		text         string
	}{
		{"fine", "cat >/dev/null; echo data", readAll, func(err error) bool { return err == nil }, ""},
		{"mirror away", "echo 'E: Failed to fetch http://u:p@m.example/x  Could not resolve' >&2; exit 2", readAll, errdefs.IsUnavailable, "mirror cannot be reached"},
		{"bad key", "echo 'The following signatures: NO_PUBKEY 123' >&2; echo 'E: Failed to fetch x' >&2; exit 2", readAll, errdefs.IsFailedPrecondition, "debian-archive-keyring"},
		{"no package", "echo 'E: Unable to locate package nonsense' >&2; exit 2", readAll, errdefs.IsInvalidArgument, "nonsense"},
		{"temp disk full", "echo 'tar: No space left on device' >&2; exit 2", readAll, errdefs.IsResourceExhausted, "TMPDIR"},
		{"unknown", "echo 'E: strange things' >&2; exit 7", readAll, errdefs.IsInternal, "strange things"},
		{"half a stream", "echo data; echo 'E: strange things' >&2; exit 7", readAll, errdefs.IsInternal, "exit status 7"},
		{"ours fails first", "yes | head -c 10000000; sleep 600", func(io.Reader) error { return full }, errdefs.IsResourceExhausted, "write image"},
		{"refused content", "echo data; exit 0", func(io.Reader) error { return fmt.Errorf("climbs: %w", errdefs.ErrInvalidArgument) }, errdefs.IsInvalidArgument, "climbs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := debootstrap{tool: script(t, tt.script), tempDir: t.TempDir(), sources: "deb x", progress: func(Progress) {}}
			err := d.run(t.Context(), tt.use)
			if !tt.is(err) || tt.text != "" && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("run = %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "u:p@") {
				t.Errorf("error shows a password: %v", err)
			}
		})
	}
}

// TestDebootstrapEnvironment: what is installed does not depend on the day, and
// the tools that install it not on the caller's search path.
func TestDebootstrapEnvironment(t *testing.T) {
	t.Parallel()
	d := debootstrap{tool: script(t, `echo "$SOURCE_DATE_EPOCH ${PATH%%:*}"`), tempDir: t.TempDir(), progress: func(Progress) {}, grace: time.Second}
	var got []byte
	err := d.run(t.Context(), func(r io.Reader) (err error) {
		got, err = io.ReadAll(r)
		return err
	})
	if want := "1793491200 /usr/sbin\n"; err != nil || string(got) != want {
		t.Errorf("environment = %q, %v, want %q", got, err, want)
	}
}

// TestBare: a bare template has its packages, and nothing of apt, Python and npm
// besides.
func TestBare(t *testing.T) {
	t.Parallel()
	s, err := StockTemplate(MinimalName)
	if err != nil {
		t.Fatal(err)
	}
	o := BaseOptions{Packages: s.Packages, bare: s.bare, hooks: s.hooks}.withDefaults()
	if o.npm() != "" || (BaseOptions{}).withDefaults().npm() != npmVersion {
		t.Errorf("npm of minimal = %q, of base = %q", o.npm(), (BaseOptions{}).withDefaults().npm())
	}
	args := baseBuild{BaseOptions: o}.arguments(o.Packages, nil)
	if !slices.Contains(args, "--variant=custom") || slices.Contains(args, "--variant=minbase") {
		t.Errorf("arguments = %q", args)
	}
	whole := o
	whole.bare = false
	if newRecipe(o).key() == newRecipe(whole).key() {
		t.Error("a bare tree has the recipe of a whole one")
	}
	for _, tt := range []struct {
		o    BaseOptions
		apt  bool
		name string
	}{{o, false, "bare"}, {whole, true, "whole"}} {
		f, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w, err := erofs.NewWriter(f, erofs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := finaliseBase(w, tt.o); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"etc/apt/sources.list", "etc/pip.conf", "var/lib/apt/lists/partial"} {
			if w.Exists(path) != tt.apt {
				t.Errorf("%s: %s exists = %v", tt.name, path, !tt.apt)
			}
		}
		for _, path := range []string{"etc/profile", "home/user", "etc/resolv.conf", ".caisson"} {
			if !w.Exists(path) {
				t.Errorf("%s: %s is missing", tt.name, path)
			}
		}
	}
}

func TestDebootstrapOutputIsBounded(t *testing.T) {
	t.Parallel()
	d := debootstrap{
		tool:    script(t, "yes 'E: a line of noise' | head -n 20000 >&2; head -c 3000000 /dev/zero >&2; exit 1"),
		tempDir: t.TempDir(), progress: func(Progress) {},
	}
	err := d.run(t.Context(), func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err })
	if n := len(err.Error()); n > tailLines*(tailLine+1)+1000 {
		t.Errorf("error has %d bytes", n)
	}
}

// TestCancelKillsTheGroup has a child that ignores the gentle signal's effect on
// its parent, as dpkg under mmdebstrap would.
func TestCancelKillsTheGroup(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	d := debootstrap{
		tool:    script(t, "(trap '' TERM; echo $$ > "+pidFile+".tmp; sh -c 'echo $PPID' > "+pidFile+"; echo up; sleep 600) & wait"),
		tempDir: t.TempDir(), progress: func(Progress) {}, grace: 50 * time.Millisecond,
	}
	cause := errors.New("asked to stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := d.run(ctx, func(r io.Reader) error {
		if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
			return err
		}
		cancel(cause)
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if !errors.Is(err, cause) {
		t.Errorf("run = %v, want the cause", err)
	}
	pid, rerr := os.ReadFile(pidFile)
	if rerr != nil {
		t.Fatal(rerr)
	}
	// The signal has been sent; the kernel takes a moment to carry it out, and
	// init another to reap.
	deadline := time.Now().Add(5 * time.Second)
	for {
		stat, rerr := os.ReadFile("/proc/" + string(bytes.TrimSpace(pid)) + "/stat")
		if rerr != nil || bytes.Contains(stat, []byte(") Z ")) || bytes.Contains(stat, []byte(") X ")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("child is alive: %s", stat)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestParsePackages(t *testing.T) {
	t.Parallel()
	got, err := parsePackages([]byte(`Package: zlib1g
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13
Description: x
 Package: not a field

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: adduser
Status: install ok installed
Architecture: all
Version: 3.134
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []Package{{"adduser", "3.134", "all"}, {"zlib1g", "1:1.2.13", "amd64"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
}

func TestRecipeKey(t *testing.T) {
	t.Parallel()
	a := newRecipe(BaseOptions{Suite: "bookworm", Packages: []string{"b", "a", "a"}}).key()
	if got := newRecipe(BaseOptions{Suite: "bookworm", Packages: []string{"a", "b"}}).key(); got != a {
		t.Error("order and repetition of packages change the key")
	}
	for _, other := range []recipe{
		newRecipe(BaseOptions{Suite: "trixie", Packages: []string{"a", "b"}}),
		newRecipe(BaseOptions{Suite: "bookworm", Packages: []string{"a"}}),
		newRecipe(BaseOptions{Suite: "bookworm", Packages: []string{"a", "b"}, hooks: []string{"h"}}),
	} {
		if other.key() == a {
			t.Errorf("%+v has the key of another recipe", other)
		}
	}
}

func TestRemoveWorkRefusesMounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inside := filepath.Join(dir, "work", "with space")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", inside, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("cannot mount here: %v", err)
	}
	err := removeWork(filepath.Join(dir, "work"))
	if uerr := syscall.Unmount(inside, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removeWork over a mount = %v", err)
	}
	if err := removeWork(filepath.Join(dir, "work")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "work")); !os.IsNotExist(err) {
		t.Errorf("work is still there: %v", err)
	}
}

func TestOptionsValidate(t *testing.T) {
	t.Parallel()
	for _, o := range []BaseOptions{
		{Suite: "--hook"},
		{Suite: "book worm"},
		{Packages: []string{"a,b"}},
		{Packages: []string{"a/b"}},
		{Packages: []string{""}},
		{Mirror: "m.example"},
		{Mirror: "http://m.example\ndeb x"},
		{Mirror: "http://m.example [trusted=yes]"},
	} {
		if err := o.withDefaults().validate(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("validate(%+v) = %v", o, err)
		}
	}
	if err := (BaseOptions{Mirror: "http://u:p@m.example/debian"}).withDefaults().validate(); err != nil {
		t.Error(err)
	}
}

func TestUnescapeMount(t *testing.T) {
	t.Parallel()
	if got := unescapeMount(`/tmp/a\040b\134c`); got != `/tmp/a b\c` {
		t.Errorf("unescapeMount = %q", got)
	}
}
