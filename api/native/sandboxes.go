package native

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/template"
)

const (
	maxPage = 100
	// maxNamed bounds how many records a list by name looks at.
	maxNamed = 10_000
)

// ListSandboxes implements nativeapi.StrictServerInterface.
func (s *server) ListSandboxes(ctx context.Context, r nativeapi.ListSandboxesRequestObject) (nativeapi.ListSandboxesResponseObject, error) {
	who := api.Caller(ctx)
	f := sandbox.Filter{Team: who.Team, Limit: maxPage}
	if r.Params.State != nil {
		for _, st := range *r.Params.State {
			if !st.Valid() {
				return nil, apierr.Field("state", "%q is not a state", st)
			}
			f.States = append(f.States, sandbox.State(st))
		}
	}
	if r.Params.Limit != nil {
		if f.Limit = *r.Params.Limit; f.Limit < 1 || f.Limit > maxPage {
			return nil, apierr.Field("limit", "must be 1 to %d, is %d", maxPage, f.Limit)
		}
	}
	if r.Params.NextToken != nil {
		f.Cursor = *r.Params.NextToken
	}
	page, next, running, err := s.Sandboxes.List(ctx, who, f)
	if errdefs.IsInvalidArgument(err) {
		return nil, apierr.Field("nextToken", "is not one that this listing gave").WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	if r.Params.Name != nil {
		// Names are labels that the store does not index: look on until a page
		// is found.
		named := func(box sandbox.Sandbox) bool { return box.Name != *r.Params.Name }
		page = slices.DeleteFunc(page, named)
		for seen := f.Limit; len(page) == 0 && next != "" && seen < maxNamed; seen += f.Limit {
			f.Cursor = next
			if page, next, running, err = s.Sandboxes.List(ctx, who, f); err != nil {
				return nil, err
			}
			page = slices.DeleteFunc(page, named)
		}
	}
	out := nativeapi.ListSandboxes200JSONResponse{Body: []nativeapi.Sandbox{}}
	for _, box := range page {
		out.Body = append(out.Body, s.wire(box))
	}
	if next != "" {
		out.Headers.XNextToken = &next
	}
	out.Headers.XTotalRunning = &running
	return out, nil
}

// CreateSandbox implements nativeapi.StrictServerInterface.
func (s *server) CreateSandbox(ctx context.Context, r nativeapi.CreateSandboxRequestObject) (nativeapi.CreateSandboxResponseObject, error) {
	who := api.Caller(ctx)
	req, err := s.createRequest(r.Body)
	if err != nil {
		return nil, err
	}
	if key := r.Params.IdempotencyKey; key != nil {
		if err := sandbox.CheckKey(*key); err != nil {
			return nil, err
		}
		req.IdempotencyKey = *key
	}
	if q, ok := s.Creates.Allow(string(who.Team)); !ok {
		return nil, api.TooFast(q, "too many creates")
	}
	if wantsEvents(ctx) {
		return s.watch(ctx, who, req)
	}
	box, err := s.Sandboxes.Create(ctx, who, req)
	if err != nil {
		return nil, createError(req, err)
	}
	return nativeapi.CreateSandbox201JSONResponse(s.detail(box)), nil
}

func createError(req sandbox.CreateRequest, err error) error {
	if errdefs.IsNotFound(err) {
		return api.NoTemplate(req.Template).WithCause(err)
	}
	return err
}

func (s *server) createRequest(in *nativeapi.CreateSandbox) (sandbox.CreateRequest, error) {
	req := sandbox.CreateRequest{
		Template: cmp.Or(strings.TrimSpace(in.Template), "base"), Name: in.Name,
		Timeout: defaultTimeout, Env: in.Env, Metadata: in.Metadata,
	}
	if s.Limits.MaxTimeout > 0 {
		req.Timeout = min(req.Timeout, s.Limits.MaxTimeout)
	}
	if _, err := template.ParseReference(req.Template); err != nil {
		return req, apierr.Field("template", "%q is not [namespace/]name[:tag]", api.Clip(req.Template)).WithCause(err)
	}
	var err error
	if in.TimeoutSeconds != nil {
		if req.Timeout, err = s.seconds(*in.TimeoutSeconds, 1); err != nil {
			return req, err
		}
	}
	if in.Resources != nil {
		req.Resources = provider.Resources{
			MemoryMiB: in.Resources.MemoryMiB, CPUs: in.Resources.Cpus,
			DiskMiB: in.Resources.DiskMiB, Processes: in.Resources.Processes,
		}
	}
	if req.Network, err = s.network(in.Network, in.Egress); err != nil {
		return req, err
	}
	if req.Budget, err = readBudget(in.Budget); err != nil {
		return req, err
	}
	err = readLifecycle(&req, in.Lifecycle)
	return req, err
}

// seconds checks a timeout.
func (s *server) seconds(n, least int64) (time.Duration, error) {
	most := int64(s.Limits.MaxTimeout / time.Second)
	if n < least {
		return 0, apierr.Field("timeoutSeconds", "must be at least %d, is %d", least, n)
	}
	if most > 0 && n > most {
		return 0, apierr.Exceeds("timeoutSeconds", "maxTimeoutSeconds", "must be at most %d, is %d", most, n)
	}
	return time.Duration(min(n, int64(1<<31))) * time.Second, nil
}

// network reads network and egress.presets. A preset stands for its hosts;
// where everything is open anyway it adds nothing.
func (s *server) network(in *nativeapi.Network, presets *nativeapi.EgressOptions) (sandbox.Network, error) {
	var n sandbox.Network
	if in != nil {
		n = sandbox.Network{
			AllowInternet: in.AllowInternet, AllowOut: in.AllowOut, DenyOut: in.DenyOut,
			PrivateTraffic: in.PrivateTraffic, MaskRequestHost: in.MaskRequestHost,
		}
		if err := api.MaskRequestHost(in.MaskRequestHost); err != nil {
			return n, err
		}
	}
	if presets == nil {
		return n, nil
	}
	closed := s.Policy.Default != egress.Allow || slices.Contains(n.DenyOut, "0.0.0.0/0") ||
		(n.AllowInternet != nil && !*n.AllowInternet)
	for _, name := range presets.Presets {
		hosts, ok := egress.Preset(name)
		if !ok {
			return n, apierr.Field("egress.presets", "there is no preset %q; there are %s", api.Clip(name), strings.Join(egress.PresetNames(), ", "))
		}
		if closed {
			n.AllowOut = append(slices.Clip(n.AllowOut), hosts...)
		}
	}
	return n, nil
}

// GetSandbox implements nativeapi.StrictServerInterface.
func (s *server) GetSandbox(ctx context.Context, r nativeapi.GetSandboxRequestObject) (nativeapi.GetSandboxResponseObject, error) {
	box, err := s.get(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	return nativeapi.GetSandbox200JSONResponse(s.detail(box)), nil
}

func (s *server) get(ctx context.Context, param string) (sandbox.Sandbox, error) {
	id, err := idOf(param)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	box, err := s.Sandboxes.Get(ctx, api.Caller(ctx), id)
	return box, about(id, err)
}

// DeleteSandbox implements nativeapi.StrictServerInterface.
func (s *server) DeleteSandbox(ctx context.Context, r nativeapi.DeleteSandboxRequestObject) (nativeapi.DeleteSandboxResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	if err := s.Sandboxes.Kill(ctx, api.Caller(ctx), id, "killed"); err != nil {
		return nil, about(id, err)
	}
	return nativeapi.DeleteSandbox204Response{}, nil
}

// SetTimeout implements nativeapi.StrictServerInterface.
func (s *server) SetTimeout(ctx context.Context, r nativeapi.SetTimeoutRequestObject) (nativeapi.SetTimeoutResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	if r.Body.TimeoutSeconds == nil {
		return nil, apierr.Field("timeoutSeconds", "must be given")
	}
	ttl, err := s.seconds(*r.Body.TimeoutSeconds, 0)
	if err != nil {
		return nil, err
	}
	who := api.Caller(ctx)
	if r.Body.ExtendOnly {
		box, err := s.Sandboxes.Extend(ctx, who, id, ttl)
		if err != nil {
			return nil, about(id, err)
		}
		return nativeapi.SetTimeout200JSONResponse(s.detail(box)), nil
	}
	if err := s.Sandboxes.SetTimeout(ctx, who, id, ttl); err != nil {
		return nil, about(id, err)
	}
	box, err := s.Sandboxes.Get(ctx, who, id)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.SetTimeout200JSONResponse(s.detail(box)), nil
}

// PutNetwork implements nativeapi.StrictServerInterface.
func (s *server) PutNetwork(ctx context.Context, r nativeapi.PutNetworkRequestObject) (nativeapi.PutNetworkResponseObject, error) {
	id, err := idOf(r.Id)
	if err != nil {
		return nil, err
	}
	n, err := s.network(r.Body.Network, r.Body.Egress)
	if err != nil {
		return nil, err
	}
	if n.PrivateTraffic || n.MaskRequestHost != "" {
		return nil, apierr.Field("network", "privateTraffic and maskRequestHost are set at creation only")
	}
	who := api.Caller(ctx)
	if err := s.Sandboxes.UpdateNetwork(ctx, who, id, n); err != nil {
		return nil, about(id, err)
	}
	box, err := s.Sandboxes.Get(ctx, who, id)
	if err != nil {
		return nil, about(id, err)
	}
	return nativeapi.PutNetwork200JSONResponse(s.detail(box)), nil
}

// detail is wire with the tokens of a sandbox that can be reached.
func (s *server) detail(box sandbox.Sandbox) nativeapi.Sandbox {
	out := s.wire(box)
	agent, traffic, private := secret.Value{}, secret.Value{}, false
	if live, ok := s.Sandboxes.Live(box.ID); ok && box.State == sandbox.Running {
		agent, traffic, private = live.AgentToken, live.TrafficToken, live.PrivateTraffic || len(live.PrivatePorts) > 0
	} else if d, ok := s.Sandboxes.Dormant(box.ID); ok && box.State == sandbox.Paused {
		agent, traffic, private = d.AgentToken, d.TrafficToken, d.PrivateTraffic || len(d.PrivatePorts) > 0
	}
	out.AgentToken = agent.Reveal()
	if private {
		out.TrafficToken = traffic.Reveal()
	}
	return out
}

func (s *server) wire(box sandbox.Sandbox) nativeapi.Sandbox {
	metadata := box.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	rules := []nativeapi.EgressRule{}
	for _, r := range box.Egress.Rules {
		rules = append(rules, rule(r))
	}
	out := nativeapi.Sandbox{
		Id: string(box.ID), Name: box.Name, Template: string(box.Template), TemplateName: box.Alias,
		BuildID: string(box.Build), State: nativeapi.State(box.State), Reason: box.Reason,
		Provider: box.Handle.Provider, Node: box.Node, Resources: resources(box.Resources),
		Network: nativeapi.Network{
			AllowInternet: box.Network.AllowInternet, AllowOut: box.Network.AllowOut, DenyOut: box.Network.DenyOut,
			PrivateTraffic: box.Network.PrivateTraffic, MaskRequestHost: box.Network.MaskRequestHost,
		},
		Egress: nativeapi.EgressPolicy{
			Version: box.Egress.Version, Rules: rules,
			Default: nativeapi.EgressPolicyDefault(cmp.Or(box.Egress.Default, egress.Deny)),
		},
		Metadata: metadata, Domain: s.PublicDomain, Lifecycle: lifecycle(box), Budget: budget(box),
		CreatedAt: box.CreatedAt.UTC(), StartedAt: optional(box.StartedAt),
		EndsAt: optional(box.EndsAt), EndedAt: optional(box.EndedAt),
	}
	if o := box.Origin; o.Sandbox != "" {
		out.Origin = &nativeapi.Origin{Sandbox: string(o.Sandbox), Snapshot: o.Snapshot}
	}
	if a := box.Saved; a != nil {
		// The end of a saved sandbox is when it was paused.
		out.EndsAt, out.PausedAt = nil, out.EndsAt
		out.Saved = &nativeapi.Saved{Kind: nativeapi.SavedKind(a.Kind), SizeBytes: a.SizeBytes}
	}
	return out
}

func resources(r provider.Resources) nativeapi.Resources {
	return nativeapi.Resources{MemoryMiB: r.MemoryMiB, Cpus: r.CPUs, DiskMiB: r.DiskMiB, Processes: r.Processes}
}

func rule(r egress.Rule) nativeapi.EgressRule {
	out := nativeapi.EgressRule{Hosts: r.Hosts, Verdict: nativeapi.EgressRuleVerdict(r.Verdict), Note: r.Note}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, int(p))
	}
	return out
}

// optional is nil for the zero time.
func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}
