package builder_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/agentclient"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/egress/gateway"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/internal/embedded"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/gvisor"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/builder"
)

// world is a builder on real sandboxes, with what a test asks about it.
type world struct {
	t       testing.TB
	dir     string
	prov    *gvisor.Provider
	guard   *gateway.Gateway
	images  *image.Store
	vault   *snapshot.Local
	builder *builder.Builder
	options builder.Options
	policy  egress.Policy

	mu  sync.Mutex // guards log
	log []template.LogLine
}

func newWorld(t testing.TB, limits builder.Limits) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("real sandboxes need root here")
	}
	w := openWorld(t, t.TempDir(), limits)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := errors.Join(w.prov.StopEngine(ctx), w.prov.Close()); err != nil {
			t.Errorf("end the engine: %v", err)
		}
	})
	return w
}

// openWorld is newWorld on a directory, perhaps one that another process used;
// the caller ends the engine.
func openWorld(t testing.TB, dir string, limits builder.Limits) *world {
	t.Helper()
	w := &world{t: t, dir: dir}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	var err error
	w.prov, err = gvisor.New(context.Background(), gvisor.Config{DataDir: filepath.Join(dir, "engine"), Log: log})
	if errors.Is(err, embedded.ErrAbsent) {
		t.Skipf("no real sandboxes: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.guard, err = gateway.New(gateway.Config{Ceiling: egress.Policy{Version: 1, Default: egress.Allow}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if w.images, err = image.Open(filepath.Join(dir, "images")); err != nil {
		t.Fatal(err)
	}
	if w.vault, err = snapshot.NewLocal(filepath.Join(dir, "snapshots")); err != nil {
		t.Fatal(err)
	}
	w.policy = egress.Policy{Version: 1, Default: egress.Deny}
	w.options = builder.Options{
		Dir: filepath.Join(dir, "builds"), Images: w.images, Provider: w.prov, Guard: w.guard, Policy: w.policy, Vault: w.vault,
		Puller: noImages{}, Limits: limits, Log: log,
		Defaults: provider.Resources{MemoryMiB: 512, CPUs: 2, DiskMiB: 1024, Processes: 256},
	}
	w.reopen(func(*builder.Options) {})
	return w
}

// reopen makes the builder anew with other options.
func (w *world) reopen(change func(*builder.Options)) {
	w.t.Helper()
	change(&w.options)
	var err error
	if w.builder, err = builder.New(w.options); err != nil {
		w.t.Fatal(err)
	}
}

// noImages is a puller that has none.
type noImages struct{}

func (noImages) Pull(_ context.Context, src template.ImageSource, _ func(string)) (builder.Base, error) {
	return builder.Base{}, fmt.Errorf("image %s: %w", src.Ref, errdefs.ErrNotFound)
}

// hostTools are what the tests' root filesystem takes from this machine.
func hostTools() []string {
	return []string{"sh", "cat", "id", "ls", "mkdir", "sleep", "rm", "touch", "env", "stat", "chmod", "grep", "head", "dd", "ln", "sha256sum", "sync", "seq", "mv", "sed"}
}

// base makes a small root filesystem of this machine's shell and tools, and
// returns it as a finished build.
func (w *world) base() *template.Build {
	w.t.Helper()
	rootfs, err := w.images.Put(context.Background(), func(out *os.File) error {
		iw, err := erofs.NewWriter(out, erofs.Options{})
		if err != nil {
			return err
		}
		if err := addHostTools(iw); err != nil {
			return err
		}
		if err := iw.Add(erofs.File{Path: "etc/old", Mode: 0o644, Data: []byte("old")}); err != nil {
			return err
		}
		if err := iw.Add(erofs.File{Path: "etc/sudoers.d", Mode: 0o755 | fs.ModeDir}); err != nil {
			return err
		}
		if err := template.Finalise(iw); err != nil {
			return err
		}
		_, err = iw.Finish()
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &template.Build{
		ID: "base-build", Template: "base", Status: template.Ready, Rootfs: rootfs, User: "user", Workdir: "/home/user",
		Env: map[string]string{"LANG": "C.UTF-8"},
	}
}

func addHostTools(w *erofs.Writer) error {
	seen := map[string]bool{}
	for _, name := range hostTools() {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return err
		}
		if err := addHostFile(w, "bin/"+name, real); err != nil {
			return err
		}
		libs, err := exec.Command("ldd", real).Output()
		if err != nil {
			continue // static
		}
		for _, field := range strings.Fields(string(libs)) {
			if !strings.HasPrefix(field, "/") || seen[field] {
				continue
			}
			seen[field] = true
			if err := addHostFile(w, field, field); err != nil {
				return err
			}
		}
	}
	return nil
}

func addHostFile(w *erofs.Writer, to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return w.Add(erofs.File{Path: to, Mode: 0o755, Data: b})
}

// build carries a plan out and keeps its log.
func (w *world) build(p template.Plan) (template.Artifacts, error) {
	w.t.Helper()
	w.mu.Lock()
	w.log = nil
	w.mu.Unlock()
	return w.builder.Execute(w.t.Context(), p, func(l template.LogLine) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.log = append(w.log, l)
	})
}

func (w *world) must(p template.Plan) template.Artifacts {
	w.t.Helper()
	a, err := w.build(p)
	if err != nil {
		w.t.Fatalf("build: %v\n%s", err, w.text())
	}
	return a
}

func (w *world) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, l := range w.log {
		fmt.Fprintf(&b, "%d %s %s\n", l.Step, l.Level, l.Text)
	}
	return b.String()
}

// cachedSteps returns the steps that were not run.
func (w *world) cachedSteps() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []int
	for _, l := range w.log {
		if l.Cached && l.Done {
			out = append(out, l.Step)
		}
	}
	return out
}

// try boots a sandbox of what was built, from memory if there is some, and
// returns what a shell line there prints.
func (w *world) try(a template.Artifacts, user, line string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	att, err := w.guard.Attach(ctx, "try", w.policy)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = w.guard.Detach(context.WithoutCancel(ctx), "try") }()
	spec := provider.Spec{SandboxID: "try", Hostname: "try", Rootfs: a.Rootfs, Egress: att}
	var box provider.Box
	if a.Memory != nil {
		spec.Resources = provider.Resources{MemoryMiB: 512, CPUs: 2, DiskMiB: 1024, Processes: 256}
		box, err = w.prov.Restore(ctx, spec, *a.Memory, w.vault)
	} else {
		box, err = w.prov.Create(ctx, spec)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := box.Destroy(context.WithoutCancel(ctx)); err != nil {
			w.t.Error(err)
		}
	}()
	err = box.Control().Init(ctx, control.Init{
		SandboxID: "try", AccessToken: "t", DefaultUser: a.User, DefaultWorkdir: a.Workdir, EnvVars: a.Env, Now: time.Now(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	route, err := box.Route(ctx, control.AgentPort)
	if err != nil {
		w.t.Fatal(err)
	}
	c := agentclient.New(route, secret.New("t"))
	defer c.Close()
	var out bytes.Buffer
	p, err := c.Exec(ctx, agentclient.Command{Cmd: "/bin/sh", Args: []string{"-c", line}, User: user, Stdout: &out, Stderr: &out})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		w.t.Fatal(err)
	}
	return out.String()
}

// leftovers lists what builds have left besides finished images and cached
// steps.
func (w *world) leftovers() []string {
	w.t.Helper()
	var left []string
	for _, pattern := range []string{
		"engine/layers/*", "engine/engine/boxes/*", "engine/engine/ctl/*", "images/.tmp-*", "builds/steps/.new-*",
	} {
		found, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			w.t.Fatal(err)
		}
		left = append(left, found...)
	}
	handles, err := w.prov.List(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range handles {
		left = append(left, "box "+h.ID)
		if w.builder.Owns(h.ID) {
			left = append(left, "owned "+h.ID)
		}
	}
	return left
}

func (w *world) artifacts() int {
	w.t.Helper()
	all, err := w.vault.List(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return len(all)
}

func step(kind string, args ...string) template.Step { return template.Step{Type: kind, Args: args} }

func copyStep(hash string, args ...string) template.Step {
	return template.Step{Type: "COPY", Args: args, FilesHash: hash}
}

// archives serves archives by hash.
func archives(m map[string][]byte) func(context.Context, string) (io.ReadCloser, error) {
	return func(_ context.Context, hash string) (io.ReadCloser, error) {
		b, ok := m[hash]
		if !ok {
			return nil, fmt.Errorf("no upload %s: %w", hash, errdefs.ErrNotFound)
		}
		return io.NopCloser(bytes.NewReader(b)), nil
	}
}

type item struct {
	tar.Header
	body string
}

func file(name, body string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}

func link(name, to string) item {
	return item{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}

func pack(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	for _, i := range items {
		err := tw.WriteHeader(&i.Header)
		if err == nil {
			_, err = io.WriteString(tw, i.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
