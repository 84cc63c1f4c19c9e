package native

import (
	"context"
	"net/http"
	"time"

	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/telemetry"
)

// maxStages is how many stages wait for a slow reader; what is more is dropped.
const maxStages = 8

// stage is one event of a create.
type stage struct {
	Stage sandbox.Stage `json:"stage"`
	At    time.Time     `json:"at"`
	// MS is since the request came.
	MS int64 `json:"ms"`
}

// watched is a create whose stages are streamed.
type watched struct {
	server *server
	ctx    context.Context //nolint:containedctx // of the request that this answers
	req    sandbox.CreateRequest
	stages chan stage
	first  stage
	done   chan struct{} // closed after what follows is set
	box    sandbox.Sandbox
	err    error
}

// watch starts a create and returns when it has reached its first stage, or
// failed before.
func (s *server) watch(ctx context.Context, who identity.Principal, req sandbox.CreateRequest) (nativeapi.CreateSandboxResponseObject, error) {
	began := time.Now()
	c := &watched{server: s, ctx: ctx, stages: make(chan stage, maxStages), done: make(chan struct{})}
	req.Progress = func(st sandbox.Stage) {
		select {
		case c.stages <- stage{st, time.Now().UTC(), time.Since(began).Milliseconds()}:
		default:
		}
	}
	c.req = req
	go func() {
		defer close(c.done)
		c.box, c.err = s.Sandboxes.Create(ctx, who, req)
	}()
	select {
	case c.first = <-c.stages:
		return c, nil
	case <-c.done:
	}
	select {
	case c.first = <-c.stages:
		return c, nil
	default:
	}
	if c.err != nil {
		return nil, createError(req, c.err)
	}
	return nativeapi.CreateSandbox201JSONResponse(s.detail(c.box)), nil
}

// VisitCreateSandboxResponse implements nativeapi.CreateSandboxResponseObject.
// It returns when the create has ended, which the end of the request ends.
func (c *watched) VisitCreateSandboxResponse(w http.ResponseWriter) error {
	out := newEvents(w)
	defer out.end()
	keepalive := time.NewTicker(keepaliveEvery)
	defer keepalive.Stop()
	_ = out.send("stage", c.first) // out knows of its errors itself
	for {
		select {
		case st := <-c.stages:
			_ = out.send("stage", st)
			continue
		case <-keepalive.C:
			_ = out.keepalive()
			continue
		case <-c.done:
		}
		break
	}
	for len(c.stages) > 0 {
		_ = out.send("stage", <-c.stages)
	}
	if c.err != nil {
		_ = out.send("error", apierr.Native(c.ctx, c.server.Log, telemetry.RequestID(c.ctx), createError(c.req, c.err)))
		return nil
	}
	_ = out.send("sandbox", c.server.detail(c.box))
	return nil
}
