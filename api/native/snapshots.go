package native

import (
	"context"
	"log/slog"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/template"
)

// forkTimeout is the life in seconds of a fork's children that names none.
const forkTimeout = 300

// CreateSnapshot implements nativeapi.StrictServerInterface.
func (s *server) CreateSnapshot(ctx context.Context, r nativeapi.CreateSnapshotRequestObject) (nativeapi.CreateSnapshotResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	name := ""
	if r.Body != nil {
		name = strings.TrimSpace(r.Body.Name)
	}
	snap, err := s.Sandboxes.Snapshot(ctx, api.Caller(ctx), id, name)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.CreateSnapshot201JSONResponse(wireSnapshot(snap)), nil
}

func wireSnapshot(snap template.Snapshot) nativeapi.Snapshot {
	b := snap.Build
	out := nativeapi.Snapshot{
		Id: snap.Reference(), Name: snap.Name, Tag: snap.Tag, Template: string(snap.Template), BuildID: string(b.ID),
		Sandbox: b.Sandbox, Resources: resources(b.Resources), CreatedAt: snap.TaggedAt.UTC(),
	}
	if b.Artifact != nil {
		out.SizeBytes, out.Engine = b.Artifact.SizeBytes, b.Artifact.ABI
	}
	return out
}

// ListSnapshots implements nativeapi.StrictServerInterface.
func (s *server) ListSnapshots(ctx context.Context, r nativeapi.ListSnapshotsRequestObject) (nativeapi.ListSnapshotsResponseObject, error) {
	f := template.SnapshotFilter{Limit: maxPage}
	if r.Params.Limit != nil {
		if f.Limit = *r.Params.Limit; f.Limit < 1 || f.Limit > maxPage {
			return nil, apierr.Field("limit", "must be 1 to %d, is %d", maxPage, f.Limit)
		}
	}
	if r.Params.NextToken != nil {
		f.Cursor = *r.Params.NextToken
	}
	out := nativeapi.ListSnapshots200JSONResponse{Body: []nativeapi.Snapshot{}}
	if r.Params.Sandbox != nil {
		id, err := idOf(*r.Params.Sandbox)
		if err != nil {
			return out, nil //nolint:nilerr // what cannot be an id has no snapshots
		}
		f.Sandbox = string(id)
	}
	page, next, err := s.Sandboxes.ListSnapshots(ctx, api.Caller(ctx), f)
	if errdefs.IsInvalidArgument(err) {
		return nil, apierr.Field("nextToken", "is not one that this listing gave").WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	for _, snap := range page {
		out.Body = append(out.Body, wireSnapshot(snap))
	}
	if next != "" {
		out.Headers.XNextToken = &next
	}
	return out, nil
}

// DeleteSnapshot implements nativeapi.StrictServerInterface.
func (s *server) DeleteSnapshot(ctx context.Context, r nativeapi.DeleteSnapshotRequestObject) (nativeapi.DeleteSnapshotResponseObject, error) {
	who := api.Caller(ctx)
	missing := apierr.New(errdefs.ErrNotFound, "snapshot %q doesn't exist", api.Clip(r.Id))
	t, ref, err := s.Templates.Find(ctx, who.Team, r.Id)
	switch {
	case errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err):
		return nil, missing.WithCause(err)
	case err != nil:
		return nil, err
	case t.Kind != template.KindSnapshot || t.Team != who.Team:
		return nil, missing
	}
	if !strings.Contains(r.Id, ":") {
		ref.Tag = "" // all of them
	}
	err = s.Sandboxes.DeleteSnapshot(ctx, who, t, ref.Tag)
	if errdefs.IsNotFound(err) {
		return nil, missing.WithCause(err)
	}
	if errdefs.IsFailedPrecondition(err) {
		return nil, apierr.New(errdefs.ErrFailedPrecondition,
			"snapshot %q is in use: end the sandboxes that were made of it first, paused ones too", api.Clip(r.Id)).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return nativeapi.DeleteSnapshot204Response{}, nil
}

// ForkSandbox implements nativeapi.StrictServerInterface.
func (s *server) ForkSandbox(ctx context.Context, r nativeapi.ForkSandboxRequestObject) (nativeapi.ForkSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	who := api.Caller(ctx)
	count, seconds := 1, int64(forkTimeout)
	if r.Body != nil {
		if r.Body.Count != nil {
			count = *r.Body.Count
		}
		if r.Body.TimeoutSeconds != nil {
			seconds = *r.Body.TimeoutSeconds
		}
	}
	ttl, err := s.seconds(seconds, 1)
	if err != nil {
		return nil, err
	}
	if q, ok := s.Creates.Allow(string(who.Team)); !ok {
		return nil, api.TooFast(q, "too many creates")
	}
	var made []sandbox.Forked
	if key := r.Params.IdempotencyKey; key != nil {
		made, err = s.Sandboxes.ForkOnce(ctx, who, id, count, ttl, *key)
	} else {
		made, err = s.Sandboxes.Fork(ctx, who, id, count, ttl)
	}
	if err != nil {
		return nil, about(id, err)
	}
	out := make(nativeapi.ForkSandbox201JSONResponse, len(made))
	for i, f := range made {
		out[i] = s.forked(ctx, id, f)
	}
	return out, nil
}

func (s *server) forked(ctx context.Context, source sandbox.ID, f sandbox.Forked) nativeapi.Forked {
	if f.Err == nil {
		return nativeapi.Forked{Sandbox: new(s.detail(f.Sandbox))}
	}
	s.Log.WarnContext(ctx, "child of a fork was not started", slog.String("sandbox", string(source)), slog.Any("error", f.Err))
	p := apierr.Describe(f.Err, string(source))
	return nativeapi.Forked{Error: &nativeapi.Error{Code: p.Status, Message: p.Message}}
}
