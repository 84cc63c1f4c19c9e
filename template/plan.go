package template

import (
	"context"
	"io"
	"time"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
)

// Executor carries out plans. Its methods may be called concurrently.
type Executor interface {
	// Execute builds p. It calls log for each line, from one goroutine at a
	// time. Its error is a *StepError when a step is to blame. Whatever it
	// returns, and if the process dies, nothing half-made remains in use.
	Execute(ctx context.Context, p Plan, log func(LogLine)) (Artifacts, error)
}

// Plan is a build, resolved: names and credentials have been looked up.
type Plan struct {
	Build BuildID
	Team  identity.TeamID
	// Base is the build to start from; when nil, Image is pulled.
	Base  *Build
	Image ImageSource
	Steps []Step
	// Start runs when the steps are done; Ready is then polled until it exits
	// with 0. Empty ones are left out; without a Start there is nothing to
	// wait for but Ready.
	Start, Ready string
	Resources    provider.Resources
	// Force ignores the cache for all steps.
	Force bool
	// Files opens the uploaded archive (gzipped tar) of a COPY step.
	Files func(ctx context.Context, hash string) (io.ReadCloser, error)
}

// ImageSource names an OCI image and how to get it.
type ImageSource struct {
	Ref                string
	Username, Password string // never logged
}

// Step is one instruction; Type is RUN, COPY, ENV, WORKDIR, USER or ARG, Args
// as the contract has them.
type Step struct {
	Type      string
	Args      []string
	FilesHash string
	Force     bool // ignores the cache from here on
}

// LogLine is one line of a build's log. Step is 0 before and after the steps.
type LogLine struct {
	At    time.Time
	Level string // debug, info, warn or error
	Step  int
	Text  string
	// Done is set on the line that ends a step.
	Done     bool
	Cached   bool
	Duration time.Duration
}

// Artifacts are what a build made.
type Artifacts struct {
	Rootfs        image.Rootfs
	User, Workdir string
	Env           map[string]string
	// Memory is the state after Ready passed; nil when there was no Start.
	Memory *snapshot.Artifact
}

// StepError says which step failed; Step is 0 for the base, -1 for the start
// or ready command.
type StepError struct {
	Step int
	Err  error
}

func (e *StepError) Error() string { return e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }
