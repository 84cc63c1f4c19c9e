package process

import (
	"sync"

	pb "github.com/caisson-dev/caisson/gen/process"
)

// subscriberQueue is how many events, of at most 32 KiB each, wait for one
// subscriber before its process is slowed down.
const subscriberQueue = 4

// hub hands the events of one process to all who listen.
type hub struct {
	mu     sync.Mutex // guards subs and closed
	subs   []*subscriber
	closed bool
}

type subscriber struct {
	hub    *hub
	events chan *pb.ProcessEvent
	gone   chan struct{}
	once   sync.Once
}

// join adds a subscriber to all later events; false when the end event has
// been published.
func (h *hub) join() (*subscriber, bool) {
	s := &subscriber{hub: h, events: make(chan *pb.ProcessEvent, subscriberQueue), gone: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, false
	}
	h.subs = append(h.subs, s)
	return s, true
}

// leave ends the subscription and frees a publisher that waits for it.
// Idempotent.
func (s *subscriber) leave() {
	s.once.Do(func() {
		close(s.gone)
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		for i, other := range s.hub.subs {
			if other == s {
				// A new slice: a publisher may be walking the old one.
				s.hub.subs = append(s.hub.subs[:i:i], s.hub.subs[i+1:]...)
				return
			}
		}
	})
}

// listeners returns a slice that nobody changes.
func (h *hub) listeners() []*subscriber {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.subs[:len(h.subs):len(h.subs)]
}

// publish waits until every listener has taken ev or left.
func (h *hub) publish(ev *pb.ProcessEvent) { deliver(h.listeners(), ev) }

// finish publishes the last event; no one can join any more.
func (h *hub) finish(ev *pb.ProcessEvent) {
	h.mu.Lock()
	h.closed = true
	subs := h.subs
	h.mu.Unlock()
	deliver(subs, ev)
}

func deliver(subs []*subscriber, ev *pb.ProcessEvent) {
	for _, s := range subs {
		select {
		case s.events <- ev:
		case <-s.gone:
		}
	}
}
