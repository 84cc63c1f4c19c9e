package e2b

import (
	"context"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
)

// ConnectSandboxV1 implements e2bapi.StrictServerInterface.
func (s *server) ConnectSandboxV1(ctx context.Context, r e2bapi.ConnectSandboxV1RequestObject) (e2bapi.ConnectSandboxV1ResponseObject, error) {
	if r.Body == nil || r.Body.Timeout == nil {
		return nil, apierr.New(errdefs.ErrInvalidArgument, "validation error: timeout is missing")
	}
	out, resumed, err := s.connect(ctx, r.Id, r.Body, 0)
	if err != nil {
		return nil, err
	}
	if resumed {
		return e2bapi.ConnectSandboxV1201JSONResponse(out), nil
	}
	return e2bapi.ConnectSandboxV1200JSONResponse{SandboxJSONResponse: out}, nil
}

// ConnectSandbox implements e2bapi.StrictServerInterface.
func (s *server) ConnectSandbox(ctx context.Context, r e2bapi.ConnectSandboxRequestObject) (e2bapi.ConnectSandboxResponseObject, error) {
	out, resumed, err := s.connect(ctx, r.Id, r.Body, timeoutV2)
	if err != nil {
		return nil, err
	}
	if resumed {
		return e2bapi.ConnectSandbox201JSONResponse(out), nil
	}
	return e2bapi.ConnectSandbox200JSONResponse{SandboxJSONResponse: out}, nil
}

func (s *server) connect(ctx context.Context, param string, in *e2bapi.Connect, defaultTimeout int32) (e2bapi.SandboxJSONResponse, bool, error) {
	id, err := idOf(param)
	if err != nil {
		return e2bapi.SandboxJSONResponse{}, false, err
	}
	n := defaultTimeout
	if in != nil && in.Timeout != nil {
		n = *in.Timeout
	}
	if in != nil {
		if err := refuseColdBoot(in.Memory); err != nil {
			return e2bapi.SandboxJSONResponse{}, false, err
		}
	}
	var ttl time.Duration
	if ttl, err = s.seconds("timeout", n, 0); err != nil {
		return e2bapi.SandboxJSONResponse{}, false, err
	}
	box, resumed, err := s.Sandboxes.Connect(ctx, api.Caller(ctx), id, ttl)
	if err != nil {
		return e2bapi.SandboxJSONResponse{}, false, about(id, err)
	}
	out, err := s.wire(box)
	return out, resumed, err
}

// refuseColdBoot refuses to leave saved memory out, which upstream gates too.
func refuseColdBoot(memory *bool) error {
	if memory != nil && !*memory {
		return apierr.Field("memory", "a sandbox that was paused with its memory resumes with it; leave the member out").
			WithCode("sandbox_memory_override_disabled")
	}
	return nil
}

// PauseSandbox implements e2bapi.StrictServerInterface.
func (s *server) PauseSandbox(ctx context.Context, r e2bapi.PauseSandboxRequestObject) (e2bapi.PauseSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	kind := snapshot.Memory
	if r.Body != nil && r.Body.Memory != nil && !*r.Body.Memory {
		kind = snapshot.Filesystem
	}
	if err := s.Sandboxes.Pause(ctx, api.Caller(ctx), id, kind); err != nil {
		return nil, about(id, err)
	}
	return e2bapi.PauseSandbox204Response{}, nil
}

// ResumeSandbox implements e2bapi.StrictServerInterface.
func (s *server) ResumeSandbox(ctx context.Context, r e2bapi.ResumeSandboxRequestObject) (e2bapi.ResumeSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	n := int32(timeoutV1)
	if r.Body != nil {
		if r.Body.Timeout != nil {
			n = *r.Body.Timeout
		}
		if err := refuseColdBoot(r.Body.Memory); err != nil {
			return nil, err
		}
	}
	ttl, err := s.seconds("timeout", n, 1)
	if err != nil {
		return nil, err
	}
	who := api.Caller(ctx)
	box, err := s.Sandboxes.Get(ctx, who, id)
	if err != nil {
		return nil, about(id, err)
	}
	if _, running := s.Sandboxes.Live(id); running {
		return nil, apierr.New(errdefs.ErrConflict, "sandbox %s is running already", id)
	}
	box, _, err = s.Sandboxes.Connect(ctx, who, id, ttl)
	if err != nil {
		return nil, about(id, err)
	}
	out, err := s.wire(box)
	if err != nil {
		return nil, err
	}
	return e2bapi.ResumeSandbox201JSONResponse{SandboxJSONResponse: out}, nil
}

// lifecycle is what a sandbox shows of its pausing.
func lifecycle(box sandbox.Sandbox) e2bapi.Lifecycle {
	l := e2bapi.Lifecycle{AutoResume: box.Lifecycle.AutoResume, OnTimeout: sandbox.OnTimeoutKill}
	if box.OnTimeout == sandbox.OnTimeoutPause {
		l.OnTimeout = sandbox.OnTimeoutPause
	}
	return l
}
