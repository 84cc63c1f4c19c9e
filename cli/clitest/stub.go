package clitest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent"
	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/client"
	"github.com/caisson-dev/caisson/internal/duplex"
)

// Stub is an in-process stand-in for a server: the native API over maps, and
// for every sandbox the real agent, which runs commands on this machine.
type Stub struct {
	Target

	t    *testing.T
	key  string
	http *httptest.Server

	mu    sync.Mutex // guards what follows
	boxes map[string]*box
	keys  []client.Key
	bare  bool // no template is built
	slow  time.Duration
	pool  client.PoolStatus

	snapshots []client.Snapshot
	builds    builds
}

type box struct {
	sb     client.Sandbox
	route  *url.URL
	flows  []client.Flow
	events []client.Event
	stop   context.CancelFunc
	token  string
	// streams ends when the box is paused: its connections then break.
	streams context.Context //nolint:containedctx // of all connections of a box
	cut     context.CancelFunc
}

// NewStub starts a stand-in that ends with the test.
func NewStub(t *testing.T) *Stub {
	t.Helper()
	s := &Stub{t: t, key: "e2b_" + strings.Repeat("ab", 20), boxes: map[string]*box{}}
	s.http = httptest.NewServer(s.handler())
	t.Cleanup(func() {
		s.mu.Lock()
		for _, b := range s.boxes {
			b.stop()
		}
		s.mu.Unlock()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	s.URL, s.KeyFile = s.http.URL, filepath.Join(t.TempDir(), "api-key")
	if err := os.WriteFile(s.KeyFile, []byte(s.key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// Live returns how many sandboxes have not ended.
func (s *Stub) Live() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, b := range s.boxes {
		if b.sb.State == client.Running || b.sb.State == client.Paused {
			n++
		}
	}
	return n
}

// Deny adds a denied flow to every live sandbox, now and later ones too.
func (s *Stub) Deny(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.boxes {
		b.deny(host)
	}
}

func (b *box) deny(host string) {
	b.flows = append(b.flows, client.Flow{
		Seq: int64(len(b.flows) + 1), At: time.Now(), Kind: "dns", Host: host, Verdict: "deny", Hint: "--allow " + host, Reason: "no rule allows it",
	})
}

// DropTemplates makes the stand-in one whose data directory was never prepared.
func (s *Stub) DropTemplates() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bare = true
}

// Slow makes each stage of a create that is watched take so long.
func (s *Stub) Slow(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow = d
}

// Warm sets what is said to be kept warm.
func (s *Stub) Warm(st client.PoolStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool = st
}

// End ends a sandbox for a reason, as a limit of the server does.
func (s *Stub) End(ref, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.boxes {
		if b.sb.Name == ref || b.sb.ID == ref {
			b.end(client.Failed, reason)
		}
	}
}

func (b *box) end(state client.State, reason string) {
	if b.ended() {
		return
	}
	b.sb.PausedAt, b.sb.Saved = time.Time{}, nil
	b.sb.State, b.sb.Reason, b.sb.EndedAt, b.sb.AgentToken = state, reason, time.Now(), ""
	b.log("sandbox.ended", reason)
	b.stop()
}

func (b *box) ended() bool { return b.sb.State == client.Killed || b.sb.State == client.Failed }

func (b *box) log(what, reason string) {
	b.events = append(b.events, client.Event{Seq: int64(len(b.events) + 1), At: time.Now(), Type: what, Reason: reason, SandboxID: b.sb.ID})
}

func (s *Stub) handler() http.Handler {
	mux := http.NewServeMux()
	const v1 = "/native/v1"
	mux.HandleFunc("GET "+v1+"/status", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, client.Status{Version: "stub", Health: client.Health{OK: true}, EgressDefault: "deny", Team: "default"})
	})
	mux.HandleFunc("GET "+v1+"/pool", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		reply(w, 200, s.pool)
	})
	mux.HandleFunc("POST "+v1+"/sandboxes", s.create)
	mux.HandleFunc("POST "+v1+"/batch", s.batch)
	mux.HandleFunc("GET "+v1+"/sandboxes", s.list)
	mux.HandleFunc("GET "+v1+"/sandboxes/{id}", s.one(func(w http.ResponseWriter, _ *http.Request, b *box) { reply(w, 200, b.sb) }))
	mux.HandleFunc("DELETE "+v1+"/sandboxes/{id}", s.one(func(w http.ResponseWriter, _ *http.Request, b *box) {
		if b.ended() {
			refuse(w, 404, "sandbox "+b.sb.ID+" has ended")
			return
		}
		b.end(client.Killed, "killed")
		w.WriteHeader(204)
	}))
	mux.HandleFunc("POST "+v1+"/sandboxes/{id}/timeout", s.one(func(w http.ResponseWriter, r *http.Request, b *box) {
		var body struct{ TimeoutSeconds int }
		if take(w, r, &body) && b.is(w, client.Running) {
			b.sb.EndsAt = time.Now().Add(time.Duration(body.TimeoutSeconds) * time.Second)
			b.log("sandbox.timeout_set", "")
			reply(w, 200, b.sb)
		}
	}))
	mux.HandleFunc("POST "+v1+"/sandboxes/{id}/pause", s.one(func(w http.ResponseWriter, r *http.Request, b *box) {
		var body struct{ FilesOnly bool }
		if take(w, r, &body) && b.is(w, client.Running) {
			b.pause(body.FilesOnly)
			reply(w, 200, b.sb)
		}
	}))
	mux.HandleFunc("POST "+v1+"/sandboxes/{id}/resume", s.one(func(w http.ResponseWriter, r *http.Request, b *box) {
		var body struct{ TimeoutSeconds int }
		if take(w, r, &body) && b.is(w, client.Running, client.Paused) {
			b.resume(time.Duration(body.TimeoutSeconds) * time.Second)
			reply(w, 200, b.sb)
		}
	}))
	mux.HandleFunc("PUT "+v1+"/sandboxes/{id}/network", s.one(func(w http.ResponseWriter, r *http.Request, b *box) {
		var body struct{ Network client.Network }
		if take(w, r, &body) && b.is(w, client.Running) {
			b.sb.Network = body.Network
			b.sb.Egress.Rules = []client.EgressRule{{Hosts: body.Network.AllowOut, Verdict: "allow", Note: "allowOut"}}
			reply(w, 200, b.sb)
		}
	}))
	mux.HandleFunc("GET "+v1+"/sandboxes/{id}/egress", s.one(func(w http.ResponseWriter, r *http.Request, b *box) { rows(w, r, "flow", b.flows) }))
	mux.HandleFunc("GET "+v1+"/sandboxes/{id}/events", s.one(func(w http.ResponseWriter, r *http.Request, b *box) { rows(w, r, "audit", b.events) }))
	s.others(mux, v1)
	return s.front(mux)
}

// others serves what is not about one sandbox.
func (s *Stub) others(mux *http.ServeMux, v1 string) {
	s.snapshotRoutes(mux, v1)
	s.buildRoutes(mux, v1)
	mux.HandleFunc(v1+"/keys", s.keysRoute)
	mux.HandleFunc("DELETE "+v1+"/keys/{id}", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		before := len(s.keys)
		s.keys = slices.DeleteFunc(s.keys, func(k client.Key) bool { return k.ID == r.PathValue("id") })
		if len(s.keys) == before {
			refuse(w, 404, "no such key")
			return
		}
		w.WriteHeader(204)
	})
	mux.HandleFunc("GET "+v1+"/templates", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, []client.Template{{ID: "t0123456789abcdefghi", Names: []string{"base"}, Public: true, BuildStatus: "ready", Source: "debian bookworm", RootfsBytes: 400 << 20}})
	})
	mux.HandleFunc("GET "+v1+"/templates/{id}/lock", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != "base" {
			refuse(w, 404, "what template "+r.PathValue("id")+" is made of was not recorded")
			return
		}
		reply(w, 200, client.TemplateLock{
			TemplateID: "t0123456789abcdefghi", RootfsDigest: "sha256:00", Source: "debian bookworm", NPM: "10.9.4",
			Packages: []client.TemplatePackage{{Name: "bash", Version: "5.2.15-2+b13", Arch: "amd64"}},
		})
	})
	mux.HandleFunc("DELETE "+v1+"/templates/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") != "base" {
			refuse(w, 404, "template "+r.PathValue("id")+" does not exist")
			return
		}
		refuse(w, 409, "template base is in use by 1 sandbox")
	})
	mux.HandleFunc("GET "+v1+"/usage", func(w http.ResponseWriter, r *http.Request) {
		by := cmp.Or(r.URL.Query().Get("group"), "sandbox")
		if by == "nothing" {
			refuse(w, 400, `group: "nothing" is not sandbox, team, template or label:KEY`)
			return
		}
		at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
		from := at.AddDate(0, -1, 0)
		if text := r.URL.Query().Get("from"); text != "" {
			from, _ = time.Parse(time.RFC3339, text)
		}
		line := client.Usage{
			Group: "=" + by + "\x1b[2J", Runs: 2, Sandboxes: 1, WallSeconds: 3600.04, CPUSeconds: 90.5, CPULimitSeconds: 7200,
			MemoryMiBSeconds: 512 * 3600, MemoryLimitMiBSeconds: 1024 * 3600, EgressOutBytes: 2048, EgressInBytes: 3 << 20, SavedMiBHours: 1536,
		}
		reply(w, 200, client.UsageReport{From: from, To: at, Lines: []client.Usage{line}, Total: line})
	})
	mux.HandleFunc("POST "+v1+"/egress/check", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Host string }
		if !take(w, r, &body) {
			return
		}
		if body.Host == "pypi.org" {
			reply(w, 200, client.EgressDecision{Verdict: "allow", Reason: "rule", Rule: &client.EgressRule{Hosts: []string{"pypi.org"}, Verdict: "allow", Note: "preset:pypi"}})
			return
		}
		reply(w, 200, client.EgressDecision{Verdict: "deny", Reason: "no rule allows it", Suggestion: "allowOut: " + body.Host})
	})
}

// front tells agent traffic from the API and checks credentials of both.
func (s *Stub) front(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("E2b-Sandbox-Id")
		if id == "" {
			upload := r.Method == http.MethodPut && r.URL.RawQuery == stubLink
			if r.Header.Get("X-API-Key") != s.key && !upload {
				refuse(w, 401, "unknown API key")
				return
			}
			api.ServeHTTP(w, r)
			return
		}
		s.mu.Lock()
		b := s.boxes[id]
		var route *url.URL
		if b != nil && r.Header.Get("E2b-Sandbox-Port") == "49983" {
			if b.wakes() && r.Header.Get("X-Access-Token") == b.token {
				b.resume(5 * time.Minute)
			}
			if b.sb.State == client.Running {
				route = b.route
				ctx, cancel := context.WithCancel(r.Context())
				defer cancel()
				defer context.AfterFunc(b.streams, cancel)()
				r = r.WithContext(ctx)
			}
		}
		s.mu.Unlock()
		if route == nil {
			refuse(w, 502, "The sandbox was not found")
			return
		}
		body := duplex.Enable(w, r)
		(&httputil.ReverseProxy{
			Rewrite:        func(p *httputil.ProxyRequest) { p.SetURL(route) },
			ModifyResponse: func(resp *http.Response) error { body.Answer(resp.Header); return nil },
			FlushInterval:  -1,
			ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		}).ServeHTTP(w, r)
	})
}

func (s *Stub) one(f func(http.ResponseWriter, *http.Request, *box)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		b := s.boxes[r.PathValue("id")]
		if b == nil {
			refuse(w, 404, "sandbox "+r.PathValue("id")+" was not found")
			return
		}
		f(w, r, b)
	}
}

func (s *Stub) create(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Name, Template string
		TimeoutSeconds int
		Env, Metadata  map[string]string
		Network        client.Network
		Lifecycle      client.Lifecycle
	}
	if !take(w, r, &body) {
		return
	}
	s.mu.Lock()
	bare := s.bare
	snap, saved := s.snapshot(body.Template)
	s.mu.Unlock()
	if bare || (!saved && body.Template != "" && body.Template != "base") {
		message := fmt.Sprintf("template %q doesn't exist", body.Template)
		if name := cmp.Or(body.Template, "base"); name == "base" {
			message = `template "base" is not built: run "caisson init" on the server, with its --data`
		}
		reply(w, 404, map[string]any{"code": 404, "message": message, "errorCode": "template_not_found"})
		return
	}
	now := time.Now()
	sb := client.Sandbox{
		ID: "i" + strings.ToLower(rand.Text()[:20]), Name: body.Name, Template: "t0123456789abcdefghi", TemplateName: "base",
		State: client.Running, Provider: "stub", Metadata: body.Metadata, Network: body.Network, Lifecycle: body.Lifecycle,
		Egress: client.EgressPolicy{Default: "deny"}, CreatedAt: now, StartedAt: now,
		EndsAt: now.Add(time.Duration(body.TimeoutSeconds) * time.Second), AgentToken: strings.ToLower(rand.Text()),
		Resources: client.Resources{MemoryMiB: 1024, CPUs: 2, DiskMiB: 4096, Processes: 1024},
	}
	if saved {
		sb.Template, sb.TemplateName, sb.BuildID = snap.Template, snap.Name, snap.BuildID
		sb.Origin = &client.Origin{Sandbox: snap.Sandbox, Snapshot: snap.ID}
	}
	b, err := s.start(sb, body.Env)
	if err != nil {
		refuse(w, 500, err.Error())
		return
	}
	s.mu.Lock()
	s.boxes[sb.ID] = b
	slow := s.slow
	s.mu.Unlock()
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		stages(w, slow, sb)
		return
	}
	reply(w, 201, sb)
}

// start runs an agent for the sandbox.
func (s *Stub) start(sb client.Sandbox, env map[string]string) (*box, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	a, err := agent.New(agent.Config{Listener: l, Path: os.Getenv("PATH"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = a.Run(ctx)
	}()
	// Not the test's own: a command that outlives its sandbox for a moment may
	// still write here while that is being removed.
	dir, err := os.MkdirTemp("", "caisson-stub-")
	if err != nil {
		cancel()
		return nil, err
	}
	s.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	err = a.Init(ctx, control.Init{SandboxID: sb.ID, AccessToken: sb.AgentToken, EnvVars: env, DefaultUser: "root", DefaultWorkdir: dir})
	b := &box{
		sb: sb, token: sb.AgentToken, stop: func() { cancel(); <-done },
		events: []client.Event{{Seq: 1, At: sb.CreatedAt, Type: "sandbox.created", Actor: "k1", SandboxID: sb.ID, Fields: map[string]string{"template": "base\x1b[31m"}}},
		route:  &url.URL{Scheme: "http", Host: l.Addr().String()},
	}
	b.streams, b.cut = context.WithCancel(ctx)
	return b, err
}

func (s *Stub) list(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	states := strings.Split(q.Get("state"), ",")
	all := []client.Sandbox{}
	for _, b := range s.boxes {
		sb := b.sb
		sb.AgentToken = ""
		match := slices.Contains(states, string(sb.State)) || (q.Get("state") == "" && !b.ended())
		if match && (q.Get("name") == "" || q.Get("name") == sb.Name) {
			all = append(all, sb)
		}
	}
	slices.SortFunc(all, func(a, b client.Sandbox) int { return b.CreatedAt.Compare(a.CreatedAt) })
	from, _ := strconv.Atoi(q.Get("nextToken"))
	limit, _ := strconv.Atoi(q.Get("limit"))
	if limit == 0 {
		limit = 100
	}
	page := all[min(from, len(all)):]
	if len(page) > limit {
		page = page[:limit]
		w.Header().Set("X-Next-Token", strconv.Itoa(from+limit))
	}
	reply(w, 200, page)
}

func (s *Stub) keysRoute(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodGet {
		reply(w, 200, s.keys)
		return
	}
	var body struct{ Name string }
	if take(w, r, &body) {
		k := client.Key{ID: fmt.Sprintf("k%d", len(s.keys)+1), Name: body.Name, Team: "default", CreatedAt: time.Now()}
		s.keys = append(s.keys, k)
		k.Key = "e2b_" + strings.Repeat("cd", 20)
		reply(w, 201, k)
	}
}

func rows[T any](w http.ResponseWriter, r *http.Request, event string, all []T) {
	if r.URL.Query().Get("follow") == "" {
		// Rows are numbered from 1.
		after, _ := strconv.Atoi(r.URL.Query().Get("after"))
		out := append([]T{}, all[min(after, len(all)):]...)
		if limit, _ := strconv.Atoi(r.URL.Query().Get("limit")); limit > 0 && len(out) > limit {
			if after == 0 {
				out = out[len(out)-limit:]
			}
			out = out[:limit]
		}
		reply(w, 200, out)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, ": hello\n\n")
	for i, row := range all {
		data, _ := json.Marshal(row)
		fmt.Fprintf(w, "event: %s\nid: %d\ndata: %s\n\n", event, i+1, data)
	}
	fmt.Fprint(w, "event: end\ndata: {}\n\n")
}

func take(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		refuse(w, 400, "malformed JSON")
		return false
	}
	return true
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int, message string) {
	reply(w, code, map[string]any{"code": code, "message": message})
}
