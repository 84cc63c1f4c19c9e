package sandbox_test

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// vault is a directory of artifacts; it outlives processes.
type vault struct {
	mu  sync.Mutex
	has map[snapshot.ID]time.Time
	// root is where its files are, if there are any.
	root string
}

func (v *vault) ids() []snapshot.ID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.has))
}

// dir makes a directory where there is one to make it in.
func (v *vault) dir(id snapshot.ID) (string, error) {
	path := filepath.Join(v.root, string(id))
	if v.root == "" {
		return path, nil
	}
	return path, os.MkdirAll(path, 0o700)
}

type faultyVault struct {
	v *vault
	p *process
}

func (f faultyVault) Dir(_ context.Context, id snapshot.ID) (string, error) {
	if f.p.dead.Load() {
		return "", errDead
	}
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	if _, ok := f.v.has[id]; !ok {
		f.v.has[id] = time.Now()
	}
	return f.v.dir(id)
}

func (f faultyVault) Sync(context.Context, snapshot.ID) error { return f.p.step("sync") }

func (f faultyVault) List(context.Context) ([]snapshot.Stored, error) {
	if f.p.dead.Load() {
		return nil, errDead
	}
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	var all []snapshot.Stored
	for id, at := range f.v.has {
		all = append(all, snapshot.Stored{ID: id, ChangedAt: at})
	}
	return all, nil
}

func (f faultyVault) Delete(_ context.Context, id snapshot.ID) error {
	if err := f.p.step("delete"); err != nil {
		return err
	}
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	delete(f.v.has, id)
	return nil
}

func (faultyVault) Export(context.Context, snapshot.Artifact, io.Writer) error {
	return errors.ErrUnsupported
}

// Snapshot implements provider.Snapshotter.
func (o *openBox) Snapshot(ctx context.Context, k snapshot.Kind, v snapshot.Vault) (snapshot.Artifact, error) {
	a := snapshot.Artifact{ID: snapshot.ID(strings.ToLower(rand.Text())), Kind: k, SizeBytes: 1}
	o.host.mu.Lock()
	hook := o.host.saving
	o.host.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, o.spec); err != nil {
			return a, err
		}
	}
	if err := o.p.step("snapshot"); err != nil {
		return a, err
	}
	o.host.mu.Lock()
	o.init.AccessToken = "" // as the agent forgets it
	o.host.mu.Unlock()
	_, err := v.Dir(ctx, a.ID)
	return a, err
}

// ExportLayer implements provider.LayerExporter: what was restored has one file,
// named after the artifact.
func (o *openBox) ExportLayer(_ context.Context, w io.Writer) error {
	if err := o.p.step("export"); err != nil {
		return err
	}
	o.host.mu.Lock()
	from := string(o.from)
	o.host.mu.Unlock()
	tw := tar.NewWriter(w)
	for _, h := range []tar.Header{{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "./" + from, Typeflag: tar.TypeReg, Mode: 0o600, Size: 1}} {
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
	}
	_, err := tw.Write([]byte("x"))
	return errors.Join(err, tw.Close())
}

// Restore implements provider.Restorer.
func (f faultyProvider) Restore(ctx context.Context, spec provider.Spec, a snapshot.Artifact, v snapshot.Vault) (provider.Box, error) {
	if err := f.p.step("restore"); err != nil {
		return nil, err
	}
	stored, err := v.List(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(stored, func(s snapshot.Stored) bool { return s.ID == a.ID }) {
		return nil, errors.New("there is no such artifact")
	}
	box, err := f.Create(ctx, spec)
	if x := f.b.get(sandbox.ID(spec.SandboxID)); err == nil && x != nil {
		f.b.mu.Lock()
		x.from = a.ID
		f.b.mu.Unlock()
	}
	return box, err
}

// soon waits for what is put away behind a pause, a resume or a fork; what does
// not come true is the caller's to report.
func soon(ok func() bool) {
	for deadline := time.Now().Add(5 * time.Second); !ok() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
}
