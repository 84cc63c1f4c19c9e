package transfer

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/archive"
	"github.com/caisson-dev/caisson/template/oci"
	"github.com/caisson-dev/caisson/template/queue"
)

// maxNotes bounds what an import tells beside its result.
const maxNotes = 100

// diskReserve is what an import leaves free on the disk for all else.
const diskReserve = 256 << 20

// unpackLimit bounds the making of a root filesystem, of files that may be packed as
// tightly as they can.
const unpackLimit = 30 * time.Minute

// cleanLimit bounds the removal of what a failed import made.
const cleanLimit = 30 * time.Second

// Import asks for an archive to be made a template.
type Import struct {
	// Name is [team/]name[:tag]; empty means the name and tag in the archive.
	Name string
	Tags []string
	// Body has the archive, of Size bytes.
	Body io.Reader
	Size int64
}

// Imported is what became of it.
type Imported struct {
	Template template.Template
	// Build is ready or, while its start command runs, building.
	Build template.Build
	// Notes say what could not be taken over as it was.
	Notes []string
}

// Import makes a template, or a build of the team's own, of an archive: one that
// Export wrote, or a container image. Nothing is changed and nothing left when it
// fails. Errors: errdefs.ErrInvalidArgument for an archive that is none, truncated,
// changed, hostile or for another platform; apierr.ErrTooLarge; ErrResourceExhausted beyond a limit;
// ErrAlreadyExists when a snapshot has the name; those of queue.Queue.Import.
func (t *Transfers) Import(ctx context.Context, who identity.Principal, r Import) (_ Imported, err error) {
	if r.Name != "" {
		// Before anything is sent: the queue says it again, with all its rules.
		if _, err := template.ParseReference(r.Name); err != nil {
			return Imported{}, apierr.Field("name", "%.200q is not [team/]name[:tag]", r.Name).WithCause(err)
		}
	}
	if most := t.d.MaxBytes; most > 0 && r.Size > most {
		e := apierr.New(apierr.ErrTooLarge, "the archive has %d bytes and the limit is %d", r.Size, most)
		e.Limit = "images.max_mib"
		return Imported{}, e
	}
	if err := t.full(who.Team); err != nil {
		return Imported{}, err
	}
	// A client that sends slowly has no place: its bytes cost none of what they bound.
	file, err := t.d.Spool.Spool(ctx, who.Team, r.Body, r.Size)
	if err != nil {
		return Imported{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	leave, err := t.await(ctx, who.Team)
	if err != nil {
		return Imported{}, err
	}
	defer leave()
	a, err := archive.Open(ctx, file, file.Size)
	if err != nil {
		return Imported{}, err
	}
	i, err := named(a, r)
	if err != nil {
		return Imported{}, err
	}
	var out Imported
	note := func(text string) {
		if len(out.Notes) < maxNotes {
			out.Notes = append(out.Notes, text)
		}
	}
	m, err := t.usable(a, who.Team, note)
	if err != nil {
		return Imported{}, err
	}
	work, done := context.WithTimeoutCause(ctx, unpackLimit,
		fmt.Errorf("the archive takes longer than %s to unpack: %w", unpackLimit, errdefs.ErrResourceExhausted))
	defer done()
	var u oci.Unpacked
	if m == nil {
		u, err = t.d.Unpacker.Unpack(work, a, note)
	} else {
		u, err = t.restore(work, a, m, &i)
		defer func() {
			if err != nil && i.Artifact != nil && !errors.Is(err, queue.ErrUnsettled) {
				clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
				defer cancel()
				err = errors.Join(err, t.d.Vault.Delete(clean, i.Artifact.ID))
			}
		}()
	}
	if err != nil {
		return Imported{}, err
	}
	i.Rootfs, i.User, i.Workdir, i.Env = u.Rootfs, u.User, u.Workdir, u.Env
	if out.Template, out.Build, err = t.d.Builds.Import(ctx, who, i); err != nil {
		return Imported{}, err
	}
	return out, nil
}

// named is what an archive and a request say of the build.
func named(a *archive.Archive, r Import) (queue.Imported, error) {
	i := queue.Imported{Name: r.Name, Tags: r.Tags, Source: "of an image"}
	if about := a.About; about != nil {
		i.Start, i.Ready, i.Resources = about.Start, about.Ready, about.Resources.Provider()
		i.Source = cmp.Or(about.Source, "of a template")
		if i.Name == "" && about.Name != "" {
			i.Name = about.Name + ":" + cmp.Or(about.Tag, template.DefaultTag)
		}
	}
	if i.Name == "" {
		return i, apierr.Field("name", "must be given: the archive has no name of a template")
	}
	return i, nil
}

// usable is the memory of an archive when it can be taken up here.
func (t *Transfers) usable(a *archive.Archive, team identity.TeamID, note func(string)) (*archive.Memory, error) {
	m, why, err := a.Memory(t.d.Seed, team)
	if err != nil {
		return nil, err
	}
	if m != nil {
		if err := t.d.Fits(m.Artifact); err != nil {
			m, why = nil, "another version of the engine saved it"
		}
	}
	if why != "" {
		note("the memory in the archive is left out: " + why)
	}
	return m, nil
}

// restore takes the image and the memory over as this installation wrote them.
func (t *Transfers) restore(ctx context.Context, a *archive.Archive, m *archive.Memory, i *queue.Imported) (oci.Unpacked, error) {
	u, err := oci.Describe(a)
	if err != nil {
		return u, err
	}
	artifact := m.Artifact
	artifact.ID = snapshot.ID(strings.ToLower(rand.Text()))
	i.Artifact = &artifact
	dir, err := t.d.Vault.Dir(ctx, artifact.ID)
	if err != nil {
		return u, err
	}
	need := m.Bytes() + diskReserve
	if err := cmp.Or(t.d.Images.CheckSpace(need), image.CheckSpace(dir, need)); err != nil {
		return u, err
	}
	if u.Rootfs, err = t.rootfs(ctx, a, m); err != nil {
		return u, err
	}
	for _, f := range m.Files {
		if err := copyTo(filepath.Join(dir, f.Name), func(out *os.File) error { return a.CopyMemory(ctx, f, out) }); err != nil {
			return u, fmt.Errorf("take over the memory: %w", err)
		}
	}
	if err := t.d.Vault.Sync(ctx, artifact.ID); err != nil {
		return u, err
	}
	i.Settle = func(ctx context.Context, id template.BuildID) error {
		for name, addr := range m.Names {
			if err := t.d.Names.PutName(ctx, string(id), name, addr); err != nil {
				return fmt.Errorf("take over the names that the memory knows: %w", err)
			}
		}
		return nil
	}
	return u, nil
}

// rootfs is the image that memory lies on, taken from the archive where it is not
// here any more.
func (t *Transfers) rootfs(ctx context.Context, a *archive.Archive, m *archive.Memory) (image.Rootfs, error) {
	r, err := t.d.Images.Put(ctx, func(out *os.File) error { return a.CopyRootfs(ctx, m, out) })
	if err != nil {
		return r, err
	}
	if r.Digest != m.Artifact.RootfsDigest {
		return r, fmt.Errorf("the image of the memory has the digest %s, not %s: %w", r.Digest, m.Artifact.RootfsDigest, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

func copyTo(path string, write func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
