// Package builder carries out template builds, each in a box of its own: it runs
// the steps of a template.Plan, keeps what they made for the next build, writes
// the root filesystem, and takes the memory of a start command that is ready.
//
// A box of a build is the builder's: no record stands for it, Owns tells it from
// an orphan while it is in use, and once the process has died the orphan sweep
// takes it. Everything else that a build makes is either complete under its
// content's name or collected: images by image.Store, the rest by GC here.
//
// Nothing of a template is unpacked on the host: archives are unpacked in the
// guest (package agent/setup), images become EROFS files (packages oci and
// erofs). Imports agentclient and what lies below provider; not the store.
package builder

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/agent/control"
	"github.com/caisson-dev/caisson/egress"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

// Limits bound one build. Zero fields get the defaults named.
type Limits struct {
	// Build bounds all of it, Step one step, Ready the wait for the ready
	// command. Defaults 2 h, 1 h and 10 min.
	Build, Step, Ready time.Duration
	// LogBytes is how much of the steps' output is logged. Default 16 MiB.
	LogBytes int64
	// ArchiveBytes and ArchiveEntries bound the archive of a COPY step, unpacked.
	// Defaults 16 GiB and 500,000.
	ArchiveBytes   int64
	ArchiveEntries int
	// MemoryMiB is the least memory of a box that runs steps: what was written is
	// read through it. Default 1024.
	MemoryMiB int64
	// CacheBytes and CacheAge are when cached layers are dropped: the least
	// recently used above the sum, and all that were not used for so long.
	// Defaults 20 GiB and 14 d.
	CacheBytes int64
	CacheAge   time.Duration
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Build, 2*time.Hour)
	orDefault(&l.Step, time.Hour)
	orDefault(&l.Ready, 10*time.Minute)
	orDefault(&l.LogBytes, 16<<20)
	orDefault(&l.ArchiveBytes, 16<<30)
	orDefault(&l.ArchiveEntries, 500_000)
	orDefault(&l.MemoryMiB, 1024)
	orDefault(&l.CacheBytes, 20<<30)
	orDefault(&l.CacheAge, 14*24*time.Hour)
	return l
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Puller gets images. Implemented by package oci.
type Puller interface {
	// Pull returns the image of src as a root filesystem; it calls log with what
	// it does.
	Pull(ctx context.Context, src template.ImageSource, log func(string)) (Base, error)
}

// Base is where a build starts.
type Base struct {
	Rootfs image.Rootfs
	// Name is for people.
	Name string
	// User and Workdir are those of the first step; no Workdir means the user's
	// home.
	User, Workdir string
	Env           map[string]string
	// Family is which package manager there is, if one is known; Missing are those
	// of Tools that are not there.
	Family  string
	Missing []string
}

// Options are what a Builder works with; Limits and Command may be zero.
type Options struct {
	// Dir is the builder's own directory.
	Dir    string
	Images *image.Store
	// Provider's boxes must be provider.Snapshotter and provider.LayerExporter,
	// and itself a provider.Restorer.
	Provider provider.Provider
	// Guard lets boxes reach what Policy allows.
	Guard  egress.Guard
	Policy egress.Policy
	// Vault gets the memory of templates.
	Vault  snapshot.Vault
	Puller Puller
	// Defaults are for zero fields of a plan's resources.
	Defaults provider.Resources
	// Command limits are enforced by the agent.
	Command control.Limits
	// CABundle is PEM to trust inside; may be empty.
	CABundle string
	Limits   Limits
	Log      *slog.Logger
}

// Builder implements template.Executor. Safe for concurrent use.
type Builder struct {
	o      Options
	cache  *cache
	layers *snapshot.Local
	token  func() string // of the agent of one box

	mu  sync.Mutex      // guards own
	own map[string]bool // ids of boxes in use
}

var _ template.Executor = (*Builder)(nil)

// New prepares a builder and its directory; errdefs.ErrNotImplemented for a
// provider that cannot build.
func New(o Options) (*Builder, error) {
	if o.Dir == "" || o.Images == nil || o.Provider == nil || o.Guard == nil || o.Vault == nil || o.Puller == nil || o.Log == nil {
		return nil, fmt.Errorf("builder: an option is missing: %w", errdefs.ErrInvalidArgument)
	}
	if _, ok := o.Provider.(provider.Restorer); !ok || !o.Provider.Capabilities().ExportsLayers {
		return nil, fmt.Errorf("provider %s cannot build templates: %w", o.Provider.Name(), errdefs.ErrNotImplemented)
	}
	if _, err := egress.Compile(o.Policy); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	o.Limits = o.Limits.withDefaults()
	layers, err := snapshot.NewLocal(filepath.Join(o.Dir, "layers"))
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	c, err := newCache(stepsDir(o.Dir), o.Limits)
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	return &Builder{o: o, cache: c, layers: layers, token: rand.Text, own: map[string]bool{}}, nil
}

// Owns reports whether a box of that id is being used by a build: no orphan.
func (b *Builder) Owns(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.own[id]
}

// claim takes a new id.
func (b *Builder) claim() string {
	id := "b" + strings.ToLower(rand.Text())[:19]
	b.mu.Lock()
	defer b.mu.Unlock()
	b.own[id] = true
	return id
}

func (b *Builder) release(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.own, id)
}

// KeepImages returns the digests of images that the cached steps of a builder's
// directory lie on; they are not to be collected. A missing directory has none.
func KeepImages(dir string) ([]string, error) {
	keep, err := (&cache{dir: stepsDir(dir)}).images()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return keep, err
}

func stepsDir(dir string) string { return filepath.Join(dir, "steps") }

// GC drops cached steps that were not used for long or are too many, and what
// builds that died have left.
func (b *Builder) GC(ctx context.Context) error {
	used, err := b.cache.collect()
	if err != nil {
		return fmt.Errorf("collect build cache: %w", err)
	}
	stored, err := b.layers.List(ctx)
	if err != nil {
		return fmt.Errorf("collect build cache: %w", err)
	}
	var errs []error
	for _, s := range stored {
		if !used[s.ID] && time.Since(s.ChangedAt) > collectAge {
			errs = append(errs, b.layers.Delete(ctx, s.ID))
		}
	}
	return errors.Join(errs...)
}

// Execute implements template.Executor.
func (b *Builder) Execute(ctx context.Context, p template.Plan, log func(template.LogLine)) (template.Artifacts, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.o.Limits.Build,
		fmt.Errorf("the build took longer than %s: %w", b.o.Limits.Build, context.DeadlineExceeded))
	defer cancel()
	r := &run{Builder: b, plan: p, log: newJournal(log, b.o.Limits.LogBytes)}
	r.plan.Resources = filled(p.Resources, b.o.Defaults)
	out, err := r.build(ctx)
	if errors.Is(err, snapshot.ErrOtherEngine) && !r.ignoreCache {
		// The cache is another engine's; what this build makes will replace it.
		r.ignoreCache = true
		out, err = r.build(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = because(err, context.Cause(ctx))
	}
	if err != nil {
		return template.Artifacts{}, err
	}
	return out, nil
}

// because gives an error that the end of the context caused its reason, and
// keeps the step.
func because(err, cause error) error {
	if s, ok := errors.AsType[*template.StepError](err); ok {
		return &template.StepError{Step: s.Step, Err: cause}
	}
	return cause
}

func filled(r, defaults provider.Resources) provider.Resources {
	orDefault(&r.MemoryMiB, defaults.MemoryMiB)
	orDefault(&r.CPUs, defaults.CPUs)
	orDefault(&r.DiskMiB, defaults.DiskMiB)
	orDefault(&r.Processes, defaults.Processes)
	return r
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

// at says at which step an error is. What is nobody's fault but the server's
// becomes errdefs.ErrInternal: its text is not for the build's author.
func at(step int, err error) error {
	if _, ok := errors.AsType[*template.StepError](err); ok || err == nil {
		return err
	}
	if !theirs(err) {
		err = &fault{text: err.Error(), kind: errdefs.ErrInternal, cause: err}
	}
	return &template.StepError{Step: step, Err: err}
}

// theirs reports whether an error has a kind that its author can act upon.
func theirs(err error) bool {
	for _, is := range []func(error) bool{
		errdefs.IsInvalidArgument, errdefs.IsNotFound, errdefs.IsPermissionDenied, errdefs.IsResourceExhausted,
		errdefs.IsFailedPrecondition, errdefs.IsUnavailable, errdefs.IsUnauthorized,
	} {
		if is(err) {
			return true
		}
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}
