package apierr_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/caisson-dev/caisson/internal/apierr"
)

func TestMapping(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		err     error
		status  int
		connect string
		exit    int
	}{
		{"invalid", errdefs.ErrInvalidArgument, 400, "invalid_argument", 2},
		{"too large", apierr.New(apierr.ErrTooLarge, "body"), 413, "resource_exhausted", 2},
		{"unprocessable", apierr.New(apierr.ErrUnprocessable, "key"), 422, "invalid_argument", 2},
		{"field", apierr.Field("timeout", "must be positive"), 400, "invalid_argument", 2},
		{"unauthenticated", errdefs.ErrUnauthenticated, 401, "unauthenticated", 4},
		{"denied", errdefs.ErrPermissionDenied, 403, "permission_denied", 4},
		{"not found wrapped", fmt.Errorf("get sandbox: %w", errdefs.ErrNotFound), 404, "not_found", 3},
		{"precondition", errdefs.ErrFailedPrecondition, 409, "failed_precondition", 5},
		{"conflict", errdefs.ErrConflict, 409, "aborted", 5},
		{"exhausted", errdefs.ErrResourceExhausted, 429, "resource_exhausted", 6},
		{"not built", errdefs.ErrNotImplemented, 501, "unimplemented", 1},
		{"unavailable", errdefs.ErrUnavailable, 503, "unavailable", 7},
		{"disk full", fmt.Errorf("write: %w", syscall.ENOSPC), 503, "unavailable", 7},
		{"deadline", context.DeadlineExceeded, 504, "deadline_exceeded", 8},
		{"canceled", context.Canceled, 499, "canceled", 1},
		{"unknown", errors.New("boom"), 500, "internal", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := apierr.Status(tc.err); got != tc.status {
				t.Errorf("Status(%v) = %d, want %d", tc.err, got, tc.status)
			}
			if got := apierr.Connect(tc.err); got != tc.connect {
				t.Errorf("Connect(%v) = %q, want %q", tc.err, got, tc.connect)
			}
			if got := apierr.Exit(tc.err); got != tc.exit {
				t.Errorf("Exit(%v) = %d, want %d", tc.err, got, tc.exit)
			}
		})
	}
}

func TestFromStatusIsTheWayBack(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403, 404, 409, 413, 422, 429, 501, 503, 504, 500} {
		if got := apierr.Status(apierr.FromStatus(status)); got != status {
			t.Errorf("Status(FromStatus(%d)) = %d", status, got)
		}
	}
	if err := apierr.FromStatus(204); err != nil {
		t.Errorf("FromStatus(204) = %v, want nil", err)
	}
}

func TestInternalErrorsShowAReferenceOnly(t *testing.T) {
	t.Parallel()
	var logged strings.Builder
	log := slog.New(slog.NewTextHandler(&logged, nil))
	for _, err := range []error{
		errors.New("open /var/lib/secret: no"),
		apierr.New(errdefs.ErrInternal, "open /var/lib/secret"),
		fmt.Errorf("write /var/lib/secret: %w", syscall.ENOSPC),
		fmt.Errorf("/var/lib/secret: %w", context.DeadlineExceeded),
	} {
		logged.Reset()
		w := httptest.NewRecorder()
		apierr.Write(w, httptest.NewRequest("GET", "/x", nil), log, "req1", err)
		if strings.Contains(w.Body.String(), "secret") {
			t.Errorf("the body shows the cause: %s", w.Body)
		}
		if !strings.Contains(logged.String(), "secret") || !strings.Contains(logged.String(), "req1") {
			t.Errorf("the log lacks cause or reference: %s", logged.String())
		}
	}
}

func TestWithCauseStaysPrivate(t *testing.T) {
	t.Parallel()
	cause := errors.New("private text")
	err := apierr.New(errdefs.ErrUnavailable, "no engine; run caisson doctor").WithCause(cause).WithCode("no_engine")
	got := apierr.Describe(err, "r")
	want := apierr.Public{Status: 503, Message: "no engine; run caisson doctor", Code: "no_engine"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), "private text") {
		t.Error("the cause is lost for the log")
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	w := httptest.NewRecorder()
	apierr.WriteNative(w, httptest.NewRequest("GET", "/x", nil), log, "req1",
		apierr.Exceeds("timeoutSeconds", "maxTimeoutSeconds", "at most %d", 86400))
	var got apierr.NativeBody
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := apierr.NativeBody{
		Code: 400, Message: "timeoutSeconds: at most 86400",
		Field: "timeoutSeconds", Limit: "maxTimeoutSeconds", RequestID: "req1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestRetryAfterIsAWholeNumber(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{0: "1", time.Millisecond: "1", 1500 * time.Millisecond: "2"} {
		w := httptest.NewRecorder()
		apierr.RetryAfter(w.Header(), d)
		if got := w.Header().Get("Retry-After"); got != want {
			t.Errorf("RetryAfter(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestTextHasNoClassWords(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"at the end", fmt.Errorf("host: name is empty: %w", errdefs.ErrInvalidArgument), "host: name is empty"},
		{"at the beginning", fmt.Errorf("%w: no such thing", errdefs.ErrNotFound), "no such thing"},
		{"within", fmt.Errorf("delete: %w: in use", errdefs.ErrConflict), "delete: in use"},
		{"nothing else", errdefs.ErrUnavailable, "unavailable"},
		{"the kernel's words stay", fmt.Errorf("open x: %w: %w", syscall.EACCES, errdefs.ErrUnavailable), "open x: permission denied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := apierr.Text(tc.err); got != tc.want {
				t.Errorf("Text(%v) = %q, want %q", tc.err, got, tc.want)
			}
			if got := apierr.Describe(tc.err, "r").Message; got != tc.want {
				t.Errorf("Describe(%v) shows %q, want %q", tc.err, got, tc.want)
			}
		})
	}
}
