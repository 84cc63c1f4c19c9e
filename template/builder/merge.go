package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
)

// maxStatus bounds the dpkg status file that is read, in bytes, and maxNotes what is
// kept of it: the steps of a build may write what they like there.
const (
	maxStatus = 16 << 20
	maxNotes  = 2 << 20
)

// merge writes the image of base with a layer on it, a tar stream that export
// writes.
func merge(ctx context.Context, images *image.Store, base image.Rootfs, export func(io.Writer) error) (image.Rootfs, error) {
	m := template.Manifest{Source: "template build on " + base.Digest, CreatedAt: time.Now().UTC()}
	rootfs, err := images.Put(ctx, func(out *os.File) error {
		w, err := erofs.NewWriter(out, erofs.Options{Overlay: true, Devices: erofs.DropDevices, Exclude: transient})
		if err != nil {
			return err
		}
		if err := addImage(ctx, w, base); err != nil {
			return err
		}
		if err := addStream(ctx, w, export); err != nil {
			return err
		}
		if status, err := w.ReadFile("var/lib/dpkg/status", maxStatus); err == nil {
			m.Packages = template.InstalledPackages(status)
		}
		stats, err := w.Finish()
		m.Files, m.DataBytes, m.Warnings = stats.Files, stats.DataBytes, stats.Warnings
		return err
	})
	if err != nil {
		return rootfs, err
	}
	notes, err := json.MarshalIndent(m, "", " ")
	if err == nil && len(notes) > maxNotes {
		m.Packages = nil
		notes, err = json.MarshalIndent(m, "", " ")
	}
	if err != nil {
		return rootfs, fmt.Errorf("encode manifest: %w", err)
	}
	return rootfs, images.SetNotes(rootfs.Digest, notes)
}

func addImage(ctx context.Context, w *erofs.Writer, r image.Rootfs) error {
	f, err := os.Open(r.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	return w.AddImage(ctx, f)
}

// addStream adds a tar stream while it is being written.
func addStream(ctx context.Context, w *erofs.Writer, export func(io.Writer) error) error {
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := export(pw)
		pw.CloseWithError(err)
		written <- err
	}()
	err := w.AddTar(ctx, pr)
	pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	if werr := <-written; werr != nil && (err == nil || errors.Is(err, werr)) {
		return werr
	}
	return err
}

// transient leaves out what is made anew in every sandbox.
func transient(path string) bool {
	return path == ".e2b" || strings.HasPrefix(path, "run/e2b") || strings.HasPrefix(path, "dev/")
}
