package e2b

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/template"
)

// CreateSnapshot implements e2bapi.StrictServerInterface.
func (s *server) CreateSnapshot(ctx context.Context, r e2bapi.CreateSnapshotRequestObject) (e2bapi.CreateSnapshotResponseObject, error) {
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
	return e2bapi.CreateSnapshot201JSONResponse(snapshotInfo(snap)), nil
}

func snapshotInfo(snap template.Snapshot) e2bapi.SnapshotInfo {
	out := e2bapi.SnapshotInfo{SnapshotID: snap.Reference(), Names: []string{}}
	if name := snap.FullName(); name != "" {
		out.Names = append(out.Names, name)
	}
	return out
}

// ListSnapshots implements e2bapi.StrictServerInterface.
func (s *server) ListSnapshots(ctx context.Context, r e2bapi.ListSnapshotsRequestObject) (e2bapi.ListSnapshotsResponseObject, error) {
	who := api.Caller(ctx)
	out := e2bapi.ListSnapshots200JSONResponse{Body: []e2bapi.SnapshotInfo{}}
	f := template.SnapshotFilter{Limit: maxPage, NewestTag: true}
	if r.Params.Limit != nil {
		if f.Limit = int(*r.Params.Limit); f.Limit < 1 || f.Limit > maxPage {
			return nil, apierr.Field("limit", "must be 1 to %d, is %d", maxPage, f.Limit)
		}
	}
	if r.Params.NextToken != nil {
		f.Cursor = *r.Params.NextToken
	}
	if r.Params.SandboxID != nil && *r.Params.SandboxID != "" {
		id, err := idOf(*r.Params.SandboxID)
		if err != nil {
			return out, nil
		}
		f.Sandbox, f.NewestTag = string(id), false
	}
	if r.Params.Name != nil && *r.Params.Name != "" {
		t, ref, err := s.findTagged(ctx, who, "name", *r.Params.Name)
		if errdefs.IsNotFound(err) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		f.Template = t.ID
		if strings.Contains(*r.Params.Name, ":") {
			f.Tag, f.NewestTag = ref.Tag, false
		}
	}
	page, next, err := s.Sandboxes.ListSnapshots(ctx, who, f)
	if errdefs.IsInvalidArgument(err) {
		return nil, apierr.Field("nextToken", "is not one that this listing gave").WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	for _, snap := range page {
		out.Body = append(out.Body, snapshotInfo(snap))
	}
	if next != "" {
		out.Headers.XNextToken = &next
	}
	return out, nil
}

// ForkSandbox implements e2bapi.StrictServerInterface.
func (s *server) ForkSandbox(ctx context.Context, r e2bapi.ForkSandboxRequestObject) (e2bapi.ForkSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	who := api.Caller(ctx)
	timeout, count := int32(timeoutV1), 1
	if r.Body != nil {
		if r.Body.Timeout != nil {
			timeout = *r.Body.Timeout
		}
		if r.Body.Count != nil {
			count = int(*r.Body.Count)
		}
	}
	var ttl time.Duration
	if ttl, err = s.seconds("timeout", timeout, 1); err != nil {
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
	out := make(e2bapi.ForkSandbox201JSONResponse, len(made))
	for i, f := range made {
		out[i] = s.forked(ctx, id, f)
	}
	return out, nil
}

// forked is one child of a fork, or its error with the status that a create of
// it would have had.
func (s *server) forked(ctx context.Context, source sandbox.ID, f sandbox.Forked) e2bapi.ForkResult {
	err := f.Err
	if err == nil {
		var box e2bapi.SandboxJSONResponse
		if box, err = s.wire(f.Sandbox); err == nil {
			return e2bapi.ForkResult{Sandbox: new(e2bapi.Sandbox(box))}
		}
	}
	p := apierr.Describe(err, string(source))
	s.Log.WarnContext(ctx, "child of a fork was not started", slog.String("sandbox", string(source)), slog.Any("error", err))
	return e2bapi.ForkResult{Error: &e2bapi.Error{Code: p.Status, Message: p.Message}}
}
