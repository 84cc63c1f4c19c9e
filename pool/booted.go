package pool

import (
	"context"
	"time"
)

// Tier says how far boxes of a key are when they wait.
type Tier string

const (
	// Hot boxes run, and their agents answer.
	Hot Tier = ""
	// Booted boxes have a kernel and nothing in it: they become hot, or what was
	// saved is restored into them.
	Booted Tier = "prebooted"
)

// wanted is what somebody expects to take of a key: n boxes until a time.
type wanted struct {
	n     int
	until time.Time
}

// Want keeps as many booted boxes as Options.Booted says for at least so long:
// of the key something was used that may be asked for again.
func (p *Pool) Want(k Key, l Label, long time.Duration) {
	p.want(k, l, func(s *shelf, now time.Time) {
		if until := now.Add(long); until.After(s.wanted.until) {
			s.wanted = wanted{p.o.Booted, until}
		}
	})
}

// Rush has n booted boxes made as fast as the host can, for one who is about to
// take them; those that are left are kept for some seconds.
func (p *Pool) Rush(k Key, l Label, n int) {
	const patience = 10 * time.Second
	p.want(k, l, func(s *shelf, now time.Time) {
		if now.After(s.rush.until) {
			s.rush.n = 0
		}
		s.rush = wanted{max(s.rush.n, n), now.Add(patience)}
	})
}

func (p *Pool) want(k Key, l Label, note func(*shelf, time.Time)) {
	if p.o.Booted == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	s := p.shelf(k)
	s.name, s.build = l.Template, l.Build
	note(s, time.Now())
	p.poke()
}

// keepBooted is how long a key is kept after a box of it was taken.
const keepBooted = remembered * time.Second

// TakeBooted is Take for the booted tier; l says for what. When one is just being
// made it waits for that, which is never longer than making another.
func (p *Pool) TakeBooted(ctx context.Context, k Key, l Label) (Box, bool) {
	if p.o.Booted == 0 {
		return nil, false
	}
	p.Want(k, l, keepBooted)
	box := p.await(ctx, k)
	p.taken(k, box != nil)
	return box, box != nil
}

// await takes a box that is there, or the next one that is made if nobody else
// waits for it.
func (p *Pool) await(ctx context.Context, k Key) Box {
	p.mu.Lock()
	s := p.shelves[k]
	if p.ended || s == nil {
		p.mu.Unlock()
		return nil
	}
	s.rush.n = max(s.rush.n-1, 0) // here is one that it was for
	switch {
	case len(s.boxes) > 0:
		it := s.boxes[0]
		p.remove(s, it)
		s.lent++
		p.mu.Unlock()
		return it.box
	case s.making <= len(s.waiters):
		p.mu.Unlock()
		return nil
	}
	w := make(chan Box, 1)
	s.waiters = append(s.waiters, w)
	p.mu.Unlock()
	select {
	case box := <-w: // nil when it could not be made
		return box
	case <-ctx.Done():
	}
	p.mu.Lock()
	for i, other := range s.waiters {
		if other == w {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			p.mu.Unlock()
			return nil
		}
	}
	p.mu.Unlock()
	if box := <-w; box != nil { // given at the same moment
		p.Return(k, box)
	}
	return nil
}

// give hands a box that was just made to the one who has waited longest; false
// when nobody does. The caller holds mu.
func (p *Pool) give(s *shelf, box Box) bool {
	if len(s.waiters) == 0 {
		return false
	}
	s.waiters[0] <- box
	s.waiters = s.waiters[1:]
	s.lent++
	return true
}

// dismiss tells those who wait for more boxes than are being made that there are
// none. The caller holds mu.
func (p *Pool) dismiss(s *shelf) {
	for len(s.waiters) > s.making {
		last := len(s.waiters) - 1
		close(s.waiters[last])
		s.waiters = s.waiters[:last]
	}
}

// parallel is how many boxes may be made now. The caller holds mu.
func (p *Pool) parallel(now time.Time) int {
	for _, s := range p.shelves {
		if s.rushed(now) {
			return max(p.o.Parallel, p.o.Most)
		}
	}
	return p.o.Parallel
}

// rushed reports whether somebody is about to take more than there will be.
func (s *shelf) rushed(now time.Time) bool {
	return now.Before(s.rush.until) && len(s.boxes)+s.making < s.rush.n
}

// dropBooted makes room for a hot box, by ending the oldest booted one; false
// when there is none. The caller is Run and holds mu.
func (p *Pool) dropBooted() bool {
	var oldest *shelf
	for _, s := range p.shelves {
		if s.key.Tier == Booted && len(s.boxes) > 0 && (oldest == nil || s.boxes[0].born.Before(oldest.boxes[0].born)) {
			oldest = s
		}
	}
	if oldest == nil {
		return false
	}
	p.drop(oldest)
	p.clear()
	return !p.full()
}

// targetBooted is how many booted boxes a key should have. The caller holds mu.
func (p *Pool) targetBooted(s *shelf, now time.Time) int {
	n := s.plan.At(now)
	for _, w := range []wanted{s.wanted, s.rush} {
		if now.Before(w.until) {
			n = max(n, w.n)
		}
	}
	return n
}
