// Package ingress is the data plane in: it finds the sandbox and port that a
// request means, checks its tokens, and proxies it there, on the listener that
// also serves the API. Streams to a sandbox that goes away are broken, never
// ended, because clients tell the two apart. What agents and guests answer is
// passed on untouched, save for a few headers on shared hosts.
package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
)

// agentPort is where the agent listens in every sandbox.
const agentPort = 49983

// Sandboxes finds running sandboxes; sandbox.Manager implements it. The data
// plane asks anew for every request and caches no permission.
type Sandboxes interface {
	Live(id sandbox.ID) (*sandbox.Live, bool)
	EachLive(yield func(*sandbox.Live) bool)
	// Transit says when a sandbox that is being paused or resumed will be one or
	// the other; nil when it is not.
	Transit(id sandbox.ID) <-chan struct{}
	// Dormant finds a paused sandbox that traffic may wake; Wake does so.
	Dormant(id sandbox.ID) (sandbox.Dormant, bool)
	Wake(ctx context.Context, id sandbox.ID) (*sandbox.Live, error)
}

// Config makes a Handler.
type Config struct {
	// Domains are those below which PORT-ID.DOMAIN names a sandbox port; a
	// ":port" behind one is ignored. ".localhost" always is one.
	Domains []string
	// API serves what is meant for no sandbox.
	API       http.Handler
	Sandboxes Sandboxes
	// Lookups bounds, per client address, signed links that do not name their
	// sandbox. Nil means 50 a second, 500 at once.
	Lookups *identity.Limiter
	// Observe is told of every request that reached a sandbox, when its answer
	// begins; target is "agent" or "port". Nil tells nobody.
	Observe func(target string, status int, firstByte time.Duration)
	Log     *slog.Logger
}

// Handler routes between the API and the sandboxes. Close it after the server
// that uses it.
type Handler struct {
	domains   []string
	api       http.Handler
	sandboxes Sandboxes
	lookups   *identity.Limiter
	observe   func(target string, status int, firstByte time.Duration)
	log       *slog.Logger

	ctx    context.Context //nolint:containedctx // bounds the watchers, which outlive every request
	cancel context.CancelFunc
	wg     sync.WaitGroup // watchers

	mu    sync.Mutex // guards boxes
	boxes map[sandbox.ID]*box
}

// New returns a Handler. A domain that is not a host name is
// errdefs.ErrInvalidArgument.
func New(c Config) (*Handler, error) {
	domains := []string{"localhost"}
	for _, d := range c.Domains {
		name, ok := hostName(d)
		if !ok || name == "" || isIP(name) || strings.ContainsAny(name, "/ *_") {
			return nil, fmt.Errorf("domain %q is not a host name: %w", d, errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(domains, name) {
			domains = append(domains, name)
		}
	}
	// The longest wins where one domain lies below another.
	slices.SortFunc(domains, func(a, b string) int { return len(b) - len(a) })
	h := &Handler{
		domains: domains, api: c.API, sandboxes: c.Sandboxes, lookups: c.Lookups, log: c.Log,
		observe: c.Observe, boxes: map[sandbox.ID]*box{},
	}
	if h.observe == nil {
		h.observe = func(string, int, time.Duration) {}
	}
	if h.lookups == nil {
		h.lookups = identity.NewLimiter(50, 500)
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h, nil
}

// Close breaks every stream and waits until nothing of the Handler runs.
func (h *Handler) Close() {
	h.cancel()
	h.wg.Wait()
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, err := h.route(r)
	if err != nil {
		refuse(w, err)
		return
	}
	switch {
	case to.id != "":
		h.serve(w, r, to)
	case isPreflight(r):
		preflight(w, r)
	case isSignedFiles(r):
		h.serveSigned(w, r)
	default:
		h.api.ServeHTTP(w, r)
	}
}

// serve sends a request to the sandbox that it names.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, to target) {
	if to.port == agentPort && isControlRoute(r.URL.Path) {
		answer{status: http.StatusNotFound, message: r.URL.Path + " is reserved for the E2B control plane", path: r.URL.Path}.write(w, r)
		return
	}
	live, ok := h.sandboxes.Live(to.id)
	if !ok {
		var why answer
		if live, why = h.rouse(r, to); live == nil {
			why.write(w, r)
			return
		}
	}
	if denied, ok := authorise(live, to, r); !ok {
		denied.write(w, r)
		return
	}
	h.proxy(w, r, live, to)
}
