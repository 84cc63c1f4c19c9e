package native_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/api/native"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// creator is the sandboxes of a server whose creates go as told.
type creator struct {
	native.Sandboxes // none but those below

	create func(ctx context.Context, progress func(sandbox.Stage)) error
}

func (c creator) Create(ctx context.Context, _ identity.Principal, r sandbox.CreateRequest) (sandbox.Sandbox, error) {
	return sandbox.Sandbox{ID: "imade"}, c.create(ctx, r.Progress)
}
func (creator) Live(sandbox.ID) (*sandbox.Live, bool)           { return nil, false }
func (creator) Dormant(sandbox.ID) (d sandbox.Dormant, ok bool) { return d, false }

func watch(t *testing.T, w *httptest.ResponseRecorder, create func(context.Context, func(sandbox.Stage)) error) string {
	t.Helper()
	h := api.Handler(api.Config{Auth: anyone{}, Log: slog.New(slog.DiscardHandler), Native: native.Handler(native.Config{
		Sandboxes: creator{create: create}, Log: slog.New(slog.DiscardHandler),
	})})
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/native/v1/sandboxes", strings.NewReader(`{}`))
	r.Header.Set("X-API-Key", "k")
	r.Header.Set("Accept", "text/event-stream")
	h.ServeHTTP(w, r)
	return w.Body.String()
}

// A create that fails under way says so in the stream, as an answer would.
func TestCreateFailsUnderWay(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		err    error
		wanted string
	}{
		{"shown", apierr.Field("x", "is bad"), `event: error` + "\n" + `data: {"code":400,"message":"x: is bad","field":"x","requestID":"`},
		{"internal", fmt.Errorf("secret cause"), `event: error` + "\n" + `data: {"code":500,"message":"internal error (reference `},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := httptest.NewRecorder()
			body := watch(t, w, func(_ context.Context, progress func(sandbox.Stage)) error {
				progress(sandbox.Queued)
				return tc.err
			})
			if w.Code != 200 || !strings.Contains(body, "event: stage\ndata: {\"stage\":\"queued\"") || !strings.Contains(body, tc.wanted) ||
				strings.Contains(body, "secret") || strings.Contains(body, "event: sandbox") {
				t.Errorf("%d %s, want %s", w.Code, body, tc.wanted)
			}
		})
	}
}

func TestCreateRefused(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	body := watch(t, w, func(context.Context, func(sandbox.Stage)) error { return errdefs.ErrResourceExhausted })
	if w.Code != 429 || strings.Contains(body, "event:") {
		t.Errorf("%d %s, want a plain 429", w.Code, body)
	}
}

// stuck is a client that does not read until it is let.
type stuck struct {
	*httptest.ResponseRecorder
	free chan struct{}
}

func (s stuck) Write(b []byte) (int, error) {
	<-s.free
	return s.ResponseRecorder.Write(b)
}

func (s stuck) WriteString(text string) (int, error) { return s.Write([]byte(text)) }

// A client that does not read holds up its own answer and not the create.
func TestCreateDoesNotWaitForReader(t *testing.T) {
	t.Parallel()
	w := stuck{httptest.NewRecorder(), make(chan struct{})}
	h := native.Handler(native.Config{Log: slog.New(slog.DiscardHandler), Sandboxes: creator{create: func(_ context.Context, progress func(sandbox.Stage)) error {
		for range 1000 {
			progress(sandbox.Starting)
		}
		close(w.free) // would never come if a stage waited for the reader
		return nil
	}}})
	all := api.Handler(api.Config{Auth: anyone{}, Log: slog.New(slog.DiscardHandler), Native: h})
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/native/v1/sandboxes", strings.NewReader(`{}`))
	r.Header.Set("X-API-Key", "k")
	r.Header.Set("Accept", "text/event-stream")
	all.ServeHTTP(w, r)
	body := w.Body.String()
	if n := strings.Count(body, "event: stage"); n == 0 || n > 20 || !strings.Contains(body, `"id":"imade"`) {
		t.Errorf("%d stages, and %s", n, body[max(0, len(body)-200):])
	}
}
