package native

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/diff"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// Tree is what this package needs of sandbox.Manager to move between saved
// states and to compare them.
type Tree interface {
	Rollback(ctx context.Context, who identity.Principal, id sandbox.ID, ref string) (sandbox.Sandbox, error)
	Promote(ctx context.Context, who identity.Principal, id sandbox.ID) (sandbox.Sandbox, error)
	Diff(ctx context.Context, who identity.Principal, from, to string, l diff.Options) (diff.Report, error)
}

// maxReference bounds the name of a point.
const maxReference = 256

// RollbackSandbox implements nativeapi.StrictServerInterface.
func (s *server) RollbackSandbox(ctx context.Context, r nativeapi.RollbackSandboxRequestObject) (nativeapi.RollbackSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	ref := strings.TrimSpace(r.Body.Snapshot)
	if ref == "" || len(ref) > maxReference {
		return nil, apierr.Field("snapshot", "must be the id or the name of a snapshot")
	}
	who := api.Caller(ctx)
	box, err := s.Tree.Rollback(ctx, who, id, ref)
	if errdefs.IsNotFound(err) {
		if _, gerr := s.Sandboxes.Get(ctx, who, id); gerr == nil {
			return nil, apierr.New(errdefs.ErrNotFound, "snapshot %q doesn't exist", api.Clip(ref)).WithCause(err)
		}
		return nil, noSandbox(string(id))
	}
	if err != nil {
		return nil, err
	}
	return nativeapi.RollbackSandbox200JSONResponse(s.detail(box)), nil
}

// PromoteSandbox implements nativeapi.StrictServerInterface.
func (s *server) PromoteSandbox(ctx context.Context, r nativeapi.PromoteSandboxRequestObject) (nativeapi.PromoteSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	box, err := s.Tree.Promote(ctx, api.Caller(ctx), id)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.PromoteSandbox200JSONResponse(s.detail(box)), nil
}

// GetDiff implements nativeapi.StrictServerInterface.
func (s *server) GetDiff(ctx context.Context, r nativeapi.GetDiffRequestObject) (nativeapi.GetDiffResponseObject, error) {
	from, to := strings.TrimSpace(value(r.Params.From)), strings.TrimSpace(r.Params.To)
	for name, ref := range map[string]string{"from": from, "to": to} {
		if len(ref) > maxReference {
			return nil, apierr.Field(name, "is longer than %d bytes", maxReference)
		}
	}
	who := api.Caller(ctx)
	if q, ok := s.Creates.Allow(string(who.Team)); !ok { // it starts copies
		return nil, api.TooFast(q, "too many creates")
	}
	l := diff.Options{}
	if r.Params.Patch != nil && !*r.Params.Patch {
		l.PatchBytes = -1
	}
	rep, err := s.Tree.Diff(ctx, who, from, to, l)
	if err != nil {
		return nil, err
	}
	out := nativeapi.GetDiff200JSONResponse{Changes: []nativeapi.Change{}, Truncated: rep.Truncated, PatchesLeftOut: rep.PatchesLeftOut}
	for _, c := range rep.Changes {
		out.Changes = append(out.Changes, nativeapi.Change{
			Path: text(c.Path), Kind: nativeapi.ChangeKind(c.Kind), Before: fileMeta(c.Before), After: fileMeta(c.After),
			Content: c.Content, Binary: c.Binary, Large: c.Large, Insertions: c.Insertions, Deletions: c.Deletions, Patch: text(c.Patch),
		})
	}
	return out, nil
}

// text is what a guest wrote, fit for JSON.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func fileMeta(m *diff.Meta) *nativeapi.FileMeta {
	if m == nil {
		return nil
	}
	return &nativeapi.FileMeta{
		Type: nativeapi.FileMetaType(m.Type), Mode: fmt.Sprintf("%04o", m.Mode), Uid: int64(m.UID), Gid: int64(m.GID),
		Size: m.Size, Target: text(m.Target), Device: m.Device,
	}
}
