package identity_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/store"
	"github.com/caisson-dev/caisson/store/storetest"
	"github.com/containerd/errdefs"
)

// counting counts look-ups and can pause them.
type counting struct {
	*store.Store
	lookups atomic.Int64
	paused  func()
}

func (c *counting) KeyByHash(ctx context.Context, hash string) (identity.Key, error) {
	c.lookups.Add(1)
	k, err := c.Store.KeyByHash(ctx, hash)
	if c.paused != nil {
		c.paused()
	}
	return k, err
}

func TestKeyLife(t *testing.T) {
	t.Parallel()
	s := &counting{Store: storetest.SQLite(t)}
	keys := identity.NewKeys(s)
	k, plain, err := keys.Create(t.Context(), "system", "other", "my key")
	if err != nil {
		t.Fatalf("Create() = %v", err)
	}
	text := plain.Reveal()
	if !regexp.MustCompile(`^e2b_[0-9a-f]{40}$`).MatchString(text) {
		t.Errorf("key is %q", text)
	}
	if k.Mask != text[:8]+"..."+text[40:] {
		t.Errorf("mask is %q", k.Mask)
	}
	for range 3 {
		who, err := keys.Authenticate(t.Context(), text)
		if err != nil || who != (identity.Principal{Team: "other", KeyID: k.ID}) {
			t.Errorf("Authenticate() = %+v, %v", who, err)
		}
	}
	if n := s.lookups.Load(); n != 1 {
		t.Errorf("%d look-ups, want 1", n)
	}
	if err := keys.Revoke(t.Context(), "system", identity.DefaultTeam, k.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Revoke() by another team = %v, want not found", err)
	}
	if err := keys.Revoke(t.Context(), "system", "other", k.ID); err != nil {
		t.Fatalf("Revoke() = %v", err)
	}
	if _, err := keys.Authenticate(t.Context(), text); !errdefs.IsUnauthorized(err) {
		t.Errorf("Authenticate(revoked) = %v, want unauthenticated", err)
	}
	if all, err := keys.List(t.Context(), "other"); err != nil || len(all) != 0 {
		t.Errorf("List() = %v, %v, want none", all, err)
	}
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	s := &counting{Store: storetest.SQLite(t)}
	keys := identity.NewKeys(s)
	_, plain, err := keys.Create(t.Context(), "system", identity.DefaultTeam, "")
	if err != nil {
		t.Fatal(err)
	}
	good := plain.Reveal()
	want := ""
	for _, bad := range []string{
		"", "e2b_", good + "0", good[:43], strings.ToUpper(good), " " + good, "sk_" + good, "e2b_" + strings.Repeat("0", 40), "e2b_" + strings.Repeat("é", 20),
	} {
		_, err := keys.Authenticate(t.Context(), bad)
		if !errdefs.IsUnauthorized(err) {
			t.Errorf("Authenticate(%q) = %v, want unauthenticated", bad, err)
			continue
		}
		if want == "" {
			want = err.Error()
		}
		if err.Error() != want {
			t.Errorf("Authenticate(%q) says %q, others %q", bad, err, want)
		}
	}
	if n := s.lookups.Load(); n != 1 {
		t.Errorf("%d look-ups for malformed keys, want one for the well-formed", n)
	}
	for _, name := range []string{strings.Repeat("x", 129), "a\x1b[2J", "\xff"} {
		if _, _, err := keys.Create(t.Context(), "system", identity.DefaultTeam, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Create(%q) = %v, want invalid argument", name, err)
		}
	}
	if _, _, err := keys.Create(t.Context(), "system", "nosuch", "x"); !errdefs.IsNotFound(err) {
		t.Errorf("Create(unknown team) = %v, want not found", err)
	}
}

// A look-up that began before a revocation must not put the key back into the
// cache after it.
func TestRevocationBeatsLookupInFlight(t *testing.T) {
	t.Parallel()
	s := &counting{Store: storetest.SQLite(t)}
	keys := identity.NewKeys(s)
	k, plain, err := keys.Create(t.Context(), "system", identity.DefaultTeam, "")
	if err != nil {
		t.Fatal(err)
	}
	found, revoked := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.paused = func() { once.Do(func() { close(found); <-revoked }) }
	first := make(chan struct{})
	go func() {
		defer close(first)
		keys.Authenticate(t.Context(), plain.Reveal()) //nolint:errcheck // either answer is right: it overlaps the revocation
	}()
	<-found
	if err := keys.Revoke(t.Context(), "system", identity.DefaultTeam, k.ID); err != nil {
		t.Fatal(err)
	}
	close(revoked)
	<-first
	if _, err := keys.Authenticate(t.Context(), plain.Reveal()); !errdefs.IsUnauthorized(err) {
		t.Errorf("Authenticate(revoked) = %v, want unauthenticated", err)
	}
}

func TestRevocationElsewhereAndLastUse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := storetest.SQLite(t)
		keys, elsewhere := identity.NewKeys(s), identity.NewKeys(s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- keys.Run(ctx) }()
		k, plain, err := keys.Create(t.Context(), "system", identity.DefaultTeam, "")
		if err != nil {
			t.Fatal(err)
		}
		used := time.Now()
		if _, err := keys.Authenticate(t.Context(), plain.Reveal()); err != nil {
			t.Fatal(err)
		}
		lastUse := func() time.Time {
			t.Helper()
			all, err := keys.List(t.Context(), identity.DefaultTeam)
			if err != nil || len(all) != 1 {
				t.Fatalf("List() = %v, %v", all, err)
			}
			return all[0].LastUsedAt
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if got := lastUse(); !got.Equal(used) {
			t.Errorf("LastUsedAt = %v, want %v", got, used)
		}
		again := time.Now()
		if _, err := keys.Authenticate(t.Context(), plain.Reveal()); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
		if got := lastUse(); !got.Equal(again) {
			t.Errorf("LastUsedAt after Run = %v, want %v", got, again)
		}
		if err := elsewhere.Revoke(t.Context(), "system", identity.DefaultTeam, k.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if _, err := keys.Authenticate(t.Context(), plain.Reveal()); !errdefs.IsUnauthorized(err) {
			t.Errorf("Authenticate() a second after another process revoked = %v, want unauthenticated", err)
		}
	})
}

func TestEnsureFirstKey(t *testing.T) {
	t.Parallel()
	s, dir := storetest.SQLite(t), t.TempDir()
	keys := identity.NewKeys(s)
	plain, created, err := keys.EnsureFirstKey(t.Context(), dir)
	if err != nil || !created {
		t.Fatalf("EnsureFirstKey() = %v, %v", created, err)
	}
	file := filepath.Join(dir, "api-key")
	text, err := os.ReadFile(file)
	st, err2 := os.Stat(file)
	if err != nil || err2 != nil || string(text) != plain.Reveal()+"\n" || st.Mode().Perm() != 0o600 {
		t.Errorf("api-key = %q, mode %v (%v, %v)", text, st.Mode(), err, err2)
	}
	if who, err := keys.Authenticate(t.Context(), plain.Reveal()); err != nil || who.Team != identity.DefaultTeam {
		t.Errorf("Authenticate(first key) = %+v, %v", who, err)
	}
	if again, created, err := keys.EnsureFirstKey(t.Context(), dir); created || !again.IsZero() || err != nil {
		t.Errorf("EnsureFirstKey(again) = %v, %v", created, err)
	}
	// A revoked first key is not replaced behind the operator's back.
	all, err := keys.List(t.Context(), identity.DefaultTeam)
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Revoke(t.Context(), "system", identity.DefaultTeam, all[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, created, err := keys.EnsureFirstKey(t.Context(), dir); created || err != nil {
		t.Errorf("EnsureFirstKey(after revocation) = %v, %v", created, err)
	}
	// A new database adopts the file.
	other := identity.NewKeys(storetest.SQLite(t))
	if adopted, created, err := other.EnsureFirstKey(t.Context(), dir); !created || err != nil || adopted.Reveal() != plain.Reveal() {
		t.Errorf("EnsureFirstKey(new database) = %v, %v, want the file's key", created, err)
	}
	for name, prepare := range map[string]func() error{
		"garbage": func() error { return write(file, "hello", 0o600) },
		"loose":   func() error { return write(file, plain.Reveal(), 0o644) },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := identity.NewKeys(storetest.SQLite(t)).EnsureFirstKey(t.Context(), dir); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: EnsureFirstKey() = %v, want failed precondition", name, err)
		}
	}
}
