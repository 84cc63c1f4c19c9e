package native

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/batch"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/telemetry"
)

// Batches is what this package needs of batch.Runner.
type Batches interface {
	Check(ctx context.Context, who identity.Principal, r *batch.Request) error
	Admit(team identity.TeamID) (release func(), err error)
	Run(ctx context.Context, who identity.Principal, r batch.Request, emit func(batch.Event) error) batch.Summary
}

// RunBatch implements nativeapi.StrictServerInterface.
func (s *server) RunBatch(ctx context.Context, r nativeapi.RunBatchRequestObject) (nativeapi.RunBatchResponseObject, error) {
	req, err := s.batchRequest(r.Body)
	if err != nil {
		return nil, err
	}
	who := api.Caller(ctx)
	if err := s.Batches.Check(ctx, who, &req); err != nil {
		if errdefs.IsNotFound(err) && req.Shared == "" {
			return nil, api.NoTemplate(req.Create.Template).WithCause(err)
		}
		return nil, err
	}
	release, err := s.Batches.Admit(who.Team)
	if err != nil {
		return nil, err
	}
	return &batched{server: s, ctx: ctx, who: who, req: req, release: release}, nil
}

func (s *server) batchRequest(in *nativeapi.Batch) (batch.Request, error) {
	req := batch.Request{
		Timeout: defaultTimeout, StopOnError: in.StopOnError, Env: in.Env, Dir: in.Cwd, User: in.User,
	}
	if s.Limits.MaxTimeout > 0 {
		req.Timeout = min(req.Timeout, s.Limits.MaxTimeout)
	}
	var err error
	if in.TimeoutSeconds != nil {
		if req.Timeout, err = s.seconds(*in.TimeoutSeconds, 1); err != nil {
			return req, err
		}
	}
	if in.Concurrency != nil {
		if req.Concurrency = *in.Concurrency; req.Concurrency < 1 {
			return req, apierr.Field("concurrency", "must be at least 1, is %d", req.Concurrency)
		}
	}
	switch in.Isolation {
	case "", "sandbox":
		if in.Sandbox != "" {
			return req, apierr.Field("sandbox", "goes with isolation shared only")
		}
		req.Create, err = s.createRequest(&nativeapi.CreateSandbox{
			Template: in.Template, Resources: in.Resources, Network: in.Network, Egress: in.Egress, Metadata: in.Metadata,
		})
	case "shared":
		if req.Shared, err = idOf(in.Sandbox); in.Sandbox == "" {
			err = apierr.Field("sandbox", "must be given with isolation shared")
		}
		for _, m := range []struct {
			name  string
			given bool
		}{
			{"template", in.Template != ""},
			{"resources", in.Resources != nil},
			{"network", in.Network != nil},
			{"egress", in.Egress != nil},
			{"metadata", len(in.Metadata) > 0},
		} {
			if m.given && err == nil {
				err = apierr.Field(m.name, "goes with isolation sandbox only")
			}
		}
	default:
		err = apierr.Field("isolation", "%q is not sandbox or shared", api.Clip(in.Isolation))
	}
	if err != nil {
		return req, err
	}
	if len(in.Items) > batch.MaxItems {
		return req, apierr.Field("items", "must be 1 to %d, are %d", batch.MaxItems, len(in.Items))
	}
	for i, it := range in.Items {
		item, err := batchItem(i, it)
		if err != nil {
			return req, err
		}
		req.Items = append(req.Items, item)
	}
	return req, nil
}

func batchItem(i int, in nativeapi.BatchItem) (batch.Item, error) {
	it := batch.Item{
		ID: in.Id, Cmd: in.Cmd, Code: in.Code, Language: in.Language, Args: in.Args, Env: in.Env, Dir: in.Cwd, Collect: in.Collect,
	}
	if in.Stdin != nil {
		it.Stdin = append([]byte{}, *in.Stdin...)
	}
	for j, f := range in.Files {
		content, err := base64.StdEncoding.DecodeString(f.Content)
		if err != nil {
			return it, apierr.Field(fmt.Sprintf("items[%d].files[%d].content", i, j), "is not base64").WithCause(err)
		}
		it.Files = append(it.Files, batch.File{Path: f.Path, Content: content})
	}
	return it, nil
}

// batched is the stream of a batch.
type batched struct {
	server *server
	ctx    context.Context //nolint:containedctx // of the request that this answers
	who    identity.Principal
	req    batch.Request
	// release must be called when it has ended.
	release func()
}

// VisitRunBatchResponse implements nativeapi.RunBatchResponseObject. It returns
// when nothing of the batch is left.
func (b *batched) VisitRunBatchResponse(w http.ResponseWriter) error {
	defer b.release()
	out := newEvents(w)
	defer out.end()
	ctx, cancel := context.WithCancelCause(b.ctx)
	var side sync.WaitGroup
	side.Go(func() { b.attend(ctx, cancel, out) })
	defer func() { cancel(nil); side.Wait() }()
	b.server.Batches.Run(ctx, b.who, b.req, func(ev batch.Event) error { return out.send(b.wire(ev)) })
	return nil
}

// attend keeps the connection open, and ends the batch when that fails or the
// server stops.
func (b *batched) attend(ctx context.Context, cancel context.CancelCauseFunc, out *events) {
	keepalive := time.NewTicker(keepaliveEvery)
	defer keepalive.Stop()
	for {
		select {
		case <-keepalive.C:
			if err := out.keepalive(); err != nil {
				cancel(err)
				return
			}
		case <-b.server.Stop:
			cancel(fmt.Errorf("server is shutting down: %w", errdefs.ErrUnavailable))
			return
		case <-ctx.Done():
			return
		}
	}
}

type batchStarted struct {
	ID      string `json:"id"`
	Index   int    `json:"index"`
	Sandbox string `json:"sandbox"`
	WaitMS  int64  `json:"waitMs"`
}

type batchResult struct {
	ID          string             `json:"id"`
	Index       int                `json:"index"`
	Sandbox     string             `json:"sandbox,omitempty"`
	ExitCode    int                `json:"exitCode"`
	Status      string             `json:"status,omitempty"`
	Stdout      string             `json:"stdout"`
	Stderr      string             `json:"stderr"`
	StdoutBytes int64              `json:"stdoutBytes"`
	StderrBytes int64              `json:"stderrBytes"`
	Truncated   bool               `json:"truncated,omitempty"`
	Files       []batchFile        `json:"files,omitempty"`
	WaitMS      int64              `json:"waitMs"`
	DurationMS  int64              `json:"durationMs"`
	Error       *apierr.NativeBody `json:"error,omitempty"`
}

type batchFile struct {
	Path    string             `json:"path"`
	Content []byte             `json:"content,omitempty"` // base64
	Error   *apierr.NativeBody `json:"error,omitempty"`
}

type batchSummary struct {
	Items      int   `json:"items"`
	Succeeded  int   `json:"succeeded"`
	Failed     int   `json:"failed"`
	Skipped    int   `json:"skipped"`
	DurationMS int64 `json:"durationMs"`
}

// wire turns an event into its name and what is sent of it.
func (b *batched) wire(ev batch.Event) (name string, v any) {
	switch {
	case ev.Started != nil:
		e := ev.Started
		return "started", batchStarted{e.ID, e.Index, string(e.Sandbox), e.Waited.Milliseconds()}
	case ev.Result != nil:
		r := ev.Result
		out := batchResult{
			ID: r.ID, Index: r.Index, Sandbox: string(r.Sandbox), ExitCode: r.ExitCode, Status: r.Status,
			Stdout: r.Stdout.Text, Stderr: r.Stderr.Text, StdoutBytes: r.Stdout.Bytes, StderrBytes: r.Stderr.Bytes,
			Truncated: r.Stdout.Truncated || r.Stderr.Truncated,
			WaitMS:    r.Waited.Milliseconds(), DurationMS: r.Took.Milliseconds(), Error: b.problem(r.Err),
		}
		for _, f := range r.Files {
			out.Files = append(out.Files, batchFile{f.Path, f.Content, b.problem(f.Err)})
		}
		return "result", out
	default:
		s := ev.Summary
		return "summary", batchSummary{s.Items, s.Succeeded, s.Failed, s.Skipped, s.Took.Milliseconds()}
	}
}

func (b *batched) problem(err error) *apierr.NativeBody {
	if err == nil {
		return nil
	}
	return new(apierr.Native(b.ctx, b.server.Log, telemetry.RequestID(b.ctx), err))
}
