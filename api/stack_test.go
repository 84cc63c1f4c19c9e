package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.uber.org/goleak"

	"github.com/caisson-dev/caisson/agent/version"
	"github.com/caisson-dev/caisson/api"
	"github.com/caisson-dev/caisson/api/e2b"
	"github.com/caisson-dev/caisson/api/native"
	"github.com/caisson-dev/caisson/batch"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/ingress"
	"github.com/caisson-dev/caisson/meter"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/spec"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/upload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stack is everything above the provider, as package server wires it, on real
// SQLite with the agent in this process.
type stack struct {
	url     string
	key     string // of the default team
	other   string // of another team
	manager *sandbox.Manager
	store   *store.Store
	flows   *store.FlowLog
	uploads *upload.Files
	stop    chan struct{} // closed when the server is about to stop

	mu      sync.Mutex
	healthy error
}

type settings struct {
	rate, creates, failures *identity.Limiter
	egressDefault           egress.Verdict
	maxPerTeam              int
	pool                    native.Pool
	// savesNothing is a provider that cannot pause or copy.
	savesNothing bool
	slots, queue int // 0 is the default
	memory       func() (int64, error)
	build        buildSettings
}

// gate is a guard that lets nothing through; what policies do is tested in
// egress.
type gate struct{ egress.Attachment }

func (gate) Attach(context.Context, string, egress.Policy) (egress.Attachment, error) {
	return gate{}, nil
}
func (gate) Update(context.Context, string, egress.Policy) error { return nil }
func (gate) Detach(context.Context, string) error                { return nil }

// templates is what template.Catalog does, without images.
type templates struct{ *store.Store }

func (t templates) Build(ctx context.Context, id template.BuildID) (template.Build, error) {
	return t.GetBuild(ctx, id)
}

func (t templates) Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error) {
	r, err := template.ParseReference(ref)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	found, err := t.GetTemplate(ctx, team, r.Name)
	if err != nil {
		return found, template.Build{}, err
	}
	if r.Tag != template.DefaultTag {
		if found.Current, err = t.TaggedBuild(ctx, found.ID, r.Tag); err != nil {
			return found, template.Build{}, err
		}
	}
	if found.Current == "" {
		return found, template.Build{}, fmt.Errorf("template %q has no finished build: %w", ref, errdefs.ErrNotFound)
	}
	b, err := t.GetBuild(ctx, found.Current)
	b.User = "" // the agent runs in this process, on this host's accounts
	b.Workdir = ""
	return found, b, err
}

func (t templates) Find(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Reference, error) {
	r, err := template.ParseReference(ref)
	if err != nil {
		return template.Template{}, r, err
	}
	found, err := t.GetTemplate(ctx, team, r.Name)
	return found, r, err
}

func (t templates) List(ctx context.Context, team identity.TeamID) ([]template.Template, error) {
	return t.ListTemplates(ctx, team)
}

func (t templates) Builds(ctx context.Context, team identity.TeamID, ref string) ([]template.Build, error) {
	found, err := t.GetTemplate(ctx, team, ref)
	if err != nil {
		return nil, err
	}
	return t.ListBuilds(ctx, found.ID)
}

// Lock knows what base is made of, and of no other.
func (t templates) Lock(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, template.Manifest, error) {
	found, b, err := t.Resolve(ctx, team, ref)
	if err != nil {
		return template.Template{}, template.Build{}, template.Manifest{}, err
	}
	if found.Names[0] != "base" {
		return found, b, template.Manifest{}, fmt.Errorf("no notes: %w", errdefs.ErrNotFound)
	}
	return found, b, template.Manifest{
		Recipe: "abc", Source: "debian bookworm", NPM: "10.9.4", Files: 2, DataBytes: 30,
		Packages: []template.Package{{Name: "bash", Version: "5.2", Arch: "amd64"}},
	}, nil
}

func (t templates) Delete(ctx context.Context, team identity.TeamID, ref string) error {
	found, err := t.GetTemplate(ctx, team, ref)
	if err != nil {
		return err
	}
	return t.DeleteTemplate(ctx, found.ID)
}

func start(t *testing.T, o settings) *stack {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s := &stack{store: storetest.Open(t, filepath.Join(t.TempDir(), "caisson.db"))}
	keys := identity.NewKeys(s.store)
	for team, to := range map[identity.TeamID]*string{identity.DefaultTeam: &s.key, "other": &s.other} {
		_, plain, err := keys.Create(t.Context(), "test", team, "test")
		if err != nil {
			t.Fatal(err)
		}
		*to = plain.Reveal()
	}
	limits := []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk, sandbox.UnenforcedEgress}
	boxes, err := fake.New(fake.Config{Unenforced: limits, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	words := egress.Server{Default: o.egressDefault}
	policy := func(n sandbox.Network) (egress.Policy, error) {
		return egress.FromNetwork(egress.Network{AllowInternet: n.AllowInternet, AllowOut: n.AllowOut, DenyOut: n.DenyOut}, words)
	}
	vault, err := snapshot.NewLocal(filepath.Join(t.TempDir(), "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	defaults := provider.Resources{MemoryMiB: 512, CPUs: 1, DiskMiB: 1024, Processes: 64}
	var prov provider.Provider = keeper{boxes}
	if o.savesNothing {
		prov = boxes
	}
	s.manager, err = sandbox.New(sandbox.Config{
		MaxTimeout: time.Hour, MaxPerTeam: o.maxPerTeam, Defaults: defaults, Unenforced: limits, DefaultUser: "root",
		ConcurrentCreates: o.slots, CreateQueue: o.queue,
	}, sandbox.Deps{
		Store: s.store, Snapshots: s.store, Templates: templates{s.store}, Provider: prov, Guard: gate{}, Teams: s.store, Vault: vault,
		Policy: policy, Seed: identity.NewSeed(), FreeMemory: o.memory, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.flows = store.NewFlowLog(s.store, 0, 0, log)
	// It is not run: tests write samples themselves.
	measures, err := meter.New(meter.Config{}, meter.Deps{
		Store: s.store, Log: log, Boxes: func(func(string, <-chan struct{}) bool) {},
		Stats: func(context.Context, string) (provider.Stats, error) {
			return provider.Stats{}, errdefs.ErrNotImplemented
		},
		Traffic: func(string) (in, out int64, ok bool) { return 0, 0, false },
	})
	if err != nil {
		t.Fatal(err)
	}
	base, err := policy(sandbox.Network{})
	if err != nil {
		t.Fatal(err)
	}
	batches, err := batch.New(batch.Config{
		Sandboxes: s.manager, MaxConcurrency: 16, MaxTimeout: time.Hour, Log: log,
		Allow: func(team identity.TeamID) (time.Duration, bool) {
			q, ok := o.creates.Allow(string(team))
			return q.RetryAfter, ok
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	queued, err := s.newBuilds(t, o.build, defaults, log)
	if err != nil {
		t.Fatal(err)
	}
	transfers, err := s.newTransfers(t, queued, log)
	if err != nil {
		t.Fatal(err)
	}
	s.stop = make(chan struct{})
	handler := api.Handler(api.Config{
		Auth: keys, Limiter: o.rate, Failures: o.failures, Health: s.health, Spec: spec.Native, Log: log,
		Uploads: e2b.UploadHandler(queued, s.uploads, log),
		E2B: e2b.Handler(e2b.Config{
			Sandboxes: s.manager, Templates: s.store, Meter: measures, Audit: s.store, EgressLog: s.flows, Creates: o.creates, PublicDomain: "box.example:3000",
			AgentVersion: version.Envd, MaxTimeout: time.Hour, Resources: defaults, Log: log,
			Builds: queued, Tags: s.store, MaxUpload: 1 << 20,
		}),
		Native: native.Handler(native.Config{
			Sandboxes: s.manager, Tree: s.manager, EgressLog: s.flows, Audit: s.store, Keys: keys, Templates: templates{s.store}, Builds: queued, Transfers: transfers,
			Meter: measures, Budgets: s.manager, Batches: batches, Stop: s.stop, Creates: o.creates, Policy: base, Health: s.health, Version: "test", PublicDomain: "box.example:3000",
			Limits:    native.Limits{MaxTimeout: time.Hour, SandboxesPerTeam: o.maxPerTeam, Default: defaults},
			Providers: []native.Provider{{Name: "fake", Default: true, Capabilities: boxes.Capabilities()}},
			Pool:      o.pool, Log: log,
		}),
	})
	plane, err := ingress.New(ingress.Config{Domains: []string{"box.example"}, API: handler, Sandboxes: s.manager, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(plane)
	server.Config = ingress.Server(plane, nil, log)
	server.Start()
	s.url = server.URL

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var work sync.WaitGroup
	work.Go(func() { _ = s.manager.Run(ctx) })
	work.Go(func() { _ = s.flows.Run(ctx) })
	work.Go(func() { _ = queued.Run(ctx) })
	<-s.manager.Recovered()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		plane.Close()
		server.Close()
		cancel()
		work.Wait()
		_ = boxes.Close()
	})
	return s
}

func (s *stack) health(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.healthy
}

// reply is an answer of the server.
type reply struct {
	status int
	header http.Header
	text   string
}

// into decodes the body.
func (r reply) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.text), v); err != nil {
		t.Fatalf("body %q: %v", r.text, err)
	}
}

// call sends a request as the default team; body is a string as it stands, nil,
// or a value that is encoded.
func (s *stack) call(t *testing.T, method, path string, body any) reply {
	t.Helper()
	return s.callAs(t, s.key, method, path, body)
}

func (s *stack) callAs(t *testing.T, key, method, path string, body any) reply {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		r = strings.NewReader(string(text))
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-Key", key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(text)}
}

// wants checks status and, for errors, that the body repeats it and says text.
func (r reply) wants(t *testing.T, what string, status int, text string) {
	t.Helper()
	if r.status != status {
		t.Errorf("%s = %d %s, want %d", what, r.status, r.text, status)
		return
	}
	if status < 400 {
		return
	}
	var body struct {
		Code    int
		Message string
	}
	// What is of the making of this program, and no help to its callers.
	for _, inner := range []string{
		": invalid argument", ": not found", ": failed precondition", "strconv", "json:", "proto:", "Go ", "binding", "looking for",
		" a object", " a array", "int32", "int64",
	} {
		if strings.Contains(r.text, inner) {
			t.Errorf("%s: body %s has %q in it", what, r.text, inner)
		}
	}
	if err := json.Unmarshal([]byte(r.text), &body); err != nil || body.Code != status || !strings.Contains(body.Message, text) {
		t.Errorf("%s: body %s, want code %d and a message with %q", what, r.text, status, text)
	}
}

type created struct {
	TemplateID, SandboxID, ClientID, EnvdVersion, Alias, EnvdAccessToken string
	TrafficAccessToken, Domain                                           *string
}

// create makes a sandbox; fields go over {templateID: base}.
func (s *stack) create(t *testing.T, fields map[string]any) created {
	t.Helper()
	body := map[string]any{"templateID": "base"}
	for k, v := range fields {
		body[k] = v
	}
	r := s.call(t, "POST", "/v2/sandboxes", body)
	if r.status != http.StatusCreated {
		t.Fatalf("create %v = %d %s", fields, r.status, r.text)
	}
	var c created
	r.into(t, &c)
	t.Cleanup(func() {
		_ = s.manager.Kill(context.WithoutCancel(t.Context()), identity.System, sandbox.ID(c.SandboxID), "killed")
	})
	return c
}

func (c created) path(tail string) string { return fmt.Sprintf("/sandboxes/%s%s", c.SandboxID, tail) }
