package e2b

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
)

// ListTemplatesV1 implements e2bapi.StrictServerInterface.
func (s *server) ListTemplatesV1(ctx context.Context, r e2bapi.ListTemplatesV1RequestObject) (e2bapi.ListTemplatesV1ResponseObject, error) {
	all, err := s.templates(ctx, r.Params.TeamID)
	if err != nil {
		return nil, err
	}
	out := e2bapi.ListTemplatesV1200JSONResponse{}
	for _, t := range all {
		w, err := s.template(ctx, t)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// ListTemplates implements e2bapi.StrictServerInterface. The page token is the
// last id of the page before.
func (s *server) ListTemplates(ctx context.Context, r e2bapi.ListTemplatesRequestObject) (e2bapi.ListTemplatesResponseObject, error) {
	limit := maxPage
	if r.Params.Limit != nil {
		if limit = int(*r.Params.Limit); limit < 1 || limit > maxPage {
			return nil, apierr.Field("limit", "must be 1 to %d, is %d", maxPage, limit)
		}
	}
	after := ""
	if r.Params.NextToken != nil {
		if after = *r.Params.NextToken; after == "" || strings.Trim(after, lowerAlnum) != "" {
			return nil, apierr.Field("nextToken", "is not one that this server gave")
		}
	}
	all, err := s.templates(ctx, r.Params.TeamID)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b template.Template) int { return cmp.Compare(a.ID, b.ID) })
	all = slices.DeleteFunc(all, func(t template.Template) bool { return string(t.ID) <= after })
	out := e2bapi.ListTemplates200JSONResponse{Body: []e2bapi.Template{}}
	if len(all) > limit {
		all = all[:limit]
		out.Headers.XNextToken = new(string(all[limit-1].ID))
	}
	for _, t := range all {
		w, err := s.template(ctx, t)
		if err != nil {
			return nil, err
		}
		out.Body = append(out.Body, w)
	}
	return out, nil
}

func (s *server) templates(ctx context.Context, teamID *string) ([]template.Template, error) {
	who := api.Caller(ctx)
	if err := ownTeam(who, teamID); err != nil {
		return nil, err
	}
	return s.Templates.ListTemplates(ctx, who.Team)
}

func (s *server) template(ctx context.Context, t template.Template) (e2bapi.Template, error) {
	builds, err := s.Templates.ListBuilds(ctx, t.ID)
	if err != nil {
		return e2bapi.Template{}, err
	}
	out := e2bapi.Template{
		TemplateID: string(t.ID), BuildID: string(t.Current), Public: t.Public,
		Aliases: aliases(t), Names: names(t),
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(),
		EnvdVersion: s.AgentVersion, BuildStatus: string(template.Ready),
		BuildCount: int32(len(builds)), //nolint:gosec // builds are few
		SpawnCount: t.Spawned.Count, LastSpawnedAt: lastSpawned(t),
	}
	res := s.Resources
	for _, b := range builds {
		if b.ID == t.Current {
			out.BuildStatus = string(b.Status)
			res = s.resources(b)
		}
	}
	if t.Current == "" && len(builds) > 0 {
		out.BuildStatus = string(builds[0].Status)
		res = s.resources(builds[0])
	}
	out.CpuCount, out.MemoryMB, out.DiskSizeMB = int32(res.CPUs), res.MemoryMiB, res.DiskMiB //nolint:gosec // CPU counts are small
	return out, nil
}

// lastSpawned is nil for a template that no sandbox was ever made of.
func lastSpawned(t template.Template) *time.Time {
	if t.Spawned.Last.IsZero() {
		return nil
	}
	return new(t.Spawned.Last.UTC())
}

func (s *server) resources(b template.Build) provider.Resources {
	r := b.Resources
	r.CPUs = cmp.Or(r.CPUs, s.Resources.CPUs)
	r.MemoryMiB = cmp.Or(r.MemoryMiB, s.Resources.MemoryMiB)
	r.DiskMiB = cmp.Or(r.DiskMiB, s.Resources.DiskMiB)
	return r
}

func aliases(t template.Template) []string { return append([]string{}, t.Names...) }

// names are the aliases with the team before them.
func names(t template.Template) []string {
	out := []string{}
	for _, n := range t.Names {
		out = append(out, string(t.Team)+"/"+n)
	}
	return out
}

// find resolves a template by id or name for the caller; field names the
// member or parameter in errors.
func (s *server) find(ctx context.Context, who identity.Principal, field, text string) (template.Template, error) {
	t, ref, err := s.findTagged(ctx, who, field, text)
	if err != nil || ref.Tag == template.DefaultTag {
		return t, err
	}
	if _, err := s.Templates.TaggedBuild(ctx, t.ID, ref.Tag); errdefs.IsNotFound(err) {
		return template.Template{}, api.NoTemplate(text)
	} else if err != nil {
		return template.Template{}, err
	}
	return t, nil
}

// findTagged is find for those who look for the tag themselves.
func (s *server) findTagged(ctx context.Context, who identity.Principal, field, text string) (template.Template, template.Reference, error) {
	ref, err := template.ParseReference(text)
	if err != nil {
		return template.Template{}, ref, apierr.Field(field, "%q is not [namespace/]name[:tag]", api.Clip(text)).WithCause(err)
	}
	owner := cmp.Or(identity.TeamID(ref.Namespace), who.Team)
	t, err := s.Templates.GetTemplate(ctx, owner, ref.Name)
	if errdefs.IsNotFound(err) {
		return template.Template{}, ref, api.NoTemplate(text)
	}
	if err != nil {
		return template.Template{}, ref, err
	}
	// The store answers for owner; what the caller may see is decided here.
	if (ref.Namespace != "" && t.Team != owner) || (t.Team != who.Team && !t.Public) {
		return template.Template{}, ref, api.NoTemplate(text)
	}
	return t, ref, nil
}

// GetTemplate implements e2bapi.StrictServerInterface. The page token is the id
// of the last build of the page before.
func (s *server) GetTemplate(ctx context.Context, r e2bapi.GetTemplateRequestObject) (e2bapi.GetTemplateResponseObject, error) {
	limit := maxPage
	if r.Params.Limit != nil {
		if limit = int(*r.Params.Limit); limit < 1 || limit > maxPage {
			return nil, apierr.Field("limit", "must be 1 to %d, is %d", maxPage, limit)
		}
	}
	who := api.Caller(ctx)
	t, err := s.find(ctx, who, "templateID", r.Id)
	if errdefs.IsNotFound(err) {
		return nil, s.hidden(ctx, r.Id, err)
	}
	if err != nil {
		return nil, err
	}
	builds, err := s.Templates.ListBuilds(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	if after := r.Params.NextToken; after != nil {
		i := slices.IndexFunc(builds, func(b template.Build) bool { return string(b.ID) == *after })
		if i < 0 {
			return nil, apierr.Field("nextToken", "is not one that this server gave")
		}
		builds = builds[i+1:]
	}
	out := e2bapi.GetTemplate200JSONResponse{Body: e2bapi.TemplateWithBuilds{
		TemplateID: string(t.ID), Public: t.Public, Aliases: aliases(t), Names: names(t),
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(), Builds: []e2bapi.Build{},
		SpawnCount: t.Spawned.Count, LastSpawnedAt: lastSpawned(t),
	}}
	if len(builds) > limit {
		builds = builds[:limit]
		out.Headers.XNextToken = new(string(builds[limit-1].ID))
	}
	for _, b := range builds {
		out.Body.Builds = append(out.Body.Builds, s.build(b))
	}
	return out, nil
}

func (s *server) build(b template.Build) e2bapi.Build {
	res := s.resources(b)
	w := e2bapi.Build{
		BuildID: string(b.ID), Status: string(b.Status), CreatedAt: b.CreatedAt.UTC(), UpdatedAt: b.CreatedAt.UTC(),
		CpuCount: int32(res.CPUs), MemoryMB: res.MemoryMiB, DiskSizeMB: res.DiskMiB, EnvdVersion: s.AgentVersion, //nolint:gosec // CPU counts are small
	}
	if !b.FinishedAt.IsZero() {
		w.UpdatedAt = b.FinishedAt.UTC()
		w.FinishedAt = &w.UpdatedAt
	}
	return w
}

// hidden is the error of a reference that names nothing the caller may see: 403
// when it names another team's template, as E2B has it, else missing.
func (s *server) hidden(ctx context.Context, text string, missing error) error {
	ref, err := template.ParseReference(text)
	if err != nil {
		return missing
	}
	// An empty team finds every template by its id.
	t, err := s.Templates.GetTemplate(ctx, identity.TeamID(ref.Namespace), ref.Name)
	named := ref.Namespace != "" && string(t.Team) == ref.Namespace || string(t.ID) == ref.Name
	if err != nil || !named || t.Public || t.Team == api.Caller(ctx).Team {
		return missing
	}
	return apierr.New(errdefs.ErrPermissionDenied, "template %q belongs to another team", api.Clip(text)).WithCause(missing)
}

// GetTemplateAlias implements e2bapi.StrictServerInterface.
func (s *server) GetTemplateAlias(ctx context.Context, r e2bapi.GetTemplateAliasRequestObject) (e2bapi.GetTemplateAliasResponseObject, error) {
	t, err := s.find(ctx, api.Caller(ctx), "alias", r.Alias)
	if errdefs.IsNotFound(err) {
		return nil, s.hidden(ctx, r.Alias, err)
	}
	if err != nil {
		return nil, err
	}
	return e2bapi.GetTemplateAlias200JSONResponse{TemplateID: string(t.ID), Public: t.Public}, nil
}

// DeleteTemplate implements e2bapi.StrictServerInterface.
func (s *server) DeleteTemplate(ctx context.Context, r e2bapi.DeleteTemplateRequestObject) (e2bapi.DeleteTemplateResponseObject, error) {
	who := api.Caller(ctx)
	t, ref, err := s.findTagged(ctx, who, "templateID", r.Id)
	if err != nil {
		return nil, err
	}
	if t.Team != who.Team {
		return nil, apierr.New(errdefs.ErrPermissionDenied, "template %q belongs to another team", r.Id)
	}
	switch {
	case t.Kind == template.KindSnapshot:
		if !strings.Contains(r.Id, ":") {
			ref.Tag = "" // the whole of it
		}
		err = s.Sandboxes.DeleteSnapshot(ctx, who, t, ref.Tag)
	case ref.Tag != template.DefaultTag:
		err = api.NoTemplate(r.Id)
	default:
		if err = s.Templates.DeleteTemplate(ctx, t.ID); err == nil {
			s.Builds.Forget(t.ID)
		}
	}
	if errdefs.IsNotFound(err) {
		return nil, api.NoTemplate(r.Id).WithCause(err)
	}
	if errdefs.IsFailedPrecondition(err) {
		return nil, apierr.New(errdefs.ErrInvalidArgument, "template %q is in use: kill the sandboxes that are based on it first", r.Id).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return e2bapi.DeleteTemplate204Response{}, nil
}

// ListTeams implements e2bapi.StrictServerInterface.
func (s *server) ListTeams(ctx context.Context, _ e2bapi.ListTeamsRequestObject) (e2bapi.ListTeamsResponseObject, error) {
	team := string(api.Caller(ctx).Team)
	return e2bapi.ListTeams200JSONResponse{{TeamID: team, Name: team, ApiKey: api.CallerKey(ctx), IsDefault: true}}, nil
}
