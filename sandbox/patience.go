package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// quickCall bounds calls to the provider that take a few milliseconds.
const quickCall = 30 * time.Second

// errSilent marks errors of a provider that did not answer in time.
var errSilent = errors.New("no answer")

// silence is the error of a provider that did not answer within limit; it says
// what to do.
func (m *Manager) silence(limit time.Duration) error {
	return fmt.Errorf("%w from provider %s within %s: it hangs or is overloaded; \"Reading errors\" in docs/operating.md says how to restart it",
		errSilent, m.deps.Provider.Name(), limit)
}

// patient bounds calls to the provider: one that hangs must hang neither the
// start of this server nor its sweeps.
func (m *Manager) patient(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, m.silence(limit))
}

// explain adds to the error of a call under a patient context why that ended,
// for providers that report the bare end of a context.
func explain(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || !errors.Is(cause, errSilent) || errors.Is(err, errSilent) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}
