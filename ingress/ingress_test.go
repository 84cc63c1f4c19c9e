package ingress_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/ingress"
	"github.com/caisson-dev/caisson/internal/duplex"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	boxID      = "i0123456789abcdefghij"
	agentToken = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"
	traffic    = "traffic-token"
)

// boxes is a set of running sandboxes.
type boxes struct {
	mu   sync.Mutex
	live map[sandbox.ID]*sandbox.Live
	gone map[sandbox.ID]chan struct{}

	dormant map[sandbox.ID]sandbox.Dormant
	transit map[sandbox.ID]chan struct{}
	wake    func(context.Context, sandbox.ID) (*sandbox.Live, error)
	// onTransit is called when somebody has asked for a transition.
	onTransit func()
}

func (b *boxes) Live(id sandbox.ID) (*sandbox.Live, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.live[id]
	return l, ok
}

func (b *boxes) Transit(id sandbox.ID) <-chan struct{} {
	b.mu.Lock()
	settled, asked := b.transit[id], b.onTransit
	b.mu.Unlock()
	if asked != nil {
		asked()
	}
	return settled
}

func (b *boxes) Dormant(id sandbox.ID) (sandbox.Dormant, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.dormant[id]
	return d, ok
}

func (b *boxes) Wake(ctx context.Context, id sandbox.ID) (*sandbox.Live, error) {
	return b.wake(ctx, id)
}

func (b *boxes) EachLive(yield func(*sandbox.Live) bool) {
	b.mu.Lock()
	all := slices.Collect(maps.Values(b.live))
	b.mu.Unlock()
	for _, l := range all {
		if !yield(l) {
			return
		}
	}
}

// kill marks a sandbox gone, as the manager does before its processes die.
func (b *boxes) kill(id sandbox.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.live, id)
	close(b.gone[id])
}

// world is a server with one sandbox, whose ports are handlers.
type world struct {
	*boxes

	url    string
	client *http.Client
	server *httptest.Server
	ports  map[uint16]string // address of what listens
	dials  atomic.Int64
}

type options struct {
	private bool
	doors   []uint16 // private ports
	mask    string
	lookups *identity.Limiter
	ports   map[uint16]http.Handler
}

func start(t testing.TB, o options) *world {
	t.Helper()
	w := &world{
		boxes: &boxes{live: map[sandbox.ID]*sandbox.Live{}, gone: map[sandbox.ID]chan struct{}{}},
		ports: map[uint16]string{},
	}
	for port, handler := range o.ports {
		inner := httptest.NewServer(handler)
		t.Cleanup(inner.Close)
		w.ports[port] = inner.Listener.Addr().String()
	}
	w.add(boxID, agentToken, o)
	h, err := ingress.New(ingress.Config{
		Domains: []string{"Box.Example:8443"},
		API: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(rw, "api %s", r.URL.Path)
		}),
		Sandboxes: w, Lookups: o.lookups, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewUnstartedServer(h)
	w.server.Config = ingress.Server(h, nil, slog.New(slog.DiscardHandler))
	w.server.Start()
	w.url = w.server.URL
	w.client = &http.Client{Transport: &http.Transport{DisableCompression: true}, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		h.Close()
		w.server.Close()
	})
	return w
}

func (w *world) add(id sandbox.ID, token string, o options) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gone := make(chan struct{})
	w.gone[id] = gone
	w.live[id] = &sandbox.Live{
		ID: id, AgentToken: secret.New(token), TrafficToken: secret.New(traffic),
		PrivateTraffic: o.private, PrivatePorts: o.doors, MaskRequestHost: o.mask, Gone: gone,
		Route: func(_ context.Context, port uint16) (provider.Route, error) {
			return provider.Route{Dial: func(ctx context.Context) (net.Conn, error) {
				w.dials.Add(1)
				addr, ok := w.ports[port]
				if !ok {
					return nil, fmt.Errorf("dial: %w", provider.ErrPortClosed)
				}
				return new(net.Dialer).DialContext(ctx, "tcp", addr)
			}}, nil
		},
	}
}

// request builds one; pairs are header names and values, where "Host" is the
// host.
func (w *world) request(t *testing.T, method, path string, body io.Reader, pairs ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, w.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] == "Host" {
			r.Host = pairs[i+1]
			continue
		}
		r.Header.Add(pairs[i], pairs[i+1])
	}
	return r
}

func (w *world) do(t *testing.T, r *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func (w *world) get(t *testing.T, path string, pairs ...string) (*http.Response, string) {
	t.Helper()
	return w.do(t, w.request(t, http.MethodGet, path, nil, pairs...))
}

func byHeader(port string) []string {
	return []string{"E2b-Sandbox-Id", boxID, "E2b-Sandbox-Port", port}
}

func says(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text) })
}

func TestRouting(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: says("app"), 4000: says("other")}})
	for _, tc := range []struct {
		name   string
		pairs  []string
		status int
		body   string // contained
	}{
		{"host form", []string{"Host", "3000-" + boxID + ".box.example"}, 200, "app"},
		{"host form with port", []string{"Host", "3000-" + boxID + ".box.example:9999"}, 200, "app"},
		{"host form with client id", []string{"Host", "3000-" + boxID + "-local.box.example"}, 200, "app"},
		{"host form with a label between", []string{"Host", "3000-" + boxID + ".local.box.example"}, 200, "app"},
		{"host form in capitals", []string{"Host", strings.ToUpper("3000-" + boxID + ".box.example.")}, 200, "app"},
		{"localhost", []string{"Host", "3000-" + boxID + ".localhost:3000"}, 200, "app"},
		{"headers", byHeader("3000"), 200, "app"},
		{"headers on sandbox.", append(byHeader("3000"), "Host", "sandbox.box.example"), 200, "app"},
		{"headers on a foreign name", append(byHeader("3000"), "Host", "caisson.internal"), 200, "app"},
		{"label beats headers", []string{"Host", "4000-" + boxID + ".box.example", "E2b-Sandbox-Id", boxID, "E2b-Sandbox-Port", "3000"}, 200, "other"},
		{"label beats wrong headers", []string{"Host", "4000-" + boxID + ".box.example", "E2b-Sandbox-Id", "x"}, 200, "other"},
		{"neither", nil, 200, "api /x"},
		{"api name", []string{"Host", "api.box.example"}, 200, "api /x"},
		{"domain itself", []string{"Host", "box.example"}, 200, "api /x"},
		{"address", []string{"Host", "[::1]:3000"}, 200, "api /x"},
		{"unconfigured domain", []string{"Host", "3000-" + boxID + ".evil.example"}, 421, "domains"},
		{"unconfigured domain, headers too", append(byHeader("3000"), "Host", "3000-"+boxID+".evil.example"), 421, "domains"},
		{"suffix is no sub-domain", []string{"Host", "3000-" + boxID + ".notbox.example"}, 421, "domains"},
		{"one header", []string{"E2b-Sandbox-Id", boxID}, 400, "once"},
		{"other header", []string{"E2b-Sandbox-Port", "3000"}, 400, "once"},
		{"header twice", append(byHeader("3000"), "E2b-Sandbox-Id", "iother"), 400, "once"},
		{"bad id", []string{"E2b-Sandbox-Id", "I0/../x", "E2b-Sandbox-Port", "3000"}, 400, "sandbox id"},
		{"bad port", []string{"E2b-Sandbox-Id", boxID, "E2b-Sandbox-Port", "http"}, 400, "port"},
		{"port zero", []string{"E2b-Sandbox-Id", boxID, "E2b-Sandbox-Port", "0"}, 400, "port"},
		{"port too big", []string{"E2b-Sandbox-Id", boxID, "E2b-Sandbox-Port", "65536"}, 400, "port"},
		{"signed port", []string{"E2b-Sandbox-Id", boxID, "E2b-Sandbox-Port", "+3000"}, 400, "port"},
		{"label with a bad port", []string{"Host", "x-" + boxID + ".box.example"}, 400, "port"},
		{"label without id", []string{"Host", "3000-.box.example"}, 400, "sandbox id"},
		{"id too long", []string{"E2b-Sandbox-Id", strings.Repeat("a", 64), "E2b-Sandbox-Port", "1"}, 400, "sandbox id"},
		{"unknown sandbox", []string{"Host", "3000-inope.box.example"}, 502, "The sandbox was not found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			resp, body := w.get(t, "/x", tc.pairs...)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.body) {
				t.Errorf("GET /x %v = %d %q, want %d with %q", tc.pairs, resp.StatusCode, body, tc.status, tc.body)
			}
		})
	}
}

func TestNewRefusesBadDomains(t *testing.T) {
	t.Parallel()
	for _, d := range []string{"", "192.0.2.1", "*.x.example", "a b", "x/y"} {
		if _, err := ingress.New(ingress.Config{Domains: []string{d}}); err == nil {
			t.Errorf("New with domain %q = nil error", d)
		}
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: says("app")}})
	const browser = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"
	for _, tc := range []struct {
		name   string
		path   string
		pairs  []string
		status int
		json   map[string]any
		html   string
	}{
		{
			"unknown", "/",
			[]string{"E2b-Sandbox-Id", "inope", "E2b-Sandbox-Port", "3000"},
			502,
			map[string]any{"sandboxId": "inope", "message": "The sandbox was not found", "code": 502.0},
			"",
		},
		{
			"unknown, agent health", "/health",
			[]string{"E2b-Sandbox-Id", "inope", "E2b-Sandbox-Port", "49983"},
			502,
			map[string]any{"sandboxId": "inope", "message": "The sandbox was not found", "code": 502.0},
			"",
		},
		{
			"port closed", "/", byHeader("3999"), 502,
			map[string]any{"sandboxId": boxID, "message": "The sandbox is running but port is not open", "port": 3999.0, "code": 502.0},
			"",
		},
		{"unknown in a browser", "/", []string{"E2b-Sandbox-Id", "inope", "E2b-Sandbox-Port", "3000", "User-Agent", browser, "Accept", "text/html,*/*"}, 502, nil, "Sandbox Not Found"},
		{"closed in a browser", "/", append(byHeader("3999"), "User-Agent", browser, "Accept", "text/html"), 502, nil, "no service running on port 3999"},
		{
			"fetch in a browser", "/", append(byHeader("3999"), "User-Agent", browser, "Accept", "*/*", "Sec-Fetch-Mode", "cors"), 502,
			map[string]any{"sandboxId": boxID, "message": "The sandbox is running but port is not open", "port": 3999.0, "code": 502.0},
			"",
		},
		{
			"browser that wants json", "/", append(byHeader("3999"), "User-Agent", browser, "Accept", "application/json"), 502,
			map[string]any{"sandboxId": boxID, "message": "The sandbox is running but port is not open", "port": 3999.0, "code": 502.0},
			"",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			resp, body := w.get(t, tc.path, tc.pairs...)
			if resp.StatusCode != tc.status {
				t.Errorf("status = %d, want %d", resp.StatusCode, tc.status)
			}
			if tc.html != "" {
				if ct := resp.Header.Get("Content-Type"); ct != "text/html; charset=utf-8" {
					t.Errorf("content type = %q", ct)
				}
				if !strings.HasPrefix(body, "<html") || !strings.HasSuffix(body, "</html>") || !strings.Contains(body, tc.html) || !strings.Contains(body, tc.pairs[1]) {
					t.Errorf("page = %s", body)
				}
				return
			}
			if ct := resp.Header.Get("Content-Type"); ct != "application/json; charset=utf-8" {
				t.Errorf("content type = %q", ct)
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.json, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestPagesEscape(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	_, body := w.get(t, "/init/<script>alert(1)</script>", append(byHeader("49983"), "User-Agent", "Mozilla/5.0", "Accept", "text/html")...)
	if strings.Contains(body, "<script>") || !strings.Contains(body, "&lt;script&gt;") {
		t.Errorf("page is not escaped: %s", body)
	}
}

func TestClosedPortIsRetriedBriefly(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	resp, _ := w.get(t, "/", byHeader("3000")...)
	if resp.StatusCode != 502 {
		t.Errorf("status %d, want 502", resp.StatusCode)
	}
	if n := w.dials.Load(); n < 2 || n > 6 {
		t.Errorf("dialled %d times, want 2 to 6", n)
	}
}

func TestAgentToken(t *testing.T) {
	t.Parallel()
	w := start(t, options{private: true, ports: map[uint16]http.Handler{49983: says("agent")}})
	for _, tc := range []struct {
		name, method, path, token string
		status                    int
	}{
		{"right", "POST", "/process.Process/List", agentToken, 200},
		{"missing", "POST", "/process.Process/List", "", 401},
		{"wrong", "POST", "/process.Process/List", "x" + agentToken[1:], 401},
		{"prefix", "POST", "/process.Process/List", agentToken[:8], 401},
		{"traffic token is another", "POST", "/process.Process/List", traffic, 401},
		{"health", "GET", "/health", "", 200},
		{"health by another method", "POST", "/health", "", 401},
		{"files read", "GET", "/files?path=x", "", 200},
		{"files write", "POST", "/files", "", 200},
		{"files by another method", "DELETE", "/files", "", 401},
		{"files with a tail", "GET", "/files/", "", 401},
		{"files written oddly", "GET", "//files", "", 401},
		{"preflight", "OPTIONS", "/process.Process/List", "", 200},
		{"metrics", "GET", "/metrics", "", 401},
		{"envs", "GET", "/envs", "", 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			pairs := byHeader("49983")
			if tc.token != "" {
				pairs = append(pairs, "X-Access-Token", tc.token)
			}
			resp, body := w.do(t, w.request(t, tc.method, tc.path, nil, pairs...))
			if resp.StatusCode != tc.status {
				t.Errorf("%s %s = %d, want %d", tc.method, tc.path, resp.StatusCode, tc.status)
			}
			if tc.status == 401 && !strings.Contains(body, `"code":401`) {
				t.Errorf("body = %s", body)
			}
		})
	}
}

func TestControlRoutesAreNotReachable(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	w := start(t, options{ports: map[uint16]http.Handler{49983: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) })}})
	for _, path := range []string{"/init", "/init/", "//init", "/x/../init", "/%69nit", "/INIT", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"} {
		for _, method := range []string{"GET", "POST", "PUT", "OPTIONS"} {
			resp, body := w.do(t, w.request(t, method, path, nil, append(byHeader("49983"), "X-Access-Token", agentToken)...))
			if resp.StatusCode != 404 || !strings.Contains(body, "reserved for the E2B control plane") || !strings.Contains(body, `"code":404`) {
				t.Errorf("%s %s = %d %s", method, path, resp.StatusCode, body)
			}
		}
	}
	if reached.Load() != 0 {
		t.Error("a control route reached the agent")
	}
	if resp, _ := w.get(t, "/init", byHeader("3000")...); resp.StatusCode == 404 {
		t.Error("/init of a guest's own server is refused")
	}
}

func TestTrafficToken(t *testing.T) {
	t.Parallel()
	w := start(t, options{private: true, ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "app %q", r.Header.Get("E2b-Traffic-Access-Token"))
	})}})
	for _, tc := range []struct {
		name   string
		token  []string
		status int
		want   string
	}{
		{"right, and not passed on", []string{"E2B-Traffic-Access-Token", traffic}, 200, `app ""`},
		{"missing", nil, 403, "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing"},
		{"wrong", []string{"E2B-Traffic-Access-Token", "nope"}, 403, "Provided token in header 'e2b-traffic-access-token' is invalid"},
		{"agent token is another", []string{"E2B-Traffic-Access-Token", agentToken}, 403, "is invalid"},
		{"twice", []string{"E2B-Traffic-Access-Token", "nope", "E2B-Traffic-Access-Token", traffic}, 403, "is invalid"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			resp, body := w.get(t, "/", append(byHeader("3000"), tc.token...)...)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("= %d %s, want %d with %s", resp.StatusCode, body, tc.status, tc.want)
			}
		})
	}
}

// A template's private port wants the token though traffic is public, in every
// form of address, and the others do not.
func TestPrivatePorts(t *testing.T) {
	t.Parallel()
	w := start(t, options{doors: []uint16{9222}, ports: map[uint16]http.Handler{3000: says("app"), 9222: says("browser")}})
	for _, tc := range []struct {
		name   string
		pairs  []string
		status int
		want   string
	}{
		{"missing", byHeader("9222"), 403, "is missing"},
		{"missing, by name", []string{"Host", "9222-" + boxID + ".box.example"}, 403, "is missing"},
		{"missing, for a program of this machine", []string{"Host", "9222-" + boxID + ".localhost"}, 403, "is missing"},
		{"wrong", append(byHeader("9222"), "E2B-Traffic-Access-Token", agentToken), 403, "is invalid"},
		{"right", append(byHeader("9222"), "E2B-Traffic-Access-Token", traffic), 200, "browser"},
		{"another port", byHeader("3000"), 200, "app"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			resp, body := w.get(t, "/json/version", tc.pairs...)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("= %d %s, want %d with %s", resp.StatusCode, body, tc.status, tc.want)
			}
		})
	}
}

func TestForwardedRequest(t *testing.T) {
	t.Parallel()
	type seen struct {
		Method, URI, Host string
		Header            http.Header
	}
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Host, r.Header})
	})
	w := start(t, options{ports: map[uint16]http.Handler{3000: echo}})
	host := "3000-" + boxID + ".box.example"
	_, body := w.do(t, w.request(t, "PROPFIND", "/a%2Fb;c?x=%zz&y=1;2", strings.NewReader("body"),
		"Host", host, "X-API-Key", "e2b_0011", "Authorization", "Bearer sk_e2b_1", "E2b-Sandbox-Id", "x", "E2b-Sandbox-Port", "1",
		"X-Forwarded-For", "203.0.113.9", "X-Custom", "kept", "Cookie", "a=b"))
	var got seen
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if got.Method != "PROPFIND" || got.URI != "/a%2Fb;c?x=%zz&y=1;2" || got.Host != host {
		t.Errorf("guest saw %s %s at %s", got.Method, got.URI, got.Host)
	}
	want := map[string]string{
		"X-Api-Key": "", "Authorization": "", "E2b-Sandbox-Id": "", "E2b-Sandbox-Port": "",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": host, "X-Forwarded-Proto": "http", "X-Custom": "kept", "Cookie": "a=b",
	}
	for name, value := range want {
		if v := got.Header.Get(name); v != value {
			t.Errorf("guest saw %s: %q, want %q", name, v, value)
		}
	}
	_, body = w.get(t, "/", "Host", host, "X-API-Key", "guests-own", "Authorization", "Basic dXNlcjo=")
	if !strings.Contains(body, "guests-own") || !strings.Contains(body, "dXNlcjo=") {
		t.Errorf("the guest's own credentials were dropped: %s", body)
	}
}

func TestMaskRequestHost(t *testing.T) {
	t.Parallel()
	w := start(t, options{mask: "localhost:${PORT}", ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.Host, " ", r.Header.Get("X-Forwarded-Host"))
	})}})
	host := "3000-" + boxID + ".box.example"
	if _, body := w.get(t, "/", "Host", host); body != "localhost:3000 "+host {
		t.Errorf("guest saw %q", body)
	}
}

// sign is the formula of the contract.
func sign(path, operation, user, token, expiry string) string {
	raw := path + ":" + operation + ":" + user + ":" + token
	if expiry != "" {
		raw += ":" + expiry
	}
	sum := sha256.Sum256([]byte(raw))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

func TestSignedLinksWithoutSandbox(t *testing.T) {
	t.Parallel()
	if got := sign("hello.txt", "read", "user", agentToken, ""); got != "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E" {
		t.Fatalf("the test's formula is wrong: %s", got)
	}
	w := start(t, options{ports: map[uint16]http.Handler{49983: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "agent %s %s", r.Method, r.URL.RawQuery)
	})}})
	w.add("iother", "another token", options{})
	link := func(path, user, signature, expiry string) string {
		q := url.Values{"path": {path}, "username": {user}, "signature": {signature}}
		if expiry != "" {
			q.Set("signature_expiration", expiry)
		}
		return "/files?" + q.Encode()
	}
	good := sign("hello.txt", "read", "user", agentToken, "")
	for _, tc := range []struct {
		name, method, link string
		status             int
	}{
		{"read", "GET", link("hello.txt", "user", good, ""), 200},
		{"write", "POST", link("x", "", sign("x", "write", "", agentToken, "1999999999"), "1999999999"), 200},
		{"expired is for the agent to say", "GET", link("x", "", sign("x", "read", "", agentToken, "1"), "1"), 200},
		{"signature for reading used to write", "POST", link("hello.txt", "user", good, ""), 401},
		{"other path", "GET", link("other.txt", "user", good, ""), 401},
		{"other user", "GET", link("hello.txt", "root", good, ""), 401},
		{"expiry added", "GET", link("hello.txt", "user", good, "1999999999"), 401},
		{"cut short", "GET", link("hello.txt", "user", good[:20], ""), 401},
		{"not base64", "GET", link("hello.txt", "user", "v1_"+strings.Repeat("!", 43), ""), 401},
		{"other version", "GET", link("hello.txt", "user", "v2_"+good[3:], ""), 401},
		{"none", "GET", "/files?path=hello.txt", 401},
		{"empty token must not match", "GET", link("x", "", sign("x", "read", "", "", ""), ""), 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := w.do(t, w.request(t, tc.method, tc.link, nil))
			if resp.StatusCode != tc.status {
				t.Errorf("%s %s = %d %s, want %d", tc.method, tc.link, resp.StatusCode, body, tc.status)
			}
			if tc.status == 401 && body != `{"message":"invalid signature","code":401}` {
				t.Errorf("body = %s: every refusal has one text", body)
			}
		})
	}
	w.kill(boxID)
	if resp, _ := w.get(t, link("hello.txt", "user", good, "")); resp.StatusCode != 401 {
		t.Errorf("link of a killed sandbox = %d, want 401", resp.StatusCode)
	}
	if resp, body := w.do(t, w.request(t, "DELETE", link("hello.txt", "user", good, ""), nil)); !strings.HasPrefix(body, "api ") {
		t.Errorf("DELETE /files = %d %s, want the API", resp.StatusCode, body)
	}
}

func TestSignedLinksAreRateLimited(t *testing.T) {
	t.Parallel()
	w := start(t, options{lookups: identity.NewLimiter(0.001, 3)})
	var last *http.Response
	for range 4 {
		last, _ = w.get(t, "/files?signature=x")
	}
	if last.StatusCode != 429 || last.Header.Get("Retry-After") == "" {
		t.Errorf("fourth lookup = %d, want 429 with Retry-After", last.StatusCode)
	}
}

func TestFilesOnSharedHostsAreTame(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		contentType, disposition string
		want                     string
	}{
		{"text/html", "", "attachment"},
		{"text/html; charset=utf-8", `inline; filename="a b.html"`, `attachment; filename="a b.html"`},
		{"image/svg+xml", "inline", "attachment"},
		{"application/xhtml+xml", "", "attachment"},
		{"application/javascript", "", "attachment"},
		{"application/pdf", "", "attachment"},
		{"nonsense", "", "attachment"},
		{"image/png", "inline", "inline"},
		{"text/plain; charset=utf-8", "", ""},
		{"application/octet-stream", "", ""},
	} {
		t.Run(tc.contentType+tc.disposition, func(t *testing.T) {
			t.Parallel()
			w := start(t, options{ports: map[uint16]http.Handler{49983: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", tc.contentType)
				if tc.disposition != "" {
					rw.Header().Set("Content-Disposition", tc.disposition)
				}
				rw.Header().Set("Set-Cookie", "session=stolen")
				rw.Header().Set("Clear-Site-Data", "*")
				fmt.Fprint(rw, "<script>")
			})}})
			resp, _ := w.get(t, "/files?path=x", byHeader("49983")...)
			h := resp.Header
			if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") != "sandbox" {
				t.Errorf("headers = %v", h)
			}
			if got := h.Get("Content-Disposition"); got != tc.want {
				t.Errorf("disposition = %q, want %q", got, tc.want)
			}
			if h.Get("Set-Cookie") != "" || h.Get("Clear-Site-Data") != "" {
				t.Error("the guest reached the shared host's state")
			}
			resp, _ = w.get(t, "/files?path=x", "Host", "49983-"+boxID+".box.example")
			if resp.Header.Get("Content-Security-Policy") != "" {
				t.Error("a host of its own is restricted too")
			}
		})
	}
}

func TestPreflightWithoutSandbox(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	for _, tc := range []struct{ path, headers string }{
		{"/process.Process/Start", "content-type,e2b-sandbox-id,e2b-sandbox-port"}, {"/files", "content-type"},
	} {
		resp, _ := w.do(t, w.request(t, "OPTIONS", tc.path, nil, "Origin", "https://x.example",
			"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", tc.headers))
		if resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Headers") != tc.headers {
			t.Errorf("preflight of %s = %d %v", tc.path, resp.StatusCode, resp.Header)
		}
	}
}

func TestNothingIsCompressedOrBuffered(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("guest saw Accept-Encoding %q", r.Header.Get("Accept-Encoding"))
		}
		for range 3 {
			fmt.Fprint(rw, "tick\n")
			rw.(http.Flusher).Flush()
			<-next
		}
	})}})
	resp, err := w.client.Do(w.request(t, "GET", "/", nil, byHeader("3000")...))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for range 3 {
		if line, err := lines.ReadString('\n'); err != nil || line != "tick\n" {
			t.Fatalf("read %q, %v", line, err)
		}
		next <- struct{}{}
	}
}

func TestStreamingBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		_ = rc.EnableFullDuplex()
		lines := bufio.NewReader(r.Body)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(rw, "echo ", line)
			_ = rc.Flush()
		}
	})}})
	in, out := io.Pipe()
	go fmt.Fprint(out, "1\n")
	resp, err := w.client.Do(w.request(t, "POST", "/", in, byHeader("3000")...))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := 1; i <= 3; i++ {
		line, err := lines.ReadString('\n')
		if want := fmt.Sprintf("echo %d\n", i); err != nil || line != want {
			t.Fatalf("read %q, %v, want %q", line, err, want)
		}
		if i < 3 {
			fmt.Fprintf(out, "%d\n", i+1)
		}
	}
	_ = out.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
}

func TestAnswerBeforeTheBodyEnds(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(http.StatusInsufficientStorage)
	})}})
	in, out := io.Pipe()
	defer in.Close()
	go func() {
		chunk := bytes.Repeat([]byte("x"), 64<<10)
		for range 64 {
			if _, err := out.Write(chunk); err != nil {
				return
			}
		}
		_ = out.Close()
	}()
	resp, err := w.client.Do(w.request(t, "POST", "/", in, byHeader("3000")...))
	if err != nil {
		t.Skipf("the client saw the connection end before the answer, which HTTP/1.1 allows: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("status = %d, want 507", resp.StatusCode)
	}
}

func TestLargeBodies(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		_, _ = io.Copy(rw, r.Body)
	})}})
	const size = 40 << 20
	resp, err := w.client.Do(w.request(t, "PUT", "/", io.LimitReader(zeros{}, size), byHeader("3000")...))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size {
		t.Errorf("read %d bytes, %v, want %d", n, err, size)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestGuestThatTalksNonsense(t *testing.T) {
	t.Parallel()
	w := start(t, options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w.ports[3000] = ln.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
		_ = c.Close()
	}()
	resp, body := w.get(t, "/", byHeader("3000")...)
	<-done
	if resp.StatusCode != 502 || strings.Contains(body, "SSH") || strings.Contains(body, "127.0.0.1") {
		t.Errorf("= %d %s", resp.StatusCode, body)
	}
}

// A port that answers before it has read the request, as one that refuses it
// does: the answer arrives whole, and the server does not trip over the rest.
func TestAnswerBeforeTheBody(t *testing.T) {
	t.Parallel()
	w := start(t, options{ports: map[uint16]http.Handler{3000: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		duplex.Enable(rw, r).Answer(rw.Header())
		fmt.Fprint(rw, "no, thanks")
	})}})
	for _, port := range []string{"3000", "4000"} { // nothing listens on the second
		c, err := net.Dial("tcp", w.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s-%s.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", port, boxID)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || (port == "3000") != (string(body) == "no, thanks") || !resp.Close {
			t.Errorf("port %s: %d %q, %v, close %t; want an answer and the end of the connection", port, resp.StatusCode, body, err, resp.Close)
		}
	}
}
