// Package e2b is the E2B-compatible control plane: it turns E2B's wire types
// into calls of sandbox.Manager and back. Checks that only this wire needs live
// here; the spellings of the wire stop here. The routes come from
// spec/openapi.yaml.
package e2b

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/e2bapi"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
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
}

// Templates is what this package needs of template.Store.
type Templates interface {
	GetTemplate(ctx context.Context, team identity.TeamID, ref string) (template.Template, error)
	GetBuild(ctx context.Context, id template.BuildID) (template.Build, error)
	ListTemplates(ctx context.Context, team identity.TeamID) ([]template.Template, error)
	ListBuilds(ctx context.Context, t template.ID) ([]template.Build, error)
	TaggedBuild(ctx context.Context, t template.ID, tag string) (template.BuildID, error)
	DeleteTemplate(ctx context.Context, id template.ID) error
}

// Config makes a Handler. All but Creates are needed.
type Config struct {
	Sandboxes Sandboxes
	Templates Templates
	Builds    Builds
	Tags      queue.Tags
	// MaxUpload is the most bytes of a file for a build.
	MaxUpload int64
	Meter     Meter
	// Audit and EgressLog are what the logs of a sandbox are made of.
	Audit     audit.Log
	EgressLog EgressLog
	// Creates bounds creates per team; nil bounds nothing.
	Creates *identity.Limiter
	// PublicDomain is returned as domain, so that links of clients point here.
	PublicDomain string
	// AgentVersion is returned as envdVersion.
	AgentVersion string
	MaxTimeout   time.Duration
	// Resources are shown for templates that set none of their own.
	Resources provider.Resources
	Log       *slog.Logger
}

// clientID is a member that clients expect and that has no meaning any more.
const clientID = "local"

// Handler returns the routes. Requests must come through api.Handler.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	onError := func(w http.ResponseWriter, r *http.Request, err error) {
		api.WriteError(w, r, c.Log, err)
	}
	badRequest := func(w http.ResponseWriter, r *http.Request, err error) { onError(w, r, api.DecodeError(err)) }
	badParameter := func(w http.ResponseWriter, r *http.Request, err error) { onError(w, r, parameterError(r, err)) }
	strict := e2bapi.NewStrictHandlerWithOptions(&server{c}, nil, e2bapi.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  badRequest,
		ResponseErrorHandlerFunc: onError,
	})
	e2bapi.HandlerWithOptions(strict, e2bapi.StdHTTPServerOptions{BaseRouter: mux, ErrorHandlerFunc: badParameter})
	unbuilt := func(feature string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			onError(w, r, apierr.New(errdefs.ErrNotImplemented, "%s: not built yet", feature).WithCode("not_built"))
		}
	}
	for pattern, feature := range notBuilt() {
		mux.Handle(pattern, unbuilt(feature))
	}
	// One pattern overlaps with /templates/aliases/{alias}, which wins.
	rest := http.NewServeMux()
	mux.Handle("/", rest)
	rest.HandleFunc("GET /templates/{id}/tags", func(w http.ResponseWriter, r *http.Request) {
		if err := (&server{c}).listTags(w, r); err != nil {
			onError(w, r, err)
		}
	})
	rest.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		onError(w, r, apierr.New(errdefs.ErrNotFound, "there is no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// notBuilt lists endpoints of E2B that answer 501, by pattern, with the name of
// what is missing.
func notBuilt() map[string]string {
	return map[string]string{
		"POST /templates":                     "builds from a Dockerfile on the server (use /v3/templates)",
		"POST /templates/{id}":                "builds from a Dockerfile on the server (use /v3/templates)",
		"POST /templates/{id}/builds/{build}": "builds from a Dockerfile on the server (use /v3/templates)",
		"/volumes":                            "volumes",
		"/volumes/{id}":                       "volumes",
		"/volumecontent/":                     "volumes",
		"/secrets":                            "secrets",
		"/secrets/{id}":                       "secrets",
		"/api-keys":                           "key management at this path (use /native/v1/keys)",
		"/api-keys/{id}":                      "key management at this path (use /native/v1/keys)",
		"/access-tokens":                      "access tokens",
		"/nodes":                              "nodes",
		"/admin/":                             "administration",
	}
}

// parameterError names the parameter that the generated code could not read.
func parameterError(r *http.Request, err error) error {
	if e, ok := errors.AsType[*e2bapi.InvalidParamFormatError](err); ok {
		return api.ParameterError(r, e.ParamName, e.Err)
	}
	if e, ok := errors.AsType[*e2bapi.TooManyValuesForParamError](err); ok {
		return api.ParameterError(r, e.ParamName, err)
	}
	if e, ok := errors.AsType[*e2bapi.RequiredParamError](err); ok {
		return apierr.Field(e.ParamName, "must be given")
	}
	return api.DecodeError(err)
}

// server implements the generated interface.
type server struct{ Config }

// idOf reads a path parameter: an id, or an id and a client id joined by a dash.
func idOf(param string) (sandbox.ID, error) {
	id, _, _ := strings.Cut(param, "-")
	if id == "" || strings.Trim(id, lowerAlnum) != "" {
		return "", noSandbox(param)
	}
	return sandbox.ID(id), nil
}

const lowerAlnum = "abcdefghijklmnopqrstuvwxyz0123456789"

func noSandbox(id string) error {
	return apierr.New(errdefs.ErrNotFound, "sandbox %q doesn't exist", id)
}

// about names the sandbox in an error of the Manager that lacks it.
func about(id sandbox.ID, err error) error {
	if errdefs.IsNotFound(err) {
		return noSandbox(string(id))
	}
	return err
}

// seconds checks a timeout in whole seconds.
func (s *server) seconds(field string, n, least int32) (time.Duration, error) {
	d := time.Duration(n) * time.Second
	if n < least {
		return 0, apierr.Field(field, "must be at least %d second(s), is %d", least, n)
	}
	if s.MaxTimeout > 0 && d > s.MaxTimeout {
		return 0, apierr.Exceeds(field, "maxTimeout", "must be at most %d seconds, is %d", int64(s.MaxTimeout/time.Second), n)
	}
	return d, nil
}
