package native

import (
	"context"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template/transfer"
)

// ExportTemplate implements nativeapi.StrictServerInterface.
func (s *server) ExportTemplate(ctx context.Context, r nativeapi.ExportTemplateRequestObject) (nativeapi.ExportTemplateResponseObject, error) {
	e, err := s.Transfers.Export(ctx, api.Caller(ctx), r.Id, r.Params.Memory != nil && *r.Params.Memory)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return nil, api.NoTemplate(r.Id).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return &exported{ctx: ctx, export: e, log: s.Log}, nil
}

// exported is an answer with an archive.
type exported struct {
	ctx    context.Context //nolint:containedctx // of the request that this answers
	export *transfer.Export
	log    *slog.Logger
}

// VisitExportTemplateResponse implements nativeapi.ExportTemplateResponseObject.
func (x *exported) VisitExportTemplateResponse(w http.ResponseWriter) error {
	defer func() {
		if err := x.export.Close(); err != nil {
			x.log.WarnContext(x.ctx, "close an exported template", slog.Any("error", err))
		}
	}()
	h := w.Header()
	h.Set("Content-Type", "application/x-tar")
	h.Set("Content-Length", strconv.FormatInt(x.export.Size(), 10))
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": x.export.Name + ".tar"}))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	out, end := api.PatientWriter(w)
	err := x.export.Write(x.ctx, out)
	if err == nil {
		end()
		return nil
	}
	if x.ctx.Err() == nil && !api.IsSlow(err) {
		x.log.ErrorContext(x.ctx, "an export ended in the middle", slog.Any("error", err))
	}
	// The client was promised more: only a broken connection tells it.
	panic(http.ErrAbortHandler)
}

type uploadKey struct{}

// uploaded is the body of a request that is not read into memory.
type uploaded struct {
	body io.Reader
	size int64
}

// received hands the body of an import on, with its length.
func received(next nativeapi.StrictHandlerFunc, operation string) nativeapi.StrictHandlerFunc {
	if operation != "ImportTemplate" {
		return next
	}
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
		body, end := api.Patient(w, r)
		defer end()
		answer, err := next(context.WithValue(ctx, uploadKey{}, uploaded{body, r.ContentLength}), w, r, request)
		if err != nil {
			// What is left of the body is not read: the connection ends.
			w.Header().Set("Connection", "close")
		}
		return answer, err
	}
}

// ImportTemplate implements nativeapi.StrictServerInterface.
func (s *server) ImportTemplate(ctx context.Context, r nativeapi.ImportTemplateRequestObject) (nativeapi.ImportTemplateResponseObject, error) {
	in, _ := ctx.Value(uploadKey{}).(uploaded)
	if in.body == nil || in.size < 0 {
		return nil, apierr.New(errdefs.ErrInvalidArgument, "Content-Length must be given")
	}
	ask := transfer.Import{Body: in.body, Size: in.size}
	if r.Params.Name != nil {
		ask.Name = strings.TrimSpace(*r.Params.Name)
	}
	made, err := s.Transfers.Import(ctx, api.Caller(ctx), ask)
	if err != nil {
		return nil, err
	}
	b := made.Build
	out := nativeapi.ImportTemplate201JSONResponse{
		Id: string(made.Template.ID), Names: append([]string{}, made.Template.Names...), Tags: append([]string{}, b.Tags...),
		BuildID: string(b.ID), Status: string(b.Status), RootfsDigest: b.Rootfs.Digest, RootfsBytes: b.Rootfs.SizeBytes,
		Memory: b.Artifact != nil,
	}
	if len(made.Notes) > 0 {
		out.Notes = &made.Notes
	}
	return out, nil
}
