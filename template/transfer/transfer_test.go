package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/oci"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/caisson-dev/caisson/template/transfer"
	"github.com/caisson-dev/caisson/template/upload"
)

// fixture is all below the API, on real stores; no build is carried out.
type fixture struct {
	*transfer.Transfers
	t       *testing.T
	dir     string
	store   *store.Store
	images  *image.Store
	vault   *snapshot.Local
	catalog *template.Catalog
	queue   *queue.Queue
	seed    identity.Seed
	deps    transfer.Deps
}

type neverBuilds struct{}

func (neverBuilds) Execute(context.Context, template.Plan, func(template.LogLine)) (template.Artifacts, error) {
	return template.Artifacts{}, errors.ErrUnsupported
}

var (
	who      = identity.Principal{Team: identity.DefaultTeam, KeyID: "k"}
	stranger = identity.Principal{Team: "other", KeyID: "x"}
	mem      = snapshot.Artifact{ID: "memoryofmine", Kind: snapshot.Memory, ABI: "abi", SizeBytes: 12}
)

func begin(t *testing.T, seed identity.Seed) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), store: storetest.SQLite(t), seed: seed}
	log := slog.New(slog.DiscardHandler)
	var err error
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.images, err = image.Open(filepath.Join(f.dir, "images"))
	must(err)
	f.vault, err = snapshot.NewLocal(filepath.Join(f.dir, "snapshots"))
	must(err)
	uploads, err := upload.Open(filepath.Join(f.dir, "uploads"), upload.Limits{Team: 64 << 20})
	must(err)
	t.Cleanup(func() { uploads.Close() })
	puller, err := oci.New(oci.Options{Dir: filepath.Join(f.dir, "index"), Images: f.images, Limits: erofs.Limits{Entries: 20}})
	must(err)
	f.catalog = template.NewCatalog(f.store, f.images)
	f.queue, err = queue.New(queue.Config{Maxima: provider.Resources{CPUs: 8}}, queue.Deps{
		Store: f.store, Records: f.store, Catalog: f.catalog, Files: uploads, Executor: neverBuilds{}, Seed: seed, Log: log,
	})
	must(err)
	f.deps = transfer.Deps{
		Catalog: f.catalog, Builds: f.queue, Spool: uploads, Unpacker: puller, Images: f.images, Vault: f.vault, Names: f.store, Audit: f.store,
		Fits: func(snapshot.Artifact) error { return nil }, Seed: seed, MaxBytes: 1 << 20, Log: log,
	}
	f.Transfers, err = transfer.New(f.deps)
	must(err)
	return f
}

// template makes one of files; with memory it has a start command that runs in it.
func (f *fixture) template(name string, memory bool, files ...erofs.File) template.Build {
	f.t.Helper()
	r, err := f.images.Put(f.t.Context(), func(out *os.File) error {
		_, err := erofs.Build(out, append([]erofs.File{{Path: "bin/sh", Mode: 0o755, Data: []byte("sh")}}, files...))
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	i := queue.Imported{Name: name, Source: "test", Rootfs: r, User: "app", Workdir: "/app", Env: map[string]string{"A": "b"}, Resources: provider.Resources{CPUs: 3}}
	if memory {
		a := mem
		a.RootfsDigest = r.Digest
		i.Start, i.Ready, i.Artifact = "serve", "curl", &a
		dir, err := f.vault.Dir(f.t.Context(), a.ID)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "checkpoint.img"), []byte("what it held"), 0o600)
		}
		if err != nil {
			f.t.Fatal(err)
		}
		i.Settle = func(ctx context.Context, id template.BuildID) error {
			return f.store.PutName(ctx, string(id), "example.com", netip.MustParseAddr("240.0.0.9"))
		}
	}
	_, b, err := f.queue.Import(f.t.Context(), who, i)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *fixture) export(who identity.Principal, ref string, memory bool) []byte {
	f.t.Helper()
	e, err := f.Export(f.t.Context(), who, ref, memory)
	if err != nil {
		f.t.Fatalf("Export() = %v", err)
	}
	var b bytes.Buffer
	if err := errors.Join(e.Write(f.t.Context(), &b), e.Close()); err != nil {
		f.t.Fatalf("Write() = %v", err)
	}
	return b.Bytes()
}

func (f *fixture) take(who identity.Principal, name string, raw []byte) (transfer.Imported, error) {
	return f.Import(f.t.Context(), who, transfer.Import{Name: name, Body: bytes.NewReader(raw), Size: int64(len(raw))})
}

func TestThereAndBack(t *testing.T) {
	t.Parallel()
	f := begin(t, identity.NewSeed())
	b := f.template("mine:v1", false, erofs.File{Path: "app/data", Mode: 0o600, UID: 7, Data: []byte("data")})
	raw := f.export(who, "mine:v1", false)
	for name, f := range map[string]*fixture{"here": f, "elsewhere": begin(t, identity.NewSeed())} {
		got, err := f.take(who, "copy", raw)
		if err != nil || got.Build.Status != template.Ready || len(got.Notes) > 0 {
			t.Fatalf("%s: Import() = %+v, %v", name, got, err)
		}
		_, c, err := f.catalog.Resolve(t.Context(), who.Team, "copy")
		if err != nil {
			t.Fatal(err)
		}
		if c.User != b.User || c.Workdir != b.Workdir || !cmp.Equal(c.Env, b.Env) || c.Resources.CPUs != 3 {
			t.Errorf("%s: build = %+v, want it like %+v", name, c, b)
		}
		// Its own archive has the same files, and this time the name in it counts.
		again, err := f.take(who, "", f.export(who, "copy", false))
		if err != nil || again.Build.Rootfs.Digest != c.Rootfs.Digest || again.Template.Names[0] != "copy" {
			t.Errorf("%s: Import() of the copy = %+v, %v", name, again, err)
		}
	}
	named, err := f.take(stranger, "", raw)
	if err != nil || named.Template.Names[0] != "mine" || !cmp.Equal(named.Build.Tags, []string{"v1"}) || named.Template.Team != "other" {
		t.Errorf("Import() without a name = %+v, %v", named, err)
	}
}

func TestMemoryThereAndBack(t *testing.T) {
	t.Parallel()
	f := begin(t, identity.NewSeed())
	b := f.template("mine", true)
	raw := f.export(who, "mine", true)
	if err := f.catalog.Delete(t.Context(), who.Team, "mine"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.vault.Delete(t.Context(), mem.ID), os.Remove(b.Rootfs.Path)); err != nil {
		t.Fatal(err)
	}
	got, err := f.take(who, "copy", raw)
	if err != nil || got.Build.Status != template.Ready || got.Build.Artifact == nil {
		t.Fatalf("Import() = %+v, %v", got, err)
	}
	c := got.Build
	if c.Rootfs.Digest != b.Rootfs.Digest || c.Start != "serve" || c.Ready != "curl" || c.Artifact.ID == mem.ID || c.Artifact.RootfsDigest != b.Rootfs.Digest {
		t.Errorf("build = %+v with %+v", c, c.Artifact)
	}
	dir, err := f.vault.Dir(t.Context(), c.Artifact.ID)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "checkpoint.img")); string(text) != "what it held" || err != nil {
		t.Errorf("memory = %q, %v", text, err)
	}
	if names, err := f.store.Names(t.Context(), string(c.ID)); err != nil || names["example.com"].String() != "240.0.0.9" {
		t.Errorf("names = %v, %v", names, err)
	}
	// Whoever cannot take the memory up runs the start command anew.
	misfit := f.deps
	misfit.Fits = func(snapshot.Artifact) error { return snapshot.ErrOtherEngine }
	other, err := transfer.New(misfit)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		t   *transfer.Transfers
		who identity.Principal
		why string
	}{
		"another installation": {begin(t, identity.NewSeed()).Transfers, who, "another installation saved it"},
		"another team":         {f.Transfers, stranger, "another team saved it"},
		"another engine":       {other, who, "another version of the engine saved it"},
	} {
		got, err := c.t.Import(t.Context(), c.who, transfer.Import{Name: "again", Body: bytes.NewReader(raw), Size: int64(len(raw))})
		if err != nil || got.Build.Status != template.Building || got.Build.Artifact != nil || got.Build.Start != "serve" ||
			len(got.Notes) != 1 || !strings.Contains(got.Notes[0], c.why) {
			t.Errorf("%s: Import() = %+v, %v", name, got, err)
		}
	}
}

func TestExportRefuses(t *testing.T) {
	t.Parallel()
	f := begin(t, identity.NewSeed())
	f.template("plain", false)
	b := f.template("private", true)
	f.template("public", true)
	public, err := f.store.GetTemplate(t.Context(), who.Team, "public")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.store.SetPublic(t.Context(), public.ID, true, "k"); err != nil {
		t.Fatal(err)
	}
	b.ID, b.Sealed = "snap-build", "sealed"
	snap := template.Template{ID: template.NewID(), Team: who.Team, Kind: template.KindSnapshot, Names: []string{"snap"}, CreatedAt: time.Now()}
	b.Template = snap.ID
	if err := f.store.PutTemplate(t.Context(), snap, b); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		who    identity.Principal
		ref    string
		memory bool
		is     func(error) bool
	}{
		"none":            {who, "nosuch", false, errdefs.IsNotFound},
		"another team's":  {stranger, "default/private", false, errdefs.IsNotFound},
		"no memory":       {who, "plain", true, errdefs.IsFailedPrecondition},
		"another's state": {stranger, "public", true, errdefs.IsPermissionDenied},
		"a snapshot":      {who, "snap", false, errdefs.IsFailedPrecondition},
	} {
		if e, err := f.Export(t.Context(), c.who, c.ref, c.memory); !c.is(err) {
			t.Errorf("%s: Export() = %v, %v", name, e, err)
		}
	}
	if len(f.export(stranger, "public", false)) == 0 {
		t.Error("a public template is not exported")
	}
}

func TestImportLeavesNothing(t *testing.T) {
	t.Parallel()
	seed := identity.NewSeed()
	from := begin(t, seed)
	from.template("mine", true)
	good := from.export(who, "mine", true)
	plain := from.export(who, "mine", false)
	from.template("many", false, func() (files []erofs.File) {
		for i := range 30 {
			files = append(files, erofs.File{Path: "f" + strings.Repeat("x", i), Mode: 0o644})
		}
		return files
	}()...)
	many := from.export(who, "many", false)
	changed := func(raw []byte, mark string, after int) []byte {
		raw = bytes.Clone(raw)
		raw[bytes.LastIndex(raw, []byte(mark))+after] ^= 4
		return raw
	}
	f := begin(t, seed)
	f.template("there", false)
	before := f.state()
	big := transfer.Import{Name: "x", Body: bytes.NewReader(good), Size: 1 << 30}
	if _, err := f.Import(t.Context(), who, big); !errors.Is(err, apierr.ErrTooLarge) {
		t.Errorf("Import() of a large one = %v", err)
	}
	for name, c := range map[string]struct {
		name string
		raw  []byte
		size int
		is   func(error) bool
	}{
		"truncated":          {"x", plain[:len(plain)-1500], 0, errdefs.IsInvalidArgument},
		"sent in part":       {"x", plain[:1000], len(plain), errdefs.IsInvalidArgument},
		"changed layer":      {"x", changed(plain, "\x1f\x8b", 40), 0, errdefs.IsInvalidArgument},
		"changed memory":     {"x", changed(good, "\x28\xb5\x2f\xfd", 12), 0, errdefs.IsInvalidArgument},
		"changed MAC":        {"x", changed(good, `"mac":"`, 10), 0, errdefs.IsInvalidArgument},
		"too many files":     {"x", many, 0, errdefs.IsResourceExhausted},
		"another's name":     {"other/x", plain, 0, errdefs.IsInvalidArgument},
		"no name":            {"x y", plain, 0, errdefs.IsInvalidArgument},
		"memory, team's own": {"other/x", good, 0, errdefs.IsInvalidArgument},
	} {
		r := transfer.Import{Name: c.name, Body: bytes.NewReader(c.raw), Size: int64(max(c.size, len(c.raw)))}
		if got, err := f.Import(t.Context(), who, r); !c.is(err) {
			t.Errorf("%s: Import() = %+v, %v", name, got, err)
		}
		if diff := cmp.Diff(before, f.state()); diff != "" {
			t.Errorf("%s: left (-before +after):\n%s", name, diff)
		}
	}
	if _, err := f.take(who, "x", good); err != nil {
		t.Errorf("Import() of what was not changed = %v", err)
	}
}

// state is what there is, but for images that the next collection takes.
func (f *fixture) state() (names []string) {
	f.t.Helper()
	all, err := f.store.ListTemplates(f.t.Context(), "")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, t := range all {
		names = append(names, string(t.Team)+"/"+t.Names[0]+"="+string(t.Current))
	}
	for _, pattern := range []string{"uploads/*/*", "uploads/*/.*", "snapshots/*", "images/.tmp*"} {
		found, err := filepath.Glob(filepath.Join(f.dir, pattern))
		if err != nil {
			f.t.Fatal(err)
		}
		names = append(names, found...)
	}
	return names
}

func TestTransfersAreBounded(t *testing.T) {
	t.Parallel()
	f := begin(t, identity.NewSeed())
	f.template("mine", false)
	var open []*transfer.Export
	for range 2 {
		e, err := f.Export(t.Context(), who, "mine", false)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, e)
	}
	if _, err := f.Export(t.Context(), who, "mine", false); !errdefs.IsResourceExhausted(err) {
		t.Errorf("Export() of a third = %v", err)
	}
	read := false
	_, err := f.Import(t.Context(), who, transfer.Import{Name: "x", Size: 1, Body: readerFunc(func([]byte) (int, error) { read = true; return 0, io.EOF })})
	if !errdefs.IsResourceExhausted(err) || read {
		t.Errorf("Import() beside them = %v, read %t", err, read)
	}
	if _, err := f.Import(t.Context(), stranger, transfer.Import{Name: "x", Body: strings.NewReader(""), Size: 0}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Import() of another team = %v", err)
	}
	for _, e := range open {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	f.export(who, "mine", false)
}

// A client that sends slowly keeps nobody from importing; what it sent waits for a place.
func TestSlowClientsHaveNoPlace(t *testing.T) {
	t.Parallel()
	f := begin(t, identity.NewSeed())
	f.template("mine", false)
	raw := f.export(who, "mine", false)
	const slow = 3 // more than a team has places
	ends := make(chan error, slow)
	began, release := make(chan struct{}), make(chan struct{})
	for i := range slow {
		once := sync.OnceFunc(func() { began <- struct{}{}; <-release })
		body := bytes.NewReader(raw)
		go func() {
			_, err := f.Import(t.Context(), who, transfer.Import{
				Name: "slow" + strconv.Itoa(i), Size: int64(len(raw)),
				Body: readerFunc(func(p []byte) (int, error) { once(); return body.Read(p) }),
			})
			ends <- err
		}()
		<-began
	}
	if _, err := f.take(who, "quick", raw); err != nil {
		t.Errorf("Import() beside slow ones = %v", err)
	}
	close(release)
	for range slow {
		if err := <-ends; err != nil {
			t.Errorf("Import() of a slow one = %v", err)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
