package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/image"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
)

// Imported is a build whose root filesystem is there already.
type Imported struct {
	// Name is [team/]name[:tag]; Tags go beside that.
	Name string
	Tags []string
	// Source is for people.
	Source string
	Rootfs image.Rootfs
	// User, Workdir and Env are those of sandboxes.
	User, Workdir string
	Env           map[string]string
	// Start and Ready are run before the build is ready, unless Artifact has the
	// memory in which they were.
	Start, Ready string
	// Resources are those of sandboxes; zero fields mean the server's.
	Resources provider.Resources
	Artifact  *snapshot.Artifact
	// Settle, when it is set, is called once the build has its id, before anybody
	// can start from it.
	Settle func(context.Context, template.BuildID) error
}

// ErrUnsettled says that what became of an import could not be read: its memory must
// not be deleted. What nothing refers to goes with the next sweep.
var ErrUnsettled = errors.New("it is not known what became of the import")

// settleTimeout bounds each of the steps at the end of an import.
const settleTimeout = time.Minute

// Import makes a build of the team's template of that name. It is ready when Import returns, unless
// it has a start command without memory: then it is building, and goes the way of all
// builds. Either way its tags move when it is ready. Errors are those of
// Register and Start, and Settle's; after one nothing was changed, but with ErrUnsettled.
func (q *Queue) Import(ctx context.Context, who identity.Principal, i Imported) (template.Template, template.Build, error) {
	ref, tags, err := Request{Name: i.Name, Tags: i.Tags}.names(who)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	res, err := q.fitting(i.Resources)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	build := i.Artifact == nil && (i.Start != "" || i.Ready != "")
	if build && q.deps.Executor == nil {
		return template.Template{}, template.Build{}, fmt.Errorf("this server cannot build templates: %w", errdefs.ErrNotImplemented)
	}
	b := template.Build{
		ID: template.BuildID(uuid.NewString()), Template: template.NewID(), Status: template.Waiting, Resources: res, Tags: tags,
		CreatedAt: now(), Source: template.FromArchive + i.Source, Rootfs: i.Rootfs, User: i.User, Workdir: i.Workdir, Env: i.Env,
	}
	if b.Start, b.Ready = i.Start, i.Ready; build {
		b.Start, b.Ready = commands(Recipe{Start: i.Start, Ready: i.Ready}, nil)
	}
	t, err := q.deps.Store.RegisterBuild(ctx, who.Team, ref.Name, b, maxWaiting, who.KeyID)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	b.Template = t.ID
	// From here on it is settled whether the caller waits or not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if err := q.settle(ctx, who, &b, i, build); err != nil {
		if b, err = q.unsettled(context.WithoutCancel(ctx), who, b, err); err != nil {
			return template.Template{}, template.Build{}, err
		}
	}
	q.deps.Log.InfoContext(ctx, "template imported", slog.String("build", string(b.ID)), slog.String("template", string(t.ID)),
		slog.String("team", string(who.Team)), slog.String("rootfs", b.Rootfs.Digest), slog.Bool("memory", b.Artifact != nil))
	return t, b, nil
}

// settle finishes a build that was registered, or begins it.
func (q *Queue) settle(ctx context.Context, who identity.Principal, b *template.Build, i Imported, build bool) error {
	if i.Settle != nil {
		if err := i.Settle(ctx, b.ID); err != nil {
			return err
		}
	}
	if !build {
		b.Status, b.FinishedAt, b.Artifact = template.Ready, now(), i.Artifact
		return q.deps.Store.FinishBuild(ctx, *b, who.KeyID)
	}
	sealed, err := q.seal(b.ID, kept{Imported: true, Start: b.Start, Ready: b.Ready})
	if err != nil {
		return err
	}
	pending := template.Pending{Build: b.ID, Template: b.Template, Team: who.Team, Sealed: sealed}
	if err := q.deps.Store.BeginBuild(ctx, who.Team, *b, sealed, q.cfg.Limits, who.KeyID); err != nil {
		var got template.Build
		if rerr := q.again(context.WithoutCancel(ctx), b.ID, &got); rerr != nil || got.Status != template.Building {
			return errors.Join(err, rerr)
		}
	}
	b.Status = template.Building
	q.enqueue(pending)
	return nil
}

// again reads a build of which it is not known what a statement has done, or that it
// is not there any more.
func (q *Queue) again(ctx context.Context, id template.BuildID, b *template.Build) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return insist(ctx, func(ctx context.Context) (err error) {
		*b, err = q.deps.Records.GetBuild(ctx, id)
		return err
	})
}

// unsettled is for a build whose settling failed with an error, which may only be that
// of the answer: then it returns the build as it is. Else it is discarded, and the error
// is ErrUnsettled, too, when that is not certain.
func (q *Queue) unsettled(ctx context.Context, who identity.Principal, b template.Build, err error) (template.Build, error) {
	var got template.Build
	gerr := q.again(ctx, b.ID, &got)
	switch {
	case gerr == nil && (got.Status == template.Ready || got.Status == template.Building):
		return got, nil
	case gerr == nil && got.Status == template.Failed, errdefs.IsNotFound(gerr): // cancelled or deleted meanwhile
		return got, err
	}
	clean, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	derr := insist(clean, func(ctx context.Context) error { return q.deps.Store.DiscardBuild(ctx, b, who.KeyID) })
	if derr == nil {
		if derr = q.again(ctx, b.ID, &got); errdefs.IsNotFound(derr) {
			return got, err
		}
	}
	return got, errors.Join(err, derr, ErrUnsettled)
}

// fitting completes the resources that a template brings along.
func (q *Queue) fitting(r provider.Resources) (provider.Resources, error) {
	m := q.cfg.Maxima
	for _, x := range []struct {
		what       string
		have, most int64
		limit      string
	}{
		{"CPUs", int64(r.CPUs), int64(m.CPUs), "limits.max_cpus"},
		{"MiB of memory", r.MemoryMiB, m.MemoryMiB, "limits.max_memory_mib"},
		{"MiB of disk", r.DiskMiB, m.DiskMiB, "limits.max_disk_mib"},
		{"processes", r.Processes, m.Processes, "limits.max_processes"},
	} {
		if x.most > 0 && x.have > x.most {
			return r, apierr.Exceeds("resources", x.limit, "the template's sandboxes have %d %s, and the limit here is %d", x.have, x.what, x.most)
		}
	}
	d := q.cfg.Defaults
	for _, x := range []struct{ field, value *int64 }{{&r.MemoryMiB, &d.MemoryMiB}, {&r.DiskMiB, &d.DiskMiB}, {&r.Processes, &d.Processes}} {
		if *x.field == 0 {
			*x.field = *x.value
		}
	}
	if r.CPUs == 0 {
		r.CPUs = d.CPUs
	}
	return r, nil
}
