package ingress

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/caisson-dev/caisson/sandbox"
)

// The headers that name a sandbox port, in canonical form.
const (
	headerID      = "E2b-Sandbox-Id"
	headerPort    = "E2b-Sandbox-Port"
	headerTraffic = "E2b-Traffic-Access-Token"
	headerAgent   = "X-Access-Token"
)

// target is the sandbox port that a request means; the zero target means none.
type target struct {
	id   sandbox.ID
	port uint16
	// shared is set when the host does not belong to this one sandbox port.
	shared bool
}

// misrouted is a request whose target cannot be read. Its text is shown.
type misrouted struct {
	status  int
	message string
}

// Error implements error.
func (e *misrouted) Error() string { return e.message }

func badTarget(message string) error { return &misrouted{http.StatusBadRequest, message} }

// route reads the target: a host label first, then headers, then none. Headers
// never override a label.
func (h *Handler) route(r *http.Request) (target, error) {
	host, ok := hostName(r.Host)
	if !ok {
		return target{}, badTarget("the Host header is not a host name")
	}
	label, below := h.labelOf(host)
	if below {
		if port, id, ok := splitLabel(label); ok {
			return parseTarget(id, port, false)
		}
	} else if port, id, ok := splitLabel(label); ok {
		if _, err := parseTarget(id, port, false); err == nil {
			return target{}, &misrouted{http.StatusMisdirectedRequest, "this server does not serve sandboxes below the domain of the Host header: add it to `domains` in the configuration"}
		}
	}
	ids, ports := r.Header[headerID], r.Header[headerPort]
	switch {
	case len(ids) == 0 && len(ports) == 0:
		return target{}, nil
	case len(ids) != 1 || len(ports) != 1:
		return target{}, badTarget("send each of the headers " + headerID + " and " + headerPort + " once")
	}
	return parseTarget(ids[0], ports[0], true)
}

// labelOf returns the first label of host and whether host lies below one of
// the domains. Names without a dot and addresses have no label.
func (h *Handler) labelOf(host string) (label string, below bool) {
	if isIP(host) {
		return "", false
	}
	label, _, dotted := strings.Cut(host, ".")
	if !dotted {
		return "", false
	}
	for _, d := range h.domains {
		if host == d {
			return "", false
		}
		if strings.HasSuffix(host, d) && host[len(host)-len(d)-1] == '.' {
			return label, true
		}
	}
	return label, false
}

// splitLabel takes {port}-{id} or {port}-{id}-{client} apart; ok says that the
// label has a dash at all.
func splitLabel(label string) (port, id string, ok bool) {
	port, rest, ok := strings.Cut(label, "-")
	id, _, _ = strings.Cut(rest, "-")
	return port, id, ok
}

func parseTarget(id, port string, shared bool) (target, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '+' {
		return target{}, badTarget("the sandbox port is not a number from 1 to 65535")
	}
	if !isID(id) {
		return target{}, badTarget("the sandbox id is not made of the characters a-z and 0-9")
	}
	return target{id: sandbox.ID(id), port: uint16(n), shared: shared}, nil
}

// maxID bounds what is looked up; ids of this server have 21 characters.
const maxID = 63

func isID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// hostName canonicalises a Host header once: lower case, no port, no trailing
// dot. Every later decision takes the result. Bytes that no host name or
// address has make ok false.
func hostName(hostport string) (host string, ok bool) {
	host = hostport
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 {
			return "", false
		}
		rest := host[end+1:]
		if _, err := netip.ParseAddr(host[1:end]); err != nil || (rest != "" && !isPort(rest)) {
			return "", false
		}
		return strings.ToLower(host[1:end]), true
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if !isPort(host[i:]) {
			return "", false
		}
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	if len(host) > 253 {
		return "", false
	}
	lower := []byte(host)
	for i, c := range lower {
		switch {
		case c >= 'A' && c <= 'Z':
			lower[i] = c + 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return "", false
		}
	}
	return string(lower), true
}

// isPort accepts ":" and up to five digits.
func isPort(s string) bool {
	return s[0] == ':' && len(s) <= 6 && strings.Trim(s[1:], "0123456789") == ""
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}
