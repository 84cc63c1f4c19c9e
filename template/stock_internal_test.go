package template

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// oneTemplate is a store with one template and its builds.
type oneTemplate struct {
	Store
	t      Template
	builds map[BuildID]Build
}

func (o *oneTemplate) GetTemplate(context.Context, identity.TeamID, string) (Template, error) {
	if o.t.ID == "" {
		return Template{}, errdefs.ErrNotFound
	}
	return o.t, nil
}

func (o *oneTemplate) GetBuild(_ context.Context, id BuildID) (Build, error) {
	return o.builds[id], nil
}

func (o *oneTemplate) PutTemplate(_ context.Context, t Template, b Build) error {
	if t.Current == "" {
		t.Current = o.t.Current
	}
	o.t, o.builds[b.ID] = t, b
	return nil
}

// TestStockResources: other resources are those of a new build, and one whose
// memory was saved keeps those that it was saved with.
func TestStockResources(t *testing.T) {
	images, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := StockTemplate(DevName)
	if err != nil {
		t.Fatal(err)
	}
	rootfs, err := images.Put(t.Context(), func(f *os.File) error {
		_, err := f.WriteString("the files")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "") // nothing is built
	recipe := newRecipe(BaseOptions{Packages: s.Packages, hooks: s.hooks, bare: s.bare}.withDefaults()).key()
	if err := saveManifest(images, rootfs, Manifest{Recipe: recipe, CreatedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	store := &oneTemplate{builds: map[BuildID]Build{}}
	c := NewCatalog(store, images)
	ensure := func(r provider.Resources) Build {
		t.Helper()
		_, b, err := c.EnsureStock(t.Context(), DevName, BaseOptions{Resources: r})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := ensure(provider.Resources{})
	if diff := cmp.Diff(s.Resources, first.Resources); diff != "" {
		t.Error(diff)
	}
	// What a server makes of it: resources are complete, and memory is saved.
	first.Resources, first.Artifact = provider.Resources{CPUs: 2, MemoryMiB: 2048, DiskMiB: 10240, Processes: 512}, &snapshot.Artifact{ID: "a"}
	store.builds[first.ID] = first
	if again := ensure(provider.Resources{MemoryMiB: 2048}); again.ID != first.ID {
		t.Error("a build was replaced by one with the same resources")
	}
	second := ensure(provider.Resources{MemoryMiB: 4096})
	if second.ID == first.ID || second.Artifact != nil {
		t.Errorf("with more memory it is build %+v, want a new one", second)
	}
	if diff := cmp.Diff(provider.Resources{CPUs: 2, MemoryMiB: 4096}, second.Resources); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(first, store.builds[first.ID]); diff != "" {
		t.Errorf("the build with memory was changed:\n%s", diff)
	}
	if kept := ensure(provider.Resources{}); kept.ID != second.ID {
		t.Error("a build was replaced that nobody asked another for")
	}
}
