package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/caisson-dev/caisson/secret"
	"github.com/containerd/errdefs"
)

const (
	seedName  = "seed"
	seedBytes = 32
)

// Seed is the installation's master secret. Every token of a sandbox derives
// from it, so tokens are not stored and survive restarts; whoever loses the
// file loses the tokens of running sandboxes, hence it belongs in backups.
// The zero Seed derives nothing. A Seed prints as "[redacted]", also inside of
// other values: fmt shows a nested pointer by its address.
type Seed struct{ key *[seedBytes]byte }

// String implements fmt.Stringer.
func (Seed) String() string { return secret.Value{}.String() }

// GoString implements fmt.GoStringer.
func (Seed) GoString() string { return secret.Value{}.GoString() }

// LogValue implements slog.LogValuer.
func (Seed) LogValue() slog.Value { return secret.Value{}.LogValue() }

// LoadSeed reads DIR/seed, creating it (mode 0600) if it is absent. A file that
// others may read, or that does not hold 64 hex digits, is
// errdefs.ErrFailedPrecondition. Processes that start together get one seed.
func LoadSeed(dir string) (Seed, error) {
	path := filepath.Join(dir, seedName)
	text, err := readPrivate(path, 2*seedBytes+1)
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, seedBytes)
		rand.Read(raw) //nolint:errcheck // crypto/rand.Read never fails: it crashes the program instead
		err = writePrivate(path, hex.EncodeToString(raw)+"\n")
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return Seed{}, fmt.Errorf("create seed: %w", err)
		}
		text, err = readPrivate(path, 2*seedBytes+1)
	}
	if err != nil {
		return Seed{}, fmt.Errorf("read seed: %w", err)
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != seedBytes {
		return Seed{}, fmt.Errorf("seed file %s does not hold %d hex digits; restore it from a backup: %w",
			path, 2*seedBytes, errdefs.ErrFailedPrecondition)
	}
	return Seed{key: (*[seedBytes]byte)(raw)}, nil
}

// NewSeed makes a Seed that is not kept anywhere, for tests.
func NewSeed() Seed {
	var raw [seedBytes]byte
	rand.Read(raw[:]) //nolint:errcheck // crypto/rand.Read never fails: it crashes the program instead
	return Seed{key: &raw}
}

// AgentToken guards a sandbox's agent on port 49983.
func (s Seed) AgentToken(sandboxID string) secret.Value { return s.Derive("agent-token/", sandboxID) }

// TrafficToken guards a sandbox's other ports when its traffic is private.
func (s Seed) TrafficToken(sandboxID string) secret.Value {
	return s.Derive("traffic-token/", sandboxID)
}

// Derive returns 64 hex digits: HMAC-SHA256 of kind and id under the seed. Two
// kinds never collide as long as every kind ends in "/" and no id holds one.
// The zero Seed panics: a token that anyone can compute must never exist.
func (s Seed) Derive(kind, id string) secret.Value {
	if s.key == nil {
		panic("identity: token derived from the zero Seed")
	}
	mac := hmac.New(sha256.New, s.key[:])
	io.WriteString(mac, kind+id) //nolint:errcheck // a hash never fails to write
	return secret.New(hex.EncodeToString(mac.Sum(nil)))
}

// readPrivate returns the trimmed text of a regular file of at most limit
// bytes that only its owner may read.
func readPrivate(path string, limit int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file: %w", path, errdefs.ErrFailedPrecondition)
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %04o and may be read by others; run: chmod 600 %s: %w",
			path, perm, path, errdefs.ErrFailedPrecondition)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(b)) > limit {
		return "", fmt.Errorf("%s is longer than %d bytes: %w", path, limit, errdefs.ErrFailedPrecondition)
	}
	return strings.TrimSpace(string(b)), nil
}

// writePrivate creates path with mode 0600, complete or not at all; fs.ErrExist
// when there is one already.
func writePrivate(path, text string) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // a leftover holds no more than the real file
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	// Unlike rename, link never replaces what another process wrote first.
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
