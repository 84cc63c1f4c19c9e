package sandbox

import (
	"container/heap"
	"context"
	"time"

	"github.com/caisson-dev/caisson/audit"
)

const (
	// clockCheck bounds how long the reaper trusts the monotonic clock: a
	// machine that was suspended, or whose clock was set, is noticed after this.
	clockCheck = 30 * time.Second
	// endsAtOnce bounds boxes that the reaper destroys at a time.
	endsAtOnce = 16
)

// deadlines is a heap of live entries by their end, for container/heap.
type deadlines []*entry

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].endsAt.Before(d[j].endsAt) }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

// Push implements heap.Interface.
func (d *deadlines) Push(x any) {
	e := x.(*entry) //nolint:forcetypeassert // only entries are pushed
	e.place = len(*d)
	*d = append(*d, e)
}

// Pop implements heap.Interface.
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	e := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	e.place = -1
	return e
}

// poke makes the reaper look at the earliest deadline again.
func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// moveDeadline gives a live entry another end and returns the old one; false
// when it is not live any more. With onlyLater an end that is not later changes
// nothing.
func (m *Manager) moveDeadline(e *entry, to time.Time, onlyLater bool) (old time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.phase != live {
		return time.Time{}, false
	}
	old = e.endsAt
	if onlyLater && !to.After(old) {
		return old, true
	}
	e.endsAt = to
	heap.Fix(&m.deadlines, e.place)
	m.poke()
	return old, true
}

// reap ends sandboxes when their time has come. It sleeps until the earliest
// deadline.
func (m *Manager) reap(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	ends := make(chan struct{}, endsAtOnce)
	for {
		select {
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			return
		}
		due, save, next := m.due(time.Now())
		for _, e := range save {
			m.tasks.add(func(ctx context.Context) {
				select {
				case ends <- struct{}{}:
					m.save(ctx, e, e.atEnd.kind(), "system", ReasonTimeout) // logged there
					<-ends
				case <-ctx.Done():
				}
			})
		}
		for _, e := range due {
			m.tasks.add(func(ctx context.Context) {
				// It is unreachable already; what is left to do can queue. A
				// server that stops meanwhile ends it when it starts again.
				select {
				case ends <- struct{}{}:
					_ = m.finishEnd(ctx, e, audit.Event{}, true) // logged there; the sweep retries
					<-ends
				case <-ctx.Done():
				}
			})
		}
		timer.Reset(next)
	}
}

// due marks every entry whose time has come as ending or pausing, and returns
// them and how long to sleep.
func (m *Manager) due(now time.Time) (due, save []*entry, next time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.deadlines) > 0 {
		e := m.deadlines[0]
		if left := e.endsAt.Sub(now); left > 0 {
			return due, save, min(left, clockCheck)
		}
		if e.atEnd.pause {
			m.beginSave(e) // takes it off the heap
			save = append(save, e)
			continue
		}
		e.why, e.by = ReasonTimeout, "system"
		m.markGone(e) // takes it off the heap
		due = append(due, e)
	}
	return due, save, clockCheck
}
