package agent

import (
	"net/http"
	"strings"
)

const corsMaxAge = "7200"

// exposed are the response headers that scripts of other origins may read.
var exposed = strings.Join([]string{
	"Location", "Cache-Control", "X-Content-Type-Options",
	"Connect-Content-Encoding", "Connect-Protocol-Version",
	"Grpc-Encoding", "Grpc-Message", "Grpc-Status", "Grpc-Status-Details-Bin",
}, ", ")

var corsMethods = strings.Join([]string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
}, ", ")

// allowOrigins lets scripts of any origin call: tokens, not cookies, authorise,
// so the origin adds nothing. Preflights are answered here.
func allowOrigins(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			h.Set("Access-Control-Allow-Methods", corsMethods)
			// "*" does not cover Authorization, so the names are echoed.
			h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
			h.Set("Access-Control-Max-Age", corsMaxAge)
			h.Add("Vary", "Access-Control-Request-Headers")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.Set("Access-Control-Expose-Headers", exposed)
		next.ServeHTTP(w, r)
	})
}
