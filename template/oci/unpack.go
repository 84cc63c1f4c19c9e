package oci

import (
	"context"
	"io"
	"path"
	"strings"

	"github.com/caisson-dev/caisson/erofs"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/archive"
)

const (
	// maxUser and maxWorkdir bound what a configuration says of commands.
	maxUser    = 128
	maxWorkdir = 4095
	// archiveNotes is the source of an image that is known from an archive alone.
	archiveNotes = "archive"
)

// Unpacked is what an archive holds.
type Unpacked struct {
	Rootfs        image.Rootfs
	User, Workdir string
	Env           map[string]string
}

// Describe returns what an archive says of sandboxes, without its files. A template's archive is
// taken by its word; an image gets what images get that are pulled: the user
// "user", and the environment. Errors are errdefs.ErrInvalidArgument.
func Describe(a *archive.Archive) (Unpacked, error) {
	const ref = "in the archive"
	c := a.Config.Config
	var u Unpacked
	var err error
	if a.About == nil {
		u.User = "user"
		u.Env, err = environment(ref, c.Env, "HOME", "USER", "LOGNAME")
		return u, err
	}
	u.User, u.Workdir = c.User, c.WorkingDir
	if len(u.User) > maxUser || strings.ContainsFunc(u.User, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return u, refuse("the archive names a user %.80q, which can be none", u.User)
	}
	if u.Workdir != "" && (!path.IsAbs(u.Workdir) || len(u.Workdir) > maxWorkdir || strings.ContainsRune(u.Workdir, 0)) {
		return u, refuse("the archive names a working directory %.80q, which can be none", u.Workdir)
	}
	u.Env, err = environment(ref, c.Env)
	return u, err
}

// Unpack makes the root filesystem of an archive, under the limits of images. The
// files of a template's archive come out as they went in; an image is made a
// sandbox's. warn is told what an image cannot hold. Errors are those of Pull.
func (p *Puller) Unpack(ctx context.Context, a *archive.Archive, warn func(string)) (Unpacked, error) {
	u, err := Describe(a)
	if err != nil {
		return u, err
	}
	o := writing{
		source: archiveNotes, log: func(string) {}, warn: warn,
		// A template's one layer deletes nothing, whatever its files are called.
		whiteouts: a.About == nil || len(a.Layers) > 1,
		finish: func(w *erofs.Writer) error {
			if err := bootable("in the archive", w); err != nil {
				return err
			}
			if a.About != nil {
				return template.Mountable(w)
			}
			return template.Finalise(w)
		},
	}
	for _, l := range a.Layers {
		o.layers = append(o.layers, layer{l.Descriptor, func() (io.ReadCloser, error) { return a.OpenLayer(l) }})
	}
	if u.Rootfs, err = p.write(ctx, o); err != nil {
		return u, explain(ctx, "in the archive", err)
	}
	return u, nil
}
