package native

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
)

// GetTemplateLock implements nativeapi.StrictServerInterface.
func (s *server) GetTemplateLock(ctx context.Context, r nativeapi.GetTemplateLockRequestObject) (nativeapi.GetTemplateLockResponseObject, error) {
	t, b, m, err := s.Templates.Lock(ctx, api.Caller(ctx).Team, r.Id)
	switch {
	case errdefs.IsNotFound(err) && t.ID != "":
		return nil, apierr.New(errdefs.ErrNotFound, "what template %q is made of was not recorded", api.Clip(r.Id)).WithCause(err)
	case errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
		return nil, api.NoTemplate(r.Id).WithCause(err)
	case err != nil:
		return nil, err
	}
	out := nativeapi.GetTemplateLock200JSONResponse{
		TemplateID: string(t.ID), BuildID: string(b.ID), RootfsDigest: b.Rootfs.Digest, RootfsBytes: b.Rootfs.SizeBytes,
		Source: m.Source, Recipe: m.Recipe, Npm: m.NPM, CreatedAt: m.CreatedAt, Files: m.Files, DataBytes: m.DataBytes,
		Warnings: m.Warnings, Packages: []nativeapi.TemplatePackage{},
	}
	for _, p := range m.Packages {
		out.Packages = append(out.Packages, nativeapi.TemplatePackage{Name: p.Name, Version: p.Version, Arch: p.Arch})
	}
	return out, nil
}
