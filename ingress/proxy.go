package ingress

import (
	"context"
	"errors"
	"log/slog"
	"mime"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/internal/duplex"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
)

// proxy passes the request to the sandbox port and the response back, neither
// of them buffered. It panics with http.ErrAbortHandler to break the client's
// connection.
func (h *Handler) proxy(w http.ResponseWriter, r *http.Request, live *sandbox.Live, to target) {
	b := h.boxOf(live)
	answered := enter(r.Context(), live)
	defer answered()
	start := time.Now()
	kind := "port"
	if to.port == agentPort {
		kind = "agent"
	}
	tame := to.shared && to.port == agentPort && r.URL.Path == "/files"
	body := duplex.Enable(w, r)
	p := httputil.ReverseProxy{
		Transport:     b.transport,
		FlushInterval: -1,
		BufferPool:    buffers{},
		Rewrite:       func(pr *httputil.ProxyRequest) { rewrite(pr, live, to) },
		ModifyResponse: func(resp *http.Response) error {
			answered()
			h.observe(kind, resp.StatusCode, time.Since(start))
			if resp.StatusCode != http.StatusSwitchingProtocols {
				body.Answer(resp.Header)
			}
			if tame {
				tameFile(resp)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			h.observe(kind, http.StatusBadGateway, time.Since(start))
			body.Answer(w.Header())
			h.failed(w, r, b, to, err)
		},
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		switch {
		case b.goes():
			resetOnClose(r)
		case r.Context().Err() == nil:
			// Neither the sandbox nor the client went: somebody should know.
			h.log.WarnContext(r.Context(), "the sandbox broke a response", slog.String("sandbox", string(to.id)), slog.Int("port", int(to.port)))
		}
		panic(v)
	}()
	p.ServeHTTP(w, r)
}

// enter waits while a sandbox stands still to be saved: its agent then knows no
// token, and closes idle connections. What it returns may be called twice.
func enter(ctx context.Context, live *sandbox.Live) (answered func()) {
	if live.Enter == nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, transitLimit)
	defer cancel()
	return sync.OnceFunc(live.Enter(ctx))
}

// rewrite turns the client's request into the guest's.
func rewrite(pr *httputil.ProxyRequest, live *sandbox.Live, to target) {
	port := strconv.Itoa(int(to.port))
	pr.Out.URL.Scheme = "http"
	pr.Out.URL.Host = string(to.id) + ":" + port
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery // byte for byte: the guest parses it, not we
	pr.Out.Host = pr.In.Host
	if live.MaskRequestHost != "" {
		pr.Out.Host = strings.ReplaceAll(live.MaskRequestHost, "${PORT}", port)
	}
	pr.SetXForwarded()
	stripPrivate(pr.Out.Header)
}

// failed answers a request that never got a response from the guest.
func (h *Handler) failed(w http.ResponseWriter, r *http.Request, b *box, to target, err error) {
	switch {
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody is there to be answered
	case errors.Is(err, provider.ErrPortClosed):
		portClosed(to).write(w, r)
		return
	case b.goes() && to.port == agentPort && r.URL.Path == "/health":
		// Clients ask this in order to learn whether the sandbox is there.
		notFound(to).write(w, r)
		return
	case b.goes():
		panic(http.ErrAbortHandler)
	}
	h.log.DebugContext(r.Context(), "sandbox did not answer", slog.String("sandbox", string(to.id)),
		slog.Int("port", int(to.port)), slog.Any("error", err))
	answer{
		status: http.StatusBadGateway, id: to.id, port: to.port,
		message: "The sandbox is running but the server on the port broke the connection",
		title:   "No answer from the sandbox",
	}.write(w, r)
}

// tameFile keeps a guest's file from acting as a page of a host that many
// sandboxes and the API share (decisions.md 20).
func tameFile(resp *http.Response) {
	h := resp.Header
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	for _, name := range []string{
		"Set-Cookie", "Clear-Site-Data", "Service-Worker-Allowed", "Refresh", "Link",
		"Location", "Strict-Transport-Security", "Alt-Svc", "Public-Key-Pins",
	} {
		h.Del(name)
	}
	if len(h["Content-Type"]) > 1 {
		h.Set("Content-Type", "application/octet-stream")
	}
	if resp.StatusCode >= http.StatusMultipleChoices || !active(h.Get("Content-Type")) {
		return
	}
	_, params, err := mime.ParseMediaType(h.Get("Content-Disposition"))
	disposition := mime.FormatMediaType("attachment", params)
	if err != nil || disposition == "" {
		disposition = "attachment"
	}
	h.Set("Content-Disposition", disposition)
}

// active reports a type that a browser may run or render with scripts; what is
// not known to be harmless counts as active.
func active(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return true
	}
	switch t {
	case "text/plain", "application/json", "application/octet-stream", "text/csv":
		return false
	case "image/svg+xml":
		return true
	}
	kind, _, _ := strings.Cut(t, "/")
	return kind != "image" && kind != "audio" && kind != "video" && kind != "font"
}

const bufferSize = 128 << 10

var pool = sync.Pool{New: func() any { return new([bufferSize]byte) }} //nolint:gochecknoglobals // a free list

// buffers lends the proxy what it copies with.
type buffers struct{}

// Get implements httputil.BufferPool.
func (buffers) Get() []byte { return pool.Get().(*[bufferSize]byte)[:] }

// Put implements httputil.BufferPool.
func (buffers) Put(b []byte) { pool.Put((*[bufferSize]byte)(b)) }
