package e2b

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
)

// AssignTemplateTags implements e2bapi.StrictServerInterface.
func (s *server) AssignTemplateTags(ctx context.Context, r e2bapi.AssignTemplateTagsRequestObject) (e2bapi.AssignTemplateTagsResponseObject, error) {
	tags, err := someTags(r.Body.Tags)
	if err != nil {
		return nil, err
	}
	t, ref, err := s.ownTagged(ctx, "target", r.Body.Target)
	if err != nil {
		return nil, err
	}
	build, err := s.Tags.AssignTags(ctx, t.ID, ref.Tag, tags, api.Caller(ctx).KeyID)
	if errdefs.IsNotFound(err) {
		return nil, apierr.New(errdefs.ErrNotFound, "template %q has no tag %q", ref.Name, ref.Tag).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return e2bapi.AssignTemplateTags201JSONResponse{BuildID: string(build), Tags: tags}, nil
}

// RemoveTemplateTags implements e2bapi.StrictServerInterface.
func (s *server) RemoveTemplateTags(ctx context.Context, r e2bapi.RemoveTemplateTagsRequestObject) (e2bapi.RemoveTemplateTagsResponseObject, error) {
	tags, err := someTags(r.Body.Tags)
	if err != nil {
		return nil, err
	}
	if slices.Contains(tags, template.DefaultTag) {
		return nil, apierr.Field("tags", "the tag %q cannot be removed", template.DefaultTag)
	}
	if strings.Contains(r.Body.Name, ":") {
		return nil, apierr.Field("name", "%q has a tag: give tags in tags", api.Clip(r.Body.Name))
	}
	t, ref, err := s.ownTagged(ctx, "name", r.Body.Name)
	if err != nil {
		return nil, err
	}
	err = s.Tags.RemoveTags(ctx, t.ID, tags, api.Caller(ctx).KeyID)
	if errdefs.IsNotFound(err) {
		return nil, apierr.New(errdefs.ErrNotFound, "template %q has not all of the tags %q", ref.Name, tags).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return e2bapi.RemoveTemplateTags204Response{}, nil
}

func someTags(in []string) ([]string, error) {
	tags, err := queue.CheckTags("tags", in)
	if err == nil && len(tags) == 0 {
		err = apierr.Field("tags", "must have a member")
	}
	return tags, err
}

// ownTagged finds a template of the caller's team.
func (s *server) ownTagged(ctx context.Context, field, text string) (template.Template, template.Reference, error) {
	who := api.Caller(ctx)
	if ref, err := template.ParseReference(text); err == nil && ref.Namespace != "" && ref.Namespace != string(who.Team) {
		return template.Template{}, ref, apierr.Field(field, "%q is not a name of the own team, %q", api.Clip(text), who.Team)
	}
	t, ref, err := s.findTagged(ctx, who, field, text)
	if err == nil && t.Team != who.Team {
		err = apierr.New(errdefs.ErrPermissionDenied, "template %q belongs to another team", api.Clip(text))
	}
	return t, ref, err
}

// templateTag is one tag on the wire. It is written by hand because the route's
// pattern overlaps with that of aliases, which generated code cannot resolve.
type templateTag struct {
	Tag       string    `json:"tag"`
	BuildID   string    `json:"buildID"`
	CreatedAt time.Time `json:"createdAt"`
}

// listTags serves GET /templates/{id}/tags.
func (s *server) listTags(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.ownTagged(r.Context(), "templateID", r.PathValue("id"))
	if err != nil {
		return err
	}
	tags, err := s.Tags.ListTags(r.Context(), t.ID)
	if err != nil {
		return err
	}
	out := make([]templateTag, 0, len(tags))
	for _, tag := range tags {
		out = append(out, templateTag{tag.Name, string(tag.Build), tag.AssignedAt.UTC()})
	}
	apierr.JSON(w, http.StatusOK, out)
	return nil
}

// UpdateTemplate implements e2bapi.StrictServerInterface.
func (s *server) UpdateTemplate(ctx context.Context, r e2bapi.UpdateTemplateRequestObject) (e2bapi.UpdateTemplateResponseObject, error) {
	t, err := s.publish(ctx, r.Id, r.Body.Public)
	if err != nil {
		return nil, err
	}
	return e2bapi.UpdateTemplate200JSONResponse{Names: names(t)}, nil
}

// UpdateTemplateV1 implements e2bapi.StrictServerInterface.
func (s *server) UpdateTemplateV1(ctx context.Context, r e2bapi.UpdateTemplateV1RequestObject) (e2bapi.UpdateTemplateV1ResponseObject, error) {
	if _, err := s.publish(ctx, r.Id, r.Body.Public); err != nil {
		return nil, err
	}
	return e2bapi.UpdateTemplateV1200JSONResponse{}, nil
}

func (s *server) publish(ctx context.Context, ref string, public *bool) (template.Template, error) {
	t, _, err := s.ownTagged(ctx, "templateID", ref)
	if err != nil || public == nil {
		return t, err
	}
	return t, s.Tags.SetPublic(ctx, t.ID, *public, api.Caller(ctx).KeyID)
}
