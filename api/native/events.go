package native

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/gen/nativeapi"
	"github.com/caisson-dev/caisson/internal/apierr"
)

// writeLimit is how long a client may take to read one event before it is
// considered gone.
const writeLimit = time.Minute

// eventHeader begins an answer of server-sent events.
func eventHeader(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	apierr.Empty(w, http.StatusOK)
}

// events writes server-sent events that exist nowhere else. Its methods are safe
// for concurrent use; after an error nothing more is written.
type events struct {
	mu  sync.Mutex // guards what follows
	w   http.ResponseWriter
	out *http.ResponseController
	err error
}

// newEvents begins the answer. The caller must call end.
func newEvents(w http.ResponseWriter) *events {
	eventHeader(w)
	return &events{w: w, out: http.NewResponseController(w)}
}

// send writes one event; v must be encodable.
func (e *events) send(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return e.write(fmt.Sprintf("event: %s\ndata: %s\n\n", name, b))
}

func (e *events) keepalive() error { return e.write(": keepalive\n\n") }

func (e *events) write(text string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	_ = e.out.SetWriteDeadline(time.Now().Add(writeLimit)) // a writer without is one of a test
	if _, e.err = io.WriteString(e.w, text); e.err == nil {
		e.err = e.out.Flush()
	}
	return e.err
}

// end leaves the connection as it was.
func (e *events) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		_ = e.out.SetWriteDeadline(time.Time{})
	}
}

type streamKey struct{}

// streams tells operations that can answer with events whether the client wants
// them. It reads the request to its end: only then does the server notice when
// the client leaves.
func streams(next nativeapi.StrictHandlerFunc, operation string) nativeapi.StrictHandlerFunc {
	if operation != "CreateSandbox" && operation != "RunBatch" {
		return next
	}
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
		const trailing = 4 << 10
		_, _ = io.CopyN(io.Discard, r.Body, trailing)
		wanted := strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/event-stream")
		return next(context.WithValue(ctx, streamKey{}, wanted), w, r, request)
	}
}

func wantsEvents(ctx context.Context) bool {
	wanted, _ := ctx.Value(streamKey{}).(bool)
	return wanted
}
