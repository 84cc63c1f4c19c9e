package audit

import "sync"

// Notifier tells those who follow a log that rows about a sandbox were
// committed. It carries no rows: who is told reads the log. The audit log and
// the egress log have one each. Only writers of this process are heard. The
// zero value is ready; all methods are safe for concurrent use and never block.
type Notifier struct {
	mu        sync.Mutex // guards followers
	followers map[string]map[chan struct{}]struct{}
}

// Subscribe returns a channel that receives after rows about the sandbox were
// committed: once or more often for all that was committed since the last
// receive. Whoever subscribes before the first read misses nothing. cancel ends
// the subscription, must be called and may be called again; the channel is never
// closed.
func (n *Notifier) Subscribe(sandboxID string) (committed <-chan struct{}, cancel func()) {
	// One place is enough: a token that waits stands for every later commit too.
	c := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.followers == nil {
		n.followers = map[string]map[chan struct{}]struct{}{}
	}
	if n.followers[sandboxID] == nil {
		n.followers[sandboxID] = map[chan struct{}]struct{}{}
	}
	n.followers[sandboxID][c] = struct{}{}
	return c, func() { n.drop(sandboxID, c) }
}

// Committed wakes the sandbox's followers. The rows must be visible to readers
// when it is called.
func (n *Notifier) Committed(sandboxID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.followers[sandboxID] {
		select {
		case c <- struct{}{}:
		default: // has not read since the last one
		}
	}
}

func (n *Notifier) drop(sandboxID string, c chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.followers[sandboxID], c)
	if len(n.followers[sandboxID]) == 0 {
		delete(n.followers, sandboxID)
	}
}
