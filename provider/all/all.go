// Package all is the one list of providers. A new provider adds its line here
// and nothing elsewhere. Package server imports it.
package all

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/provider/fake"
	"github.com/caisson-dev/caisson/provider/gvisor"
)

// Config is what any provider may need.
type Config struct {
	// DataDir is an absolute directory for the provider alone.
	DataDir string
	// Unenforced lists limits that may go unenforced.
	Unenforced []provider.Limit
	Log        *slog.Logger
}

// Provider is one that holds resources until Close. Boxes that survive the
// process are left running.
type Provider interface {
	provider.Provider
	Close() error
}

type constructor func(ctx context.Context, c Config) (Provider, error)

func constructors() map[string]constructor {
	return map[string]constructor{
		gvisor.Name: func(ctx context.Context, c Config) (Provider, error) {
			return gvisor.New(ctx, gvisor.Config{DataDir: c.DataDir, Unenforced: c.Unenforced, Log: c.Log})
		},
		"fake": func(_ context.Context, c Config) (Provider, error) {
			return fake.New(fake.Config{Unenforced: c.Unenforced, Log: c.Log})
		},
	}
}

// Names lists the providers.
func Names() []string { return slices.Sorted(maps.Keys(constructors())) }

// New makes the named provider; errdefs.ErrInvalidArgument when there is none
// of that name.
func New(ctx context.Context, name string, c Config) (Provider, error) {
	make, ok := constructors()[name]
	if !ok {
		return nil, fmt.Errorf("provider %q is none of %q: %w", name, Names(), errdefs.ErrInvalidArgument)
	}
	return make(ctx, c)
}
