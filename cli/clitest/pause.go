package clitest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caisson-dev/caisson/client"
)

// savedBytes is the size of everything that a stand-in saves.
const savedBytes = 45 << 20

// pause makes a box unreachable. Nothing is saved and its agent runs on: what
// becomes of processes and files is the business of tests on a real server.
func (b *box) pause(filesOnly bool) {
	b.sb.State, b.sb.PausedAt, b.sb.EndsAt = client.Paused, time.Now(), time.Time{}
	b.sb.Saved = &client.Saved{Kind: client.SavedMemory, SizeBytes: savedBytes}
	if filesOnly {
		b.sb.Saved.Kind = client.SavedFiles
	}
	if !b.wakes() {
		b.sb.AgentToken = ""
	}
	b.log("sandbox.paused", "")
	b.cut()
}

// resume makes it reachable; one that is running lives at least d from now.
func (b *box) resume(d time.Duration) {
	end := time.Now().Add(d)
	if b.sb.State == client.Paused {
		b.streams, b.cut = context.WithCancel(context.WithoutCancel(b.streams))
		b.sb.State, b.sb.PausedAt, b.sb.Saved = client.Running, time.Time{}, nil
		b.sb.AgentToken, b.sb.StartedAt = b.token, time.Now()
		b.log("sandbox.resumed", "")
	}
	if end.After(b.sb.EndsAt) {
		b.sb.EndsAt = end
	}
}

// wakes reports whether traffic resumes the box now.
func (b *box) wakes() bool {
	return b.sb.State == client.Paused && b.sb.Lifecycle.AutoResume && b.sb.Saved.Kind == client.SavedMemory
}

// is refuses a request that a box in another state than these does not take.
func (b *box) is(w http.ResponseWriter, states ...client.State) bool {
	switch {
	case slices.Contains(states, b.sb.State):
		return true
	case b.ended():
		refuse(w, 404, fmt.Sprintf("sandbox %q doesn't exist", b.sb.ID))
	default:
		refuse(w, 409, fmt.Sprintf("sandbox %q is %s", b.sb.ID, b.sb.State))
	}
	return false
}
