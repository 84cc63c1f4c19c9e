// Package telemetry makes the logger and the metrics that server hands to
// every other package. It knows what must not be logged, how a request is
// recognised through all its lines, and the fixed set of metrics; it knows
// nothing of sandboxes. Only server, cmd and cli import it.
package telemetry

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"

	"golang.org/x/term"

	"github.com/caisson-dev/caisson/config"
)

// NewLogger writes to w at the level and in the format of cfg; auto is text on
// a terminal and JSON elsewhere. Attributes with the name of a secret, API
// keys in any text and passwords in URLs are replaced by "[redacted]"; a
// request id in the context is added to each line.
func NewLogger(cfg config.Log, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: levelOf(cfg.Level), ReplaceAttr: redact}
	var h slog.Handler = slog.NewJSONHandler(w, opts)
	if cfg.Format == "text" || (cfg.Format != "json" && isTerminal(w)) {
		h = slog.NewTextHandler(w, opts)
	}
	return slog.New(requestHandler{h})
}

func levelOf(name string) slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) != nil {
		return slog.LevelInfo
	}
	return l
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

const redacted = "[redacted]"

// secretNames end the names of attributes that hold a secret.
var secretNames = []string{
	"token", "password", "passwd", "secret", "apikey", "authorization", "cookie", "seed", "privatekey", "signature",
}

var (
	apiKey  = regexp.MustCompile(`\b(?:sk_)?e2b_[0-9a-f]{16,}`)
	userURL = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/@]+@[^\s"']+`)
	bearer  = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`)
)

func redact(_ []string, a slog.Attr) slog.Attr {
	name := strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "").Replace(a.Key))
	for _, s := range secretNames {
		if strings.HasSuffix(name, s) {
			return slog.String(a.Key, redacted)
		}
	}
	v := a.Value.Resolve()
	switch v.Kind() {
	case slog.KindString:
		return slog.String(a.Key, Scrub(v.String()))
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return slog.String(a.Key, Scrub(err.Error()))
		}
	}
	return a
}

// Scrub replaces API keys, credentials of HTTP headers and passwords in URLs.
func Scrub(s string) string {
	if strings.Contains(s, "e2b_") {
		s = apiKey.ReplaceAllString(s, redacted)
	}
	if strings.Contains(s, "://") && strings.Contains(s, "@") {
		s = userURL.ReplaceAllStringFunc(s, func(raw string) string {
			u, err := url.Parse(raw)
			if err != nil {
				return redacted
			}
			return u.Redacted()
		})
	}
	return bearer.ReplaceAllString(s, "$1 "+redacted)
}

type requestKey struct{}

// WithRequestID returns a context whose log lines carry id.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID returns the id of WithRequestID, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// NewRequestID returns a fresh id of 16 lower-case letters and digits.
func NewRequestID() string { return strings.ToLower(rand.Text()[:16]) }

// requestHandler adds the request id of the context.
type requestHandler struct{ slog.Handler }

func (h requestHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := RequestID(ctx); id != "" {
		r = r.Clone()
		r.AddAttrs(slog.String("request", id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h requestHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return requestHandler{h.Handler.WithAttrs(attrs)}
}

func (h requestHandler) WithGroup(name string) slog.Handler {
	return requestHandler{h.Handler.WithGroup(name)}
}
