package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/containerd/errdefs"
)

// KeyField is how errors name the idempotency key of a request.
const KeyField = "Idempotency-Key"

const (
	maxKey = 255
	// keyTries bounds how often a create looks again at what has its key, when
	// that ended or failed while it looked.
	keyTries = 8
)

// ErrKeyTaken is what Store.Insert says of an idempotency key that another
// record has.
var ErrKeyTaken = fmt.Errorf("idempotency key is taken: %w", errdefs.ErrAlreadyExists)

// Idempotency is the key of a create and what it stands for.
type Idempotency struct {
	// Key is empty for a sandbox that was created without one, and for one whose
	// create failed.
	Key string
	// Fingerprint tells requests apart. It is made under the installation's seed:
	// a request may hold secrets, and few bits would be guessed from a plain hash.
	Fingerprint string
	// Until is when the key means nothing any more.
	Until time.Time
}

// attemptKey names an attempt.
type attemptKey struct {
	team identity.TeamID
	key  string
}

// attempt is one create or fork with a key that is under way in this process.
// All calls with the key share it; it goes on as long as one of them is there.
type attempt struct {
	mark string
	// done is closed when out and err are set.
	done chan struct{}
	out  []Forked
	err  error

	// callers are those that wait for it, guarded by Manager.mu. Without any it is
	// given up, and nobody may join it.
	callers int
	abandon context.CancelCauseFunc
}

// CheckKey refuses a key that is not 1 to 255 printable ASCII characters.
func CheckKey(key string) error {
	if len(key) == 0 || len(key) > maxKey || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return apierr.Field(KeyField, "must be 1 to %d printable ASCII characters", maxKey).WithCode("idempotency_key_invalid")
	}
	return nil
}

// fingerprint is the same for requests that ask for the same.
func (m *Manager) fingerprint(r any) (string, error) {
	text, err := json.Marshal(r) // maps are sorted
	if err != nil {
		return "", fmt.Errorf("fingerprint of the request: %w", err)
	}
	sum := sha256.Sum256(text)
	return m.deps.Seed.Derive("idempotency/", hex.EncodeToString(sum[:])).Reveal(), nil
}

// createOnce is Create for a request with a key.
func (m *Manager) createOnce(ctx context.Context, who identity.Principal, r CreateRequest) (Sandbox, error) {
	if who.Team == "" {
		return Sandbox{}, fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
	}
	if err := CheckKey(r.IdempotencyKey); err != nil {
		return Sandbox{}, err
	}
	mark, err := m.fingerprint(r)
	if err != nil {
		return Sandbox{}, err
	}
	out, err := m.once(ctx, attemptKey{who.Team, r.IdempotencyKey}, mark, func(ctx context.Context) ([]Forked, error) {
		sb, err := m.createKeyed(ctx, who, r, mark)
		return []Forked{{Sandbox: sb}}, err
	})
	if err != nil {
		return Sandbox{}, err
	}
	return out[0].Sandbox, nil
}

// once does the work of a key, or waits for the call that does it already.
func (m *Manager) once(ctx context.Context, k attemptKey, mark string, work func(context.Context) ([]Forked, error)) ([]Forked, error) {
	for {
		a, role := m.join(k, mark)
		if role == leads {
			return m.lead(ctx, a, k, work)
		}
		if a.mark != mark {
			return nil, errReused()
		}
		select {
		case <-a.done:
			if role == follows {
				return slices.Clone(a.out), a.err
			}
		case <-ctx.Done():
			if role == follows {
				m.quit(a, context.Cause(ctx))
			}
			return nil, context.Cause(ctx)
		}
	}
}

// role is what a call is to an attempt.
type role int

const (
	leads   role = iota // it does the work
	follows             // it waits for the result
	watches             // it waits for the end, to try itself
)

// join returns the attempt under way, or a new one that the caller must lead.
func (m *Manager) join(k attemptKey, mark string) (*attempt, role) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a := m.attempts[k]
	switch {
	case a == nil:
		a = &attempt{mark: mark, done: make(chan struct{}), callers: 1}
		m.attempts[k] = a
		return a, leads
	case a.mark != mark || a.callers == 0:
		return a, watches
	}
	a.callers++
	return a, follows
}

// quit says that one caller has gone; without any the attempt is given up.
func (m *Manager) quit(a *attempt, cause error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.callers--; a.callers == 0 && a.abandon != nil {
		a.abandon(cause)
	}
}

// lead does the work of an attempt. It goes on when its own caller goes away
// and another one waits.
func (m *Manager) lead(ctx context.Context, a *attempt, k attemptKey, work func(context.Context) ([]Forked, error)) ([]Forked, error) {
	shared, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	m.mu.Lock()
	a.abandon = abandon
	m.mu.Unlock()
	gone := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(gone)
		m.quit(a, context.Cause(ctx))
	})
	defer func() {
		if !stop() {
			<-gone
		}
		m.mu.Lock()
		delete(m.attempts, k)
		m.mu.Unlock()
		abandon(nil)
		close(a.done)
	}()
	a.err = errdefs.ErrInternal // what followers see if this panics
	out, err := work(shared)
	if err != nil {
		out = nil
	}
	a.out, a.err = out, err
	return out, err
}

// createKeyed returns the sandbox that has the key, or makes it.
func (m *Manager) createKeyed(ctx context.Context, who identity.Principal, r CreateRequest, mark string) (Sandbox, error) {
	for range keyTries {
		sb, found, err := m.keyed(ctx, who, r.IdempotencyKey, mark)
		if found || err != nil {
			return sb, err
		}
		sb, err = m.create(ctx, who, r, mark)
		if !errors.Is(err, ErrKeyTaken) {
			return sb, err
		}
	}
	return Sandbox{}, errUnsettled()
}

// keyed finds the sandbox that has a key, once it runs. Without an error and
// found the key is free.
func (m *Manager) keyed(ctx context.Context, who identity.Principal, key, mark string) (_ Sandbox, found bool, err error) {
	for range keyTries {
		sb, err := m.deps.Store.ByKey(ctx, who.Team, key)
		if errdefs.IsNotFound(err) || err == nil && (sb.State == Failed || !sb.Idempotency.Until.After(clock())) {
			return Sandbox{}, false, nil
		}
		if err != nil {
			return Sandbox{}, false, err
		}
		got, again, err := m.replay(ctx, who, sb, mark)
		if !again {
			return got, err == nil, err
		}
	}
	return Sandbox{}, false, errUnsettled()
}

func errUnsettled() error {
	return fmt.Errorf("the sandbox of this %s changes too quickly, try again: %w", KeyField, errdefs.ErrConflict)
}

// replay answers a create with the sandbox that has its key, when it runs; again
// says that the record has changed and decides anew.
func (m *Manager) replay(ctx context.Context, who identity.Principal, sb Sandbox, mark string) (_ Sandbox, again bool, err error) {
	switch {
	case sb.Idempotency.Fingerprint != mark:
		return Sandbox{}, false, errReused()
	case sb.State.Ended() || sb.State == Killing:
		return Sandbox{}, false, keyError("idempotency_key_ended",
			"sandbox %q, which this key created, has ended (%s): use a new key to create another", sb.ID, sb.Reason)
	case sb.Node != m.cfg.Node:
		return Sandbox{}, false, fmt.Errorf("sandbox %q, which this key created, is on another server, %q: %w", sb.ID, sb.Node, errdefs.ErrUnavailable)
	}
	e, err := m.find(ctx, who, sb.ID) // takes over what an earlier process left
	switch {
	case errors.As(err, new(pausedError)):
		return Sandbox{}, false, keyError("idempotency_key_paused",
			"sandbox %q, which this key created, is paused: connect to it to resume it", sb.ID)
	case errdefs.IsNotFound(err):
		return Sandbox{}, true, nil
	case err != nil:
		return Sandbox{}, false, err
	}
	var wait <-chan struct{}
	switch m.phaseOf(e) {
	case live:
		sb, err = m.deps.Store.Get(ctx, sb.ID)
		return sb, false, err
	case starting:
		wait = e.ready
	default:
		wait = e.done
	}
	patience := time.NewTimer(m.cfg.SaveTimeout)
	defer patience.Stop()
	select {
	case <-wait:
		return Sandbox{}, true, nil
	case <-patience.C:
		return Sandbox{}, false, fmt.Errorf("sandbox %q, which this key created, is neither running nor ended: %w", sb.ID, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return Sandbox{}, false, context.Cause(ctx)
	}
}

func errReused() error {
	e := apierr.New(apierr.ErrUnprocessable, "%s: was used for another request: use a new key for each sandbox", KeyField).WithCode("idempotency_key_reused")
	e.Field = KeyField
	return e
}

func keyError(code, format string, args ...any) error {
	e := apierr.New(errdefs.ErrConflict, KeyField+": "+format, args...).WithCode(code)
	e.Field = KeyField
	return e
}
