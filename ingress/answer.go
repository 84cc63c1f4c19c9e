package ingress

import (
	"fmt"
	"html"
	"net/http"
	"strings"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/sandbox"
)

// answer is what the proxy itself says: JSON to programs, a page to people.
type answer struct {
	status  int
	id      sandbox.ID
	message string
	title   string // of the page
	port    uint16
	path    string
	// plain answers are JSON for everyone and carry code and message only.
	plain bool
}

// body is the JSON form.
type body struct {
	SandboxID sandbox.ID `json:"sandboxId,omitempty"`
	Message   string     `json:"message"`
	Path      string     `json:"path,omitempty"`
	Port      uint16     `json:"port,omitempty"`
	Code      int        `json:"code"`
}

func (a answer) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Vary", "Accept, User-Agent")
	if !a.plain && wantsPage(r) {
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
		apierr.Bytes(w, a.status, "text/html; charset=utf-8", []byte(a.page()))
		return
	}
	apierr.JSON(w, a.status, body{SandboxID: a.id, Message: a.message, Path: a.path, Port: a.port, Code: a.status})
}

// page is the HTML form. Everything that came from a request is escaped.
func (a answer) page() string {
	title := a.title
	if title == "" {
		title = http.StatusText(a.status)
	}
	return fmt.Sprintf(`<html><head><meta charset="utf-8"><title>%[1]s</title>`+
		`<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em}code{background:#8882;padding:.1em .3em}</style></head>`+
		`<body><h1>%[1]s</h1><p>%[2]s</p><p>Sandbox <code>%[3]s</code></p></body></html>`,
		html.EscapeString(title), html.EscapeString(a.message), html.EscapeString(string(a.id)))
}

// wantsPage tells a person's navigation from a program's request.
func wantsPage(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" && mode != "navigate" {
		return false
	}
	accept := r.Header.Get("Accept")
	if i := strings.Index(accept, "application/json"); i >= 0 {
		if j := strings.Index(accept, "text/html"); j < 0 || i < j {
			return false
		}
	}
	return strings.HasPrefix(r.UserAgent(), "Mozilla/")
}

func notFound(to target) answer {
	return answer{
		status: http.StatusBadGateway, id: to.id,
		message: "The sandbox was not found", title: "Sandbox Not Found",
	}
}

func portClosed(to target) answer {
	return answer{
		status: http.StatusBadGateway, id: to.id, port: to.port,
		message: "The sandbox is running but port is not open",
		title:   fmt.Sprintf("There is no service running on port %d", to.port),
	}
}

// refuse answers a request whose target cannot be read, in plain text.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if m, ok := err.(*misrouted); ok { //nolint:errorlint // route returns it unwrapped
		status = m.status
	}
	apierr.Bytes(w, status, "text/plain; charset=utf-8", []byte(err.Error()+"\n"))
}

// preflight lets a page of any origin send a request that names its sandbox;
// authority is a token in a header, never a cookie.
func preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
	if names := r.Header.Get("Access-Control-Request-Headers"); names != "" {
		h.Set("Access-Control-Allow-Headers", names)
	}
	h.Set("Access-Control-Max-Age", "7200")
	apierr.Empty(w, http.StatusNoContent)
}
