package e2b

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/template"
)

// Defaults of a create that names no timeout (decisions.md 30).
const (
	timeoutV1 = 15
	timeoutV2 = 300
)

// CreateSandboxV1 implements e2bapi.StrictServerInterface.
func (s *server) CreateSandboxV1(ctx context.Context, r e2bapi.CreateSandboxV1RequestObject) (e2bapi.CreateSandboxV1ResponseObject, error) {
	out, err := s.create(ctx, r.Body, timeoutV1, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	return e2bapi.CreateSandboxV1201JSONResponse{SandboxJSONResponse: out}, nil
}

// CreateSandbox implements e2bapi.StrictServerInterface.
func (s *server) CreateSandbox(ctx context.Context, r e2bapi.CreateSandboxRequestObject) (e2bapi.CreateSandboxResponseObject, error) {
	out, err := s.create(ctx, r.Body, timeoutV2, r.Params.IdempotencyKey)
	if err != nil {
		return nil, err
	}
	return e2bapi.CreateSandbox201JSONResponse{SandboxJSONResponse: out}, nil
}

func (s *server) create(ctx context.Context, in *e2bapi.NewSandbox, defaultTimeout int32, key *string) (e2bapi.SandboxJSONResponse, error) {
	who := api.Caller(ctx)
	req, err := s.request(*in, defaultTimeout)
	if err != nil {
		return e2bapi.SandboxJSONResponse{}, err
	}
	if key != nil {
		if err := sandbox.CheckKey(*key); err != nil {
			return e2bapi.SandboxJSONResponse{}, err
		}
		req.IdempotencyKey = *key
	}
	if q, ok := s.Creates.Allow(string(who.Team)); !ok {
		return e2bapi.SandboxJSONResponse{}, api.TooFast(q, "too many creates")
	}
	box, err := s.Sandboxes.Create(ctx, who, req)
	if errdefs.IsNotFound(err) {
		return e2bapi.SandboxJSONResponse{}, api.NoTemplate(in.TemplateID).WithCause(err)
	}
	if err != nil {
		return e2bapi.SandboxJSONResponse{}, wireField(err)
	}
	return s.wire(box)
}

// wireField gives a field that the Manager blames the name it has on the wire.
func wireField(err error) error {
	e, ok := errors.AsType[*apierr.Error](err)
	names := map[string]string{"env": "envVars", "template": "templateID"}
	if !ok || names[e.Field] == "" {
		return err
	}
	c := *e
	c.Field = names[e.Field]
	c.Message = strings.Replace(e.Message, e.Field, c.Field, 1)
	return &c
}

// request checks a create and turns it into the Manager's terms.
func (s *server) request(in e2bapi.NewSandbox, defaultTimeout int32) (sandbox.CreateRequest, error) {
	if err := refuseUnbuilt(in); err != nil {
		return sandbox.CreateRequest{}, err
	}
	if strings.TrimSpace(in.TemplateID) == "" {
		return sandbox.CreateRequest{}, apierr.New(errdefs.ErrInvalidArgument, "validation error: templateID is missing")
	}
	if _, err := template.ParseReference(in.TemplateID); err != nil {
		return sandbox.CreateRequest{}, apierr.Field("templateID", "%q is not [namespace/]name[:tag]", api.Clip(in.TemplateID)).WithCause(err)
	}
	n := defaultTimeout
	if in.Timeout != nil {
		n = *in.Timeout
	}
	ttl, err := s.seconds("timeout", n, 1)
	if err != nil {
		return sandbox.CreateRequest{}, err
	}
	if in.Timeout == nil && s.MaxTimeout > 0 {
		ttl = min(ttl, s.MaxTimeout)
	}
	network := sandbox.Network{AllowInternet: in.AllowInternetAccess}
	if w := in.Network; w != nil {
		network.AllowOut, network.DenyOut = w.AllowOut, w.DenyOut
		network.PrivateTraffic = w.AllowPublicTraffic != nil && !*w.AllowPublicTraffic
		network.MaskRequestHost = w.MaskRequestHost
		if err := api.MaskRequestHost(w.MaskRequestHost); err != nil {
			return sandbox.CreateRequest{}, err
		}
	}
	req := sandbox.CreateRequest{
		Template: in.TemplateID, Timeout: ttl, Env: in.EnvVars, Metadata: in.Metadata, Network: network,
		AutoResume: in.AutoResume != nil && in.AutoResume.Enabled,
		FilesOnly:  in.AutoPauseMemory != nil && !*in.AutoPauseMemory,
	}
	if in.AutoPause != nil && *in.AutoPause {
		req.OnTimeout = sandbox.OnTimeoutPause
	}
	return req, nil
}

// refuseUnbuilt names the first member that asks for what is not built
// (decisions.md 28). Members in their "off" form pass.
func refuseUnbuilt(in e2bapi.NewSandbox) error {
	if in.AutoPauseMemory != nil && !*in.AutoPauseMemory && (in.AutoPause == nil || !*in.AutoPause) {
		return apierr.Field("autoPauseMemory", "needs autoPause")
	}
	if in.AutoPauseMemory != nil && !*in.AutoPauseMemory && in.AutoResume != nil && in.AutoResume.Enabled {
		return apierr.Field("autoResume", "wakes only what was paused with its memory; leave autoPauseMemory out")
	}
	network := e2bapi.NewNetwork{}
	if in.Network != nil {
		network = *in.Network
	}
	for _, f := range []struct {
		name  string
		asked bool
		what  string
	}{
		{"network.rules", given(network.Rules), "rewriting requests"},
		{"network.egressProxy", given(network.EgressProxy), "a proxy for outgoing traffic"},
		{"network.dnsServers", given(network.DnsServers), "choosing name servers"},
		{"network.httpsPorts", len(network.HttpsPorts) > 0, "TLS to ports inside"},
		{"volumeMounts", len(in.VolumeMounts) > 0, "mounting volumes"},
		{"iam", given(in.Iam), "workload identity"},
	} {
		if f.asked {
			return unbuiltField(f.name, f.what)
		}
	}
	return nil
}

func unbuiltField(field, what string) error {
	return apierr.Field(field, "%s is not built yet; leave the member out", what).WithCode("not_built")
}

// given reports whether a member says more than "nothing".
func given(raw json.RawMessage) bool {
	switch string(bytes.Join(bytes.Fields(raw), nil)) {
	case "", "null", "{}", "[]":
		return false
	}
	return true
}

// wire is what create and connect return. The sandbox runs, so it has tokens.
func (s *server) wire(box sandbox.Sandbox) (e2bapi.SandboxJSONResponse, error) {
	live, ok := s.Sandboxes.Live(box.ID)
	if !ok {
		return e2bapi.SandboxJSONResponse{}, fmt.Errorf("sandbox %s ended at once: %w", box.ID, errdefs.ErrUnavailable)
	}
	out := e2bapi.SandboxJSONResponse{
		TemplateID:      string(box.Template),
		SandboxID:       string(box.ID),
		ClientID:        clientID,
		EnvdVersion:     s.AgentVersion,
		Alias:           box.Alias,
		EnvdAccessToken: live.AgentToken.Reveal(),
		Domain:          &s.PublicDomain,
	}
	if live.PrivateTraffic || len(live.PrivatePorts) > 0 {
		token := live.TrafficToken.Reveal()
		out.TrafficAccessToken = &token
	}
	return out, nil
}
