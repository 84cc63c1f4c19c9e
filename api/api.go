// Package api is what both HTTP faces of the server share: request ids, access
// log, panic recovery, CORS, authentication, rate limits and body limits. The
// faces themselves are api/e2b (E2B's control plane) and api/native (ours); each
// holds its wire types and nothing else does. Only package server may import
// the three together.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/internal/clientaddr"
	"github.com/caisson-dev/caisson/telemetry"
	"github.com/caisson-dev/caisson/template"
)

// MaxBody is the most a request body may hold, in bytes.
const MaxBody = 16 << 20

// NativePrefix is where the native API lives.
const NativePrefix = "/native/v1"

// Authenticator finds the caller behind an API key; errdefs.ErrUnauthenticated
// when there is none.
type Authenticator interface {
	Authenticate(ctx context.Context, key string) (identity.Principal, error)
}

// Config makes a Handler. All but Limiter, Failures and
// Observe are needed.
type Config struct {
	Auth Authenticator
	// Limiter bounds requests per API key; nil bounds nothing.
	Limiter *identity.Limiter
	// Failures bounds failed authentications per client address; nil bounds
	// nothing.
	Failures *identity.Limiter
	// Health says whether a create can succeed now; the error names the cause
	// and the next step.
	Health func(context.Context) error
	// E2B and Native serve authenticated requests.
	E2B, Native http.Handler
	// Uploads serves PUT /templates/{id}/files/{hash}, which carries its authority
	// in the link and no API key; nil serves none.
	Uploads http.Handler
	// Spec is served at /native/v1/openapi.yaml.
	Spec []byte
	// Observe is told of every answer; nil tells nobody.
	Observe func(status int, took time.Duration)
	Log     *slog.Logger
}

// Handler returns the whole API.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", c.health)
	mux.HandleFunc("GET "+NativePrefix+"/openapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		apierr.Bytes(w, http.StatusOK, "application/yaml", c.Spec)
	})
	mux.Handle(NativePrefix+"/", c.authenticated(c.Native))
	if c.Uploads != nil {
		mux.Handle("PUT /templates/{id}/files/{hash}", c.Uploads)
	}
	mux.Handle("/", c.authenticated(c.E2B))
	return c.outer(mux)
}

// health answers 200 when a create can succeed and otherwise 503 with the
// reason (decisions.md 31).
func (c Config) health(w http.ResponseWriter, r *http.Request) {
	if err := c.Health(r.Context()); err != nil {
		p := apierr.Describe(err, telemetry.RequestID(r.Context()))
		message := apierr.Text(err)
		if e, ok := err.(*apierr.Error); ok { //nolint:errorlint // only a deliberate public text replaces the reason
			message = e.Message
		}
		c.Log.WarnContext(r.Context(), "not healthy", slog.Any("error", err))
		apierr.JSON(w, http.StatusServiceUnavailable, apierr.Body{
			Code: http.StatusServiceUnavailable, Message: message, ErrorCode: p.Code,
		})
		return
	}
	apierr.JSON(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
}

// authenticated lets requests with a valid key through, with their principal in
// the context, their rate counted and their body bounded.
func (c Config) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := keyOf(r.Header)
		who, err := c.principal(r, key)
		if err != nil {
			WriteError(w, r, c.Log, err)
			return
		}
		ctx := context.WithValue(r.Context(), callerKey{}, caller{who: who, key: key, origin: origin(r)})
		if rec, ok := w.(*recorder); ok {
			rec.team = who.Team
		}
		if c.Limiter != nil {
			q, ok := c.Limiter.Allow(string(who.Team) + "/" + who.KeyID)
			if q.Limit > 0 {
				h := w.Header()
				h.Set("RateLimit-Limit", strconv.Itoa(q.Limit))
				h.Set("RateLimit-Remaining", strconv.Itoa(q.Remaining))
				h.Set("RateLimit-Reset", strconv.FormatInt(int64(q.Reset/time.Second), 10))
			}
			if !ok {
				WriteError(w, r, c.Log, TooFast(q, "too many requests"))
				return
			}
		}
		// An archive has a limit of its own, where it is received.
		if r.URL.Path != NativePrefix+"/templates/import" {
			r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (c Config) principal(r *http.Request, key string) (identity.Principal, error) {
	if key == "" {
		return identity.Principal{}, apierr.New(errdefs.ErrUnauthenticated, "API key is missing: send it in the X-API-Key header")
	}
	who, err := c.Auth.Authenticate(r.Context(), key)
	if err == nil {
		return who, nil
	}
	if !errdefs.IsUnauthorized(err) {
		return identity.Principal{}, err
	}
	if q, ok := c.Failures.Allow(clientaddr.Key(r.RemoteAddr)); !ok {
		return identity.Principal{}, TooFast(q, "too many requests with an API key that is not valid")
	}
	return identity.Principal{}, apierr.New(errdefs.ErrUnauthenticated, "API key is unknown or revoked").WithCause(err)
}

// keyOf reads the key from X-API-Key, else from Authorization: Bearer.
func keyOf(h http.Header) string {
	if key := h.Get("X-API-Key"); key != "" {
		return key
	}
	scheme, rest, ok := strings.Cut(h.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(rest)
}

type callerKey struct{}

type caller struct {
	who    identity.Principal
	key    string
	origin string
}

// origin is the scheme and host by which a client reached the server, perhaps
// through a proxy that ends TLS. What a client says of itself here only comes
// back to that client.
func origin(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// Origin returns the URL, without a path, that the request came to.
func Origin(ctx context.Context) string {
	return ctx.Value(callerKey{}).(caller).origin
}

// Caller returns who sent the request. It panics outside of Handler: a route
// that forgot authentication must not serve.
func Caller(ctx context.Context) identity.Principal {
	return ctx.Value(callerKey{}).(caller).who
}

// CallerKey returns the API key that the request carried.
func CallerKey(ctx context.Context) string {
	return ctx.Value(callerKey{}).(caller).key
}

// WriteError answers with err in the form of the face that the path belongs to.
func WriteError(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	if r.Context().Err() != nil && apierr.Status(err) >= http.StatusInternalServerError {
		err = context.Canceled // the caller left; nothing is wrong here
	}
	if strings.HasPrefix(r.URL.Path, NativePrefix+"/") {
		apierr.WriteNative(w, r, log, telemetry.RequestID(r.Context()), err)
		return
	}
	apierr.Write(w, r, log, telemetry.RequestID(r.Context()), err)
}

// TooFast is the error of a request that its limiter refused.
func TooFast(q identity.Quota, what string) error {
	e := apierr.New(errdefs.ErrResourceExhausted, "%s: retry after %d second(s)", what, int64(q.RetryAfter/time.Second))
	e.RetryAfter = q.RetryAfter
	return e
}

// NoTemplate is the error of a reference to a template that there is not, for
// this caller. A missing base template was never built.
func NoTemplate(ref string) *apierr.Error {
	if ref == template.BaseName {
		return apierr.New(errdefs.ErrNotFound, "template %q is not built: run \"caisson init\" on the server, with its --data", ref).WithCode("template_not_found")
	}
	return apierr.New(errdefs.ErrNotFound, "template %q doesn't exist", Clip(ref)).WithCode("template_not_found")
}
