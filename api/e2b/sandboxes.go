package e2b

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/template"
)

// A page holds this many rows at most and unless told otherwise.
const maxPage = 100

// maxListV1 bounds the unpaged list.
const maxListV1 = 10_000

// ListSandboxes implements e2bapi.StrictServerInterface.
func (s *server) ListSandboxes(ctx context.Context, r e2bapi.ListSandboxesRequestObject) (e2bapi.ListSandboxesResponseObject, error) {
	who := api.Caller(ctx)
	f, withRunning, err := filter(r.Params, who.Team)
	if err != nil {
		return nil, err
	}
	out := e2bapi.ListSandboxes200JSONResponse{Body: []e2bapi.ListedSandbox{}}
	if r.Params.Template != nil {
		f.Template, err = s.templateID(ctx, who, *r.Params.Template)
		if errdefs.IsNotFound(err) {
			if withRunning {
				out.Headers.XTotalRunning = new(0)
			}
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
	page, next, running, err := s.Sandboxes.List(ctx, who, f)
	if errdefs.IsInvalidArgument(err) {
		return nil, apierr.Field("nextToken", "is not one that this listing gave").WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	for _, box := range page {
		out.Body = append(out.Body, s.listed(box))
	}
	if next != "" {
		out.Headers.XNextToken = &next
	}
	if withRunning {
		out.Headers.XTotalRunning = &running
	}
	return out, nil
}

// ListSandboxesV1 implements e2bapi.StrictServerInterface.
func (s *server) ListSandboxesV1(ctx context.Context, r e2bapi.ListSandboxesV1RequestObject) (e2bapi.ListSandboxesV1ResponseObject, error) {
	who := api.Caller(ctx)
	f := sandbox.Filter{Team: who.Team, States: []sandbox.State{sandbox.Running}, Limit: maxPage}
	if r.Params.Metadata != nil {
		var err error
		if f.Metadata, err = DecodeMetadata(*r.Params.Metadata); err != nil {
			return nil, err
		}
	}
	out := e2bapi.ListSandboxesV1200JSONResponse{}
	for len(out) < maxListV1 {
		page, next, _, err := s.Sandboxes.List(ctx, who, f)
		if err != nil {
			return nil, err
		}
		for _, box := range page {
			out = append(out, s.listed(box))
		}
		if next == "" {
			break
		}
		f.Cursor = next
	}
	return out, nil
}

// filter reads the query of the v2 list, but for the template.
func filter(p e2bapi.ListSandboxesParams, team identity.TeamID) (f sandbox.Filter, running bool, err error) {
	f = sandbox.Filter{Team: team, Limit: maxPage}
	states := []e2bapi.ListSandboxesParamsState{"running", "paused"}
	if p.State != nil && len(*p.State) > 0 {
		states = *p.State
	}
	for _, st := range states {
		switch st {
		case "running":
			f.States, running = append(f.States, sandbox.Running), true
		case "paused":
			f.States = append(f.States, sandbox.Paused, sandbox.Pausing)
		default:
			return f, false, apierr.Field("state", "%q is not running or paused", st)
		}
	}
	if p.Metadata != nil {
		if f.Metadata, err = DecodeMetadata(*p.Metadata); err != nil {
			return f, false, err
		}
	}
	if p.Order != nil {
		f.Ascending = *p.Order == "asc"
		if !f.Ascending && *p.Order != "desc" {
			return f, false, apierr.Field("order", "%q is not asc or desc", *p.Order)
		}
	}
	if p.StartedAfter != nil {
		// A plus sign that was not encoded arrives as a space.
		at := strings.ReplaceAll(*p.StartedAfter, " ", "+")
		if f.StartedAfter, err = time.Parse(time.RFC3339, at); err != nil {
			return f, false, apierr.Field("startedAfter", "%q is not an RFC 3339 time", *p.StartedAfter)
		}
	}
	if p.Limit != nil {
		if f.Limit = int(*p.Limit); f.Limit < 1 || f.Limit > maxPage {
			return f, false, apierr.Field("limit", "must be 1 to %d, is %d", maxPage, f.Limit)
		}
	}
	if p.NextToken != nil {
		f.Cursor = *p.NextToken
	}
	return f, running, nil
}

// templateID resolves a template without tag for a list filter.
func (s *server) templateID(ctx context.Context, who identity.Principal, ref string) (template.ID, error) {
	if strings.Contains(ref, ":") {
		return "", apierr.Field("template", "%q has a tag; filter by name or id", ref)
	}
	t, err := s.find(ctx, who, "template", ref)
	return t.ID, err
}

// GetSandbox implements e2bapi.StrictServerInterface.
func (s *server) GetSandbox(ctx context.Context, r e2bapi.GetSandboxRequestObject) (e2bapi.GetSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	box, err := s.Sandboxes.Get(ctx, api.Caller(ctx), id)
	if err != nil {
		return nil, about(id, err)
	}
	if !slices.Contains([]sandbox.State{sandbox.Running, sandbox.Pausing, sandbox.Paused, sandbox.Resuming}, box.State) {
		return nil, noSandbox(r.Id)
	}
	l := s.listed(box)
	out := e2bapi.GetSandbox200JSONResponse{
		TemplateID: l.TemplateID, Alias: l.Alias, SandboxID: l.SandboxID, ClientID: l.ClientID,
		StartedAt: l.StartedAt, EndAt: l.EndAt, CpuCount: l.CpuCount, MemoryMB: l.MemoryMB, DiskSizeMB: l.DiskSizeMB,
		Metadata: l.Metadata, State: l.State, EnvdVersion: l.EnvdVersion,
		AllowInternetAccess: box.Network.AllowInternet,
		Domain:              &s.PublicDomain,
		Network: &e2bapi.Network{
			AllowPublicTraffic: !box.Network.PrivateTraffic,
			AllowOut:           box.Network.AllowOut,
			DenyOut:            box.Network.DenyOut,
			MaskRequestHost:    box.Network.MaskRequestHost,
		},
		Lifecycle: lifecycle(box),
	}
	if live, ok := s.Sandboxes.Live(id); ok {
		out.EnvdAccessToken = live.AgentToken.Reveal()
	} else if d, ok := s.Sandboxes.Dormant(id); ok {
		out.EnvdAccessToken = d.AgentToken.Reveal()
	}
	return out, nil
}

func (s *server) listed(box sandbox.Sandbox) e2bapi.ListedSandbox {
	state := "running"
	if box.State == sandbox.Paused || box.State == sandbox.Pausing {
		state = "paused"
	}
	return e2bapi.ListedSandbox{
		TemplateID: string(box.Template), Alias: box.Alias,
		SandboxID: string(box.ID), ClientID: clientID,
		StartedAt: box.StartedAt.UTC(), EndAt: box.EndsAt.UTC(),
		CpuCount: int32(box.Resources.CPUs), MemoryMB: box.Resources.MemoryMiB, DiskSizeMB: box.Resources.DiskMiB, //nolint:gosec // CPU counts are small
		Metadata: box.Metadata, State: state, EnvdVersion: s.AgentVersion,
	}
}

// DeleteSandbox implements e2bapi.StrictServerInterface.
func (s *server) DeleteSandbox(ctx context.Context, r e2bapi.DeleteSandboxRequestObject) (e2bapi.DeleteSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	if err := s.Sandboxes.Kill(ctx, api.Caller(ctx), id, "killed"); err != nil {
		return nil, about(id, err)
	}
	return e2bapi.DeleteSandbox204Response{}, nil
}

// SetTimeout implements e2bapi.StrictServerInterface.
func (s *server) SetTimeout(ctx context.Context, r e2bapi.SetTimeoutRequestObject) (e2bapi.SetTimeoutResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	if r.Body.Timeout == nil {
		return nil, apierr.New(errdefs.ErrInvalidArgument, "validation error: timeout is missing")
	}
	ttl, err := s.seconds("timeout", *r.Body.Timeout, 0)
	if err != nil {
		return nil, err
	}
	if err := s.Sandboxes.SetTimeout(ctx, api.Caller(ctx), id, ttl); err != nil {
		return nil, about(id, err)
	}
	return e2bapi.SetTimeout204Response{}, nil
}

// RefreshSandbox implements e2bapi.StrictServerInterface.
func (s *server) RefreshSandbox(ctx context.Context, r e2bapi.RefreshSandboxRequestObject) (e2bapi.RefreshSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	const least, most = 15, 3600
	n := int32(least)
	if r.Body != nil && r.Body.Duration != nil {
		n = *r.Body.Duration
	}
	if n < 0 || n > most {
		return nil, apierr.Field("duration", "must be 0 to %d seconds, is %d", most, n)
	}
	ttl, err := s.seconds("duration", max(n, least), 0)
	if err != nil {
		return nil, err
	}
	if _, err := s.Sandboxes.Extend(ctx, api.Caller(ctx), id, ttl); err != nil {
		return nil, about(id, err)
	}
	return e2bapi.RefreshSandbox204Response{}, nil
}

// UpdateNetwork implements e2bapi.StrictServerInterface.
func (s *server) UpdateNetwork(ctx context.Context, r e2bapi.UpdateNetworkRequestObject) (e2bapi.UpdateNetworkResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	if given(r.Body.Rules) {
		return nil, unbuiltField("rules", "rewriting requests")
	}
	if given(r.Body.EgressProxy) {
		return nil, unbuiltField("egressProxy", "a proxy for outgoing traffic")
	}
	n := sandbox.Network{
		AllowInternet: r.Body.AllowInternetAccess, AllowOut: r.Body.AllowOut, DenyOut: r.Body.DenyOut,
	}
	if err := s.Sandboxes.UpdateNetwork(ctx, api.Caller(ctx), id, n); err != nil {
		return nil, about(id, err)
	}
	return e2bapi.UpdateNetwork204Response{}, nil
}
