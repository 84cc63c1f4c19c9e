package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

var (
	alice   = identity.Principal{Team: identity.DefaultTeam, KeyID: "kalice"}
	mallory = identity.Principal{Team: "other", KeyID: "kmallory"}
)

// world is what outlives a server process: the database and the boxes.
type world struct {
	db    *store.Store
	boxes *boxes
	seed  identity.Seed
	vault *vault
	// metrics and memory go to the processes that are booted.
	metrics sandbox.Metrics
	memory  func() (int64, error)
	teams   sandbox.TeamBudgets
	image   string // path of every build's image, when set
	// owned is theirs too.
	owned func(id string) bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		db:    storetest.SQLite(t),
		boxes: newBoxes(),
		seed:  identity.NewSeed(),
		vault: &vault{has: map[snapshot.ID]time.Time{}},
	}
	t.Cleanup(w.boxes.close)
	return w
}

// process is one life of the server over a world. Once dead, nothing it does
// has an effect, as after kill -9.
type process struct {
	*sandbox.Manager
	w     *world
	guard *guard
	// calls counts what the Manager asks of store, provider and guard; at the
	// number dieAt the process dies, at failAt that one call fails.
	calls, dieAt, failAt atomic.Int64
	dead                 atomic.Bool
	agentRefuses         atomic.Bool
	onStep               atomic.Pointer[func(name string)]
	deadlineHangs        atomic.Bool
	// loseInsert lets the next insert succeed and its answer get lost.
	loseInsert atomic.Bool
	// loseRunning does so with the next step that makes a sandbox Running.
	loseRunning atomic.Bool

	mu      sync.Mutex
	trace   []string // names of the calls
	closed  []string // sandboxes whose box was shown before its end, and whether it was there
	failOn  string   // the next call of this name fails
	stop    context.CancelFunc
	stopped chan struct{}
}

func testConfig() sandbox.Config {
	return sandbox.Config{
		Node: "node1", MaxTimeout: 2 * time.Hour, MaxPerTeam: 100,
		Defaults: provider.Resources{MemoryMiB: 512, CPUs: 1, DiskMiB: 1024, Processes: 64},
		Maxima:   provider.Resources{MemoryMiB: 1024, CPUs: 2, DiskMiB: 2048, Processes: 128},
		Command:  control.Limits{WallTime: time.Hour, OutputBytes: 1 << 20},
	}
}

// boot makes a process that is not running yet.
func (w *world) boot(t testing.TB, cfg sandbox.Config) *process {
	t.Helper()
	p := &process{w: w, guard: &guard{attached: map[string]egress.Policy{}}, stopped: make(chan struct{})}
	m, err := sandbox.New(cfg, sandbox.Deps{
		Store:     faultyStore{w.db, p},
		Snapshots: faultyStore{w.db, p},
		Templates: resolver{w.db, w.image},
		Provider:  faultyProvider{w.boxes, p},
		Guard:     faultyGuard{p.guard, p},
		Vault:     faultyVault{w.vault, p},
		Teams:     w.teams,
		Policy:    policy,
		Closing:   p.closing,
		Metrics:   w.metrics, FreeMemory: w.memory, Owned: w.owned,
		Seed: w.seed,
		Log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	p.Manager = m
	return p
}

// closing notes which box the Manager gives a last look at.
func (p *process) closing(_ context.Context, l *sandbox.Live, _ provider.Box) {
	state := "no box"
	if x := p.w.boxes.get(l.ID); x != nil {
		select {
		case <-x.ended:
		default:
			state = "box"
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = append(p.closed, string(l.ID)+" "+state)
}

// run starts Run and waits until it has recovered.
func (p *process) run(t testing.TB) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p.stop = cancel
	go func() {
		defer close(p.stopped)
		if err := p.Run(ctx); err != nil && !p.dead.Load() {
			t.Errorf("Run() = %v", err)
		}
	}()
	t.Cleanup(p.halt)
	select {
	case <-p.Recovered():
	case <-p.stopped:
	}
	return p
}

func (p *process) halt() {
	p.stop()
	<-p.stopped
}

// kill9 ends the process without any last words.
func (p *process) kill9() {
	p.dead.Store(true)
	p.halt()
}

var (
	errDead     = errors.New("process is dead")
	errInjected = errors.New("injected fault")
)

// step is called before every effect.
func (p *process) step(name string) error {
	if p.dead.Load() {
		return errDead
	}
	if f := p.onStep.Load(); f != nil {
		(*f)(name)
	}
	n := p.calls.Add(1)
	p.mu.Lock()
	p.trace = append(p.trace, name)
	named := p.failOn == name
	if named {
		p.failOn = ""
	}
	p.mu.Unlock()
	if n == p.dieAt.Load() {
		p.dead.Store(true)
		return errDead
	}
	if n == p.failAt.Load() || named {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

// atStep has every effect call f first; nil ends that.
func (p *process) atStep(f func(name string)) {
	if f == nil {
		p.onStep.Store(nil)
		return
	}
	p.onStep.Store(&f)
}

func (p *process) failNext(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failOn = name
}

// policy stands in for the compiler of the server's configuration.
func policy(n sandbox.Network) (egress.Policy, error) {
	p := egress.Policy{Version: 1, Default: egress.Deny}
	for _, host := range n.AllowOut {
		if host == "bad" {
			return egress.Policy{}, apierr.Field("network.allowOut", "%q is no host", host)
		}
		p.Rules = append(p.Rules, egress.Rule{Hosts: []string{host}, Verdict: egress.Allow})
	}
	return p, nil
}

type resolver struct {
	s     template.Store
	image string
}

func (r resolver) Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error) {
	name, err := template.ParseReference(ref)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	t, err := r.s.GetTemplate(ctx, team, name.Name)
	if err != nil {
		return t, template.Build{}, err
	}
	if name.Tag != template.DefaultTag {
		if t.Current, err = r.s.TaggedBuild(ctx, t.ID, name.Tag); err != nil {
			return t, template.Build{}, err
		}
	}
	b, err := r.Build(ctx, t.Current)
	return t, b, err
}

func (r resolver) Build(ctx context.Context, id template.BuildID) (template.Build, error) {
	b, err := r.s.GetBuild(ctx, id)
	if r.image != "" {
		b.Rootfs.Path = r.image
	}
	return b, err
}

type faultyStore struct {
	*store.Store
	p *process
}

func (s faultyStore) Insert(ctx context.Context, sb sandbox.Sandbox, maxLive int, evs ...audit.Event) error {
	if err := s.p.step("insert"); err != nil {
		return err
	}
	err := s.Store.Insert(ctx, sb, maxLive, evs...)
	if err == nil && s.p.loseInsert.CompareAndSwap(true, false) {
		return errInjected
	}
	return err
}

func (s faultyStore) ByKey(ctx context.Context, team identity.TeamID, key string) (sandbox.Sandbox, error) {
	if s.p.dead.Load() {
		return sandbox.Sandbox{}, errDead
	}
	return s.Store.ByKey(ctx, team, key)
}

func (s faultyStore) Mutate(ctx context.Context, id sandbox.ID, fn func(*sandbox.Sandbox) (audit.Event, error)) (sandbox.Sandbox, error) {
	if err := s.p.step("mutate"); err != nil {
		return sandbox.Sandbox{}, err
	}
	sb, err := s.Store.Mutate(ctx, id, fn)
	if err == nil && sb.State == sandbox.Running && s.p.loseRunning.CompareAndSwap(true, false) {
		return sandbox.Sandbox{}, errInjected
	}
	return sb, err
}

func (s faultyStore) Admit(ctx context.Context, id sandbox.ID, most int, fn func(*sandbox.Sandbox) (audit.Event, error)) (sandbox.Sandbox, error) {
	if err := s.p.step("admit"); err != nil {
		return sandbox.Sandbox{}, err
	}
	return s.Store.Admit(ctx, id, most, fn)
}

func (s faultyStore) Get(ctx context.Context, id sandbox.ID) (sandbox.Sandbox, error) {
	if s.p.dead.Load() {
		return sandbox.Sandbox{}, errDead
	}
	return s.Store.Get(ctx, id)
}

func (s faultyStore) Record(ctx context.Context, ev audit.Event) error {
	if s.p.dead.Load() {
		return errDead
	}
	return s.Store.Record(ctx, ev)
}

// guard is the gateway of one process.
type guard struct {
	mu       sync.Mutex
	attached map[string]egress.Policy
}

func (g *guard) ids() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.attached))
}

func (g *guard) policy(id sandbox.ID) (egress.Policy, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, ok := g.attached[string(id)]
	return p, ok
}

type faultyGuard struct {
	g *guard
	p *process
}

type attachment struct {
	egress.Attachment
	id string
}

func (f faultyGuard) Attach(_ context.Context, id string, p egress.Policy) (egress.Attachment, error) {
	if err := f.p.step("attach"); err != nil {
		return nil, err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	f.g.attached[id] = p
	return attachment{id: id}, nil
}

func (f faultyGuard) Update(_ context.Context, id string, p egress.Policy) error {
	if err := f.p.step("update"); err != nil {
		return err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	if _, ok := f.g.attached[id]; !ok {
		return errdefs.ErrNotFound
	}
	f.g.attached[id] = p
	return nil
}

func (f faultyGuard) Detach(_ context.Context, id string) error {
	if err := f.p.step("detach"); err != nil {
		return err
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	delete(f.g.attached, id)
	return nil
}

// boxes are what runs on the host; they outlive processes.
type boxes struct {
	mu    sync.Mutex
	all   map[string]*box
	pipes map[net.Conn]bool
	// creating, when set, is called inside Create before the box exists.
	creating   func(ctx context.Context, spec provider.Spec) error
	destroying func() // set before boxes are made
	// saving, when set, is called before a box is saved.
	saving   func(ctx context.Context, spec provider.Spec) error
	most, at int // creates at once
	noEgress bool
	silent   bool
	// known holds how boxes ended, if the provider remembers it.
	known  map[string]provider.Exit
	limits []provider.Limit
}

// box is one box on the host.
type box struct {
	host     *boxes
	spec     provider.Spec
	ended    chan struct{}
	exit     provider.Exit // set before ended is closed
	deadline time.Time
	network  egress.Attachment
	init     control.Init
	prepared control.Init
	silent   bool // the agent does not answer
	refuse   bool
	used     string      // the prebooted box that it was
	from     snapshot.ID // what it was restored from
	servers  []*control.Server
}

func newBoxes() *boxes { return &boxes{all: map[string]*box{}, pipes: map[net.Conn]bool{}} }

func (b *boxes) ids() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.all))
}

func (b *boxes) get(id sandbox.ID) *box {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all[string(id)]
}

func (b *boxes) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.pipes {
		p.Close()
	}
}

// die ends a box as if by itself.
func (b *boxes) die(id sandbox.ID, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x := b.all[string(id)]; x != nil {
		x.exit = provider.Exit{Reason: reason, Status: 9, At: time.Now(), Detail: "test"}
		close(x.ended)
		delete(b.all, string(id))
	}
}

// vanish takes a box away without telling those who wait.
func (b *boxes) vanish(id sandbox.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, string(id))
}

// Init, Health, Freeze and Dial are the agent.
func (x *box) Init(_ context.Context, in control.Init) error {
	x.host.mu.Lock()
	defer x.host.mu.Unlock()
	if x.refuse {
		return fmt.Errorf("refused: %w", errdefs.ErrInvalidArgument)
	}
	x.init = in
	return nil
}

func (x *box) Prepare(_ context.Context, in control.Init) error {
	x.host.mu.Lock()
	defer x.host.mu.Unlock()
	x.prepared = in
	return nil
}

func (x *box) Health() control.Health {
	x.host.mu.Lock()
	defer x.host.mu.Unlock()
	return control.Health{Ready: x.init.AccessToken != ""}
}
func (x *box) Freeze() {}
func (x *box) Dial(context.Context, uint16) (control.Ticket, error) {
	return control.Ticket{}, control.ErrRefused
}

// open returns a new Box of process p for x; b.mu is held.
func (b *boxes) open(x *box, p *process) provider.Box {
	ours, theirs := net.Pipe()
	b.pipes[ours], b.pipes[theirs] = true, true
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	srv := control.NewServer(theirs, x, quiet)
	x.servers = append(x.servers, srv)
	if x.silent {
		go io.Copy(io.Discard, theirs) //nolint:errcheck // ends with the pipe
	} else {
		go srv.Run(context.WithoutCancel(context.Background())) //nolint:errcheck // ends with the pipe
	}
	return &openBox{box: x, p: p, ctl: control.NewClient(ours, quiet)}
}

// endedError is how a provider that remembers ended boxes refuses to open one.
type endedError struct{ exit provider.Exit }

func (e endedError) Error() string       { return "ended: " + e.exit.Reason }
func (e endedError) Exit() provider.Exit { return e.exit }
func (e endedError) Unwrap() error       { return errdefs.ErrNotFound }

type faultyProvider struct {
	b *boxes
	p *process
}

func (f faultyProvider) Name() string                { return "test" }
func (f faultyProvider) Probe(context.Context) error { return nil }
func (f faultyProvider) Capabilities() provider.Capabilities {
	limits := f.b.limits
	if limits == nil {
		limits = []provider.Limit{provider.LimitMemory, provider.LimitCPU, provider.LimitDisk, provider.LimitProcesses}
	}
	return provider.Capabilities{
		EnforcesEgress: !f.b.noEgress, Limits: limits, Restore: true, Claim: true, Preboot: true, ExportsLayers: true,
		Snapshots: []snapshot.Kind{snapshot.Memory, snapshot.Filesystem},
	}
}

func (f faultyProvider) Create(ctx context.Context, spec provider.Spec) (provider.Box, error) {
	if err := f.p.step("create"); err != nil {
		return nil, err
	}
	f.b.mu.Lock()
	f.b.at++
	f.b.most = max(f.b.most, f.b.at)
	hook := f.b.creating
	f.b.mu.Unlock()
	defer func() {
		f.b.mu.Lock()
		f.b.at--
		f.b.mu.Unlock()
	}()
	if hook != nil {
		if err := hook(ctx, spec); err != nil {
			return nil, err
		}
	}
	if spec.Egress == nil {
		return nil, errors.New("no egress attachment")
	}
	used, err := f.use(spec.Prebooted)
	if err != nil {
		return nil, err
	}
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	if f.b.all[spec.SandboxID] != nil {
		return nil, fmt.Errorf("box %s: %w", spec.SandboxID, errdefs.ErrAlreadyExists)
	}
	x := &box{used: used, host: f.b, spec: spec, ended: make(chan struct{}), network: spec.Egress, deadline: spec.Deadline, refuse: f.p.agentRefuses.Load(), silent: f.b.silent}
	f.b.all[spec.SandboxID] = x
	return f.b.open(x, f.p), nil
}

func (f faultyProvider) Open(_ context.Context, h provider.Handle, a egress.Attachment) (provider.Box, error) {
	if err := f.p.step("open"); err != nil {
		return nil, err
	}
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	x := f.b.all[h.ID]
	if x == nil {
		if e, ok := f.b.known[h.ID]; ok {
			return nil, endedError{e}
		}
		return nil, errdefs.ErrNotFound
	}
	x.network = a
	return f.b.open(x, f.p), nil
}

func (f faultyProvider) List(context.Context) ([]provider.Handle, error) {
	if err := f.p.step("list"); err != nil {
		return nil, err
	}
	var all []provider.Handle
	for _, id := range f.b.ids() {
		all = append(all, provider.Handle{Provider: "test", Version: 1, ID: id})
	}
	return all, nil
}

type openBox struct {
	*box
	p   *process
	ctl *control.Client
}

func (o *openBox) Handle() provider.Handle {
	return provider.Handle{Provider: "test", Version: 1, ID: o.spec.SandboxID}
}

func (o *openBox) Route(context.Context, uint16) (provider.Route, error) {
	return provider.Route{}, nil
}
func (o *openBox) Control() *control.Client { return o.ctl }
func (o *openBox) Stats(context.Context) (provider.Stats, error) {
	return provider.Stats{MemoryBytes: 1}, nil
}

func (o *openBox) Wait(ctx context.Context) (provider.Exit, error) {
	select {
	case <-o.ended:
		return o.exit, nil
	case <-ctx.Done():
	}
	select { // an end that was there before wins
	case <-o.ended:
		return o.exit, nil
	default:
		return provider.Exit{}, ctx.Err()
	}
}

func (o *openBox) Claim(_ context.Context, id provider.Identity) error {
	if err := o.p.step("claim"); err != nil {
		return err
	}
	o.host.mu.Lock()
	defer o.host.mu.Unlock()
	o.network = id.Egress
	return nil
}

func (o *openBox) SetDeadline(ctx context.Context, t time.Time) error {
	if o.p.deadlineHangs.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := o.p.step("deadline"); err != nil {
		return err
	}
	o.host.mu.Lock()
	defer o.host.mu.Unlock()
	o.box.deadline = t
	return nil
}

func (o *openBox) Destroy(context.Context) error {
	if err := o.p.step("destroy"); err != nil {
		return err
	}
	if hook := o.host.destroying; hook != nil {
		hook()
	}
	o.host.die(sandbox.ID(o.spec.SandboxID), provider.ReasonDestroyed)
	return nil
}

func request() sandbox.CreateRequest {
	return sandbox.CreateRequest{Template: "base", Timeout: time.Minute}
}

func create(t testing.TB, p *process) sandbox.Sandbox {
	t.Helper()
	sb, err := p.Create(t.Context(), alice, request())
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	return sb
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }
