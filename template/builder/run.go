package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

// run is one build.
type run struct {
	*Builder
	plan        template.Plan
	log         *journal
	ignoreCache bool
	// list are the steps with those before the plan's own, of which there are so
	// many.
	list   []template.Step
	before int
	// saved are the layers that this build has kept, the oldest first.
	saved []saved
}

// saved is one layer and the step that it belongs to.
type saved struct {
	key   key
	layer *snapshot.Artifact
}

// state is what a step leaves besides files, for the steps after it and for
// sandboxes.
type state struct {
	User string `json:"user"`
	// Home is the user's, Workdir empty where it is just that.
	Home    string            `json:"home"`
	Workdir string            `json:"workdir,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
}

func stateOf(b Base) state {
	s := state{User: b.User, Workdir: b.Workdir, Env: maps.Clone(b.Env)}
	if s.User == "" {
		s.User = "user"
	}
	s.Home = "/home/" + s.User
	if s.User == "root" {
		s.Home = "/root"
	}
	if s.Workdir == s.Home {
		s.Workdir = "" // it follows the user until the recipe says otherwise
	}
	if s.Env == nil {
		s.Env = map[string]string{}
	}
	return s
}

// dir is where commands run.
func (s state) dir() string {
	if s.Workdir != "" {
		return s.Workdir
	}
	return s.Home
}

func (s state) clone() state {
	s.Env = maps.Clone(s.Env)
	return s
}

// build is Execute without its limits.
func (r *run) build(ctx context.Context) (template.Artifacts, error) {
	base, err := r.base(ctx)
	if err != nil {
		return template.Artifacts{}, at(0, err)
	}
	done, err := r.steps(ctx, base)
	if err != nil {
		return template.Artifacts{}, err
	}
	out := template.Artifacts{
		Rootfs: done.rootfs, User: done.state.User, Workdir: done.state.dir(), Env: done.state.Env,
	}
	if r.plan.Start == "" && r.plan.Ready == "" {
		return out, nil
	}
	if out.Memory, err = r.memory(ctx, done); err != nil {
		return template.Artifacts{}, at(-1, err)
	}
	return out, nil
}

// base finds where the build starts.
func (r *run) base(ctx context.Context) (Base, error) {
	if b := r.plan.Base; b != nil {
		switch {
		case b.Sandbox != "":
			return Base{}, fmt.Errorf("a snapshot of a sandbox cannot be built upon: %w", errdefs.ErrInvalidArgument)
		case b.Status != template.Ready:
			return Base{}, fmt.Errorf("the template to build upon has no finished build: %w", errdefs.ErrFailedPrecondition)
		}
		rootfs, err := r.o.Images.Get(b.Rootfs.Digest)
		if err != nil {
			return Base{}, err
		}
		r.log.info(0, "[base] FROM TEMPLATE %s [%s]", b.Template, short(rootfs))
		return Base{Rootfs: rootfs, Name: string(b.Template), User: b.User, Workdir: b.Workdir, Env: b.Env}, nil
	}
	if r.plan.Image.Ref == "" {
		return Base{}, fmt.Errorf("the build names neither an image nor a template to start from: %w", errdefs.ErrInvalidArgument)
	}
	b, err := r.o.Puller.Pull(ctx, r.plan.Image, func(text string) { r.log.info(0, "[base] %s", text) })
	if err != nil {
		return Base{}, err
	}
	r.log.info(0, "[base] FROM %s [%s]", b.Name, short(b.Rootfs))
	return b, nil
}

// short is enough of a digest for people.
func short(r image.Rootfs) string {
	const digits = len("sha256:") + 12
	return r.Digest[:min(len(r.Digest), digits)]
}

// made is what the steps came to.
type made struct {
	rootfs image.Rootfs
	state  state
}

// steps carries the plan's steps out, or finds that others did, and returns the
// root filesystem that they make. What an image lacks is installed before, where
// that can be done.
func (r *run) steps(ctx context.Context, base Base) (made, error) {
	pre := prelude(base)
	if len(pre) == 0 {
		if len(base.Missing) > 0 {
			r.lacks(base, nil)
		}
		return r.chain(ctx, base, nil)
	}
	out, err := r.chain(ctx, base, pre)
	if !errors.Is(err, errProvision) {
		return out, err
	}
	if len(base.Missing) > 0 {
		r.lacks(base, err)
	}
	return r.chain(ctx, base, nil)
}

// chain is steps with those that come before the plan's own.
func (r *run) chain(ctx context.Context, base Base, pre []template.Step) (made, error) {
	r.list, r.before = slices.Concat(pre, r.plan.Steps), len(pre)
	keys := []key{baseKey(r.plan.Team, base)}
	for _, s := range r.list {
		keys = append(keys, keys[len(keys)-1].next(s))
	}
	first, have := r.cached(keys, base)
	for i := range first {
		r.log.write(template.LogLine{
			Level: levelInfo, Step: r.number(i), Text: "CACHED " + r.title(i), Done: true, Cached: true,
		})
	}
	if first == len(r.list) {
		if rootfs, ok := r.finished(have); ok {
			return made{rootfs: rootfs, state: have.State}, nil
		}
	}
	x, err := r.open(ctx, base.Rootfs, have.Layer, r.workshop(), have.State)
	if err != nil {
		return made{}, at(r.number(first), err)
	}
	out, err := r.work(ctx, x, base, have, keys, first)
	return out, errors.Join(err, x.close(ctx))
}

// number is that of a step in the plan, 0 for those before it.
func (r *run) number(i int) int {
	return max(0, min(i+1, len(r.list))-r.before)
}

// work runs the steps from first on in an open box.
func (r *run) work(ctx context.Context, x *box, base Base, have entry, keys []key, first int) (made, error) {
	for i := first; i < len(r.list); i++ {
		began := time.Now()
		r.log.info(r.number(i), "%s", r.title(i))
		changed, err := r.step(ctx, x, r.number(i), r.list[i], &have.State)
		if err != nil && i < r.before && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", errProvision, err)
		}
		if err == nil && changed {
			have.Rootfs = ""
			have.Layer, err = r.saveLayer(ctx, x)
		}
		if err == nil {
			err = r.cache.save(keys[i+1], have)
		}
		if err == nil && changed {
			err = r.trim(ctx, keys[i+1], have.Layer)
		}
		if err != nil {
			return made{}, at(r.number(i), err)
		}
		r.log.write(template.LogLine{
			Level: levelInfo, Step: r.number(i), Text: r.title(i), Done: true, Duration: time.Since(began),
		})
	}
	if rootfs, ok := r.finished(have); ok {
		return made{rootfs: rootfs, state: have.State}, nil
	}
	began := time.Now()
	rootfs, err := r.export(ctx, x, base)
	if err != nil {
		return made{}, at(len(r.plan.Steps), err)
	}
	have.Rootfs = rootfs.Digest
	if err := r.cache.save(keys[len(keys)-1], have); err != nil {
		return made{}, at(len(r.plan.Steps), err)
	}
	r.log.info(0, "wrote the root filesystem, %d MiB, in %s", rootfs.SizeBytes>>20, round(time.Since(began)))
	return made{rootfs: rootfs, state: have.State}, nil
}

// cached returns how many of the steps need not run, and what they left.
func (r *run) cached(keys []key, base Base) (int, entry) {
	have := entry{Base: base.Rootfs.Digest, State: stateOf(base)}
	for i, s := range r.list {
		forced := r.ignoreCache || i >= r.before && (r.plan.Force || s.Force)
		if forced {
			return i, have
		}
		e, ok := r.cache.load(keys[i+1])
		if !ok || e.Base != have.Base || e.Layer != nil && !r.layers.Has(e.Layer.ID) {
			return i, have
		}
		have = e
	}
	return len(r.list), have
}

func (r *run) title(i int) string {
	if i < r.before {
		return "[base] " + describe(r.list[i])
	}
	return fmt.Sprintf("[builder %d/%d] %s", r.number(i), len(r.plan.Steps), describe(r.list[i]))
}

// finished returns the image of an entry, when there is one: the base itself
// when nothing of it was changed.
func (r *run) finished(e entry) (image.Rootfs, bool) {
	digest := e.Rootfs
	if e.Layer == nil {
		digest = e.Base
	}
	if digest == "" {
		return image.Rootfs{}, false
	}
	rootfs, err := r.o.Images.Get(digest)
	return rootfs, err == nil
}

// workshop are the resources of a box that runs steps: those of the template,
// with memory enough to read back what the steps wrote.
func (r *run) workshop() provider.Resources {
	res := r.plan.Resources
	if res.MemoryMiB > 0 {
		res.MemoryMiB = max(res.MemoryMiB, r.o.Limits.MemoryMiB)
	}
	return res
}

// layerReserve is how much disk stays free when a layer is saved: other sandboxes
// write, too.
const layerReserve = 256 << 20

// saveLayer keeps what the steps so far have written. errdefs.ErrResourceExhausted
// before anything is written when the disk has no room for it.
func (r *run) saveLayer(ctx context.Context, x *box) (*snapshot.Artifact, error) {
	s, ok := x.box.(provider.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("provider %s cannot save files: %w", r.o.Provider.Name(), errdefs.ErrNotImplemented)
	}
	st, err := x.box.Stats(ctx)
	if err != nil {
		return nil, fmt.Errorf("save the step's files: %w", err)
	}
	// All that the steps wrote is copied.
	if err := image.CheckSpace(r.o.Dir, st.DiskBytes+layerReserve); err != nil {
		return nil, fmt.Errorf("save the step's files: %w", err)
	}
	a, err := s.Snapshot(ctx, snapshot.Filesystem, r.layers)
	if err != nil {
		return nil, fmt.Errorf("save the step's files: %w", err)
	}
	return &a, nil
}

// trim notes a layer that was kept, and gives up this build's oldest ones while
// together they are more than the whole cache may hold: each has all that the steps
// before it wrote, so that many short steps after a large one fill a disk before
// anything is collected. The last one stays.
func (r *run) trim(ctx context.Context, k key, layer *snapshot.Artifact) error {
	r.saved = append(r.saved, saved{k, layer})
	var sum int64
	for _, s := range r.saved {
		sum += s.layer.SizeBytes
	}
	for len(r.saved) > 1 && sum > r.o.Limits.CacheBytes {
		old := r.saved[0]
		if err := errors.Join(r.cache.drop(old.key), r.layers.Delete(ctx, old.layer.ID)); err != nil {
			return fmt.Errorf("trim the build cache: %w", err)
		}
		sum -= old.layer.SizeBytes
		r.saved = r.saved[1:]
	}
	return nil
}

var errNoExport = errors.New("its changes cannot be read")

// export writes base and layer together as one image.
func (r *run) export(ctx context.Context, x *box, base Base) (image.Rootfs, error) {
	layer, ok := x.box.(provider.LayerExporter)
	if !ok {
		return image.Rootfs{}, fmt.Errorf("provider %s: %w: %w", r.o.Provider.Name(), errNoExport, errdefs.ErrNotImplemented)
	}
	rootfs, err := merge(ctx, r.o.Images, base.Rootfs, func(w io.Writer) error { return layer.ExportLayer(ctx, w) })
	if err != nil {
		return rootfs, fmt.Errorf("write the root filesystem: %w", x.why(ctx, err))
	}
	return rootfs, nil
}
