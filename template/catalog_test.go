package template_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
)

// memory is a Store in memory.
type memory struct {
	mu        sync.Mutex
	templates map[template.ID]template.Template
	builds    map[template.BuildID]template.Build
}

func (m *memory) PutTemplate(_ context.Context, t template.Template, b template.Build) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.templates[t.ID], m.builds[b.ID] = t, b
	return nil
}

func (m *memory) GetTemplate(_ context.Context, team identity.TeamID, ref string) (template.Template, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var public *template.Template
	for _, t := range m.templates {
		if string(t.ID) != ref && !slices.Contains(t.Names, ref) {
			continue
		}
		if t.Team == team {
			return t, nil
		}
		if t.Public {
			public = &t
		}
	}
	if public == nil {
		return template.Template{}, errdefs.ErrNotFound
	}
	return *public, nil
}

func (m *memory) GetBuild(_ context.Context, id template.BuildID) (template.Build, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.builds[id]
	if !ok {
		return b, errdefs.ErrNotFound
	}
	return b, nil
}

func (m *memory) TaggedBuild(context.Context, template.ID, string) (template.BuildID, error) {
	return "", errdefs.ErrNotFound
}

func (m *memory) ListTemplates(_ context.Context, team identity.TeamID) ([]template.Template, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []template.Template
	for _, t := range m.templates {
		if t.Team == team || t.Public {
			out = append(out, t)
		}
	}
	return out, nil
}

func (m *memory) ListBuilds(_ context.Context, id template.ID) ([]template.Build, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []template.Build
	for _, b := range m.builds {
		if b.Template == id {
			out = append(out, b)
		}
	}
	return out, nil
}

func (m *memory) DeleteTemplate(_ context.Context, id template.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.templates, id)
	for k, b := range m.builds {
		if b.Template == id {
			delete(m.builds, k)
		}
	}
	return nil
}

func (m *memory) RootfsDigests(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, b := range m.builds {
		out = append(out, b.Rootfs.Digest)
	}
	return out, nil
}

func newCatalog(t *testing.T) (*template.Catalog, *memory, *image.Store) {
	t.Helper()
	images, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{templates: map[template.ID]template.Template{}, builds: map[template.BuildID]template.Build{}}
	return template.NewCatalog(m, images), m, images
}

func tarball(t *testing.T, files map[string]string) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func mustBuild(t *testing.T, c *template.Catalog, team identity.TeamID, name, body string, o template.TarOptions) (template.Template, template.Build) {
	t.Helper()
	tpl, b, err := c.BuildTar(t.Context(), team, name, tarball(t, map[string]string{"etc/issue": body}), o)
	if err != nil {
		t.Fatal(err)
	}
	return tpl, b
}

func TestParseReference(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 128)
	for in, want := range map[string]template.Reference{
		"base":              {Name: "base", Tag: "default"},
		"  Base\n":          {Name: "base", Tag: "default"},
		"team/my-tpl_1":     {Namespace: "team", Name: "my-tpl_1", Tag: "default"},
		"a/b:v1.2-x":        {Namespace: "a", Name: "b", Tag: "v1.2-x"},
		"b:default":         {Name: "b", Tag: "default"},
		long:                {Name: long, Tag: "default"},
		"0a1b2c3d4e5f6g7h8": {Name: "0a1b2c3d4e5f6g7h8", Tag: "default"},
	} {
		got, err := template.ParseReference(in)
		if err != nil || got != want {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", " ", "/", "a/", "/a", "a/b/c", "a:", ":a", "a:b:c", "a b", "a\x00", "a.b", "ä", "../a", "a:../b", long + "a", "a:" + long + "a",
		"a:123e4567-e89b-12d3-a456-426614174000",
	} {
		if got, err := template.ParseReference(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("ParseReference(%q) = %+v, %v", in, got, err)
		}
	}
}

func TestCatalogResolve(t *testing.T) {
	t.Parallel()
	c, m, _ := newCatalog(t)
	base, baseBuild := mustBuild(t, c, identity.DefaultTeam, "base", "base", template.TarOptions{})
	own, _ := mustBuild(t, c, "ann", "mine", "mine", template.TarOptions{})
	open, _ := mustBuild(t, c, "bob", "open", "open", template.TarOptions{Public: true})
	mustBuild(t, c, "bob", "hidden", "hidden", template.TarOptions{})
	annBase, _ := mustBuild(t, c, "cat", "base", "cat's base", template.TarOptions{})
	if annBase.ID == base.ID {
		t.Fatal("a build under a public template's name replaced it")
	}
	tests := []struct {
		team identity.TeamID
		ref  string
		want template.ID
		is   func(error) bool
	}{
		{"ann", "base", base.ID, nil},
		{"ann", " BASE:default ", base.ID, nil},
		{"ann", "default/base", base.ID, nil},
		{"ann", string(base.ID), base.ID, nil},
		{"cat", "base", annBase.ID, nil},
		{"cat", "cat/base", annBase.ID, nil},
		{"cat", "default/base", base.ID, nil},
		{"ann", "mine", own.ID, nil},
		{"ann", "ann/mine", own.ID, nil},
		{"ann", "bob/open", open.ID, nil},
		{"ann", "bob/hidden", "", errdefs.IsNotFound},
		{"ann", "hidden", "", errdefs.IsNotFound},
		{"ann", "cat/base", "", errdefs.IsNotFound},
		{"ann", "bob/base", "", errdefs.IsNotFound},
		{"bob", "mine", "", errdefs.IsNotFound},
		{"ann", "base:v2", "", errdefs.IsNotFound},
		{"ann", "nope", "", errdefs.IsNotFound},
		{"ann", "no/pe/", "", errdefs.IsInvalidArgument},
	}
	for _, tt := range tests {
		got, b, err := c.Resolve(t.Context(), tt.team, tt.ref)
		if tt.is == nil && (err != nil || got.ID != tt.want || b.ID != got.Current || b.Rootfs.Path == "") {
			t.Errorf("Resolve(%s, %q) = %v, %v; want %v", tt.team, tt.ref, got.ID, err, tt.want)
		}
		if tt.is != nil && (!tt.is(err) || !strings.Contains(err.Error(), tt.ref)) {
			t.Errorf("Resolve(%s, %q) = %v", tt.team, tt.ref, err)
		}
	}
	// The recorded path may be that of an older data directory.
	stale := baseBuild
	stale.Rootfs.Path = "/nowhere"
	m.builds[stale.ID] = stale
	_, b, err := c.Resolve(t.Context(), "ann", "base")
	if err != nil || b.Rootfs != baseBuild.Rootfs {
		t.Errorf("Resolve after a move = %+v, %v", b.Rootfs, err)
	}
	if err := os.Remove(b.Rootfs.Path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Resolve(t.Context(), "ann", "base"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "template build base") {
		t.Errorf("Resolve without image = %v", err)
	}
}

func TestCatalogBuildTar(t *testing.T) {
	t.Parallel()
	c, m, images := newCatalog(t)
	tpl, first := mustBuild(t, c, "ann", "Mine", "1", template.TarOptions{})
	again, second := mustBuild(t, c, "ann", "mine", "2", template.TarOptions{AsIs: true})
	if tpl.ID != again.ID || first.ID == second.ID || again.Current != second.ID {
		t.Errorf("second build: %+v then %+v", tpl, again)
	}
	if len(tpl.ID) != 20 || strings.ToLower(string(tpl.ID)) != string(tpl.ID) || !cmp.Equal(tpl.Names, []string{"mine"}) {
		t.Errorf("template = %+v", tpl)
	}
	if first.User != "user" || first.Workdir != "/home/user" || first.Status != template.Ready || first.Env["PATH"] == "" {
		t.Errorf("build = %+v", first)
	}
	if second.User != "root" || second.Workdir != "/" {
		t.Errorf("build as is = %+v", second)
	}
	manifest, err := template.LoadManifest(images, first.Rootfs.Digest)
	if err != nil || manifest.Source != "tar" || manifest.Files == 0 {
		t.Errorf("manifest = %+v, %v", manifest, err)
	}
	for _, name := range []string{"bob/x", "x:v2", "a b", ""} {
		if _, _, err := c.BuildTar(t.Context(), "ann", name, tarball(t, map[string]string{"a": ""}), template.TarOptions{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("BuildTar(%q) = %v", name, err)
		}
	}
	before := len(m.builds)
	_, _, err = c.BuildTar(t.Context(), "ann", "bad", tarball(t, map[string]string{"../x": ""}), template.TarOptions{})
	if !errdefs.IsInvalidArgument(err) || len(m.builds) != before {
		t.Errorf("hostile archive: %v, %d builds", err, len(m.builds))
	}
	if _, _, err := c.Resolve(t.Context(), "ann", "bad"); !errdefs.IsNotFound(err) {
		t.Errorf("failed build is there: %v", err)
	}
}

// A template that is there is not published by another build of it.
func TestRebuiltStaysPrivate(t *testing.T) {
	t.Parallel()
	c, _, _ := newCatalog(t)
	mustBuild(t, c, identity.DefaultTeam, "mine", "one", template.TarOptions{})
	if got, _ := mustBuild(t, c, identity.DefaultTeam, "mine", "two", template.TarOptions{Public: true}); got.Public {
		t.Error("a private template was published")
	}
}

func TestCatalogDeleteAndGC(t *testing.T) {
	t.Parallel()
	c, store, images := newCatalog(t)
	_, keep := mustBuild(t, c, "ann", "keep", "keep", template.TarOptions{})
	_, drop := mustBuild(t, c, "ann", "drop", "drop", template.TarOptions{})
	mustBuild(t, c, "bob", "open", "open", template.TarOptions{Public: true})
	if err := c.Delete(t.Context(), "ann", "open"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("Delete of another team's = %v", err)
	}
	if err := c.Delete(t.Context(), "bob", "keep"); !errdefs.IsNotFound(err) {
		t.Errorf("Delete of a hidden one = %v", err)
	}
	saved := template.Template{ID: "saved", Team: "ann", Names: []string{"saved"}, Kind: template.KindSnapshot}
	if err := store.PutTemplate(t.Context(), saved, template.Build{ID: "saved", Rootfs: keep.Rootfs}); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"saved", "ann/saved"} {
		if err := c.Delete(t.Context(), "ann", ref); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "caisson snapshot delete "+ref) {
			t.Errorf("Delete(%q) of a snapshot = %v", ref, err)
		}
	}
	if err := c.Delete(t.Context(), "ann", "drop:default"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Delete() of a tag = %v, want failed precondition", err)
	}
	if err := c.Delete(t.Context(), "ann", "drop"); err != nil {
		t.Fatal(err)
	}
	// Too fresh to be collected.
	if got, err := c.GC(t.Context()); err != nil || len(got.Images) != 0 {
		t.Errorf("GC = %+v, %v", got, err)
	}
	old := time.Now().Add(-time.Hour)
	for _, b := range []template.Build{keep, drop} {
		if err := os.Chtimes(b.Rootfs.Path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.GC(t.Context())
	if err != nil || len(got.Images) != 1 || got.Images[0] != drop.Rootfs {
		t.Errorf("GC = %+v, %v", got, err)
	}
	if _, err := images.Get(keep.Rootfs.Digest); err != nil {
		t.Error(err)
	}
	if bs, err := c.Builds(t.Context(), "ann", "keep"); err != nil || len(bs) != 1 {
		t.Errorf("Builds = %v, %v", bs, err)
	}
}

// TestEnsureBaseFromTar: an operator's own base is not replaced by ours.
func TestEnsureBaseFromTar(t *testing.T) {
	t.Parallel()
	c, _, _ := newCatalog(t)
	tpl, b := mustBuild(t, c, identity.DefaultTeam, "base", "own", template.TarOptions{})
	if !tpl.Public {
		t.Error("base is not public")
	}
	gotT, gotB, err := c.EnsureBase(t.Context(), template.BaseOptions{})
	if err != nil || gotT.ID != tpl.ID || gotB.ID != b.ID {
		t.Errorf("EnsureBase = %v, %v, %v", gotT.ID, gotB.ID, err)
	}
	if _, _, err := c.EnsureBase(t.Context(), template.BaseOptions{Resources: provider.Resources{CPUs: 4}}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("EnsureBase with other resources = %v, want that it is there", err)
	}
}

// TestEnsureStockOwn: what a team has made under a stock template's name is not
// replaced, and what another one has made is not ours.
func TestEnsureStockOwn(t *testing.T) {
	t.Parallel()
	c, m, images := newCatalog(t)
	rootfs, err := images.Put(t.Context(), func(f *os.File) error {
		_, err := f.WriteString("of a recipe")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	own := template.Template{ID: "own", Team: identity.DefaultTeam, Names: []string{template.DevName}, Current: "b1"}
	build := template.Build{ID: "b1", Template: "own", Status: template.Ready, Source: "template base", Rootfs: rootfs}
	if err := m.PutTemplate(t.Context(), own, build); err != nil {
		t.Fatal(err)
	}
	got, b, err := c.EnsureStock(t.Context(), template.DevName, template.BaseOptions{})
	if err != nil || got.ID != own.ID || b.ID != build.ID {
		t.Errorf("EnsureStock = %v, %v, %v", got.ID, b.ID, err)
	}
	if _, _, err := c.EnsureStock(t.Context(), template.DevName, template.BaseOptions{Force: true}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("EnsureStock by force = %v, want that it is there", err)
	}
	if _, _, err := c.EnsureStock(t.Context(), template.DevName, template.BaseOptions{Resources: provider.Resources{CPUs: 4}}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("EnsureStock with resources = %v, want that it is there", err)
	}
	if _, _, _, err := c.Lock(t.Context(), identity.DefaultTeam, template.DevName); !errdefs.IsNotFound(err) {
		t.Errorf("Lock of a recipe's = %v, want not found", err)
	}
	// Notes on the files do not make it the stock template: imports have some.
	if err := images.SetNotes(rootfs.Digest, []byte(`{"source":"archive"}`)); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"archive of an image", "image debian", "template base", "renewal of b0, archive of an image"} {
		build.Source = source
		if err := m.PutTemplate(t.Context(), own, build); err != nil {
			t.Fatal(err)
		}
		for _, force := range []bool{false, true} {
			got, _, err := c.EnsureStock(t.Context(), template.DevName, template.BaseOptions{Force: force})
			if errdefs.IsAlreadyExists(err) != force || !force && got.ID != own.ID {
				t.Errorf("EnsureStock over a build of %q, by force %t = %v, %v", source, force, got.ID, err)
			}
		}
	}
	// Of another team, and public: ours would be built beside it.
	theirs := template.Template{ID: "theirs", Team: "ann", Public: true, Names: []string{template.MinimalName}, Current: "b2"}
	if err := m.PutTemplate(t.Context(), theirs, template.Build{ID: "b2", Template: "theirs", Status: template.Ready, Rootfs: rootfs}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, _, err := c.EnsureStock(ctx, template.MinimalName, template.BaseOptions{TempDir: t.TempDir()}); err == nil {
		t.Errorf("EnsureStock = %v, want that it begins to build", got.ID)
	}
}

// TestLock tells what was noted of a template's files.
func TestLock(t *testing.T) {
	t.Parallel()
	c, _, _ := newCatalog(t)
	tpl, b := mustBuild(t, c, "ann", "mine", "own", template.TarOptions{Source: "elsewhere"})
	gotT, gotB, lock, err := c.Lock(t.Context(), "ann", "mine")
	if err != nil || gotT.ID != tpl.ID || gotB.Rootfs.Digest != b.Rootfs.Digest || lock.Source != "elsewhere" || lock.Files == 0 {
		t.Errorf("Lock = %v, %v, %+v, %v", gotT.ID, gotB.Rootfs, lock, err)
	}
	if _, _, _, err := c.Lock(t.Context(), "bob", "mine"); !errdefs.IsNotFound(err) {
		t.Errorf("Lock of another team's = %v, want not found", err)
	}
}

func TestBuildBaseErrors(t *testing.T) {
	c, m, images := newCatalog(t)
	t.Setenv("PATH", t.TempDir())
	if _, _, err := c.EnsureBase(t.Context(), template.BaseOptions{}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
		t.Errorf("without mmdebstrap: %v", err)
	}
	if _, _, err := c.EnsureBase(t.Context(), template.BaseOptions{Suite: "-x"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad suite: %v", err)
	}
	left, err := os.ReadDir(images.Dir())
	if err != nil || len(left) > 1 || len(m.templates) != 0 {
		t.Errorf("left behind: %v, %v", left, m.templates)
	}
}

const baseEnv = "CAISSON_TEST_BASE"

// TestBuildBase builds the real thing; it needs a package mirror.
func TestBuildBase(t *testing.T) {
	if os.Getenv(baseEnv) == "" {
		t.Skipf("building from packages takes a minute and a mirror: set %s=1", baseEnv)
	}
	c, _, images := newCatalog(t)
	temp := t.TempDir()
	// A cancelled build leaves nothing.
	ctx, cancel := context.WithCancel(t.Context())
	o := template.BaseOptions{TempDir: temp, Progress: func(p template.Progress) {
		if p.Stage == template.StageInstall {
			cancel()
		}
	}}
	if _, _, err := c.EnsureBase(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled build = %v", err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	stages := map[template.Stage]bool{}
	o.Progress = func(p template.Progress) { stages[p.Stage] = true }
	tpl, b, err := c.EnsureBase(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if len(stages) != 5 {
		t.Errorf("stages = %v", stages)
	}
	manifest, err := template.LoadManifest(images, b.Rootfs.Digest)
	if err != nil || len(manifest.Packages) < 100 || manifest.Recipe == "" || len(manifest.Warnings) != 0 {
		t.Errorf("manifest = %d packages, warnings %q, %v", len(manifest.Packages), manifest.Warnings, err)
	}
	started := time.Now()
	_, again, err := c.EnsureBase(t.Context(), o)
	if err != nil || again.ID != b.ID || time.Since(started) > 5*time.Second {
		t.Errorf("second EnsureBase = %v, %v after %v", again.ID, err, time.Since(started))
	}
	// Records lost, image kept: no new build.
	fresh := template.NewCatalog(&memory{templates: map[template.ID]template.Template{}, builds: map[template.BuildID]template.Build{}}, images)
	_, found, err := fresh.EnsureBase(t.Context(), o)
	if err != nil || found.Rootfs != b.Rootfs {
		t.Errorf("EnsureBase over a stored image = %+v, %v", found.Rootfs, err)
	}
	t.Log(fmt.Sprintf("%s: %d MiB, %d files, %d packages", tpl.Names[0], b.Rootfs.SizeBytes>>20, manifest.Files, len(manifest.Packages)))
}
