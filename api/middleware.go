package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/telemetry"
)

// outer wraps every request, authenticated or not: id, log line, CORS, panics.
func (c Config) outer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := telemetry.NewRequestID()
		r = r.WithContext(telemetry.WithRequestID(r.Context(), id))
		rec := &recorder{ResponseWriter: w}
		rec.Header().Set("X-Request-Id", id)
		defer func() {
			c.recovered(rec, r, recover())
			if c.Observe != nil {
				c.Observe(rec.status, time.Since(start))
			}
			c.Log.LogAttrs(r.Context(), slog.LevelDebug, "request",
				slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes),
				slog.Duration("took", time.Since(start)), slog.String("team", string(rec.team)))
		}()
		cors(rec.Header())
		if r.Method == http.MethodOptions {
			preflight(rec)
			return
		}
		next.ServeHTTP(rec, r)
	})
}

// recovered answers a panic with an internal error, or cuts the connection when
// the answer has begun. http.ErrAbortHandler passes.
func (c Config) recovered(rec *recorder, r *http.Request, v any) {
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // the server compares it this way too
		panic(v)
	}
	c.Log.ErrorContext(r.Context(), "panic in a handler", slog.String("path", r.URL.Path), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
	if rec.status != 0 {
		panic(http.ErrAbortHandler)
	}
	WriteError(rec, r, c.Log, apierr.New(errdefs.ErrInternal, "panic").WithCause(fmt.Errorf("panic: %v", v)))
}

const (
	corsRequest = "Origin, Content-Length, Content-Type, User-Agent, Authorization, X-API-Key, X-Team-ID, " +
		"Idempotency-Key, browser, lang, lang_version, machine, os, package_version, processor, publisher, release, sdk_runtime, system"
	corsResponse = "X-Next-Token, X-Total-Running, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Request-Id"
)

// cors lets web pages of any origin call the API: authority is the key in a
// header, never a cookie.
func cors(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", corsResponse)
}

func preflight(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", corsRequest)
	h.Set("Access-Control-Max-Age", "7200")
	apierr.Empty(w, http.StatusNoContent)
}

// recorder remembers what was answered, for the log.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	team   identity.TeamID
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= http.StatusOK {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap gives http.ResponseController the writer below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
