package e2b

import (
	"cmp"
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
)

// Builds is what this package needs of queue.Queue.
type Builds interface {
	Register(ctx context.Context, who identity.Principal, r queue.Request) (template.Template, template.Build, error)
	Start(ctx context.Context, who identity.Principal, ref string, id template.BuildID, r queue.Recipe) error
	Build(ctx context.Context, who identity.Principal, ref string, id template.BuildID) (template.Template, template.Build, error)
	Log(ctx context.Context, id template.BuildID, f template.LogFilter) ([]template.Entry, error)
	Present(ctx context.Context, who identity.Principal, ref, hash string, most int64) (t template.ID, present bool, link url.Values, err error)
	Accept(ctx context.Context, t template.ID, hash string, query url.Values, size int64) (queue.Link, error)
	Forget(t template.ID)
}

// maxBuildLogs is the most lines of a build's log in one answer.
const maxBuildLogs = 100

// CreateTemplate implements e2bapi.StrictServerInterface.
func (s *server) CreateTemplate(ctx context.Context, r e2bapi.CreateTemplateRequestObject) (e2bapi.CreateTemplateResponseObject, error) {
	in := r.Body
	t, b, err := s.register(ctx, in.TeamID, queue.Request{
		Name: cmp.Or(in.Name, in.Alias), Tags: in.Tags, CPUs: in.CpuCount, MemoryMiB: in.MemoryMB, FreeDiskMiB: in.MinFreeDiskMb,
	})
	if err != nil {
		return nil, err
	}
	return e2bapi.CreateTemplate202JSONResponse{
		TemplateID: string(t.ID), BuildID: string(b.ID), Public: t.Public, Aliases: aliases(t), Names: names(t), Tags: b.Tags,
	}, nil
}

// CreateTemplateV2 implements e2bapi.StrictServerInterface.
func (s *server) CreateTemplateV2(ctx context.Context, r e2bapi.CreateTemplateV2RequestObject) (e2bapi.CreateTemplateV2ResponseObject, error) {
	in := r.Body
	t, b, err := s.register(ctx, in.TeamID, queue.Request{Name: in.Alias, CPUs: in.CpuCount, MemoryMiB: in.MemoryMB})
	if err != nil {
		return nil, err
	}
	w, err := s.template(ctx, t)
	if err != nil {
		return nil, err
	}
	w.BuildID, w.BuildStatus = string(b.ID), string(b.Status)
	return e2bapi.CreateTemplateV2202JSONResponse(w), nil
}

func (s *server) register(ctx context.Context, teamID *string, r queue.Request) (template.Template, template.Build, error) {
	who := api.Caller(ctx)
	if err := ownTeam(who, teamID); err != nil {
		return template.Template{}, template.Build{}, err
	}
	return s.Builds.Register(ctx, who, r)
}

func ownTeam(who identity.Principal, teamID *string) error {
	if teamID != nil && *teamID != "" && identity.TeamID(*teamID) != who.Team {
		return apierr.Field("teamID", "%q is not the team of this API key", api.Clip(*teamID))
	}
	return nil
}

// StartTemplateBuild implements e2bapi.StrictServerInterface.
func (s *server) StartTemplateBuild(ctx context.Context, r e2bapi.StartTemplateBuildRequestObject) (e2bapi.StartTemplateBuildResponseObject, error) {
	recipe, err := recipeOf(*r.Body)
	if err != nil {
		return nil, err
	}
	err = s.Builds.Start(ctx, api.Caller(ctx), r.Id, template.BuildID(r.Build), recipe)
	if errdefs.IsNotFound(err) && recipe.Template != "" {
		return nil, err // it names which of the two templates
	}
	if err != nil {
		return nil, noBuild(r.Id, err)
	}
	return e2bapi.StartTemplateBuild202Response{}, nil
}

// noBuild names the template in an error that there is none.
func noBuild(ref string, err error) error {
	if errdefs.IsNotFound(err) && !strings.Contains(err.Error(), "no build") {
		return api.NoTemplate(ref).WithCause(err)
	}
	return err
}

func recipeOf(in e2bapi.Recipe) (queue.Recipe, error) {
	out := queue.Recipe{
		Image: strings.TrimSpace(in.FromImage), Template: strings.TrimSpace(in.FromTemplate),
		Start: in.StartCmd, Ready: in.ReadyCmd, Force: in.Force,
	}
	for _, step := range in.Steps {
		out.Steps = append(out.Steps, template.Step{Type: step.Type, Args: step.Args, FilesHash: step.FilesHash, Force: step.Force})
	}
	reg := in.FromImageRegistry
	if reg == nil {
		return out, nil
	}
	switch reg.Type {
	case "registry":
		if reg.Username == "" || reg.Password == "" {
			return out, apierr.Field("fromImageRegistry", "needs username and password")
		}
		out.Registry = &queue.Registry{Username: reg.Username, Password: secret.New(reg.Password)}
	case "gcp":
		if reg.ServiceAccountJson == "" {
			return out, apierr.Field("fromImageRegistry.serviceAccountJson", "must be given")
		}
		out.Registry = queue.GCP(reg.ServiceAccountJson)
	case "aws":
		return out, apierr.Field("fromImageRegistry.type", "aws is not built yet: give type registry, user name AWS, and what \"aws ecr get-login-password\" prints as password")
	default:
		return out, apierr.Field("fromImageRegistry.type", "%q is not registry or gcp", api.Clip(reg.Type))
	}
	return out, nil
}

// GetTemplateBuildStatus implements e2bapi.StrictServerInterface. The state is
// read before the log: one that has ended has all its lines then.
func (s *server) GetTemplateBuildStatus(ctx context.Context, r e2bapi.GetTemplateBuildStatusRequestObject) (e2bapi.GetTemplateBuildStatusResponseObject, error) {
	f, err := buildLogFilter(r.Params.Limit, r.Params.Level)
	if err != nil {
		return nil, err
	}
	if n := r.Params.LogsOffset; n != nil {
		if f.Skip = *n; f.Skip < 0 {
			return nil, apierr.Field("logsOffset", "must be 0 or more, is %d", f.Skip)
		}
	}
	t, b, err := s.Builds.Build(ctx, api.Caller(ctx), r.Id, template.BuildID(r.Build))
	if errdefs.IsNotFound(err) {
		// E2B's answer, which differs from that of the other routes.
		return nil, apierr.New(errdefs.ErrInvalidArgument, "template %q has no build %q", api.Clip(r.Id), api.Clip(r.Build))
	}
	if err != nil {
		return nil, err
	}
	out := e2bapi.GetTemplateBuildStatus200JSONResponse{
		TemplateID: string(t.ID), BuildID: string(b.ID), Status: string(b.Status), Logs: []string{}, LogEntries: []e2bapi.BuildLogEntry{},
	}
	if b.Status == template.Waiting {
		return out, nil
	}
	if f.Limit > 0 {
		entries, err := s.Builds.Log(ctx, b.ID, f)
		if err != nil {
			return nil, err
		}
		out.LogEntries = buildEntries(entries)
	}
	if b.Status == template.Failed {
		out.Reason = &e2bapi.BuildReason{Message: b.Reason, Step: b.Step, LogEntries: []e2bapi.BuildLogEntry{}}
		if b.Step != "" {
			last, err := s.Builds.Log(ctx, b.ID, template.LogFilter{Step: b.Step, Backward: true, Limit: maxBuildLogs})
			if err != nil {
				return nil, err
			}
			slices.Reverse(last)
			out.Reason.LogEntries = buildEntries(last)
		}
	}
	return out, nil
}

// GetTemplateBuildLogs implements e2bapi.StrictServerInterface.
func (s *server) GetTemplateBuildLogs(ctx context.Context, r e2bapi.GetTemplateBuildLogsRequestObject) (e2bapi.GetTemplateBuildLogsResponseObject, error) {
	f, err := buildLogFilter(r.Params.Limit, r.Params.Level)
	if err != nil {
		return nil, err
	}
	cursor, err := milli("cursor", r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	if d := r.Params.Direction; d != nil {
		if f.Backward = *d == "backward"; !f.Backward && *d != "forward" {
			return nil, apierr.Field("direction", "%q is not forward or backward", api.Clip(*d))
		}
	}
	if src := r.Params.Source; src != nil && *src != "temporary" && *src != "persistent" {
		return nil, apierr.Field("source", "%q is not temporary or persistent", api.Clip(*src))
	}
	f.Since = cursor
	if f.Backward {
		f.Since, f.Until = time.Time{}, cursor
	}
	_, b, err := s.Builds.Build(ctx, api.Caller(ctx), r.Id, template.BuildID(r.Build))
	if err != nil {
		return nil, noBuild(r.Id, err)
	}
	out := e2bapi.GetTemplateBuildLogs200JSONResponse{Logs: []e2bapi.BuildLogEntry{}}
	if f.Limit == 0 {
		return out, nil
	}
	entries, err := s.Builds.Log(ctx, b.ID, f)
	if err != nil {
		return nil, err
	}
	out.Logs = buildEntries(entries)
	return out, nil
}

func buildLogFilter(limit *int32, level *string) (template.LogFilter, error) {
	f := template.LogFilter{Limit: maxBuildLogs}
	if limit != nil {
		if f.Limit = int(*limit); f.Limit < 0 || f.Limit > maxBuildLogs {
			return f, apierr.Field("limit", "must be 0 to %d, is %d", maxBuildLogs, f.Limit)
		}
	}
	if level != nil {
		var ok bool
		if f.Least, ok = template.ParseLevel(*level); !ok {
			return f, apierr.Field("level", "%q is not one of %s", api.Clip(*level), strings.Join(template.Levels(), ", "))
		}
	}
	return f, nil
}

func buildEntries(entries []template.Entry) []e2bapi.BuildLogEntry {
	out := make([]e2bapi.BuildLogEntry, 0, len(entries))
	for _, e := range entries {
		out = append(out, e2bapi.BuildLogEntry{
			Timestamp: e.At.UTC(), Message: e.Text, Level: e.Level.String(), Step: e.Step,
			Done: e.Done, Cached: e.Cached, DurationMs: e.Duration.Milliseconds(),
		})
	}
	return out
}
