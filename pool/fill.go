package pool

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/caisson-dev/caisson/provider"
)

const (
	makeLimit  = time.Minute
	renewLimit = 10 * time.Second
	minBackoff = time.Second
	maxBackoff = time.Minute
	// lookEvery is how often schedules, leases and ages are looked at when
	// nothing else happens.
	lookEvery = 10 * time.Second
)

// SetPlan replaces what is kept whatever the demand. Boxes of other keys go when
// nobody has asked for them lately. Labels say for what.
func (p *Pool) SetPlan(plans map[Key]Plan, labels map[Key]Label) {
	p.mu.Lock()
	for k, s := range p.shelves {
		if _, ok := plans[k]; !ok {
			s.plan = Plan{}
		}
	}
	for k, plan := range plans {
		s := p.shelf(k)
		s.plan, s.name, s.build = plan, labels[k].Template, labels[k].Build
	}
	p.mu.Unlock()
	p.poke()
}

// Planned reports whether boxes of a key are kept, now or at another time, whatever
// the demand.
func (p *Pool) Planned(k Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelves[k]
	return s != nil && s.plan.Most() > 0
}

// Run keeps every key at its target until ctx ends, and then destroys what is
// left.
func (p *Pool) Run(ctx context.Context) {
	defer p.end()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		p.reconcile(ctx)
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-tick.C:
		}
	}
}

// end destroys all boxes; none is handed out any more.
func (p *Pool) end() {
	p.work.Wait() // what is being made goes to a shelf or to the garbage
	p.mu.Lock()
	p.ended = true
	for _, s := range p.shelves {
		for len(s.boxes) > 0 {
			it := s.boxes[0]
			p.remove(s, it)
			p.garbage = append(p.garbage, it.box)
		}
	}
	p.clear()
	p.mu.Unlock()
	p.watches.Wait()
	p.work.Wait()
}

// clear destroys what was thrown away. The caller is Run and holds mu.
func (p *Pool) clear() {
	for _, box := range p.garbage {
		p.work.Go(func() { p.destroy(box) })
	}
	p.garbage = nil
}

// reconcile starts what is missing and ends what is too many, too old or too
// large.
func (p *Pool) reconcile(ctx context.Context) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, s := range p.shelves {
		target := p.target(s, now)
		for len(s.boxes) > target {
			p.drop(s)
		}
		if n := len(s.boxes); n > 0 && n == target && s.making == 0 && now.Sub(s.boxes[0].born) > p.o.MaxAge {
			p.drop(s) // one at a time, so that most stay
		}
		for _, it := range s.boxes {
			if !it.renewing && it.leased.Sub(now) < p.o.Lease/2 {
				p.renew(ctx, s, it, now)
			}
		}
		if target == 0 && len(s.boxes) == 0 && s.making == 0 && s.lent == 0 && s.demand.idle(now) && len(s.waiters) == 0 {
			delete(p.shelves, k)
		}
	}
	p.clear()
	for p.making < p.parallel(now) && ctx.Err() == nil {
		s := p.neediest(now)
		if s == nil {
			p.lacking = time.Time{}
			return
		}
		if p.full() && (s.key.Tier != Hot || !p.dropBooted()) {
			return
		}
		if p.lacking.IsZero() {
			p.lacking = now
		}
		// A shelf that is nearly empty does not wait.
		enough := len(s.boxes) > 0 && 4*len(s.boxes) >= p.target(s, now)
		if s.key.Tier == Booted {
			// Without one a start takes little longer, and what has just been started
			// is about to work.
			enough = !s.rushed(now)
		}
		patience := busyTime
		if 2*len(s.boxes) >= p.target(s, now) && !p.lacksBooted(now) {
			patience *= 5
		}
		if wait := p.quiet.Sub(now); wait > 0 && enough && now.Sub(p.lacking) < patience {
			time.AfterFunc(wait, p.poke)
			return
		}
		s.making++
		p.making++
		id := p.o.NewID()
		p.own[id] = true
		p.work.Go(func() { p.make(ctx, s, id) })
	}
}

// lacksBooted reports whether some booted box is wanted, which would wait as
// long. The caller holds mu.
func (p *Pool) lacksBooted(now time.Time) bool {
	for _, s := range p.shelves {
		if s.key.Tier == Booted && len(s.boxes)+s.making+s.lent < p.target(s, now) {
			return true
		}
	}
	return false
}

// full reports whether one more box would pass the memory limit. The caller
// holds mu.
func (p *Pool) full() bool {
	return p.o.MaxBytes > 0 && p.bytes+int64(p.making+1)*LeastBytes > p.o.MaxBytes
}

// target is how many boxes a key should have. The caller holds mu.
func (p *Pool) target(s *shelf, now time.Time) int {
	if s.key.Tier == Booted {
		return p.targetBooted(s, now)
	}
	return max(s.plan.At(now), min(s.demand.peak(now), p.o.MaxDemand))
}

// neediest is the shelf that lacks the largest share of its target; nil when
// none lacks a box. What somebody is about to take comes first, and hot boxes,
// which gain more, before booted ones. The caller holds mu.
func (p *Pool) neediest(now time.Time) *shelf {
	var worst *shelf
	least, first := 1.0, 0
	for _, s := range p.shelves {
		target := p.target(s, now)
		if target == 0 || now.Before(s.retry) {
			continue
		}
		rank := 1
		switch {
		case s.rushed(now):
			rank = 3
		case s.key.Tier == Hot:
			rank = 2
		}
		share := float64(len(s.boxes)+s.making+s.lent) / float64(target)
		if share < 1 && (rank > first || rank == first && share < least) {
			worst, least, first = s, share, rank
		}
	}
	return worst
}

// drop throws the oldest box of a shelf away. The caller holds mu.
func (p *Pool) drop(s *shelf) {
	it := s.boxes[0]
	p.remove(s, it)
	p.garbage = append(p.garbage, it.box)
}

// renew moves the time at which a box ends if this server dies, and looks at what
// it takes by now: what runs in a hot box may grow. The caller holds mu.
func (p *Pool) renew(ctx context.Context, s *shelf, it *item, now time.Time) {
	d, ok := it.box.(provider.Deadliner)
	it.leased = now.Add(p.o.Lease)
	if !ok {
		return
	}
	to := it.leased
	it.renewing = true
	p.work.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, renewLimit)
		defer cancel()
		err := d.SetDeadline(ctx, to)
		st, unknown := it.box.Stats(ctx)
		p.mu.Lock()
		it.renewing = false
		if unknown == nil && slices.Contains(s.boxes, it) {
			bytes := max(st.MemoryBytes, LeastBytes)
			p.bytes, it.bytes = p.bytes+bytes-it.bytes, bytes
		}
		p.mu.Unlock()
		if err != nil && !errors.Is(err, context.Canceled) {
			p.o.Log.WarnContext(ctx, "lease of warm box could not be renewed", slog.String("box", it.box.Handle().ID), slog.Any("error", err))
		}
	})
}

// make makes one box for a shelf.
func (p *Pool) make(ctx context.Context, s *shelf, id string) {
	defer p.poke()
	began := time.Now()
	mctx, cancel := context.WithTimeout(ctx, makeLimit)
	defer cancel()
	p.mu.Lock()
	k := s.key
	k.Build = cmp.Or(k.Build, s.build)
	p.mu.Unlock()
	box, err := p.o.Make(mctx, k, id)
	took := time.Since(began)
	if f := p.o.Metrics.Made; f != nil && ctx.Err() == nil {
		f(k.Tier, took, err)
	}
	var bytes int64
	if err == nil {
		if st, serr := box.Stats(mctx); serr == nil {
			bytes = st.MemoryBytes
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.making--
	p.making--
	defer p.dismiss(s)
	if err != nil {
		delete(p.own, id)
		if ctx.Err() != nil {
			return
		}
		s.failed++
		s.problem = err.Error()
		s.backoff = min(max(2*s.backoff, minBackoff), maxBackoff)
		s.retry = time.Now().Add(s.backoff)
		time.AfterFunc(s.backoff, p.poke)
		p.o.Log.WarnContext(ctx, "warm box could not be made", slog.String("build", s.key.Build), slog.Duration("retry", s.backoff), slog.Any("error", err))
		return
	}
	s.made++
	s.madeIn, s.problem, s.backoff, s.retry = took, "", 0, time.Time{}
	if ctx.Err() != nil || p.shelves[s.key] != s {
		p.garbage = append(p.garbage, box)
		return
	}
	if p.give(s, box) {
		return
	}
	p.put(s, &item{box: box, born: began, bytes: max(bytes, LeastBytes), leased: began.Add(p.o.Lease)})
}

// watch throws a box away that ends by itself while it is on its shelf.
func (p *Pool) watch(ctx context.Context, s *shelf, it *item) {
	exit, err := it.box.Wait(ctx)
	if err != nil {
		return
	}
	p.mu.Lock()
	held := p.remove(s, it)
	if held {
		p.garbage = append(p.garbage, it.box)
	}
	p.mu.Unlock()
	if held {
		p.o.Log.Warn("warm box ended", slog.String("box", it.box.Handle().ID), slog.String("reason", exit.Reason), slog.String("detail", exit.Detail))
		p.poke()
	}
}
