package ingress

import (
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/caisson-dev/caisson/sandbox"
)

// authorise checks the tokens of a request against the sandbox as it is now.
// The agent checks its own token again.
func authorise(live *sandbox.Live, to target, r *http.Request) (answer, bool) {
	if to.port == agentPort {
		if agentExempt(r) || live.AgentToken.Equal(single(r.Header, headerAgent)) {
			return answer{}, true
		}
		return answer{
			status: http.StatusUnauthorized, plain: true,
			message: "the access token is missing or wrong: send the sandbox's envdAccessToken in the header X-Access-Token",
		}, false
	}
	if !live.PrivateTraffic && !slices.Contains(live.PrivatePorts, to.port) {
		return answer{}, true
	}
	token := r.Header.Values(headerTraffic)
	if len(token) == 0 || token[0] == "" {
		return answer{
			status: http.StatusForbidden, id: to.id, title: "Missing Traffic Access Token",
			message: "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
		}, false
	}
	if !live.TrafficToken.Equal(single(r.Header, headerTraffic)) {
		return answer{
			status: http.StatusForbidden, id: to.id, title: "Invalid Traffic Access Token",
			message: "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid",
		}, false
	}
	return answer{}, true
}

// single returns a header that was sent exactly once, otherwise "".
func single(h http.Header, name string) string {
	if v := h[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// agentExempt lists what the agent answers without its token: health, files
// (which take a signature instead) and CORS preflights, which cannot carry one.
func agentExempt(r *http.Request) bool {
	switch r.Method {
	case http.MethodOptions:
		return true
	case http.MethodGet:
		return r.URL.Path == "/health" || r.URL.Path == "/files"
	case http.MethodPost:
		return r.URL.Path == "/files"
	}
	return false
}

// isControlRoute reports the agent's private routes. The agent does not serve
// them on TCP; refusing them here as well costs nothing.
func isControlRoute(p string) bool {
	first, _, _ := strings.Cut(path.Clean("/" + p)[1:], "/")
	switch strings.ToLower(first) {
	case "init", "freeze", "unfreeze", "collapse", "fsfreeze", "fsthaw", "upgrade":
		return true
	}
	return false
}

// stripPrivate removes what the guest must not see: how the request was routed,
// the traffic token and API keys of this server.
func stripPrivate(h http.Header) {
	delete(h, headerID)
	delete(h, headerPort)
	delete(h, headerTraffic)
	for _, name := range []string{"X-Api-Key", "Authorization"} {
		for _, v := range h[name] {
			if isOurKey(v) {
				delete(h, name)
				break
			}
		}
	}
}

// isOurKey recognises keys by their fixed prefix, so that a guest's own keys in
// the same headers still reach it.
func isOurKey(v string) bool {
	v = strings.TrimSpace(v)
	if scheme, rest, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "Bearer") {
		v = strings.TrimSpace(rest)
	}
	return hasPrefixFold(v, "e2b_") || hasPrefixFold(v, "sk_e2b_")
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// isPreflight recognises a CORS preflight of a request that will name its
// sandbox by header or signature, which the preflight itself cannot.
func isPreflight(r *http.Request) bool {
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	return r.URL.Path == "/files" ||
		strings.Contains(strings.ToLower(r.Header.Get("Access-Control-Request-Headers")), strings.ToLower(headerID))
}
