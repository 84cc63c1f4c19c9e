// Package session holds what the agent learned from Init: who the sandbox is,
// its token, variables, defaults and limits. All services read it; only the
// control channel writes it.
package session

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/caisson-dev/caisson/agent/account"
	"github.com/caisson-dev/caisson/agent/control"
)

// EventsAddress is the in-sandbox host endpoint that E2B programs know.
const EventsAddress = "http://192.0.2.1"

// Session is the current identity, or none. Safe for concurrent use.
type Session struct {
	Accounts *account.Database

	now atomic.Pointer[identity]
	// forgotten is closed by the Bind after a Forget.
	forgotten atomic.Pointer[chan struct{}]
}

type identity struct {
	init control.Init
	env  map[string]string
}

// New returns a session without an identity.
func New(db *account.Database) *Session { return &Session{Accounts: db} }

// Bind takes in as the identity.
func (s *Session) Bind(in control.Init) {
	env := map[string]string{
		"E2B_SANDBOX":        "true",
		"E2B_SANDBOX_ID":     in.SandboxID,
		"E2B_TEMPLATE_ID":    in.TemplateID,
		"E2B_EVENTS_ADDRESS": EventsAddress,
	}
	maps.Copy(env, in.EnvVars)
	in.EnvVars, in.Seed, in.CABundle = nil, nil, ""
	s.now.Store(&identity{init: in, env: env})
	if waiting := s.forgotten.Swap(nil); waiting != nil {
		close(*waiting)
	}
}

// Forget drops the identity with its token and variables; limits and defaults
// stay, for commands that are being started. It and Bind must not be called at
// the same time.
func (s *Session) Forget() {
	if s.forgotten.Load() == nil {
		s.forgotten.Store(new(make(chan struct{})))
	}
	old := s.now.Load()
	if old == nil {
		return
	}
	s.now.Store(&identity{init: control.Init{
		Limits: old.init.Limits, DefaultUser: old.init.DefaultUser, DefaultWorkdir: old.init.DefaultWorkdir,
	}})
}

// Await waits for an identity that was dropped to be bound again, and reports
// whether there is one. It does not wait for the first.
func (s *Session) Await(ctx context.Context) bool {
	if s.Ready() {
		return true
	}
	if waiting := s.forgotten.Load(); waiting != nil {
		select {
		case <-*waiting:
		case <-ctx.Done():
		}
	}
	return s.Ready()
}

// Ready reports whether an identity is bound.
func (s *Session) Ready() bool { return s.Token() != "" }

// Env returns the sandbox-global variables; callers must not change the map.
func (s *Session) Env() map[string]string {
	if id := s.now.Load(); id != nil {
		return id.env
	}
	return nil
}

// Limits returns the limits per command.
func (s *Session) Limits() control.Limits {
	if id := s.now.Load(); id != nil {
		return id.init.Limits
	}
	return control.Limits{}
}

// Workdir returns the default working directory, empty for the user's home.
func (s *Session) Workdir() string {
	if id := s.now.Load(); id != nil {
		return id.init.DefaultWorkdir
	}
	return ""
}

// Token returns the access token, empty when there is none.
func (s *Session) Token() string {
	if id := s.now.Load(); id != nil {
		return id.init.AccessToken
	}
	return ""
}

// TokenIs compares in constant time; it is false without an identity.
func (s *Session) TokenIs(candidate string) bool {
	token := s.Token()
	return token != "" && subtle.ConstantTimeCompare([]byte(token), []byte(candidate)) == 1
}

// UserError says that the selected user does not exist.
type UserError struct{ Name string }

// Error is the text that clients see.
func (e *UserError) Error() string { return fmt.Sprintf("invalid username: '%s'", e.Name) }

// User returns the user called name, or the default user when name is empty.
// The error is a *UserError when there is no such user.
func (s *Session) User(name string) (account.User, error) {
	if name == "" {
		if id := s.now.Load(); id != nil {
			name = id.init.DefaultUser
		}
	}
	if name == "" {
		name = "root"
	}
	u, err := s.Accounts.Lookup(name)
	if errors.Is(err, account.ErrUnknown) {
		return account.User{}, &UserError{Name: name}
	}
	return u, err
}

// HeaderUser returns the user that the Authorization header of an RPC selects.
func (s *Session) HeaderUser(h http.Header) (account.User, error) {
	return s.User(basicName(h.Get("Authorization")))
}

// basicName returns the user name of HTTP basic authentication; the password
// means nothing.
func basicName(header string) string {
	scheme, rest, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return ""
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	if err != nil {
		return ""
	}
	name, _, _ := strings.Cut(string(raw), ":")
	return name
}
