package agent

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/caisson-dev/caisson/agent/process"
	"github.com/caisson-dev/caisson/gen/filesystem/filesystemconnect"
	"github.com/caisson-dev/caisson/gen/process/processconnect"
)

// maxMessage bounds one RPC message from a client, decompressed.
const maxMessage = 32 << 20

// rebindLimit is how long a request waits for an identity that was dropped.
const rebindLimit = 30 * time.Second

const (
	timeoutHeader = "Connect-Timeout-Ms"
	tokenHeader   = "X-Access-Token"
)

// controlRoutes are what other agents of this protocol serve to their hosts.
// Here they do not exist, with or without a token.
var controlRoutes = []string{"init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade"}

// handler is everything on TCP 49983. Control operations are not here: they
// exist on the control channel only.
func (a *Agent) handler() http.Handler {
	opts := []connect.HandlerOption{
		connect.WithReadMaxBytes(maxMessage),
		// Clients' compressed messages are read; answers are never compressed.
		connect.WithCompressMinBytes(math.MaxInt),
	}
	mux := http.NewServeMux()
	route, procs := processconnect.NewProcessHandler(a.procs, opts...)
	mux.Handle(route, process.Coalesce(procs))
	mux.Handle(filesystemconnect.NewFilesystemHandler(a.files, opts...))
	a.transfer.Register(mux)
	mux.HandleFunc("GET /envs", a.envs)
	mux.HandleFunc("GET /metrics", a.metrics)

	guarded := a.authorize(normalize(mux))
	door := http.NewServeMux()
	door.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	})
	for _, name := range controlRoutes {
		door.Handle("/"+name, http.NotFoundHandler())
	}
	door.Handle("/", guarded)
	return allowOrigins(door)
}

// authorize lets a request through if an identity is bound and the request has
// its token. GET and POST /files judge tokens and signatures themselves.
func (a *Agent) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.ready(r) {
			fail(w, http.StatusServiceUnavailable, "sandbox has no identity yet")
			return
		}
		if signable(r) || a.sess.TokenIs(r.Header.Get(tokenHeader)) {
			if !signable(r) {
				r.Header.Del(tokenHeader) // a stream would keep it for long
			}
			next.ServeHTTP(w, r)
			return
		}
		fail(w, http.StatusUnauthorized, "missing or wrong access token")
	})
}

// ready waits out a checkpoint of the sandbox, before which the agent forgets
// who it is: the sandbox may run on afterwards.
func (a *Agent) ready(r *http.Request) bool {
	if a.sess.Ready() {
		return true
	}
	ctx, cancel := context.WithTimeout(r.Context(), rebindLimit)
	defer cancel()
	return a.sess.Await(ctx)
}

func signable(r *http.Request) bool {
	return r.URL.Path == "/files" && (r.Method == http.MethodGet || r.Method == http.MethodPost)
}

// normalize removes a timeout of zero, which means none.
func normalize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(timeoutHeader) == "0" {
			r.Header.Del(timeoutHeader)
		}
		next.ServeHTTP(w, r)
	})
}

func (a *Agent) envs(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	reply(w, http.StatusOK, a.sess.Env())
}

// fail writes the error body of everything that is no RPC.
func fail(w http.ResponseWriter, code int, message string) {
	reply(w, code, struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{code, message})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client went away
}
