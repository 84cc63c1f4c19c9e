package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/caisson-dev/caisson/secret"
	"github.com/containerd/errdefs"
)

const (
	keyPrefix  = "e2b_"
	keyDigits  = 40
	keyFile    = "api-key"
	maxKeyName = 128
	maxCached  = 1024
	// cacheFor bounds how long a key that another process revoked in the
	// shared database still works here. In this process revocation is at once.
	cacheFor      = time.Second
	flushInterval = 30 * time.Second
)

// Key is an API key without its secret.
type Key struct {
	ID   string `json:"id"`
	Team TeamID `json:"team"`
	Name string `json:"name"`
	// Mask shows the first and last digits, to tell keys apart.
	Mask       string    `json:"mask"`
	CreatedAt  time.Time `json:"createdAt"`
	LastUsedAt time.Time `json:"lastUsedAt,omitzero"` // exact to a minute
}

// KeyStore keeps keys by their hash; implemented by package store. Changes
// write an audit event in the same transaction.
type KeyStore interface {
	InsertKey(ctx context.Context, k Key, hash, actor string) error
	// KeyByHash finds a key that is not revoked; errdefs.ErrNotFound otherwise.
	KeyByHash(ctx context.Context, hash string) (Key, error)
	ListKeys(ctx context.Context, team TeamID) ([]Key, error)
	// CountKeys counts all that were ever made, revoked ones too.
	CountKeys(ctx context.Context) (int, error)
	RevokeKey(ctx context.Context, team TeamID, id string, at time.Time, actor string) error
	TouchKeys(ctx context.Context, used map[string]time.Time) error
}

// Keys makes, checks and revokes API keys. Methods are safe for concurrent use.
type Keys struct {
	store KeyStore

	mu     sync.Mutex // guards what follows
	cached map[[sha256.Size]byte]cachedKey
	// epoch grows with every revocation; a lookup that began in an older one
	// must not be cached.
	epoch uint64
	used  map[string]time.Time // key id → last use not yet written
}

type cachedKey struct {
	key   Key
	until time.Time
}

// NewKeys returns a service over s. Run writes the times of last use.
func NewKeys(s KeyStore) *Keys {
	return &Keys{store: s, cached: map[[sha256.Size]byte]cachedKey{}, used: map[string]time.Time{}}
}

// Create makes a key for a team. The plain key is returned this once and not
// kept.
func (k *Keys) Create(ctx context.Context, actor string, team TeamID, name string) (Key, secret.Value, error) {
	raw := make([]byte, keyDigits/2)
	rand.Read(raw) //nolint:errcheck // crypto/rand.Read never fails: it crashes the program instead
	plain := secret.New(keyPrefix + hex.EncodeToString(raw))
	key, err := k.insert(ctx, actor, team, name, plain)
	if err != nil {
		return Key{}, secret.Value{}, err
	}
	return key, plain, nil
}

func (k *Keys) insert(ctx context.Context, actor string, team TeamID, name string, plain secret.Value) (Key, error) {
	if len(name) > maxKeyName || !utf8.ValidString(name) || strings.ContainsFunc(name, isControl) {
		return Key{}, fmt.Errorf("key name must be printable text of at most %d bytes: %w", maxKeyName, errdefs.ErrInvalidArgument)
	}
	text := plain.Reveal()
	sum := sha256.Sum256([]byte(text))
	key := Key{
		ID:        "k" + strings.ToLower(rand.Text())[:15],
		Team:      team,
		Name:      name,
		Mask:      text[:len(keyPrefix)+4] + "..." + text[len(text)-4:],
		CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
	}
	if err := k.store.InsertKey(ctx, key, hex.EncodeToString(sum[:]), actor); err != nil {
		return Key{}, fmt.Errorf("store key: %w", err)
	}
	return key, nil
}

func isControl(r rune) bool { return r < ' ' || (r >= 0x7f && r < 0xa0) }

// List returns a team's keys that are not revoked, oldest first.
func (k *Keys) List(ctx context.Context, team TeamID) ([]Key, error) {
	return k.store.ListKeys(ctx, team)
}

// Revoke ends a key of the team: when it returns, Authenticate refuses the key.
// errdefs.ErrNotFound for an unknown or already revoked one.
func (k *Keys) Revoke(ctx context.Context, actor string, team TeamID, id string) error {
	if err := k.store.RevokeKey(ctx, team, id, time.Now(), actor); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epoch++
	maps.DeleteFunc(k.cached, func(_ [sha256.Size]byte, c cachedKey) bool { return c.key.ID == id })
	return nil
}

// Authenticate finds the caller behind a key as sent in a header. Anything but
// a valid key is errdefs.ErrUnauthenticated, with one text for all causes.
func (k *Keys) Authenticate(ctx context.Context, header string) (Principal, error) {
	if !wellFormed(header) {
		return Principal{}, errBadKey()
	}
	sum := sha256.Sum256([]byte(header))
	now := time.Now()
	who, epoch, ok := k.fromCache(sum, now)
	if ok {
		return who, nil
	}
	key, err := k.store.KeyByHash(ctx, hex.EncodeToString(sum[:]))
	if errdefs.IsNotFound(err) {
		return Principal{}, errBadKey()
	}
	if err != nil {
		return Principal{}, fmt.Errorf("look up key: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.used[key.ID] = now
	if k.epoch == epoch {
		if len(k.cached) >= maxCached {
			clear(k.cached)
		}
		k.cached[sum] = cachedKey{key: key, until: now.Add(cacheFor)}
	}
	return Principal{Team: key.Team, KeyID: key.ID}, nil
}

func (k *Keys) fromCache(sum [sha256.Size]byte, now time.Time) (who Principal, epoch uint64, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.cached[sum]
	if !ok || !now.Before(c.until) {
		return Principal{}, k.epoch, false
	}
	k.used[c.key.ID] = now
	return Principal{Team: c.key.Team, KeyID: c.key.ID}, k.epoch, true
}

func wellFormed(s string) bool {
	digits, ok := strings.CutPrefix(s, keyPrefix)
	return ok && len(digits) == keyDigits && !strings.ContainsFunc(digits, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'f')
	})
}

func errBadKey() error {
	return fmt.Errorf("api key is missing, unknown or revoked: %w", errdefs.ErrUnauthenticated)
}

// Run writes times of last use now and then, until ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	t := time.NewTicker(flushInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			k.flush(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			k.flush(last)
			return nil
		}
	}
}

// flush writes the times of last use; what cannot be written is kept for the
// next time.
func (k *Keys) flush(ctx context.Context) {
	k.mu.Lock()
	used := k.used
	k.used = map[string]time.Time{}
	k.mu.Unlock()
	if len(used) == 0 || k.store.TouchKeys(ctx, used) == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, at := range used {
		if k.used[id].Before(at) {
			k.used[id] = at
		}
	}
}

// EnsureFirstKey makes the installation's first key, of DefaultTeam, when none
// was ever made, and writes it to DIR/api-key (mode 0600). A well-formed key
// that the file already holds is adopted, so that an operator can choose it.
// The plain key is returned only when created is true; print it once.
func (k *Keys) EnsureFirstKey(ctx context.Context, dir string) (plain secret.Value, created bool, err error) {
	n, err := k.store.CountKeys(ctx)
	if err != nil {
		return secret.Value{}, false, fmt.Errorf("count keys: %w", err)
	}
	if n > 0 {
		return secret.Value{}, false, nil
	}
	// The file comes first: after a crash in between the next start adopts it.
	path := filepath.Join(dir, keyFile)
	text, err := readPrivate(path, 1024)
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, keyDigits/2)
		rand.Read(raw) //nolint:errcheck // crypto/rand.Read never fails: it crashes the program instead
		text = keyPrefix + hex.EncodeToString(raw)
		err = writePrivate(path, text+"\n")
	}
	if err != nil {
		return secret.Value{}, false, fmt.Errorf("first key: %w", err)
	}
	if !wellFormed(text) {
		return secret.Value{}, false, fmt.Errorf("%s does not hold %s and %d hex digits; delete it to get a new key: %w",
			path, keyPrefix, keyDigits, errdefs.ErrFailedPrecondition)
	}
	plain = secret.New(text)
	if _, err := k.insert(ctx, System.KeyID, DefaultTeam, "first key", plain); err != nil {
		return secret.Value{}, false, err
	}
	return plain, true, nil
}
