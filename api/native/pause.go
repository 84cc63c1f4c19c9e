package native

import (
	"cmp"
	"context"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// resumeTimeout is the life in seconds of a resume that names none.
const resumeTimeout = 300

// PauseSandbox implements nativeapi.StrictServerInterface.
func (s *server) PauseSandbox(ctx context.Context, r nativeapi.PauseSandboxRequestObject) (nativeapi.PauseSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	kind := snapshot.Memory
	if r.Body != nil && r.Body.FilesOnly {
		kind = snapshot.Filesystem
	}
	who := api.Caller(ctx)
	if err := s.Sandboxes.Pause(ctx, who, id, kind); err != nil {
		return nil, about(id, err)
	}
	box, err := s.Sandboxes.Get(ctx, who, id)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.PauseSandbox200JSONResponse(s.detail(box)), nil
}

// ResumeSandbox implements nativeapi.StrictServerInterface.
func (s *server) ResumeSandbox(ctx context.Context, r nativeapi.ResumeSandboxRequestObject) (nativeapi.ResumeSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	n := int64(resumeTimeout)
	if r.Body != nil && r.Body.TimeoutSeconds != nil {
		n = *r.Body.TimeoutSeconds
	}
	ttl, err := s.seconds(n, 1)
	if err != nil {
		return nil, err
	}
	box, _, err := s.Sandboxes.Connect(ctx, api.Caller(ctx), id, ttl)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.ResumeSandbox200JSONResponse(s.detail(box)), nil
}

// readLifecycle checks what a create wants of pause and resume, by the rules of
// the E2B surface.
func readLifecycle(req *sandbox.CreateRequest, in *nativeapi.Lifecycle) error {
	if in == nil {
		return nil
	}
	onTimeout := cmp.Or(in.OnTimeout, nativeapi.Kill)
	switch {
	case !onTimeout.Valid():
		return apierr.Field("lifecycle.onTimeout", "must be kill or pause, is %q", api.Clip(string(onTimeout)))
	case in.FilesOnly && onTimeout != nativeapi.Pause:
		return apierr.Field("lifecycle.filesOnly", "needs onTimeout pause")
	case in.FilesOnly && in.AutoResume:
		return apierr.Field("lifecycle.autoResume", "wakes only what was paused with its memory; leave filesOnly out")
	}
	req.OnTimeout, req.FilesOnly, req.AutoResume = string(onTimeout), in.FilesOnly, in.AutoResume
	return nil
}

// lifecycle is what a sandbox shows of it.
func lifecycle(box sandbox.Sandbox) nativeapi.Lifecycle {
	return nativeapi.Lifecycle{
		OnTimeout: nativeapi.LifecycleOnTimeout(cmp.Or(box.OnTimeout, sandbox.OnTimeoutKill)),
		FilesOnly: box.Lifecycle.FilesOnly, AutoResume: box.Lifecycle.AutoResume,
	}
}
