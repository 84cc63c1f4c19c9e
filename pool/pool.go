// Package pool keeps warm boxes, in two tiers. Of the hot ones the agents answer
// and they have no identity: a create that takes one waits for nothing but its
// own binding. The booted ones have nothing in them yet. What was taken never
// comes back, except untouched.
package pool

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
)

const (
	// quietTime is how long a create and its first command have the machine for
	// themselves, and busyTime how long a run of creates has: five times as long
	// while at least half of what is wanted is there.
	quietTime = 100 * time.Millisecond
	busyTime  = 2 * time.Second
	// destroyLimit bounds the end of one box.
	destroyLimit = 30 * time.Second
)

// LeastBytes is what one box counts for at the least. An idle one costs a host
// 10 to 12.5 MB of available memory, more than is charged to its control group.
const LeastBytes = 12 << 20

// Key tells the kinds of boxes apart: what of a box is fixed before it has an
// identity. Boxes of one key are interchangeable.
type Key struct {
	Tier Tier `json:"tier,omitempty"`
	// Build is the template build of hot boxes, and empty in the key of booted
	// ones, for which only the digest of the image counts.
	Build     string             `json:"build"`
	Image     string             `json:"image,omitempty"`
	Resources provider.Resources `json:"resources"`
}

// Label says for whom boxes of a key are kept.
type Label struct {
	// Template is its name, for people.
	Template string
	// Build is the template build that is meant.
	Build string
}

// Box is what is kept: a provider.Box in the hot tier, a provider.Prebooted in
// the other.
type Box interface {
	Handle() provider.Handle
	Stats(ctx context.Context) (provider.Stats, error)
	Wait(ctx context.Context) (provider.Exit, error)
	Destroy(ctx context.Context) error
}

// Options make a Pool.
type Options struct {
	// Make makes a box under an id, as its tier has it: a hot one runs and its agent
	// answers, behind a network that leads nowhere. On an error nothing of it is
	// left.
	Make func(ctx context.Context, k Key, id string) (Box, error)
	// NewID returns an id that was never used.
	NewID func() string
	// MaxDemand is the most boxes of one key that are kept because they were
	// asked for lately, beyond its plan; 0 turns that off.
	MaxDemand int
	// Booted is how many boxes of a key are kept booted that was used lately; 0
	// turns that tier off.
	Booted int
	// MaxBytes bounds the memory of all warm boxes together; 0 means no limit.
	MaxBytes int64
	// Parallel is how many boxes are made at a time. Default 1.
	Parallel int
	// Most is how many are made at a time when somebody waits. Default Parallel.
	Most int
	// MaxAge is when an idle box is replaced by a fresh one. Default 1 h.
	MaxAge time.Duration
	// Lease is how long boxes outlive a server that has died. Default 10 min.
	Lease time.Duration

	Log     *slog.Logger
	Metrics Metrics
}

// Metrics are called as things happen, where set. They must not block.
type Metrics struct {
	Taken  func(t Tier, hit bool)
	Made   func(t Tier, took time.Duration, err error)
	Change func(t Tier, n int)
}

// Pool keeps boxes of every key at its target. Methods are safe for concurrent
// use; before Run it holds nothing.
type Pool struct {
	o    Options
	wake chan struct{}  // something changed that Run must look at
	work sync.WaitGroup // what Run has started
	// watches end when their box leaves its shelf.
	watches sync.WaitGroup

	mu      sync.Mutex // guards what follows
	ended   bool
	shelves map[Key]*shelf
	// own are the ids of boxes that are being made, are held, or were taken and
	// not yet settled.
	own    map[string]bool
	making int
	bytes  int64 // of all boxes held
	// quiet is until when no box is made: what was just taken is about to work.
	// It is put off by every create, but not beyond busyTime after lacking, when
	// the first box was lacking, or five times that while there are plenty.
	quiet, lacking time.Time
	// garbage waits for Run to destroy it.
	garbage []Box
}

// shelf holds the boxes of one key.
type shelf struct {
	key    Key
	name   string // of the template, for people; the last one seen
	build  string // the same of booted boxes, whose key has none
	plan   Plan
	demand demand // of hot boxes; wanted and rush are of booted ones
	wanted wanted
	rush   wanted
	boxes  []*item // oldest first
	// waiters wait for boxes that are being made, of which there are as many.
	waiters []chan Box
	making  int
	lent    int // taken and neither settled nor returned

	hits, misses, made, failed int64
	madeIn                     time.Duration // of the last box made
	problem                    string        // of the last attempt; "" when it went well
	retry                      time.Time     // not before
	backoff                    time.Duration
}

// item is one warm box.
type item struct {
	box    Box
	born   time.Time
	bytes  int64
	leased time.Time // the box's deadline
	// renewing says that its deadline is being set. It cannot be taken then: the
	// old lease could come after the deadline of who took it, and end that.
	renewing bool
	stop     context.CancelFunc // ends the watch
}

// New returns a pool that makes nothing yet; Run does.
func New(o Options) (*Pool, error) {
	if o.Make == nil || o.NewID == nil || o.Log == nil {
		return nil, fmt.Errorf("pool: an option is missing: %w", errdefs.ErrInvalidArgument)
	}
	if o.Parallel == 0 {
		o.Parallel = 1
	}
	if o.MaxAge == 0 {
		o.MaxAge = time.Hour
	}
	if o.Lease == 0 {
		o.Lease = 10 * time.Minute
	}
	return &Pool{o: o, wake: make(chan struct{}, 1), shelves: map[Key]*shelf{}, own: map[string]bool{}}, nil
}

// Take hands out a box of the key; false when there is none. It never waits.
// name is that of the template. The caller calls Settle when it answers for the
// box, or Return. A box that has died is not there any more; whether one answers
// shows when it gets its identity.
func (p *Pool) Take(k Key, name string) (Box, bool) {
	it := p.pop(k, name)
	p.taken(k, it != nil)
	if it == nil {
		p.poke() // there is demand now
		return nil, false
	}
	return it.box, true
}

func (p *Pool) taken(k Key, hit bool) {
	p.mu.Lock()
	if s := p.shelves[k]; s != nil {
		if hit {
			s.hits++
		} else {
			s.misses++
		}
	}
	p.mu.Unlock()
	if f := p.o.Metrics.Taken; f != nil {
		f(k.Tier, hit)
	}
}

// pop takes the oldest box of a key that can be, and notes that one was asked for.
func (p *Pool) pop(k Key, name string) *item {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return nil
	}
	s := p.shelf(k)
	s.name = name
	s.demand.note(time.Now())
	i := slices.IndexFunc(s.boxes, func(it *item) bool { return !it.renewing })
	if i < 0 {
		return nil
	}
	it := s.boxes[i]
	p.remove(s, it)
	s.lent++
	return it
}

// shelf finds the shelf of a key, or makes it. The caller holds mu.
func (p *Pool) shelf(k Key) *shelf {
	s := p.shelves[k]
	if s == nil {
		s = &shelf{key: k}
		p.shelves[k] = s
	}
	return s
}

// remove takes a box from its shelf; it stays the pool's own. The caller holds
// mu.
func (p *Pool) remove(s *shelf, it *item) bool {
	i := slices.Index(s.boxes, it)
	if i < 0 {
		return false
	}
	it.stop()
	s.boxes = slices.Delete(s.boxes, i, i+1)
	p.bytes -= it.bytes
	p.tell(s.key.Tier)
	return true
}

// tell reports the number of warm boxes of a tier. The caller holds mu.
func (p *Pool) tell(t Tier) {
	if p.o.Metrics.Change == nil {
		return
	}
	n := 0
	for _, s := range p.shelves {
		if s.key.Tier == t {
			n += len(s.boxes)
		}
	}
	p.o.Metrics.Change(t, n)
}

// Settle says that the caller answers for a box that it took. Only then another
// is made in its place.
func (p *Pool) Settle(k Key, box Box) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.own, box.Handle().ID)
	if s := p.shelves[k]; s != nil {
		s.lent--
	}
	p.quiet = time.Now().Add(quietTime)
	p.poke()
}

// Return takes a box back that was taken and not touched: nothing of an identity
// has reached it.
func (p *Pool) Return(k Key, box Box) {
	p.mu.Lock()
	s := p.shelves[k]
	if s != nil {
		s.lent--
	}
	if p.ended || s == nil {
		p.mu.Unlock()
		p.discard(box)
		return
	}
	now := time.Now()
	p.put(s, &item{box: box, born: now, bytes: LeastBytes, leased: now}) // its lease is renewed at once
	p.mu.Unlock()
	p.poke()
}

// put adds a box to a shelf and watches it. The caller holds mu, and p has not
// ended.
func (p *Pool) put(s *shelf, it *item) {
	var ctx context.Context
	ctx, it.stop = context.WithCancel(context.Background())
	s.boxes = append(s.boxes, it)
	p.bytes += it.bytes
	p.own[it.box.Handle().ID] = true
	p.tell(s.key.Tier)
	p.watches.Go(func() { p.watch(ctx, s, it) })
}

// Owns reports whether a box is the pool's, or was taken and not settled.
func (p *Pool) Owns(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.own[id]
}

// discard gets a box of the pool's own destroyed: by Run, or here when Run has
// ended.
func (p *Pool) discard(box Box) {
	p.mu.Lock()
	if !p.ended {
		p.garbage = append(p.garbage, box)
		p.mu.Unlock()
		p.poke()
		return
	}
	p.mu.Unlock()
	p.destroy(box)
}

func (p *Pool) destroy(box Box) {
	ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
	defer cancel()
	if err := box.Destroy(ctx); err != nil {
		// No longer owned, it is an orphan, which the manager's sweep ends.
		p.o.Log.ErrorContext(ctx, "warm box could not be destroyed", slog.String("box", box.Handle().ID), slog.Any("error", err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.own, box.Handle().ID)
}

// poke makes Run look again.
func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Status is what a pool has of one key.
type Status struct {
	Key

	// For is the key's build, or the last one for which booted boxes were wanted.
	For string `json:"for"`
	// Template is the name that the last create used, or the plan's.
	Template string `json:"template,omitempty"`
	// Target is how many boxes it should have now: by plan, or by demand.
	Target int `json:"target"`
	// Hot is how many are ready, in either tier.
	Hot    int `json:"hot"`
	Making int `json:"making"`
	// Oldest is the age of the oldest box.
	Oldest time.Duration `json:"oldest"`
	Bytes  int64         `json:"bytes"`

	Hits   int64         `json:"hits"`
	Misses int64         `json:"misses"`
	Made   int64         `json:"made"`
	Failed int64         `json:"failed"`
	MadeIn time.Duration `json:"madeIn"` // the last box
	// Problem is why the last box could not be made, or why fewer are kept than
	// the target says.
	Problem string `json:"problem,omitempty"`
}

// Status lists the keys, hot ones and those with the most boxes first.
func (p *Pool) Status() []Status {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Status, 0, len(p.shelves))
	for _, s := range p.shelves {
		st := Status{
			Key: s.key, Template: s.name, Target: p.target(s, now), Hot: len(s.boxes), Making: s.making,
			For:  cmp.Or(s.key.Build, s.build),
			Hits: s.hits, Misses: s.misses, Made: s.made, Failed: s.failed, MadeIn: s.madeIn, Problem: s.problem,
		}
		for _, it := range s.boxes {
			st.Bytes += it.bytes
			st.Oldest = max(st.Oldest, now.Sub(it.born))
		}
		if st.Problem == "" && st.Hot+st.Making < st.Target && p.full() {
			st.Problem = fmt.Sprintf("the memory limit of all warm boxes, %d MiB, is reached", p.o.MaxBytes>>20)
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Tier, b.Tier), cmp.Compare(b.Hot, a.Hot), cmp.Compare(a.Template, b.Template), cmp.Compare(a.Build, b.Build))
	})
	return out
}
