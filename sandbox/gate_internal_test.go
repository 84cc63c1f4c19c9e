package sandbox

import (
	"context"
	"testing"
	"testing/synctest"
)

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g gate
		leave := g.enter(t.Context(), nil)
		empty := g.close()
		if closed(empty) {
			t.Error("empty while somebody is inside")
		}
		passed := make(chan struct{})
		go func() { defer close(passed); g.enter(t.Context(), nil)() }()
		synctest.Wait()
		if closed(passed) {
			t.Error("somebody passed a shut gate")
		}
		leave()
		if !closed(empty) {
			t.Error("not empty after the last has left")
		}
		g.open()
		<-passed
		if !closed(g.close()) {
			t.Error("an empty gate is not empty")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g.enter(ctx, nil)() // gives up, and does not count
		gone := make(chan struct{})
		close(gone)
		g.enter(t.Context(), gone)()
		g.open()
		// One who is inside over two closings is counted once.
		leave = g.enter(t.Context(), nil)
		g.close()
		g.open()
		empty = g.close()
		leave()
		if !closed(empty) || g.inside != 0 {
			t.Errorf("%d are inside", g.inside)
		}
		g.open()
	})
}
