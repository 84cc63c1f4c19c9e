package process

import (
	"context"
	"net/http"
)

// Coalesce wraps the service's handler so that events which are there at the
// same time leave in one write: packets are what a short command's stream
// costs. Nothing is held back while the stream waits for the next event.
func Coalesce(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &coalescer{ResponseWriter: w}
		next.ServeHTTP(c, r.WithContext(context.WithValue(r.Context(), coalescerKey{}, c)))
	})
}

type coalescerKey struct{}

// coalescer turns Flush, which the RPC library calls after every message, into
// a note. The end of the request flushes by itself.
type coalescer struct {
	http.ResponseWriter
	pending bool
}

// Flush implements http.Flusher.
func (c *coalescer) Flush() { c.pending = true }

// flush sends what a stream of ctx has written. Without Coalesce every message
// was sent already.
func flush(ctx context.Context) {
	c, ok := ctx.Value(coalescerKey{}).(*coalescer)
	if !ok || !c.pending {
		return
	}
	c.pending = false
	_ = http.NewResponseController(c.ResponseWriter).Flush() // the next write fails
}
