package transfer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/archive"
)

// Export is an archive that can be written, once.
type Export struct {
	*archive.Export
	// Name is that of the template, and Tag of the build.
	Name, Tag string

	open  []io.Closer
	leave func()
}

// Close lets go of the files.
func (e *Export) Close() error {
	var errs []error
	for _, c := range e.open {
		errs = append(errs, c.Close())
	}
	e.leave()
	return errors.Join(errs...)
}

// Export prepares the archive of a template that the team may use, with its
// memory when that is asked for and the template is the team's own. It reads all
// files once. The caller closes it. Errors, beside those of Catalog.Resolve:
// errdefs.ErrFailedPrecondition for a snapshot, and for memory of a template that
// has none; ErrPermissionDenied for memory of another team's template.
func (t *Transfers) Export(ctx context.Context, who identity.Principal, ref string, memory bool) (_ *Export, err error) {
	found, b, err := t.d.Catalog.Resolve(ctx, who.Team, ref)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Kind == template.KindSnapshot || b.FromSandbox():
		return nil, apierr.New(errdefs.ErrFailedPrecondition, "%q is a snapshot, whose files are not all in an image: only templates can be exported", ref)
	case memory && found.Team != who.Team:
		return nil, apierr.New(errdefs.ErrPermissionDenied, "template %q belongs to another team: its memory is not exported", ref)
	case memory && b.Artifact == nil:
		return nil, apierr.New(errdefs.ErrFailedPrecondition, "template %q has no saved memory: it has no start command, or that has not run yet", ref)
	}
	leave, err := t.enter(who.Team)
	if err != nil {
		return nil, err
	}
	e := &Export{Name: string(found.ID), leave: leave}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if len(found.Names) > 0 {
		e.Name = found.Names[0]
	}
	if r, rerr := template.ParseReference(ref); rerr == nil {
		e.Tag = r.Tag
	}
	img, err := erofs.Open(b.Rootfs.Path)
	if err != nil {
		return nil, err
	}
	e.open = append(e.open, img)
	s := archive.Source{
		Image: img, User: b.User, Workdir: b.Workdir, Env: b.Env,
		About: archive.About{
			Name: e.Name, Tag: e.Tag, Resources: archive.ResourcesOf(b.Resources), Start: b.Start, Ready: b.Ready,
			Source: b.Origin(), Rootfs: b.Rootfs.Digest, CreatedAt: b.CreatedAt,
		},
	}
	if m, merr := template.LoadManifest(t.d.Images, b.Rootfs.Digest); merr == nil {
		s.About.Recipe = &m
	}
	if memory {
		if s.Memory, err = t.memory(ctx, e, found, b); err != nil {
			return nil, err
		}
	}
	if e.Export, err = archive.New(ctx, s); err != nil {
		return nil, err
	}
	err = t.d.Audit.Record(ctx, audit.Event{
		Type: "template.exported", At: time.Now().UTC(), Team: string(who.Team), Actor: who.KeyID,
		Fields: map[string]string{"template": string(found.ID), "build": string(b.ID), "memory": strconv.FormatBool(memory)},
	})
	if err != nil {
		return nil, err
	}
	t.d.Log.InfoContext(ctx, "template exported", slog.String("template", string(found.ID)), slog.String("build", string(b.ID)),
		slog.String("team", string(who.Team)), slog.String("by", who.KeyID), slog.Bool("memory", memory), slog.Int64("bytes", e.Size()))
	return e, nil
}

// memory opens what a build's memory is made of: what is deleted meanwhile can
// still be read.
func (t *Transfers) memory(ctx context.Context, e *Export, found template.Template, b template.Build) (*archive.MemorySource, error) {
	m := &archive.MemorySource{Seed: t.d.Seed, Team: found.Team, Artifact: *b.Artifact}
	keep := func(path string) (*os.File, error) {
		f, err := os.Open(path)
		if err == nil {
			e.open = append(e.open, f)
		}
		return f, err
	}
	var err error
	if m.Rootfs, err = keep(b.Rootfs.Path); err != nil {
		return nil, err
	}
	if !t.d.Vault.Has(b.Artifact.ID) {
		return nil, apierr.New(errdefs.ErrFailedPrecondition, "the memory of the template is missing from this server: build it again")
	}
	dir, err := t.d.Vault.Dir(ctx, b.Artifact.ID)
	if err != nil {
		return nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		f, err := keep(filepath.Join(dir, d.Name()))
		if err != nil {
			return nil, err
		}
		m.Files = append(m.Files, f)
	}
	m.Names, err = t.d.Names.Names(ctx, string(b.ID))
	return m, err
}
