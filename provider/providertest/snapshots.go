package providertest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

func (s *suite) needSnapshot(t *testing.T, p provider.Provider, k snapshot.Kind) {
	t.Helper()
	if !p.Capabilities().Restore || !slices.Contains(p.Capabilities().Snapshots, k) {
		t.Skipf("this provider makes no %s snapshots", k)
	}
}

func (s *suite) save(t *testing.T, b provider.Box, k snapshot.Kind, v snapshot.Vault) snapshot.Artifact {
	t.Helper()
	a, err := b.(provider.Snapshotter).Snapshot(step(t), k, v)
	if err != nil {
		t.Fatalf("Snapshot(%s) = %v", k, err)
	}
	if a.Kind != k || a.ID == "" || a.ABI == "" || a.RootfsDigest != s.o.Rootfs.Digest || a.SizeBytes <= 0 {
		t.Errorf("Snapshot(%s) = %+v", k, a)
	}
	return a
}

func (s *suite) restore(t *testing.T, p provider.Provider, spec provider.Spec, a snapshot.Artifact, v snapshot.Vault) provider.Box {
	t.Helper()
	b, err := p.(provider.Restorer).Restore(step(t), spec, a, v)
	if err != nil {
		t.Fatalf("Restore(%s) = %v", a.Kind, err)
	}
	t.Cleanup(func() { s.destroy(t, b) })
	return b
}

// snapshotMemory saves a box with a process that counts, and restores it twice:
// all three count on from the same number, each on its own.
func (s *suite) snapshotMemory(t *testing.T) {
	p := s.new(t)
	s.needSnapshot(t, p, snapshot.Memory)
	v := newVault(t)
	b := s.create(t, p, s.spec())
	c := s.agent(t, b)
	s.background(t, c, "serve", "0.0.0.0:8000")
	s.background(t, c, "serve", "127.0.0.1:8001")
	s.tool(t, c, "put", "/root/file", "saved")
	s.tool(t, c, "put", "/tmp/file", "saved too")
	if got := s.get(t, b, 8000, "/count"); got != "1" {
		t.Fatalf("count = %q, want 1", got)
	}
	a := s.save(t, b, snapshot.Memory, v)
	if h, err := b.Control().Health(step(t)); err != nil || h.Ready {
		t.Errorf("Health() after a memory snapshot = %+v, %v, want an agent without identity", h, err)
	}
	c = s.agent(t, b)
	if got := s.get(t, b, 8000, "/count"); got != "2" {
		t.Errorf("count of the original = %q, want 2", got)
	}
	s.tool(t, c, "put", "/root/file", "changed")
	for range 2 {
		spec, rec := s.spec(), NewRecorder(true)
		spec.Egress = rec
		clone := s.restore(t, p, spec, a, v)
		if h, err := clone.Control().Health(step(t)); err != nil || h.Ready {
			t.Errorf("Health() of a clone = %+v, %v, want an agent without identity", h, err)
		}
		cc := s.agent(t, clone)
		if got := s.get(t, clone, 8000, "/count"); got != "2" {
			t.Errorf("count of a clone = %q, want 2", got)
		}
		if got := s.get(t, clone, 8001, "/count"); got != "1" {
			t.Errorf("count on localhost of a clone = %q, want 1", got)
		}
		for path, want := range map[string]string{"/root/file": "saved", "/tmp/file": "saved too"} {
			if got := s.tool(t, cc, "get", path); got != want {
				t.Errorf("%s of a clone = %q, want %q", path, got, want)
			}
		}
		if s.o.OwnNetwork {
			if got := s.tool(t, cc, "dial", "192.0.2.1:80", "clone"); got != "clone" || len(rec.Flows()) != 1 {
				t.Errorf("dial from a clone = %q with flows %v, want its own attachment", got, rec.Flows())
			}
		}
	}
}

func (s *suite) snapshotFilesystem(t *testing.T) {
	p := s.new(t)
	s.needSnapshot(t, p, snapshot.Filesystem)
	v := newVault(t)
	b := s.create(t, p, s.spec())
	c := s.agent(t, b)
	s.tool(t, c, "put", "/root/file", "saved")
	s.tool(t, c, "put", "/etc/hosts", "127.0.0.1 other\n")
	a := s.save(t, b, snapshot.Filesystem, v)
	if got := s.tool(t, c, "echo", "alive"); got != "alive" {
		t.Errorf("echo after a snapshot = %q", got)
	}
	for range 2 {
		cc := s.agent(t, s.restore(t, p, s.spec(), a, v))
		for path, want := range map[string]string{"/root/file": "saved", "/etc/hosts": "127.0.0.1 other"} {
			if got := s.tool(t, cc, "get", path); got != want {
				t.Errorf("%s of a clone = %q, want %q", path, got, want)
			}
		}
	}
}

// snapshotMisfits restores what must be refused.
func (s *suite) snapshotMisfits(t *testing.T) {
	p := s.new(t)
	s.needSnapshot(t, p, snapshot.Memory)
	v := newVault(t)
	b := s.create(t, p, s.spec())
	a := s.save(t, b, snapshot.Memory, v)
	otherABI, otherImage := a, a
	otherABI.ABI = "engine of last year"
	otherImage.RootfsDigest = "sha256:0"
	if f, ok := p.(provider.Fitter); ok {
		if err := f.Fits(a); err != nil {
			t.Errorf("Fits(own) = %v", err)
		}
		if err := f.Fits(otherABI); !errors.Is(err, snapshot.ErrOtherEngine) {
			t.Errorf("Fits(another ABI) = %v, want ErrOtherEngine", err)
		}
	}
	for name, bad := range map[string]snapshot.Artifact{"another ABI": otherABI, "another image": otherImage} {
		if _, err := p.(provider.Restorer).Restore(step(t), s.spec(), bad, v); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("Restore(%s) = %v, want ErrFailedPrecondition", name, err)
		}
	}
	// A damaged checkpoint is an error, and leaves nothing.
	dir, err := v.Dir(step(t), a.ID)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.WriteFile(dir+"/"+e.Name(), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := p.(provider.Restorer).Restore(step(t), s.spec(), a, v); err == nil {
		s.destroy(t, got)
		t.Error("Restore(damaged) succeeded")
	}
	if hs, err := p.List(step(t)); err != nil || len(hs) != 1 {
		t.Errorf("List() after refused restores = %v, %v, want the original only", hs, err)
	}
}

// exportLayer reads what boxes changed: one that runs, and what was restored of
// it with its memory and without.
func (s *suite) exportLayer(t *testing.T) {
	p := s.new(t)
	if !p.Capabilities().ExportsLayers {
		t.Skip("this provider exports no layers")
	}
	v := newVault(t)
	b := s.create(t, p, s.spec())
	c := s.agent(t, b)
	s.tool(t, c, "put", "/root/new", "content")
	s.tool(t, c, "remove", "/etc/hosts")
	all := map[string]provider.Box{"running": b}
	for _, k := range p.Capabilities().Snapshots {
		all[string(k)] = s.restore(t, p, s.spec(), s.save(t, b, k, v), v)
	}
	for name, b := range all {
		var layer bytes.Buffer
		if err := b.(provider.LayerExporter).ExportLayer(step(t), &layer); err != nil {
			t.Errorf("%s: ExportLayer() = %v", name, err)
			continue
		}
		found := map[string]string{}
		for tr := tar.NewReader(&layer); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			body, err := io.ReadAll(tr)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
				body = []byte("deleted")
			}
			found[strings.Trim(strings.TrimPrefix(h.Name, "."), "/")] = string(body)
		}
		for path, want := range map[string]string{"root/new": "content", "etc/hosts": "deleted"} {
			if found[path] != want {
				t.Errorf("%s: %s in the layer = %q, want %q", name, path, found[path], want)
			}
		}
	}
}
