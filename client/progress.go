package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// Stage is what a create is about to do: queued, claiming, restoring, starting,
// preparing or ready. A create goes through some of them, in this order; one
// that did not get along with a warm sandbox begins again.
type Stage struct {
	Name string    `json:"stage"`
	At   time.Time `json:"at"`
	MS   int64     `json:"ms"` // since the server has the request
}

// createWatched is Create that is told of the stages.
func (c *Client) createWatched(ctx context.Context, r request, progress func(Stage)) (Sandbox, error) {
	var sb Sandbox
	resp, err := c.send(ctx, r, eventStream)
	if err != nil {
		return sb, err
	}
	defer resp.Body.Close()
	op := r.method + " /native/v1" + r.path
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), eventStream) { // a server that knows no stages
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&sb); err != nil {
			return sb, &Error{Op: op, Status: resp.StatusCode, Message: "the answer is not what a Caisson server sends: is the URL right?", cause: err}
		}
		return sb, nil
	}
	done, err := readEvents(ctx, resp.Body, op, maxEvent, func(event string, data []byte) (bool, error) {
		switch event {
		case "stage":
			var st Stage
			if err := unmarshal(op, data, &st); err != nil {
				return false, err
			}
			progress(st)
		case "sandbox":
			return false, unmarshal(op, data, &sb)
		case "error":
			var p problem
			if err := unmarshal(op, data, &p); err != nil {
				return false, err
			}
			return false, p.of(op)
		}
		return true, nil
	})
	if err == nil && !done {
		err = cut(op)
	}
	return sb, err
}

// createRequest is the request of a create.
func createRequest(o CreateOptions) request {
	body := createBody{
		Name: o.Name, Template: o.Template, TimeoutSeconds: seconds(o.Timeout),
		Env: o.Env, Metadata: o.Metadata, Network: o.Network, Resources: o.Resources, Lifecycle: o.Lifecycle,
	}
	if len(o.Presets) > 0 {
		body.Egress = &egressBody{Presets: o.Presets}
	}
	return request{
		method: http.MethodPost, path: "/sandboxes", in: body,
		idempotencyKey: cmp.Or(o.IdempotencyKey, rand.Text()),
	}
}
