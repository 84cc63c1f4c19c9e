package ingress

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/internal/clientaddr"
	"github.com/caisson-dev/caisson/sandbox"
)

// isSignedFiles recognises a file link that names no sandbox (decisions.md 19).
func isSignedFiles(r *http.Request) bool {
	return r.URL.Path == "/files" && (r.Method == http.MethodGet || r.Method == http.MethodPost)
}

// serveSigned finds the running sandbox whose agent token made the signature.
// The agent checks the signature again, and whether it has expired.
func (h *Handler) serveSigned(w http.ResponseWriter, r *http.Request) {
	if q, ok := h.lookups.Allow(clientaddr.Key(r.RemoteAddr)); !ok {
		apierr.RetryAfter(w.Header(), q.RetryAfter)
		answer{status: http.StatusTooManyRequests, message: "too many signed links from this address", plain: true}.write(w, r)
		return
	}
	live, ok := h.bySignature(r)
	if !ok {
		answer{status: http.StatusUnauthorized, message: "invalid signature", plain: true}.write(w, r)
		return
	}
	h.proxy(w, r, live, target{id: live.ID, port: agentPort, shared: true})
}

const (
	signaturePrefix = "v1_"
	signatureLen    = len(signaturePrefix) + 43 // SHA-256 in base64 without padding
	maxExpiry       = 20                        // digits
)

func (h *Handler) bySignature(r *http.Request) (*sandbox.Live, bool) {
	q := r.URL.Query()
	given := q.Get("signature")
	expiry := q.Get("signature_expiration")
	// Whatever cannot be a signature costs no hash.
	if len(given) != signatureLen || !strings.HasPrefix(given, signaturePrefix) ||
		len(expiry) > maxExpiry || strings.Trim(expiry, "0123456789") != "" {
		return nil, false
	}
	sum, err := base64.RawStdEncoding.DecodeString(given[len(signaturePrefix):])
	if err != nil {
		return nil, false
	}
	before, after := signed(q, r.Method)
	var found *sandbox.Live
	h.sandboxes.EachLive(func(l *sandbox.Live) bool {
		if l.AgentToken.IsZero() {
			return true
		}
		want := sha256.Sum256([]byte(before + l.AgentToken.Reveal() + after))
		if subtle.ConstantTimeCompare(want[:], sum) == 1 {
			found = l
			return false
		}
		return true
	})
	return found, found != nil
}

// signed returns the text that a signature covers, before and after the token.
func signed(q url.Values, method string) (before, after string) {
	operation := "read"
	if method == http.MethodPost {
		operation = "write"
	}
	before = q.Get("path") + ":" + operation + ":" + q.Get("username") + ":"
	if expiry := q.Get("signature_expiration"); expiry != "" {
		after = ":" + expiry
	}
	return before, after
}
