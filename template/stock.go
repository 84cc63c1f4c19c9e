package template

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/provider"
)

// Stock is a template that Caisson knows how to build from Debian packages.
type Stock struct {
	Name string
	// About says in a line what it is for.
	About string
	// Packages are what it is built from.
	Packages []string
	// Start runs when a sandbox of the template begins, as any user, and Ready
	// succeeds once that serves; both are shell text, empty for none.
	Start, Ready string
	// Resources are the defaults of its sandboxes; zero fields are the server's.
	Resources provider.Resources
	// PrivatePorts are those that from outside want the sandbox's traffic token,
	// whatever its network says: what its start command serves has the sandbox.
	PrivatePorts []uint16
	// Env is added to the environment of its sandboxes.
	Env map[string]string

	// hooks are options of mmdebstrap that run shell text with the tree as $1.
	hooks []string
	// bare is for a tree of Packages and what they depend on alone, without the
	// rest of a Debian system.
	bare bool
	// room is what the installed tree may need, in bytes.
	room int64
}

// StockTemplate returns the stock template of a name; errdefs.ErrNotFound.
func StockTemplate(name string) (Stock, error) {
	for _, s := range StockTemplates() {
		if s.Name == name {
			return s, nil
		}
	}
	return Stock{}, fmt.Errorf("there is no stock template %q: %w", name, errdefs.ErrNotFound)
}

// PrivatePorts are those of the stock template that a build is of, or whose start
// command it has: a build on a stock template begins with the same servers.
func PrivatePorts(t Template, b Build) (ports []uint16) {
	for _, s := range StockTemplates() {
		named := t.Team == identity.DefaultTeam && t.Kind != KindSnapshot && slices.Contains(t.Names, s.Name)
		if named || s.Start != "" && b.Start == s.Start {
			ports = append(ports, s.PrivatePorts...)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// EnsureStock is EnsureBase for any stock template. A template that the team has
// made of a recipe or a snapshot under that name is its own affair: it is returned
// as it is, and errdefs.ErrAlreadyExists with o.Force or o.Resources; so is one of
// a tar file with other resources than o.Resources.
func (c *Catalog) EnsureStock(ctx context.Context, name string, o BaseOptions) (Template, Build, error) {
	s, err := StockTemplate(name)
	if err != nil {
		return Template{}, Build{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(o.Packages) == 0 {
		o.Packages = slices.Clone(s.Packages)
	}
	o.hooks, o.bare, o.room = s.hooks, s.bare, s.room
	o = o.withDefaults()
	t, b, err := c.Resolve(ctx, identity.DefaultTeam, name)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsFailedPrecondition(err):
	case err != nil:
		return Template{}, Build{}, err
	case t.Team != identity.DefaultTeam: // public, and stays theirs
	case c.own(t, b) && o.Force:
		return Template{}, Build{}, fmt.Errorf("template %q was not built from packages but by its team: delete it, to have the stock template of that name: %w",
			name, errdefs.ErrAlreadyExists)
	case c.own(t, b), !o.Force && c.current(s, b, o):
		if !has(b.Resources, o.Resources) {
			return Template{}, Build{}, fmt.Errorf("template %q was not built from packages: its resources are given where it is built: %w",
				name, errdefs.ErrAlreadyExists)
		}
		return t, b, nil
	}
	started := time.Now()
	built, err := BuildBase(ctx, c.images, o)
	if err != nil {
		return Template{}, Build{}, err
	}
	maps.Copy(built.Env, s.Env)
	return c.record(ctx, identity.DefaultTeam, name, true, started, Build{
		Source: built.Manifest.Source, Rootfs: built.Rootfs, Resources: over(o.Resources, s.Resources),
		User: built.User, Workdir: built.Workdir, Env: built.Env, Start: s.Start, Ready: s.Ready,
	})
}

// own says whether a template under a stock template's name is one that the team
// has made itself. Notes on its files say nothing of that: imports and images have
// some too.
func (c *Catalog) own(t Template, b Build) bool {
	if t.Kind == KindSnapshot || b.FromSandbox() {
		return true
	}
	if !b.FromRecipe() {
		return false
	}
	// A stock template on which only its start command was run has the files of one.
	m, err := LoadManifest(c.images, b.Rootfs.Digest)
	return err != nil || m.Recipe == "" || b.Source != FromTemplate+first(t.Names)
}

// current says whether a build of a stock template need not be made again. One of
// a tar file is the operator's choice.
func (c *Catalog) current(s Stock, b Build, o BaseOptions) bool {
	m, err := LoadManifest(c.images, b.Rootfs.Digest)
	if err != nil {
		return false
	}
	if m.Recipe == "" {
		return true
	}
	for k, v := range s.Env {
		if b.Env[k] != v {
			return false
		}
	}
	return m.Recipe == newRecipe(o).key() && b.Start == s.Start && b.Ready == s.Ready && has(b.Resources, o.Resources)
}

// has says whether r has all that is asked for.
func has(r, asked provider.Resources) bool { return over(asked, r) == r }

// over returns r with the fields of rest where it has none.
func over(r, rest provider.Resources) provider.Resources {
	return provider.Resources{
		MemoryMiB: cmp.Or(r.MemoryMiB, rest.MemoryMiB), CPUs: cmp.Or(r.CPUs, rest.CPUs),
		DiskMiB: cmp.Or(r.DiskMiB, rest.DiskMiB), Processes: cmp.Or(r.Processes, rest.Processes),
	}
}
