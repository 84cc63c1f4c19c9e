// Package native is our own API at /native/v1: what E2B's control plane has no
// place for. It turns the wire types of spec/native.yaml into calls of the use
// cases and back, and holds no rules of its own.
package native

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/secret"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/transfer"
)

// Sandboxes is what this package needs of sandbox.Manager.
type Sandboxes interface {
	Create(ctx context.Context, who identity.Principal, r sandbox.CreateRequest) (sandbox.Sandbox, error)
	Get(ctx context.Context, who identity.Principal, id sandbox.ID) (sandbox.Sandbox, error)
	List(ctx context.Context, who identity.Principal, f sandbox.Filter) (page []sandbox.Sandbox, next string, running int, err error)
	SetTimeout(ctx context.Context, who identity.Principal, id sandbox.ID, ttl time.Duration) error
	Extend(ctx context.Context, who identity.Principal, id sandbox.ID, ttl time.Duration) (sandbox.Sandbox, error)
	Kill(ctx context.Context, who identity.Principal, id sandbox.ID, reason string) error
	UpdateNetwork(ctx context.Context, who identity.Principal, id sandbox.ID, n sandbox.Network) error
	Saver
	Lookup
}

// Saver pauses and resumes sandboxes, and makes snapshots and forks of them.
type Saver interface {
	Pause(ctx context.Context, who identity.Principal, id sandbox.ID, k snapshot.Kind) error
	Connect(ctx context.Context, who identity.Principal, id sandbox.ID, ttl time.Duration) (_ sandbox.Sandbox, resumed bool, err error)
	Snapshot(ctx context.Context, who identity.Principal, id sandbox.ID, name string) (template.Snapshot, error)
	ListSnapshots(ctx context.Context, who identity.Principal, f template.SnapshotFilter) (page []template.Snapshot, next string, err error)
	DeleteSnapshot(ctx context.Context, who identity.Principal, t template.Template, tag string) error
	Fork(ctx context.Context, who identity.Principal, id sandbox.ID, count int, ttl time.Duration) ([]sandbox.Forked, error)
	ForkOnce(ctx context.Context, who identity.Principal, id sandbox.ID, count int, ttl time.Duration, key string) ([]sandbox.Forked, error)
}

// Lookup finds sandboxes without a query.
type Lookup interface {
	Live(id sandbox.ID) (*sandbox.Live, bool)
	Dormant(id sandbox.ID) (sandbox.Dormant, bool)
	Transit(id sandbox.ID) <-chan struct{}
}

// EgressLog reads the egress log; package store implements it. The caller has
// checked that the sandbox may be seen.
type EgressLog interface {
	Records(ctx context.Context, sandboxID string, after int64, limit int) ([]egress.Record, error)
	// Flush waits until Records returns all that was logged before.
	Flush(ctx context.Context) error
	// SubscribeRecords returns a channel that receives when Records returns
	// more; see audit.Notifier.
	SubscribeRecords(sandboxID string) (written <-chan struct{}, cancel func())
}

// AuditLog reads the audit log; package store implements it.
type AuditLog interface {
	audit.Log
	// SubscribeEvents returns a channel that receives when Events returns more
	// of a sandbox; see audit.Notifier.
	SubscribeEvents(sandboxID string) (committed <-chan struct{}, cancel func())
}

// Keys is what this package needs of identity.Keys.
type Keys interface {
	Create(ctx context.Context, actor string, team identity.TeamID, name string) (identity.Key, secret.Value, error)
	List(ctx context.Context, team identity.TeamID) ([]identity.Key, error)
	Revoke(ctx context.Context, actor string, team identity.TeamID, id string) error
}

// Builds is what this package needs of queue.Queue.
type Builds interface {
	Cancel(ctx context.Context, who identity.Principal, ref string, id template.BuildID) error
	Forget(t template.ID)
}

// Transfers is what this package needs of transfer.Transfers.
type Transfers interface {
	Export(ctx context.Context, who identity.Principal, ref string, memory bool) (*transfer.Export, error)
	Import(ctx context.Context, who identity.Principal, r transfer.Import) (transfer.Imported, error)
}

// Templates is what this package needs of template.Catalog.
type Templates interface {
	List(ctx context.Context, team identity.TeamID) ([]template.Template, error)
	Builds(ctx context.Context, team identity.TeamID, ref string) ([]template.Build, error)
	Delete(ctx context.Context, team identity.TeamID, ref string) error
	Find(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Reference, error)
	Lock(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, template.Manifest, error)
}

// Limits are shown by status.
type Limits struct {
	MaxTimeout       time.Duration
	SandboxesPerTeam int
	Default, Max     provider.Resources
}

// Provider is a backend as status shows it.
type Provider struct {
	Name         string
	Default      bool
	Capabilities provider.Capabilities
}

// Config makes a Handler. All but Creates and Pool are needed.
type Config struct {
	Sandboxes Sandboxes
	Tree      Tree
	EgressLog EgressLog
	Audit     AuditLog
	Keys      Keys
	Templates Templates
	Builds    Builds
	Transfers Transfers
	Meter     Meter
	Budgets   Budgets
	Batches   Batches
	// Creates bounds creates per team; nil bounds nothing.
	Creates *identity.Limiter
	// Policy is the effective policy of a sandbox that asks for nothing.
	Policy egress.Policy
	// Health says whether a create can succeed now.
	Health       func(context.Context) error
	Version      string
	PublicDomain string
	Limits       Limits
	Providers    []Provider
	Pool         Pool
	// Stop, when closed, ends the streams of clients that follow a log. Nil
	// never does.
	Stop <-chan struct{}
	Log  *slog.Logger
}

// defaultTimeout is the life of a sandbox that names none.
const defaultTimeout = 300 * time.Second

// Handler returns the routes below api.NativePrefix. Requests must come through
// api.Handler.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	onError := func(w http.ResponseWriter, r *http.Request, err error) { api.WriteError(w, r, c.Log, err) }
	badRequest := func(w http.ResponseWriter, r *http.Request, err error) { onError(w, r, api.DecodeError(err)) }
	badParameter := func(w http.ResponseWriter, r *http.Request, err error) { onError(w, r, parameterError(r, err)) }
	strict := nativeapi.NewStrictHandlerWithOptions(&server{c}, []nativeapi.StrictMiddlewareFunc{streams, received}, nativeapi.StrictHTTPServerOptions{
		RequestErrorHandlerFunc: badRequest, ResponseErrorHandlerFunc: onError,
	})
	nativeapi.HandlerWithOptions(strict, nativeapi.StdHTTPServerOptions{
		BaseRouter: mux, BaseURL: api.NativePrefix, ErrorHandlerFunc: badParameter,
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		onError(w, r, apierr.New(errdefs.ErrNotFound, "there is no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// parameterError names the parameter that the generated code could not read.
func parameterError(r *http.Request, err error) error {
	if e, ok := errors.AsType[*nativeapi.InvalidParamFormatError](err); ok {
		return api.ParameterError(r, e.ParamName, e.Err)
	}
	if e, ok := errors.AsType[*nativeapi.TooManyValuesForParamError](err); ok {
		return api.ParameterError(r, e.ParamName, err)
	}
	return api.DecodeError(err)
}

// server implements the generated interface.
type server struct{ Config }

// idOf checks a sandbox id of a path.
func idOf(param string) (sandbox.ID, error) {
	if param == "" || strings.Trim(param, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return "", noSandbox(param)
	}
	return sandbox.ID(param), nil
}

func noSandbox(id string) error {
	return apierr.New(errdefs.ErrNotFound, "sandbox %q doesn't exist", api.Clip(id))
}

func about(id sandbox.ID, err error) error {
	if errdefs.IsNotFound(err) {
		return noSandbox(string(id))
	}
	return err
}

// GetSpec implements nativeapi.StrictServerInterface. api.Handler serves the
// document, without a key.
func (s *server) GetSpec(context.Context, nativeapi.GetSpecRequestObject) (nativeapi.GetSpecResponseObject, error) {
	return nil, apierr.New(errdefs.ErrNotFound, "the specification is served without a key")
}

// GetStatus implements nativeapi.StrictServerInterface.
func (s *server) GetStatus(ctx context.Context, _ nativeapi.GetStatusRequestObject) (nativeapi.GetStatusResponseObject, error) {
	out := nativeapi.GetStatus200JSONResponse{
		Version: s.Version, PublicDomain: s.PublicDomain, Team: string(api.Caller(ctx).Team),
		EgressDefault: nativeapi.StatusEgressDefault(cmp.Or(s.Policy.Default, egress.Deny)),
		Health:        nativeapi.Health{Ok: true},
		Providers:     []nativeapi.Provider{},
		Limits: nativeapi.Limits{
			MaxTimeoutSeconds:   int64(s.Limits.MaxTimeout / time.Second),
			MaxSandboxesPerTeam: s.Limits.SandboxesPerTeam,
			Default:             resources(s.Limits.Default), Max: resources(s.Limits.Max),
		},
	}
	if err := s.Health(ctx); err != nil {
		out.Health = nativeapi.Health{Reason: new(apierr.Text(err))}
	}
	for _, p := range s.Providers {
		w := nativeapi.Provider{
			Name: p.Name, Default: p.Default, EnforcesEgress: p.Capabilities.EnforcesEgress,
			Limits: []string{}, Snapshots: []string{},
		}
		for _, l := range p.Capabilities.Limits {
			w.Limits = append(w.Limits, string(l))
		}
		for _, k := range p.Capabilities.Snapshots {
			w.Snapshots = append(w.Snapshots, string(k))
		}
		out.Providers = append(out.Providers, w)
	}
	return out, nil
}

// ListKeys implements nativeapi.StrictServerInterface.
func (s *server) ListKeys(ctx context.Context, _ nativeapi.ListKeysRequestObject) (nativeapi.ListKeysResponseObject, error) {
	keys, err := s.Keys.List(ctx, api.Caller(ctx).Team)
	if err != nil {
		return nil, err
	}
	out := nativeapi.ListKeys200JSONResponse{}
	for _, k := range keys {
		out = append(out, nativeapi.Key{
			Id: k.ID, Name: k.Name, Team: string(k.Team), Mask: k.Mask,
			CreatedAt: k.CreatedAt.UTC(), LastUsedAt: optional(k.LastUsedAt),
		})
	}
	return out, nil
}

// CreateKey implements nativeapi.StrictServerInterface.
func (s *server) CreateKey(ctx context.Context, r nativeapi.CreateKeyRequestObject) (nativeapi.CreateKeyResponseObject, error) {
	who := api.Caller(ctx)
	if r.Body.Name == "" {
		return nil, apierr.Field("name", "must be given")
	}
	if r.Body.Team != "" && identity.TeamID(r.Body.Team) != who.Team {
		return nil, apierr.New(errdefs.ErrPermissionDenied, "this key may make keys of team %q only; make keys of other teams on the server with `caisson key create`", who.Team)
	}
	k, plain, err := s.Keys.Create(ctx, who.KeyID, who.Team, r.Body.Name)
	if errdefs.IsInvalidArgument(err) {
		return nil, apierr.Field("name", "must be printable text of at most 128 bytes").WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	return nativeapi.CreateKey201JSONResponse{
		Id: k.ID, Name: k.Name, Team: string(k.Team), CreatedAt: k.CreatedAt.UTC(), Key: plain.Reveal(),
	}, nil
}

// DeleteKey implements nativeapi.StrictServerInterface.
func (s *server) DeleteKey(ctx context.Context, r nativeapi.DeleteKeyRequestObject) (nativeapi.DeleteKeyResponseObject, error) {
	who := api.Caller(ctx)
	err := s.Keys.Revoke(ctx, who.KeyID, who.Team, r.Id)
	if errdefs.IsNotFound(err) {
		return nil, apierr.New(errdefs.ErrNotFound, "key %q doesn't exist", r.Id)
	}
	if err != nil {
		return nil, err
	}
	return nativeapi.DeleteKey204Response{}, nil
}

// ListTemplates implements nativeapi.StrictServerInterface.
func (s *server) ListTemplates(ctx context.Context, _ nativeapi.ListTemplatesRequestObject) (nativeapi.ListTemplatesResponseObject, error) {
	team := api.Caller(ctx).Team
	all, err := s.Templates.List(ctx, team)
	if err != nil {
		return nil, err
	}
	out := nativeapi.ListTemplates200JSONResponse{}
	for _, t := range all {
		w := nativeapi.Template{
			Id: string(t.ID), Names: append([]string{}, t.Names...), Public: t.Public, BuildID: string(t.Current),
			CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(),
		}
		builds, err := s.Templates.Builds(ctx, team, string(t.ID))
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if t.Current == "" && len(builds) > 0 { // the newest, of those that are not ready
			w.BuildStatus, w.Source = string(builds[0].Status), builds[0].Source
		}
		for _, b := range builds {
			if b.ID == t.Current {
				w.BuildStatus, w.Source = string(b.Status), b.Source
				w.RootfsDigest, w.RootfsBytes = b.Rootfs.Digest, b.Rootfs.SizeBytes
				w.Resources = new(resources(b.Resources))
			}
		}
		out = append(out, w)
	}
	return out, nil
}

// DeleteTemplate implements nativeapi.StrictServerInterface.
func (s *server) DeleteTemplate(ctx context.Context, r nativeapi.DeleteTemplateRequestObject) (nativeapi.DeleteTemplateResponseObject, error) {
	t, _, err := s.Templates.Find(ctx, api.Caller(ctx).Team, r.Id)
	if err == nil {
		err = s.Templates.Delete(ctx, api.Caller(ctx).Team, r.Id)
	}
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		// What is no name of a template names none.
		return nil, api.NoTemplate(r.Id).WithCause(err)
	}
	if err != nil {
		return nil, err
	}
	s.Builds.Forget(t.ID)
	return nativeapi.DeleteTemplate204Response{}, nil
}

// CancelBuild implements nativeapi.StrictServerInterface.
func (s *server) CancelBuild(ctx context.Context, r nativeapi.CancelBuildRequestObject) (nativeapi.CancelBuildResponseObject, error) {
	if err := s.Builds.Cancel(ctx, api.Caller(ctx), r.Id, template.BuildID(r.Build)); err != nil {
		return nil, err
	}
	return nativeapi.CancelBuild202Response{}, nil
}

// CheckEgress implements nativeapi.StrictServerInterface.
func (s *server) CheckEgress(ctx context.Context, r nativeapi.CheckEgressRequestObject) (nativeapi.CheckEgressResponseObject, error) {
	if r.Body.Port < 1 || r.Body.Port > 65535 {
		return nil, apierr.Field("port", "must be 1 to 65535, is %d", r.Body.Port)
	}
	policy := s.Policy
	if r.Body.SandboxID != "" {
		id, err := idOf(r.Body.SandboxID)
		if err != nil {
			return nil, err
		}
		box, err := s.Sandboxes.Get(ctx, api.Caller(ctx), id)
		if err != nil {
			return nil, about(id, err)
		}
		policy = box.Egress
	}
	e, err := egress.Explain(policy, r.Body.Host, uint16(r.Body.Port))
	if err != nil {
		return nil, err
	}
	out := nativeapi.CheckEgress200JSONResponse{
		Verdict: nativeapi.EgressDecisionVerdict(e.Verdict), Reason: e.Reason, Suggestion: e.Hint,
	}
	if e.By != nil {
		out.Rule, out.RuleIndex = new(rule(*e.By)), &e.Rule
	}
	return out, nil
}
