package template

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
)

const (
	// imageRoom and tempRoom are what a base build needs on disk, with room to
	// spare: the image, and the tree that mmdebstrap installs in.
	imageRoom = 1 << 30
	tempRoom  = 2 << 30
	// maxStatus bounds the dpkg status file.
	maxStatus = 64 << 20
)

// BaseOptions say how to build the base template. The zero value is right on a
// Debian host with mmdebstrap.
type BaseOptions struct {
	// Suite is a Debian suite; default DefaultSuite.
	Suite string
	// Packages replaces BasePackages.
	Packages []string
	// Mirror is the address of a Debian archive, with security fixes beside it
	// at <Mirror>-security. Default: the host's own apt sources when the host
	// is Debian of the same suite, else Debian's public archive. It is not
	// recorded in the image.
	Mirror string
	// Resources are the defaults of its sandboxes; zero fields are the stock
	// template's. With any, a build that has others is replaced.
	Resources provider.Resources
	// Force builds although an image of the same recipe is there.
	Force bool
	// TempDir is where mmdebstrap works; default os.TempDir.
	TempDir string
	// Progress, when set, is called from one goroutine at a time and must
	// return quickly.
	Progress func(Progress)

	// hooks are further options of mmdebstrap, bare leaves out what is not in
	// Packages, room is what the tree needs on disk; see Stock.
	hooks []string
	bare  bool
	room  int64
}

func (o BaseOptions) withDefaults() BaseOptions {
	o.Suite = cmp.Or(o.Suite, DefaultSuite)
	o.TempDir = cmp.Or(o.TempDir, os.TempDir())
	o.room = cmp.Or(o.room, tempRoom)
	if len(o.Packages) == 0 {
		o.Packages = BasePackages()
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	return o
}

// npm is the version of npm that is added: that of a tree with Node.
func (o BaseOptions) npm() string {
	if slices.Contains(o.Packages, "nodejs") {
		return npmVersion
	}
	return ""
}

// validate keeps words with a meaning to mmdebstrap and apt out of their
// command lines.
func (o BaseOptions) validate() error {
	for _, w := range append([]string{o.Suite}, o.Packages...) {
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyz0123456789+-.") != "" || strings.HasPrefix(w, "-") {
			return fmt.Errorf("%.80q is not the name of a suite or package: %w", w, errdefs.ErrInvalidArgument)
		}
	}
	if o.Mirror != "" && (!strings.Contains(o.Mirror, "://") || strings.ContainsAny(o.Mirror, " \t\r\n[]")) {
		return fmt.Errorf("mirror %.200q is not an address: %w", redact(o.Mirror), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Built is a finished root filesystem with what is known of it.
type Built struct {
	Rootfs   image.Rootfs
	Manifest Manifest
	User     string
	Workdir  string
	Env      map[string]string
}

func newBuilt(r image.Rootfs, m Manifest) Built {
	return Built{
		Rootfs: r, Manifest: m, User: userName, Workdir: userHome,
		Env: map[string]string{"PATH": defaultPath, "LANG": "C.UTF-8"},
	}
}

// BuildBase makes the root filesystem of the base template from Debian packages
// and stores it with its Manifest. An image of the same recipe that is stored
// already is returned unless Force is set. It takes about a minute, most of it
// download and installation.
//
// Errors: errdefs.ErrFailedPrecondition when the host lacks a tool, ErrUnavailable
// when the mirror cannot be reached, ErrResourceExhausted when a disk is full;
// their texts say what to do. When ctx ends all that was started is killed.
// Nothing is left behind on error.
func BuildBase(ctx context.Context, images *image.Store, o BaseOptions) (Built, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Built{}, err
	}
	key := newRecipe(o).key()
	if !o.Force {
		b, err := findBuilt(images, key)
		if err == nil || !errdefs.IsNotFound(err) {
			return b, err
		}
	}
	tool, err := checkHost(images, o)
	if err != nil {
		return Built{}, err
	}
	work, err := os.MkdirTemp(o.TempDir, "caisson-base-")
	if err != nil {
		return Built{}, fmt.Errorf("build base: %w", err)
	}
	b := baseBuild{BaseOptions: o, images: images, tool: tool, work: work, key: key}
	built, err := b.run(ctx)
	return built, errors.Join(err, removeWork(work))
}

// checkHost names what a build lacks before it begins.
func checkHost(images *image.Store, o BaseOptions) (tool string, err error) {
	tool, err = exec.LookPath("mmdebstrap")
	if err != nil {
		return "", fmt.Errorf("mmdebstrap is not installed: run `apt-get install mmdebstrap`, or build the template from a tar file: %w",
			errdefs.ErrFailedPrecondition)
	}
	if _, err := os.Stat(debianKeyring); err != nil {
		return "", fmt.Errorf("%s is missing: run `apt-get install debian-archive-keyring`: %w", debianKeyring, errdefs.ErrFailedPrecondition)
	}
	if err := images.CheckSpace(imageRoom); err != nil {
		return "", fmt.Errorf("store for images: %w", err)
	}
	if err := image.CheckSpace(o.TempDir, o.room); err != nil {
		return "", fmt.Errorf("temporary files: %w", err)
	}
	return tool, nil
}

// baseBuild is one run of BuildBase.
type baseBuild struct {
	BaseOptions
	images *image.Store
	tool   string
	work   string
	key    string
}

func (b baseBuild) run(ctx context.Context) (Built, error) {
	started := time.Now()
	// mmdebstrap may become another user, who must pass through here.
	if err := os.Chmod(b.work, 0o755); err != nil {
		return Built{}, fmt.Errorf("build base: %w", err)
	}
	packages := b.Packages
	manifest := Manifest{Recipe: b.key, Source: "debian " + b.Suite, CreatedAt: started.UTC(), NPM: b.npm()}
	var npm []byte
	if b.npm() != "" {
		b.Progress(Progress{Stage: StageResolve, Line: "get npm " + npmVersion})
		var err error
		npm, err = fetchNPM(ctx, b.work)
		if ctx.Err() != nil {
			return Built{}, context.Cause(ctx)
		}
		if err != nil {
			b.Progress(Progress{Stage: StageResolve, Line: "npm comes from Debian, which takes longer: " + redact(err.Error())})
			packages = append([]string{"npm"}, packages...)
			manifest.NPM = ""
		}
	}
	rootfs, err := b.images.Put(ctx, func(out *os.File) error {
		return b.write(ctx, out, packages, npm, &manifest)
	})
	if err != nil {
		return Built{}, fmt.Errorf("build base: %w", err)
	}
	if err := saveManifest(b.images, rootfs, manifest); err != nil {
		return Built{}, fmt.Errorf("build base: %w", err)
	}
	b.Progress(Progress{
		Stage: StageDone, Done: rootfs.SizeBytes, Total: rootfs.SizeBytes,
		Line: fmt.Sprintf("%d packages, %d files, %d MiB in %s",
			len(manifest.Packages), manifest.Files, rootfs.SizeBytes>>20, time.Since(started).Round(100*time.Millisecond)),
	})
	return newBuilt(rootfs, manifest), nil
}

// write makes the image in out.
func (b baseBuild) write(ctx context.Context, out *os.File, packages []string, npm []byte, m *Manifest) error {
	w, err := erofs.NewWriter(out, erofs.Options{Devices: erofs.DropDevices, Exclude: excludeFromBase})
	if err != nil {
		return err
	}
	host := hostApt(ctx)
	run := debootstrap{
		tool: b.tool, args: b.arguments(packages, host.options()), sources: host.sources(b.Suite, b.Mirror),
		tempDir: b.work, progress: b.Progress, grace: killGrace,
	}
	err = run.run(ctx, func(tar io.Reader) error {
		next := int64(0)
		return w.AddTar(ctx, countReads(tar, func(n int64) {
			if n >= next {
				b.Progress(Progress{Stage: StageWrite, Done: n})
				next = n + 16<<20
			}
		}))
	})
	if err != nil {
		return err
	}
	if npm != nil {
		if err := addNPM(w, npm); err != nil {
			return err
		}
	}
	if err := fixKeystore(w); err != nil {
		return err
	}
	if err := finaliseBase(w, b.BaseOptions); err != nil {
		return err
	}
	status, err := w.ReadFile("var/lib/dpkg/status", maxStatus)
	if err != nil {
		return err
	}
	if m.Packages, err = parsePackages(status); err != nil {
		return err
	}
	stats, err := w.Finish()
	if err != nil {
		return err
	}
	m.Files, m.DataBytes, m.Warnings = stats.Files, stats.DataBytes, stats.Warnings
	return nil
}

// arguments are those of mmdebstrap. Sources come on standard input: they may
// hold passwords, which a command line would show to everyone.
func (b baseBuild) arguments(packages, aptOptions []string) []string {
	args := []string{"--verbose", "--variant=minbase", "--format=tar", "--include=" + strings.Join(packages, ",")}
	if b.bare {
		args[1] = "--variant=custom"
		args = append(args, "--dpkgopt=path-exclude=/usr/lib/*/gconv/*", "--dpkgopt=path-exclude=/etc/init.d/*", "--setup-hook="+mergedDirs)
	}
	for line := range strings.Lines(dpkgText) {
		args = append(args, "--dpkgopt="+strings.TrimSpace(line))
	}
	for _, o := range append([]string{`Acquire::Languages "none";`, `Acquire::Retries "3";`}, aptOptions...) {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, "--customize-hook="+archiveLocale, "--customize-hook="+staticBash)
	args = append(args, b.hooks...)
	return append(args, b.Suite, "-", "-")
}

// archiveLocale puts the one locale into an archive. Without it every program
// that calls setlocale opens and maps a file for each of twelve categories: a
// third of the system calls of a short command.
const archiveLocale = `if [ -d "$1/usr/lib/locale/C.utf8" ]; then
	chroot "$1" localedef --quiet --add-to-archive /usr/lib/locale/C.utf8
fi`

// staticBash makes bash the build of it that needs no dynamic linker. Every
// command of the SDKs runs in a login shell, and in a sandbox mapping libraries
// is a third of what starting one takes. A later upgrade of bash goes aside.
const staticBash = `if [ -x "$1/bin/bash-static" ]; then
	chroot "$1" dpkg-divert --quiet --local --no-rename --divert /bin/bash.distrib --add /bin/bash
	mv "$1/bin/bash" "$1/bin/bash.distrib"
	ln "$1/bin/bash-static" "$1/bin/bash"
fi`

// mergedDirs lays a bare tree out as Debian does, which the packages of a whole
// system would see to.
const mergedDirs = `for d in bin sbin lib lib64; do
	mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d"
done`

// excludeFromBase leaves out what belongs to the build and not to the image:
// devices (the sandbox makes its own), logs, caches, and mmdebstrap's apt
// settings, which may name the build host's proxy.
func excludeFromBase(path string) bool {
	switch path {
	case "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/sources.list",
		"etc/skel/.bash_logout", "root/.bash_history", "var/cache/ldconfig/aux-cache":
		return true
	}
	for _, dir := range []string{
		"dev/", "run/", "tmp/", "var/tmp/", "var/log/", "var/cache/apt/", "var/cache/debconf/", "var/lib/apt/lists/",
		"etc/apt/sources.list.d/", "etc/apt/auth.conf.d/", "var/lib/dpkg/status-old", "var/lib/dpkg/available-old",
	} {
		if strings.HasPrefix(path, dir) {
			return true
		}
	}
	return strings.HasPrefix(path, "usr/lib/python3") && strings.HasSuffix(path, "/EXTERNALLY-MANAGED")
}

// finaliseBase makes a Debian tree a sandbox's.
func finaliseBase(w *erofs.Writer, o BaseOptions) error {
	if err := skeleton(w); err != nil {
		return err
	}
	if o.bare {
		if err := addTexts(w, bareFiles()); err != nil {
			return err
		}
		return addUser(w)
	}
	if err := addTexts(w, debianFiles(o.Suite)); err != nil {
		return err
	}
	// Left out above with their content, needed by the tools that use them.
	for _, d := range []textFile{
		{path: "run/lock", mode: 0o777 | fs.ModeSticky},
		{path: "var/log/apt", mode: 0o755},
		{path: "var/cache/apt/archives/partial", mode: 0o755},
		{path: "var/cache/debconf", mode: 0o755},
		{path: "var/lib/apt/lists/partial", mode: 0o755},
		{path: "etc/apt/sources.list.d", mode: 0o755},
		{path: "etc/apt/auth.conf.d", mode: 0o755},
	} {
		if err := add(w, erofs.File{Path: d.path, Mode: d.mode | fs.ModeDir}); err != nil {
			return err
		}
	}
	return addUser(w)
}

// findBuilt returns the newest stored image of a recipe.
func findBuilt(images *image.Store, key string) (Built, error) {
	all, err := images.List()
	if err != nil {
		return Built{}, err
	}
	var best Built
	for _, r := range all {
		m, err := LoadManifest(images, r.Digest)
		if err != nil || m.Recipe != key || !m.CreatedAt.After(best.Manifest.CreatedAt) {
			continue
		}
		best = newBuilt(r, m)
	}
	if best.Rootfs.Digest == "" {
		return Built{}, fmt.Errorf("no image of recipe %s: %w", key, errdefs.ErrNotFound)
	}
	return best, nil
}

func saveManifest(images *image.Store, r image.Rootfs, m Manifest) error {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	return images.SetNotes(r.Digest, b)
}

// LoadManifest returns what was recorded when the image was built;
// errdefs.ErrNotFound for one without a record.
func LoadManifest(images *image.Store, digest string) (Manifest, error) {
	b, err := images.Notes(digest)
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return Manifest{}, fmt.Errorf("manifest of %s: %w", digest, err)
	}
	return m, nil
}

// removeWork removes the directory that mmdebstrap worked in, but never while
// something is mounted in it: that could be the host's own /dev.
func removeWork(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(unescapeMount(f[4]), dir+"/") {
			return fmt.Errorf("%s is still mounted: unmount it and remove %s: %w", f[4], dir, errdefs.ErrFailedPrecondition)
		}
	}
	if err := os.RemoveAll(filepath.Clean(dir)); err != nil {
		return fmt.Errorf("remove temporary files: %w", err)
	}
	return nil
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	for i := 0; i+3 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
			s = s[:i] + string(rune(c)) + s[i+4:]
		}
	}
	return s
}
