package storetest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/store"
)

func withKey(key string) sandbox.Sandbox {
	sb := Sandbox()
	sb.Idempotency = sandbox.Idempotency{Key: key, Fingerprint: "f", Until: sb.CreatedAt.Add(time.Hour)}
	return sb
}

func idempotencyKeys(t *testing.T, s *store.Store) {
	first := insert(t, s, withKey("k"))
	got, err := s.ByKey(t.Context(), identity.DefaultTeam, "k")
	if err != nil || got.ID != first.ID || got.Idempotency != first.Idempotency {
		t.Errorf("ByKey() = %s %+v, %v, want %s %+v", got.ID, got.Idempotency, err, first.ID, first.Idempotency)
	}
	insert(t, s, Sandbox())
	insert(t, s, Sandbox()) // any number without a key
	for team, key := range map[identity.TeamID]string{identity.DefaultTeam: "", "other": "k"} {
		if _, err := s.ByKey(t.Context(), team, key); !errdefs.IsNotFound(err) {
			t.Errorf("ByKey(%s, %q) = %v, want not found", team, key, err)
		}
	}
	refused := withKey("k")
	if err := s.Insert(t.Context(), refused, 0, Created()); !errors.Is(err, sandbox.ErrKeyTaken) {
		t.Errorf("Insert(same key) = %v, want ErrKeyTaken", err)
	}
	if _, err := s.Get(t.Context(), refused.ID); !errdefs.IsNotFound(err) {
		t.Errorf("the refused record: %v, want not found", err)
	}
	if events, err := s.Events(t.Context(), audit.Filter{SandboxID: string(refused.ID)}); err != nil || len(events) != 0 {
		t.Errorf("the refused record has events %v, %v", events, err)
	}
	other := withKey("k")
	other.Team = "other"
	insert(t, s, other)

	// One that ended keeps its key; one that failed, and one whose time with it
	// is over, lose it to the next.
	become(t, s, first.ID, sandbox.Running, sandbox.Killing, sandbox.Killed)
	if err := s.Insert(t.Context(), withKey("k"), 0, Created()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Insert(key of an ended one) = %v, want already exists", err)
	}
	failed := insert(t, s, withKey("failed"))
	become(t, s, failed.ID, sandbox.Failed)
	second := insert(t, s, withKey("failed"))
	if got, err := s.ByKey(t.Context(), identity.DefaultTeam, "failed"); err != nil || got.ID != second.ID {
		t.Errorf("ByKey() after a failure = %s, %v, want %s", got.ID, err, second.ID)
	}
	if got, err := s.Get(t.Context(), failed.ID); err != nil || got.Idempotency.Key != "" || got.State != sandbox.Failed {
		t.Errorf("the failed one is %s with key %q, %v", got.State, got.Idempotency.Key, err)
	}
	late := withKey("k")
	late.CreatedAt = first.Idempotency.Until
	late.Idempotency.Until = late.CreatedAt.Add(time.Hour)
	insert(t, s, late)

	// A record can give its key up.
	if _, err := s.Mutate(t.Context(), second.ID, func(sb *sandbox.Sandbox) (audit.Event, error) {
		sb.Idempotency.Key = ""
		return audit.Event{Type: "x"}, nil
	}); err != nil {
		t.Fatal(err)
	}
	insert(t, s, withKey("failed"))
}

func idempotencyKeyRace(t *testing.T, s *store.Store) {
	var ok atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			switch err := s.Insert(t.Context(), withKey("k"), 0, Created()); {
			case err == nil:
				ok.Add(1)
			case !errdefs.IsAlreadyExists(err):
				t.Errorf("Insert() = %v", err)
			}
		})
	}
	wg.Wait()
	if ok.Load() != 1 {
		t.Errorf("%d inserted with one key, want 1", ok.Load())
	}
}

// idempotencyKeyPrune: an ended record stays as long as its key means it.
func idempotencyKeyPrune(t *testing.T, s *store.Store) {
	kept, over := withKey("kept"), withKey("over")
	over.Idempotency.Until = now().Add(-time.Second)
	for _, sb := range []sandbox.Sandbox{kept, over} {
		insert(t, s, sb)
		become(t, s, sb.ID, sandbox.Running, sandbox.Killed)
	}
	if n, err := s.Prune(t.Context(), now().Add(time.Minute)); n != 1 || err != nil {
		t.Errorf("Prune() = %d, %v, want 1", n, err)
	}
	if _, err := s.ByKey(t.Context(), identity.DefaultTeam, "kept"); err != nil {
		t.Errorf("ByKey(kept) = %v", err)
	}
	if _, err := s.Get(t.Context(), over.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Get(over) = %v, want not found", err)
	}
}
