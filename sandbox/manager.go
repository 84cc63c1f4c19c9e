package sandbox

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/pool"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

// AgentPort is where the agent listens inside every sandbox.
const AgentPort = 49983

// Config sets what a Manager allows. Zero fields get the defaults named.
type Config struct {
	// Node names this server in records; it must stay the same over restarts,
	// since a server recovers only its own sandboxes. Default "local".
	Node string
	// MaxTimeout caps every timeout. Default 24 h.
	MaxTimeout time.Duration
	// MaxPerTeam caps live sandboxes of a team that has no limit of its own;
	// zero means no limit.
	MaxPerTeam int
	// ConcurrentCreates bounds boxes being started at once. Default 8.
	ConcurrentCreates int
	// CreateQueue bounds how many wait for their box to be started, and
	// CreateQueueWait for how long. Defaults 256 and 30 s; a negative CreateQueue
	// lets nobody wait.
	CreateQueue     int
	CreateQueueWait time.Duration
	// MemoryReserve is what stays free of the host's memory when boxes are
	// started, in bytes; it needs Deps.FreeMemory.
	MemoryReserve int64
	// Idempotency is how long an idempotency key means the sandbox that was
	// created with it. Default 24 h.
	Idempotency time.Duration
	// CreateTimeout bounds starting a box and its agent, and taking one over.
	// Default 60 s.
	CreateTimeout time.Duration
	// DestroyTimeout bounds ending a box. Default 30 s.
	DestroyTimeout time.Duration
	// DeadlineGrace is how long after its end a box dies by itself when this
	// server is not there to end it. Default 10 s.
	DeadlineGrace time.Duration
	// PauseGrace is the same for a box that is to be paused at its end: what is
	// in it should not be lost to a server that is down for a while. Default 24 h.
	PauseGrace time.Duration
	// SaveTimeout bounds saving a box. Default 2 min.
	SaveTimeout time.Duration
	// SweepInterval is how often records and boxes are compared. Default 1 min.
	SweepInterval time.Duration
	// Retention is how long records of ended sandboxes are kept. Default 7 d.
	Retention time.Duration
	// KeepPaused is how long sandboxes stay paused before they end, MaxPaused how
	// many a team may pause; zero means no limit. A timeout pauses beyond it.
	KeepPaused time.Duration
	MaxPaused  int
	// Snapshots bounds what a team may keep in snapshots.
	Snapshots SnapshotQuota
	// Defaults apply where neither request nor template says; Maxima cap both,
	// where not zero.
	Defaults, Maxima provider.Resources
	// Budget is that of a sandbox which is given none, and the most that it can
	// be given.
	Budget Budget
	// TeamBudget is that of a team without one of its own; TeamInterval how often
	// teams with running sandboxes are looked at. Default 5 s.
	TeamBudget   TeamBudget
	TeamInterval time.Duration
	// Unenforced names limits that may go unenforced where the host cannot;
	// UnenforcedEgress is for tests over a provider without isolation.
	Unenforced []provider.Limit
	// Command limits are enforced by the agent. Processes is taken from the
	// sandbox's resources instead.
	Command control.Limits
	// DefaultUser runs commands when the build names none. Default "user".
	DefaultUser string
	// CABundle is PEM to trust inside; may be empty.
	CABundle string
	// Pool keeps boxes warm, where the provider can bind an identity late.
	Pool Pool
}

// UnenforcedEgress in Config.Unenforced accepts a provider that does not enforce
// egress. The server's configuration does not offer it.
const UnenforcedEgress provider.Limit = "egress"

func (c Config) withDefaults() Config {
	orDefault(&c.Node, "local")
	orDefault(&c.MaxTimeout, 24*time.Hour)
	orDefault(&c.ConcurrentCreates, 8)
	orDefault(&c.CreateQueue, 256)
	orDefault(&c.CreateQueueWait, 30*time.Second)
	orDefault(&c.Idempotency, 24*time.Hour)
	orDefault(&c.CreateTimeout, time.Minute)
	orDefault(&c.DestroyTimeout, 30*time.Second)
	orDefault(&c.DeadlineGrace, 10*time.Second)
	orDefault(&c.PauseGrace, 24*time.Hour)
	orDefault(&c.SaveTimeout, 2*time.Minute)
	orDefault(&c.SweepInterval, time.Minute)
	orDefault(&c.TeamInterval, 5*time.Second)
	orDefault(&c.Retention, 7*24*time.Hour)
	orDefault(&c.DefaultUser, "user")
	return c
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Resolver finds the build that a template reference means.
type Resolver interface {
	// Resolve is errdefs.ErrNotFound when team sees no such template, and
	// errdefs.ErrFailedPrecondition when it has no ready build.
	Resolve(ctx context.Context, team identity.TeamID, ref string) (template.Template, template.Build, error)
	// Build finds a build by its id, also one that is no longer current.
	Build(ctx context.Context, id template.BuildID) (template.Build, error)
}

// Deps are what a Manager works with. All but Vault, Snapshots, Teams, Closing,
// Owned, FreeMemory and Metrics must be set.
type Deps struct {
	Store     Store
	Templates Resolver
	Provider  provider.Provider
	Guard     egress.Guard
	// Vault keeps paused sandboxes; without one, or with a provider that can
	// save and restore nothing, pausing is errdefs.ErrNotImplemented.
	Vault snapshot.Vault
	// Snapshots keeps snapshots; without, they and forks are
	// errdefs.ErrNotImplemented.
	Snapshots Snapshots
	// Teams keeps the budgets of teams; without, there are none.
	Teams TeamBudgets
	// Policy compiles a network configuration; its errors are the caller's.
	Policy func(Network) (egress.Policy, error)
	// Closing is called when the box of a sandbox that ran is about to be saved
	// or destroyed, for a last look at what it used; the box may have died. It
	// must return soon. May be nil.
	Closing func(ctx context.Context, l *Live, box provider.Box)
	// Owned reports whether a box without a record is in use by somebody else,
	// such as a template build, and no orphan. May be nil.
	Owned func(id string) bool
	// FreeMemory is how much memory the host can give without swapping, in
	// bytes. Nil refuses nothing for lack of it.
	FreeMemory func() (bytes int64, err error)
	Seed       identity.Seed
	Log        *slog.Logger
	Metrics    Metrics
}

// Metrics are called as things happen, where set. They must not block.
type Metrics struct {
	Created      func(took time.Duration)
	CreateFailed func(stage string) // one of the Stage constants
	Ended        func(reason string)
	LimitHit     func(limit string)
	Live         func(n int) // running sandboxes
	Paused       func(took time.Duration)
	Resumed      func(took time.Duration)
	// Queued is how many wait to be started, QueueWaited how long one did (also
	// not at all), Refused why one was not let in: one of the Refused constants.
	Queued      func(n int)
	QueueWaited func(took time.Duration)
	Refused     func(reason string)
}

// Stages of a create, for Metrics.CreateFailed.
const (
	StageQueue  = "queue" // there is no record yet
	StageAdmit  = "admit"
	StageAttach = "attach"
	StageBox    = "box"
	StageAgent  = "agent"
	StageCommit = "commit"
)

// Manager owns every sandbox of this node. It is concrete; nobody mocks it.
// Methods are safe for concurrent use, also before Run and while it recovers.
type Manager struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	tasks tasks
	wake  chan struct{} // the earliest deadline changed
	pool  *pool.Pool    // nil when no boxes are kept warm
	// admission is passed by all that starts a box and is not from the pool.
	admission *admission
	// clearing is a lock that is held while an orphaned box is judged and
	// destroyed: a resume, which makes a box of the same id, waits for that.
	clearing chan struct{}
	// diffs are the turns of comparisons, each of which takes memory of this
	// process.
	diffs chan struct{}
	// recovered is closed when Run has taken over what an earlier process left.
	recovered chan struct{}

	mu      sync.RWMutex // guards what follows, and the guarded part of entry
	entries map[ID]*entry
	// dormant are the paused sandboxes that traffic may wake, paused all of them.
	dormant map[ID]Dormant
	paused  map[ID]sleeper
	// leaving are the sandboxes whose box is being put away after a pause.
	leaving   map[ID]chan struct{}
	deadlines deadlines
	running   int
	held      []snapshot.ID // artifacts in use that no record refers to
	leftovers map[snapshot.ID]bool
	// attempts are the creates with an idempotency key that are under way.
	attempts map[attemptKey]*attempt
	// teams is what was last found of the teams with budgets.
	teams map[identity.TeamID]teamState
}

// New returns a Manager that starts nothing; Run does.
func New(cfg Config, deps Deps) (*Manager, error) {
	if deps.Store == nil || deps.Templates == nil || deps.Provider == nil || deps.Guard == nil || deps.Policy == nil || deps.Log == nil {
		return nil, fmt.Errorf("sandbox manager: a dependency is missing: %w", errdefs.ErrInvalidArgument)
	}
	if !deps.Provider.Capabilities().EnforcesEgress && !slices.Contains(cfg.Unenforced, UnenforcedEgress) {
		return nil, fmt.Errorf("provider %s does not enforce egress, so no sandbox may run on it: %w",
			deps.Provider.Name(), errdefs.ErrFailedPrecondition)
	}
	cfg = cfg.withDefaults()
	m := &Manager{
		cfg:       cfg,
		deps:      deps,
		log:       deps.Log,
		admission: newAdmission(cfg, deps),
		wake:      make(chan struct{}, 1),
		clearing:  make(chan struct{}, 1),
		diffs:     make(chan struct{}, diffsAtOnce),
		recovered: make(chan struct{}),
		entries:   map[ID]*entry{},
		dormant:   map[ID]Dormant{},
		leaving:   map[ID]chan struct{}{},
		attempts:  map[attemptKey]*attempt{},
		paused:    map[ID]sleeper{},
		teams:     map[identity.TeamID]teamState{},
	}
	var err error
	if m.pool, err = m.newPool(); err != nil {
		return nil, err
	}
	return m, nil
}

// Recovered is closed once Run has taken over the sandboxes of an earlier
// process. Before, Live does not know all of them.
func (m *Manager) Recovered() <-chan struct{} { return m.recovered }

// Get returns a record of the caller's team: also a Killed or Failed one.
// Another team's is errdefs.ErrNotFound.
func (m *Manager) Get(ctx context.Context, who identity.Principal, id ID) (Sandbox, error) {
	onTheirWay := m.endings()
	sb, err := m.deps.Store.Get(ctx, id)
	if err != nil {
		return Sandbox{}, err
	}
	if !maySee(who, sb.Team) {
		return Sandbox{}, notFound(id)
	}
	return onTheirWay.show(sb), nil
}

// endings are sandboxes that are on their way out, and why: their streams break
// and calls answer "not found" before their records say so.
type endings map[ID]string

// endings must be called before records are read: looked at afterwards, one
// that ended meanwhile would still be shown as running.
func (m *Manager) endings() endings {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var found endings
	for id, e := range m.entries {
		if e.phase == ending {
			if found == nil {
				found = endings{}
			}
			found[id] = e.why
		}
	}
	return found
}

// show is a record that may lag behind, brought up to now.
func (e endings) show(sb Sandbox) Sandbox {
	if why, ok := e[sb.ID]; ok && sb.State == Running {
		sb.State, sb.Reason = Killing, why
	}
	return sb
}

// List returns one page of the caller's sandboxes.
func (m *Manager) List(ctx context.Context, who identity.Principal, f Filter) (page []Sandbox, next string, running int, err error) {
	if who != identity.System {
		if who.Team == "" {
			return nil, "", 0, fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
		}
		f.Team = who.Team
	}
	onTheirWay := m.endings()
	page, next, running, err = m.deps.Store.List(ctx, f)
	shown := page[:0]
	for _, sb := range page {
		now := onTheirWay.show(sb)
		if now.State != sb.State && len(f.States) > 0 && !slices.Contains(f.States, now.State) {
			running--
			continue
		}
		shown = append(shown, now)
	}
	return shown, next, running, err
}

// Live finds a running sandbox for the data plane, of any team, from memory.
func (m *Manager) Live(id ID) (*Live, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e := m.entries[id]; e != nil && e.phase == live {
		return e.live, true
	}
	return nil, false
}

// EachLive calls yield for every running sandbox until it returns false.
func (m *Manager) EachLive(yield func(*Live) bool) {
	m.mu.RLock()
	all := make([]*Live, 0, len(m.entries))
	for _, e := range m.entries {
		if e.phase == live {
			all = append(all, e.live)
		}
	}
	m.mu.RUnlock()
	for _, l := range all {
		if !yield(l) {
			return
		}
	}
}

var _ iter.Seq[*Live] = (*Manager)(nil).EachLive

// Stats samples what a running sandbox of the caller's team uses.
func (m *Manager) Stats(ctx context.Context, who identity.Principal, id ID) (provider.Stats, error) {
	e, err := m.find(ctx, who, id)
	if err != nil {
		return provider.Stats{}, err
	}
	m.mu.RLock()
	box, phase := e.box, e.phase
	m.mu.RUnlock()
	if phase != live {
		return provider.Stats{}, notFound(id)
	}
	return box.Stats(ctx)
}

// maySee reports whether a caller may know of a team's sandboxes.
func maySee(who identity.Principal, team identity.TeamID) bool {
	return who == identity.System || (who.Team != "" && who.Team == team)
}

func notFound(id ID) error { return fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound) }

// unenforceable names a limit that res asks for and the provider cannot hold.
func (m *Manager) unenforceable(res provider.Resources) error {
	can := m.deps.Provider.Capabilities().Limits
	for _, want := range []struct {
		limit provider.Limit
		value int64
	}{
		{provider.LimitMemory, res.MemoryMiB},
		{provider.LimitCPU, int64(res.CPUs)},
		{provider.LimitDisk, res.DiskMiB},
	} {
		if want.value == 0 || slices.Contains(can, want.limit) || slices.Contains(m.cfg.Unenforced, want.limit) {
			continue
		}
		return fmt.Errorf("the %s limit %w: run `caisson doctor`, or accept it with limits.unenforced: [%s] in the server's configuration: %w",
			want.limit, provider.ErrUnenforceable, want.limit, errdefs.ErrFailedPrecondition)
	}
	return nil
}
