package template

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
)

// collectAge keeps GC away from an image between its making and the recording
// of its build.
const collectAge = 10 * time.Minute

// Catalog is what the server and the CLI see of templates: the records of Store
// together with the files of Images. It is safe for concurrent use.
type Catalog struct {
	store  Store
	images *image.Store
	mu     sync.Mutex // one base build at a time; held while building
}

// NewCatalog returns the catalog over store and images.
func NewCatalog(store Store, images *image.Store) *Catalog {
	return &Catalog{store: store, images: images}
}

// EnsureBase returns the template "base", built when there is none, when its
// image is gone, when this version of Caisson has another recipe, or with
// o.Force. A base that was made from a tar file is the operator's choice and is
// replaced only with o.Force. Errors are those of BuildBase; the template is
// then as it was.
func (c *Catalog) EnsureBase(ctx context.Context, o BaseOptions) (Template, Build, error) {
	return c.EnsureStock(ctx, BaseName, o)
}

// BuildTar makes a template of a tar stream, or a new build of the team's own
// template of that name. Only a plain name is allowed.
func (c *Catalog) BuildTar(ctx context.Context, team identity.TeamID, name string, r io.Reader, o TarOptions) (Template, Build, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return Template{}, Build{}, err
	}
	if ref.Namespace != "" && ref.Namespace != string(team) || ref.Tag != DefaultTag {
		return Template{}, Build{}, badReference(name, "a template is built under a plain name of the own team")
	}
	started := time.Now()
	built, err := BuildTar(ctx, c.images, r, o)
	if err != nil {
		return Template{}, Build{}, err
	}
	public := o.Public || team == identity.DefaultTeam && ref.Name == BaseName
	return c.record(ctx, team, ref.Name, public, started, Build{
		Source: built.Manifest.Source, Rootfs: built.Rootfs, Resources: o.Resources,
		User: built.User, Workdir: built.Workdir, Env: built.Env,
	})
}

// record stores a finished build under a name. Only a template that it makes is
// public when asked for: one that is there stays as its team has it.
func (c *Catalog) record(ctx context.Context, team identity.TeamID, name string, public bool, started time.Time, b Build) (Template, Build, error) {
	now := time.Now().UTC()
	t, err := c.store.GetTemplate(ctx, team, name)
	switch {
	case err == nil && t.Team == team && t.Kind == KindSnapshot:
		return Template{}, Build{}, fmt.Errorf("record template %s: a snapshot has that name; delete it first: %w", name, errdefs.ErrAlreadyExists)
	case err == nil && t.Team == team:
	case err == nil || errdefs.IsNotFound(err):
		// Another team's public template of that name stays theirs.
		t = Template{ID: newID(), Team: team, Names: []string{name}, Public: public, CreatedAt: now}
	default:
		return Template{}, Build{}, fmt.Errorf("record template %s: %w", name, err)
	}
	b.ID = BuildID(uuid.NewString())
	b.Template = t.ID
	b.Status = Ready
	b.CreatedAt, b.FinishedAt = started.UTC(), now
	t.Current = b.ID
	t.UpdatedAt = now
	if err := c.store.PutTemplate(ctx, t, b); err != nil {
		return Template{}, Build{}, fmt.Errorf("record template %s: %w", name, err)
	}
	return t, b, nil
}

// newID returns a fresh template ID.
func newID() ID {
	return ID(strings.ToLower(rand.Text())[:20])
}

// Resolve returns the template that a team means by ref and its current build,
// with the path of its image on this host. errdefs.ErrInvalidArgument for a
// malformed reference, ErrNotFound, with the reference in its text, for one
// that names nothing the team may use, ErrFailedPrecondition when the template
// has no image here.
func (c *Catalog) Resolve(ctx context.Context, team identity.TeamID, ref string) (Template, Build, error) {
	t, err := c.find(ctx, team, ref)
	if err != nil {
		return Template{}, Build{}, err
	}
	if t.Current == "" {
		return Template{}, Build{}, fmt.Errorf("template %q has no finished build with the tag %q: %w", ref, DefaultTag, errdefs.ErrNotFound)
	}
	b, err := c.store.GetBuild(ctx, t.Current)
	if err != nil {
		return Template{}, Build{}, fmt.Errorf("build of template %q: %w", ref, err)
	}
	if b.Status != Ready {
		return Template{}, Build{}, fmt.Errorf("the build of template %q is in state %s: %w", ref, b.Status, errdefs.ErrFailedPrecondition)
	}
	if b, err = c.located(b, ref, cmp.Or(first(t.Names), string(t.ID))); err != nil {
		return Template{}, Build{}, err
	}
	return t, b, nil
}

// Build returns one build by its id, also one that is no longer current, for a
// sandbox that was made of it. Errors are Resolve's.
func (c *Catalog) Build(ctx context.Context, id BuildID) (Build, error) {
	b, err := c.store.GetBuild(ctx, id)
	if err != nil {
		return Build{}, fmt.Errorf("build %s: %w", id, err)
	}
	return c.located(b, string(b.Template), string(b.Template))
}

// Lock returns the template that a reference means, its build, and what was
// recorded when the build's image was made. Errors are Resolve's, and
// errdefs.ErrNotFound for an image without a record.
func (c *Catalog) Lock(ctx context.Context, team identity.TeamID, ref string) (Template, Build, Manifest, error) {
	t, b, err := c.Resolve(ctx, team, ref)
	if err != nil {
		return Template{}, Build{}, Manifest{}, err
	}
	m, err := LoadManifest(c.images, b.Rootfs.Digest)
	if err != nil {
		return t, b, Manifest{}, fmt.Errorf("packages of template %q: %w", ref, err)
	}
	return t, b, m, nil
}

// located sets the path of a build's image: recorded ones are wrong once the
// data directory has moved.
func (c *Catalog) located(b Build, ref, name string) (Build, error) {
	rootfs, err := c.images.Get(b.Rootfs.Digest)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return Build{}, fmt.Errorf("the image of template %q is missing from %s, build it again with `caisson template build %s`: %w",
			ref, c.images.Dir(), name, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return Build{}, err
	}
	b.Rootfs = rootfs
	return b, nil
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// find returns the template of a reference, whether it has a build or not; the
// build of the reference's tag is its Current.
func (c *Catalog) find(ctx context.Context, team identity.TeamID, ref string) (Template, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Template{}, err
	}
	t, err := c.findName(ctx, team, ref, r)
	if err != nil || r.Tag == DefaultTag {
		return t, err
	}
	t.Current, err = c.store.TaggedBuild(ctx, t.ID, r.Tag)
	if errdefs.IsNotFound(err) {
		return Template{}, fmt.Errorf("template %q has no tag %q: %w", ref, r.Tag, errdefs.ErrNotFound)
	}
	return t, err
}

// findName is find without the tag.
func (c *Catalog) findName(ctx context.Context, team identity.TeamID, ref string, r Reference) (Template, error) {
	missing := fmt.Errorf("template %q does not exist: %w", ref, errdefs.ErrNotFound)
	owner := team
	if r.Namespace != "" {
		owner = identity.TeamID(r.Namespace)
	}
	t, err := c.store.GetTemplate(ctx, owner, r.Name)
	if errdefs.IsNotFound(err) {
		return Template{}, missing
	}
	if err != nil {
		return Template{}, fmt.Errorf("find template %q: %w", ref, err)
	}
	// The store answers for owner; what the caller may see is decided here.
	if r.Namespace != "" && t.Team != owner || t.Team != team && !t.Public {
		return Template{}, missing
	}
	return t, nil
}

// List returns the templates that a team may use.
func (c *Catalog) List(ctx context.Context, team identity.TeamID) ([]Template, error) {
	return c.store.ListTemplates(ctx, team)
}

// Builds returns the builds of a template that the team may use.
func (c *Catalog) Builds(ctx context.Context, team identity.TeamID, ref string) ([]Build, error) {
	t, err := c.find(ctx, team, ref)
	if err != nil {
		return nil, err
	}
	return c.store.ListBuilds(ctx, t.ID)
}

// Find returns the template that a reference means, whether it has a build or
// not, and what the reference says. Errors are those of Resolve, except that
// the tag is not looked for.
func (c *Catalog) Find(ctx context.Context, team identity.TeamID, ref string) (Template, Reference, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return Template{}, Reference{}, err
	}
	t, err := c.findName(ctx, team, ref, r)
	return t, r, err
}

// Delete removes a template of the team. Its images go with the next GC.
// errdefs.ErrPermissionDenied for another team's public template,
// ErrFailedPrecondition while sandboxes are based on it, for a reference with a
// tag, since a template goes as a whole, and for a snapshot, whose tags are
// deleted one by one (sandbox.Manager.DeleteSnapshot).
func (c *Catalog) Delete(ctx context.Context, team identity.TeamID, ref string) error {
	t, err := c.find(ctx, team, ref)
	if err != nil {
		return err
	}
	if t.Team != team {
		return fmt.Errorf("template %q belongs to team %s: %w", ref, t.Team, errdefs.ErrPermissionDenied)
	}
	if t.Kind == KindSnapshot {
		return fmt.Errorf("%q is a snapshot: delete it with `caisson snapshot delete %s`: %w", ref, ref, errdefs.ErrFailedPrecondition)
	}
	if strings.Contains(ref, ":") {
		return fmt.Errorf("%q names one tag, and a template is deleted with all of them: name it without: %w", ref, errdefs.ErrFailedPrecondition)
	}
	return c.store.DeleteTemplate(ctx, t.ID)
}

// GC removes the images that no build and no live sandbox refers to, and that are
// not among the digests in keep.
func (c *Catalog) GC(ctx context.Context, keep ...string) (image.Collected, error) {
	needed, err := c.store.RootfsDigests(ctx)
	if err != nil {
		return image.Collected{}, fmt.Errorf("collect images: %w", err)
	}
	got, err := c.images.GC(ctx, append(needed, keep...), collectAge)
	if err != nil {
		return got, errors.Join(err, ctx.Err())
	}
	return got, nil
}
