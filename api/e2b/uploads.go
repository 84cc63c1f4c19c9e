package e2b

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
)

// GetTemplateFiles implements e2bapi.StrictServerInterface.
func (s *server) GetTemplateFiles(ctx context.Context, r e2bapi.GetTemplateFilesRequestObject) (e2bapi.GetTemplateFilesResponseObject, error) {
	t, present, link, err := s.Builds.Present(ctx, api.Caller(ctx), r.Id, r.Hash, s.MaxUpload)
	if err != nil {
		return nil, noBuild(r.Id, err)
	}
	// A client that wants to upload again may.
	u := api.Origin(ctx) + "/templates/" + url.PathEscape(string(t)) + "/files/" + r.Hash + "?" + link.Encode()
	return e2bapi.GetTemplateFiles201JSONResponse{Present: present, Url: &u}, nil
}

// Uploads keeps files; implemented by upload.Files.
type Uploads interface {
	Put(ctx context.Context, team identity.TeamID, hash string, r io.Reader, size int64) error
}

// UploadHandler serves PUT /templates/{id}/files/{hash}, whose authority is a
// link that GetTemplateFiles made, and no API key.
func UploadHandler(builds Builds, files Uploads, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := receive(w, r, builds, files); err != nil {
			// What is left of the body is not read: the connection ends.
			w.Header().Set("Connection", "close")
			api.WriteError(w, r, log, err)
			return
		}
		apierr.Empty(w, http.StatusOK)
	})
}

func receive(w http.ResponseWriter, r *http.Request, builds Builds, files Uploads) error {
	size := r.ContentLength
	if size < 0 {
		return apierr.New(errdefs.ErrInvalidArgument, "Content-Length must be given")
	}
	hash := r.PathValue("hash")
	link, err := builds.Accept(r.Context(), template.ID(r.PathValue("id")), hash, r.URL.Query(), size)
	if err != nil {
		return err
	}
	body, end := api.Patient(w, r)
	defer end()
	return files.Put(r.Context(), link.Team, link.Hash, body, size)
}
