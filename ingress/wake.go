package ingress

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// transitLimit is how long a request waits for a sandbox that is being paused or
// resumed.
const transitLimit = 30 * time.Second

// rouse gets a running sandbox for a request that found none: it waits out a
// transition, and wakes a paused sandbox that wants to be woken by traffic with
// these credentials. Otherwise the answer says why not.
func (h *Handler) rouse(r *http.Request, to target) (*sandbox.Live, answer) {
	ctx, cancel := context.WithTimeout(r.Context(), transitLimit)
	defer cancel()
	for {
		settled := h.sandboxes.Transit(to.id)
		if settled == nil {
			break
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return nil, inTransition(to)
		}
	}
	if live, ok := h.sandboxes.Live(to.id); ok {
		return live, answer{}
	}
	d, ok := h.sandboxes.Dormant(to.id)
	if !ok {
		return nil, notFound(to)
	}
	if denied, ok := mayWake(d, to, r); !ok {
		return nil, denied
	}
	live, err := h.sandboxes.Wake(ctx, to.id)
	switch {
	case err == nil:
		return live, answer{}
	case busy(err):
		return nil, answer{
			status: http.StatusTooManyRequests, id: to.id,
			message: "The sandbox is paused, and too many others are waiting to be started; try again", title: "Server Busy",
		}
	case errdefs.IsResourceExhausted(err):
		return nil, answer{
			status: http.StatusTooManyRequests, id: to.id,
			message: "The sandbox is paused, and the team has as many running sandboxes as it may", title: "Too Many Sandboxes",
		}
	case errdefs.IsNotFound(err):
		return nil, notFound(to)
	}
	h.log.WarnContext(r.Context(), "sandbox could not be woken", "sandbox", string(to.id), "error", err)
	return nil, inTransition(to)
}

// busy reports whether a resume was not let in.
func busy(err error) bool {
	e, ok := errors.AsType[*apierr.Error](err)
	return ok && e.Code == "create_queue_full"
}

func inTransition(to target) answer {
	return answer{
		status: http.StatusConflict, id: to.id, title: "Sandbox Not Ready",
		message: "The sandbox is paused and could not be resumed in time; try again or resume it by the API",
	}
}

// mayWake checks the credentials of traffic that would wake a sandbox. They are
// stricter than those of a running one: whatever the agent answers without a
// token must not start anything.
func mayWake(d sandbox.Dormant, to target, r *http.Request) (answer, bool) {
	if to.port == agentPort {
		if d.AgentToken.Equal(single(r.Header, headerAgent)) {
			return answer{}, true
		}
		return answer{
			status: http.StatusForbidden, id: to.id, title: "Sandbox Paused",
			message: "The sandbox is paused and resumes only for requests with its envdAccessToken in the header X-Access-Token",
		}, false
	}
	return authorise(&sandbox.Live{TrafficToken: d.TrafficToken, PrivateTraffic: d.PrivateTraffic, PrivatePorts: d.PrivatePorts}, to, r)
}
