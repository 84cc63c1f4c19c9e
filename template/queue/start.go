package queue

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"

	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/template"
)

// Request asks for a build to be registered.
type Request struct {
	// Name is [team/]name[:tag], or a template's id.
	Name string
	// Tags go beside the one in Name; template.DefaultTag when there is none.
	Tags []string
	// Nil means the server's default.
	CPUs        *int32
	MemoryMiB   *int64
	FreeDiskMiB *int64
	// Renews is the build whose memory this one only saves anew, with its files: it
	// gets those tags which that still has in the end. Nil for one that somebody wants.
	Renews *template.Build
}

const (
	maxTags = 100
	mostCPU = 32
	leastMB = 128
)

// Register makes a waiting build, and its template when there is none of the
// name. Start begins it. Errors are errdefs.ErrInvalidArgument with the member's
// name, ErrAlreadyExists and ErrResourceExhausted.
func (q *Queue) Register(ctx context.Context, who identity.Principal, r Request) (template.Template, template.Build, error) {
	ref, tags, err := r.names(who)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	res, err := q.resources(r)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	b := template.Build{
		ID: template.BuildID(uuid.NewString()), Template: template.NewID(), Status: template.Waiting,
		Resources: res, Tags: tags, CreatedAt: now(),
	}
	if r.Renews != nil {
		b.Source = template.RenewalSource(*r.Renews)
	}
	t, err := q.deps.Store.RegisterBuild(ctx, who.Team, ref.Name, b, maxWaiting, who.KeyID)
	if err != nil {
		return template.Template{}, template.Build{}, err
	}
	b.Template = t.ID
	return t, b, nil
}

// names settles the template and the tags of a request.
func (r Request) names(who identity.Principal) (template.Reference, []string, error) {
	if strings.TrimSpace(r.Name) == "" {
		return template.Reference{}, nil, apierr.Field("name", "must be given")
	}
	ref, err := template.ParseReference(r.Name)
	if err != nil {
		return ref, nil, apierr.Field("name", "%.200q is not [team/]name[:tag]", r.Name).WithCause(err)
	}
	if ref.Namespace != "" && ref.Namespace != string(who.Team) {
		return ref, nil, apierr.Field("name", "a template is built under a name of the own team, %q", who.Team)
	}
	var tags []string
	if strings.Contains(r.Name, ":") {
		tags = append(tags, ref.Tag)
	}
	given, err := CheckTags("tags", r.Tags)
	if err != nil {
		return ref, nil, err
	}
	if tags = append(tags, given...); len(tags) == 0 {
		tags = []string{template.DefaultTag}
	}
	slices.Sort(tags)
	return ref, slices.Compact(tags), nil
}

// CheckTags returns tags in their plain form; field names the member in errors.
func CheckTags(field string, tags []string) ([]string, error) {
	if len(tags) > maxTags {
		return nil, apierr.Field(field, "has %d members, the limit is %d", len(tags), maxTags)
	}
	var out []string
	for _, t := range tags {
		ref, err := template.ParseReference("x:" + strings.TrimSpace(t))
		if err != nil {
			return nil, apierr.Field(field, "%.200q is not a tag: it must be of a-z, 0-9, -, _ and . and not a UUID", t).WithCause(err)
		}
		if !slices.Contains(out, ref.Tag) {
			out = append(out, ref.Tag)
		}
	}
	return out, nil
}

// resources are those of sandboxes of the build, complete. The texts are E2B's,
// which programs look for.
func (q *Queue) resources(r Request) (provider.Resources, error) {
	res := q.cfg.Defaults
	bad := func(field, format string, args ...any) (provider.Resources, error) {
		e := apierr.New(errdefs.ErrInvalidArgument, format, args...)
		e.Field = field
		return res, e
	}
	if r.CPUs != nil {
		switch n := *r.CPUs; {
		case n < 1:
			return bad("cpuCount", "CPU count must be at least 1")
		case n > mostCPU:
			return bad("cpuCount", "CPU count must be at most %d", mostCPU)
		case n != 1 && n%2 != 0:
			return bad("cpuCount", "CPU count must be 1 or an even number")
		case q.cfg.Maxima.CPUs > 0 && int(n) > q.cfg.Maxima.CPUs:
			return bad("cpuCount", "CPU count must be at most %d (limits.max_cpus)", q.cfg.Maxima.CPUs)
		default:
			res.CPUs = int(n)
		}
	}
	if r.MemoryMiB != nil {
		switch n := *r.MemoryMiB; {
		case n < leastMB:
			return bad("memoryMB", "Memory must be at least %d MB", leastMB)
		case n%2 != 0:
			return bad("memoryMB", "Memory must be divisible by 2")
		case q.cfg.Maxima.MemoryMiB > 0 && n > q.cfg.Maxima.MemoryMiB:
			return bad("memoryMB", "Memory must be at most %d MB (limits.max_memory_mib)", q.cfg.Maxima.MemoryMiB)
		default:
			res.MemoryMiB = n
		}
	}
	// The disk of a sandbox is what it may write above the image, so all of it is
	// free when the build has ended.
	if r.FreeDiskMiB != nil {
		switch n := *r.FreeDiskMiB; {
		case n < 0:
			return bad("minFreeDiskMb", "Free disk must not be negative")
		case q.cfg.Maxima.DiskMiB > 0 && n > q.cfg.Maxima.DiskMiB:
			return bad("minFreeDiskMb", "Free disk must be at most %d MB (limits.max_disk_mib)", q.cfg.Maxima.DiskMiB)
		case n > res.DiskMiB:
			res.DiskMiB = n
		}
	}
	return res, nil
}

// Start gives a waiting build its recipe and puts it into the queue. Errors:
// errdefs.ErrInvalidArgument for what is no recipe, ErrNotFound for a build or
// base that there is not, ErrFailedPrecondition when it was started before,
// ErrResourceExhausted when the team or the server has enough to do.
func (q *Queue) Start(ctx context.Context, who identity.Principal, ref string, id template.BuildID, r Recipe) error {
	if q.deps.Executor == nil {
		return fmt.Errorf("this server cannot build templates: %w", errdefs.ErrNotImplemented)
	}
	if err := r.check(); err != nil {
		return err
	}
	_, b, err := q.Build(ctx, who, ref, id)
	if err != nil {
		return err
	}
	if b.Status != template.Waiting {
		return apierr.New(errdefs.ErrInvalidArgument, "build %q is not waiting to be started, its state is %s: register another", id, b.Status)
	}
	k := kept{Image: r.Image, Steps: r.Steps, Force: r.Force}
	var base *template.Build
	source := b.Source
	b.Source = template.FromImage + r.Image
	if r.Registry != nil {
		k.Username, k.Password = r.Registry.Username, r.Registry.Password.Reveal()
	}
	if r.Template != "" {
		_, found, err := q.deps.Catalog.Resolve(ctx, who.Team, r.Template)
		if err != nil {
			return fmt.Errorf("fromTemplate: %w", err)
		}
		if found.FromSandbox() {
			return apierr.Field("fromTemplate", "%q is a snapshot, whose files are not all in an image: build on a template", r.Template)
		}
		base, k.Base, b.Source = &found, found.ID, template.FromTemplate+r.Template
	}
	if source != "" { // a renewal's, from its registration
		b.Source = source
	}
	k.Start, k.Ready = commands(r, base)
	b.Start, b.Ready = k.Start, k.Ready
	for _, s := range r.Steps {
		if hashForm.MatchString(s.FilesHash) { // keeps it until its turn
			if _, err := q.deps.Files.Has(who.Team, s.FilesHash); err != nil {
				return err
			}
		}
	}
	sealed, err := q.seal(id, k)
	if err != nil {
		return err
	}
	err = q.deps.Store.BeginBuild(ctx, who.Team, b, sealed, q.cfg.Limits, who.KeyID)
	if errdefs.IsFailedPrecondition(err) {
		return apierr.New(errdefs.ErrInvalidArgument, "build %q was started meanwhile", id).WithCause(err)
	}
	if err != nil {
		return err
	}
	q.enqueue(template.Pending{Build: id, Template: b.Template, Team: who.Team, Sealed: sealed})
	q.deps.Log.InfoContext(ctx, "build started", slog.String("build", string(id)), slog.String("template", string(b.Template)),
		slog.String("team", string(who.Team)), slog.Int("steps", len(r.Steps)))
	return nil
}

// enqueue gives a build that was begun its place.
func (q *Queue) enqueue(p template.Pending) {
	q.mu.Lock()
	if q.running[p.Build] == nil && !slices.ContainsFunc(q.waiting, func(j *job) bool { return j.Build == p.Build }) {
		q.waiting = append(q.waiting, &job{Pending: p})
	}
	q.mu.Unlock()
	q.signal()
}

// Build returns a build of a template of the caller's team, whatever its state.
// errdefs.ErrNotFound when there is none, ErrPermissionDenied when the template
// is another team's.
func (q *Queue) Build(ctx context.Context, who identity.Principal, ref string, id template.BuildID) (template.Template, template.Build, error) {
	t, err := q.own(ctx, who, ref)
	if err != nil {
		return t, template.Build{}, err
	}
	b, err := q.deps.Records.GetBuild(ctx, id)
	if err == nil && b.Template != t.ID || errdefs.IsNotFound(err) {
		return t, template.Build{}, fmt.Errorf("template %q has no build %.100q: %w", ref, id, errdefs.ErrNotFound)
	}
	return t, b, err
}

// own finds a template of the caller's team.
func (q *Queue) own(ctx context.Context, who identity.Principal, ref string) (template.Template, error) {
	t, _, err := q.deps.Catalog.Find(ctx, who.Team, ref)
	if err != nil {
		return t, err
	}
	if t.Team != who.Team {
		return t, apierr.New(errdefs.ErrPermissionDenied, "template %q belongs to another team", ref)
	}
	return t, nil
}

// Log returns lines of a build that Build has found.
func (q *Queue) Log(ctx context.Context, id template.BuildID, f template.LogFilter) ([]template.Entry, error) {
	return q.deps.Store.BuildLog(ctx, id, f)
}
