package audit_test

import (
	"sync"
	"testing"

	"github.com/caisson-dev/caisson/audit"
)

// told reports whether a token waits, and takes it.
func told(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestNotifier(t *testing.T) {
	t.Parallel()
	var n audit.Notifier
	n.Committed("a") // nobody listens
	one, cancelOne := n.Subscribe("a")
	two, cancelTwo := n.Subscribe("a")
	other, cancelOther := n.Subscribe("b")
	defer cancelOther()
	if told(one) {
		t.Error("a new follower is told of what was before")
	}
	for range 3 {
		n.Committed("a")
	}
	if !told(one) || !told(two) {
		t.Error("a follower was not told")
	}
	if told(one) || told(two) {
		t.Error("commits that nobody has read of are told one by one")
	}
	if told(other) {
		t.Error("a follower of another sandbox was told")
	}
	cancelOne()
	cancelOne()
	n.Committed("a")
	if told(one) || !told(two) {
		t.Error("one follower's cancel must end its own subscription, and no other")
	}
	cancelTwo()
	n.Committed("a")
	if told(two) {
		t.Error("told after cancel")
	}
}

// A commit between a follower's receive and its read is told again.
func TestNotifierLosesNothing(t *testing.T) {
	t.Parallel()
	const commits = 10_000
	var n audit.Notifier
	var mu sync.Mutex
	rows := 0
	committed, cancel := n.Subscribe("a")
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		for range commits {
			mu.Lock()
			rows++
			mu.Unlock()
			n.Committed("a")
		}
	})
	for seen := 0; seen < commits; {
		<-committed // blocks for ever if a wake-up is lost
		mu.Lock()
		seen = rows
		mu.Unlock()
	}
	wg.Wait()
}
