package apierr

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// Body is the error body of the E2B control plane. The code member is what SDKs
// decide by.
type Body struct {
	Code      int    `json:"code"`
	Message   string `json:"message"`
	ErrorCode string `json:"error_code,omitempty"`
}

// NativeBody is the error body of the native API.
type NativeBody struct {
	Code      int    `json:"code"`
	Message   string `json:"message"`
	ErrorCode string `json:"errorCode,omitempty"`
	Field     string `json:"field,omitempty"`
	Limit     string `json:"limit,omitempty"`
	RequestID string `json:"requestID,omitempty"`
}

// Write answers an E2B request with err and logs the cause of internal errors
// under the request's id.
func Write(w http.ResponseWriter, r *http.Request, log *slog.Logger, requestID string, err error) {
	p := report(w, r, log, requestID, err)
	JSON(w, p.Status, Body{Code: p.Status, Message: p.Message, ErrorCode: p.Code})
}

// WriteNative answers a request of the native API with err.
func WriteNative(w http.ResponseWriter, r *http.Request, log *slog.Logger, requestID string, err error) {
	p := report(w, r, log, requestID, err)
	JSON(w, p.Status, NativeBody{
		Code: p.Status, Message: p.Message, ErrorCode: p.Code,
		Field: p.Field, Limit: p.Limit, RequestID: requestID,
	})
}

// Native is the body that WriteNative would answer with, for an error that comes
// after an answer has begun.
func Native(ctx context.Context, log *slog.Logger, requestID string, err error) NativeBody {
	p := Describe(err, requestID)
	if p.Internal {
		log.ErrorContext(ctx, "request failed after its answer began", slog.String("reference", requestID), slog.Any("error", err))
	}
	return NativeBody{
		Code: p.Status, Message: p.Message, ErrorCode: p.Code,
		Field: p.Field, Limit: p.Limit, RequestID: requestID,
	}
}

func report(w http.ResponseWriter, r *http.Request, log *slog.Logger, requestID string, err error) Public {
	p := Describe(err, requestID)
	if e, ok := errors.AsType[*Error](err); ok && e.RetryAfter > 0 {
		RetryAfter(w.Header(), e.RetryAfter)
	}
	if p.Internal {
		log.ErrorContext(r.Context(), "request failed", slog.String("reference", requestID),
			slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
	}
	return p
}

// JSON writes v with a status. v must be encodable.
func JSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("apierr: response cannot be encoded: " + err.Error())
	}
	Bytes(w, status, "application/json; charset=utf-8", b)
}

// Bytes writes a complete body with a status.
func Bytes(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller is gone when this fails
}

// Empty answers without a body.
func Empty(w http.ResponseWriter, status int) { w.WriteHeader(status) }

// RetryAfter sets Retry-After to whole seconds, at least one: the JavaScript SDK
// retries only on a bare integer.
func RetryAfter(h http.Header, d time.Duration) {
	h.Set("Retry-After", strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10))
}
