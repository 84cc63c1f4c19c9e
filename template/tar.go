package template

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
)

// TarOptions say how to make a template of a tar file.
type TarOptions struct {
	// Source is recorded as the origin; default "tar".
	Source string
	// Limits bound the archive; zero fields mean the defaults of package erofs.
	Limits erofs.Limits
	// AsIs leaves out the user "user", its home and its right to sudo: the
	// sandboxes then run as root in /.
	AsIs bool
	// Public lets every team use the template.
	Public bool
	// Resources are the defaults of sandboxes of the template.
	Resources provider.Resources
	// Progress, when set, is called from one goroutine and must return quickly.
	Progress func(Progress)
}

// BuildTar makes a root filesystem of the tar stream r, plain or packed with
// gzip or zstd, laid out as `docker export` does, and stores it. Device nodes
// are dropped. Errors are those of erofs.FromTar and image.Store.Put.
func BuildTar(ctx context.Context, images *image.Store, r io.Reader, o TarOptions) (Built, error) {
	if o.Source == "" {
		o.Source = sourceTar
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	m := Manifest{Source: o.Source, CreatedAt: time.Now().UTC()}
	rootfs, err := images.Put(ctx, func(out *os.File) error { return writeTar(ctx, out, r, o, &m) })
	if err != nil {
		return Built{}, fmt.Errorf("build from tar: %w", err)
	}
	if err := saveManifest(images, rootfs, m); err != nil {
		return Built{}, fmt.Errorf("build from tar: %w", err)
	}
	o.Progress(Progress{
		Stage: StageDone, Done: rootfs.SizeBytes, Total: rootfs.SizeBytes,
		Line: fmt.Sprintf("%d files, %d MiB", m.Files, rootfs.SizeBytes>>20),
	})
	b := newBuilt(rootfs, m)
	if o.AsIs {
		b.User, b.Workdir = "root", "/"
	}
	return b, nil
}

func writeTar(ctx context.Context, out *os.File, r io.Reader, o TarOptions, m *Manifest) error {
	w, err := erofs.NewWriter(out, erofs.Options{Limits: o.Limits, Devices: erofs.DropDevices})
	if err != nil {
		return err
	}
	next := int64(0)
	counted := countReads(r, func(n int64) {
		if n >= next {
			o.Progress(Progress{Stage: StageWrite, Done: n})
			next = n + 16<<20
		}
	})
	if err := w.AddTar(ctx, counted); err != nil {
		return err
	}
	if err := skeleton(w); err != nil {
		return err
	}
	if !o.AsIs {
		if err := addUser(w); err != nil {
			return err
		}
	}
	if status, err := w.ReadFile("var/lib/dpkg/status", maxStatus); err == nil {
		m.Packages = InstalledPackages(status)
	}
	stats, err := w.Finish()
	if err != nil {
		return err
	}
	m.Files, m.DataBytes, m.Warnings = stats.Files, stats.DataBytes, stats.Warnings
	return nil
}
