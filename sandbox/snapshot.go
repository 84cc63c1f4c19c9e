package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/provider"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
)

// Snapshots keeps the records of snapshots, which are templates of their own
// kind. Implemented by package store, checked by store/storetest.
type Snapshots interface {
	// PutSnapshot adds a build, gives it the tag, and makes the template if
	// there is none with that id; names that egress gave the source are copied
	// to the build. released are the artifacts that nothing refers to any more.
	// errdefs.ErrAlreadyExists when id or name are those of something else; what
	// is above the quota is its Allow's error.
	PutSnapshot(ctx context.Context, snap template.Snapshot, most SnapshotQuota, ev audit.Event) (_ template.Snapshot, released []snapshot.ID, err error)
	// ListSnapshots returns one page, newest first, and the cursor of the next.
	ListSnapshots(ctx context.Context, f template.SnapshotFilter) (page []template.Snapshot, next string, err error)
	// DeleteSnapshot deletes one tag with its build, or the template with its
	// last tag or when tag is empty, and returns the artifacts that they had.
	// errdefs.ErrFailedPrecondition while live sandboxes are based on it.
	DeleteSnapshot(ctx context.Context, id template.ID, tag, actor string) (released []snapshot.ID, err error)
	// Artifacts returns those of builds that have a tag or a live sandbox.
	Artifacts(ctx context.Context) ([]snapshot.Artifact, error)
	// SnapshotsUsed is what the tags of a team's snapshots take, without that of
	// the one given.
	SnapshotsUsed(ctx context.Context, but template.Snapshot) (SnapshotQuota, error)
	// CopyNames is egress.NameStore's.
	CopyNames(ctx context.Context, from, to string) error
	// SwapNames gives a sandbox the names of from in place of its own, which are
	// kept beside the artifact that it was saved as until SettleNames: with back
	// it takes them again, without they are forgotten. Settling what was not
	// swapped changes nothing.
	SwapNames(ctx context.Context, id ID, from string, kept snapshot.ID) error
	SettleNames(ctx context.Context, id ID, kept snapshot.ID, back bool) error
	GetTemplate(ctx context.Context, team identity.TeamID, ref string) (template.Template, error)
	GetTeam(ctx context.Context, id identity.TeamID) (identity.Team, error)
}

// Origin says of what a sandbox is a copy; zero for one that started fresh.
type Origin struct {
	// Sandbox is the source: of the snapshot, or of the fork.
	Sandbox ID `json:"sandbox,omitempty"`
	// Snapshot is the reference that the snapshot had, empty for a fork.
	Snapshot string `json:"snapshot,omitempty"`
}

// artifactDeletion bounds deleting what a request left over.
const artifactDeletion = 30 * time.Second

// Snapshot saves a running sandbox, with its memory, as a template: a new one
// when name is empty, else the team's snapshot of that [team/]name[:tag], whose
// tag moves. The sandbox stands still for the time of the checkpoint and runs
// on under its id. While it is being saved otherwise, or does not run, it is
// errdefs.ErrConflict; a name that cannot be is ErrInvalidArgument.
func (m *Manager) Snapshot(ctx context.Context, who identity.Principal, id ID, name string) (template.Snapshot, error) {
	if err := m.canCopy(); err != nil {
		return template.Snapshot{}, err
	}
	snap, err := m.planSnapshot(ctx, who, name)
	if err != nil {
		return template.Snapshot{}, err
	}
	if err := m.maySnapshot(ctx, snap); err != nil {
		return template.Snapshot{}, err
	}
	e, err := m.beginCopy(ctx, who, id)
	if err != nil {
		return template.Snapshot{}, err
	}
	defer m.endCopy(e)
	ctx, cancel := m.saveContext(ctx)
	defer cancel()

	c, err := m.checkpoint(ctx, e, m.deps.Vault)
	if err != nil {
		return template.Snapshot{}, fmt.Errorf("snapshot of sandbox %q: %w", id, err)
	}
	defer c.release()
	build, err := m.deps.Templates.Build(ctx, c.sb.Build)
	if err == nil {
		err = m.deps.Vault.Sync(ctx, c.artifact.ID)
	}
	if err == nil {
		snap, err = m.recordSnapshot(ctx, who, snap, c, build)
	} else {
		m.deleteArtifact(ctx, c.artifact.ID)
	}
	if err != nil {
		return template.Snapshot{}, fmt.Errorf("snapshot of sandbox %q: %w", id, because(ctx, err))
	}
	m.log.InfoContext(ctx, "snapshot saved", slog.String("sandbox", string(id)), slog.String("snapshot", snap.Reference()),
		slog.Int64("bytes", c.artifact.SizeBytes), slog.Duration("frozen", c.frozen))
	return snap, nil
}

// planSnapshot settles which template and tag a snapshot goes to.
func (m *Manager) planSnapshot(ctx context.Context, who identity.Principal, name string) (template.Snapshot, error) {
	snap := template.Snapshot{Template: template.NewID(), Team: who.Team, Tag: template.DefaultTag}
	if who.Team == "" {
		return snap, fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
	}
	if name == "" {
		return snap, nil
	}
	ref, err := template.ParseReference(name)
	if err != nil {
		return snap, apierr.Field("name", "%.200q is not [team/]name[:tag]", name).WithCause(err)
	}
	if ref.Namespace != "" && ref.Namespace != string(who.Team) {
		return snap, apierr.Field("name", "a snapshot is saved under a name of the own team, %q", who.Team)
	}
	snap.Name, snap.Tag = ref.Name, ref.Tag
	t, err := m.deps.Snapshots.GetTemplate(ctx, who.Team, ref.Name)
	switch {
	case errdefs.IsNotFound(err) || err == nil && t.Team != who.Team:
		// Another team's public template of that name stays theirs.
	case err != nil:
		return snap, err
	case t.Kind != template.KindSnapshot:
		return snap, apierr.Field("name", "%q is a template; choose another name", ref.Name)
	default:
		snap.Template, snap.Name = t.ID, first(t.Names)
	}
	return snap, nil
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// recordSnapshot writes the record of a complete artifact; on an error there is
// neither.
func (m *Manager) recordSnapshot(ctx context.Context, who identity.Principal, snap template.Snapshot, c *copied, build template.Build) (template.Snapshot, error) {
	now := clock()
	snap.TaggedAt = now
	g, err := m.unseal(c.sb)
	if err != nil {
		m.deleteArtifact(ctx, c.artifact.ID)
		return snap, err
	}
	g.PrivatePorts = c.sb.Network.PrivatePorts
	snap.Build = template.Build{
		ID: template.BuildID(uuid.NewString()), Template: snap.Template, Status: template.Ready,
		Source: "snapshot of " + string(c.sb.ID), Rootfs: build.Rootfs, Resources: c.sb.Resources,
		User: g.User, Workdir: g.Workdir, CreatedAt: now, FinishedAt: now,
		Artifact: &c.artifact, Sandbox: string(c.sb.ID),
	}
	if snap.Build.Sealed, err = m.sealFor(string(snap.Build.ID), g); err != nil {
		m.deleteArtifact(ctx, c.artifact.ID)
		return snap, err
	}
	out, released, err := m.deps.Snapshots.PutSnapshot(ctx, snap, m.cfg.Snapshots, audit.Event{
		Type: "snapshot.created", At: now, Team: string(snap.Team), Actor: who.KeyID, SandboxID: string(c.sb.ID),
		Fields: map[string]string{
			"snapshot": snap.Reference(), "build": string(snap.Build.ID), "bytes": strconv.FormatInt(c.artifact.SizeBytes, 10),
		},
	})
	if err == nil {
		m.deleteArtifacts(ctx, released)
		return out, nil
	}
	// The commit may have gone through and its answer been lost. What cannot be
	// told now is left to the sweep, which deletes what has no record.
	after := context.WithoutCancel(ctx)
	switch used, lerr := m.deps.Snapshots.Artifacts(after); {
	case lerr != nil:
	case slices.Contains(used, c.artifact):
		return snap, nil
	default:
		m.deleteArtifact(after, c.artifact.ID)
	}
	return snap, err
}

func (m *Manager) deleteArtifacts(ctx context.Context, ids []snapshot.ID) {
	if m.deps.Vault == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), artifactDeletion)
	defer cancel()
	for _, id := range ids {
		m.deleteArtifact(ctx, id)
	}
}

// ListSnapshots returns one page of the caller's snapshots, newest first.
func (m *Manager) ListSnapshots(ctx context.Context, who identity.Principal, f template.SnapshotFilter) (page []template.Snapshot, next string, err error) {
	if m.deps.Snapshots == nil {
		return nil, "", nil
	}
	if who.Team == "" {
		return nil, "", fmt.Errorf("caller has no team: %w", errdefs.ErrPermissionDenied)
	}
	f.Team = who.Team
	return m.deps.Snapshots.ListSnapshots(ctx, f)
}

// DeleteSnapshot deletes a snapshot of the caller's team and its artifacts; see
// Snapshots.DeleteSnapshot for tag and errors. The caller has found t.
func (m *Manager) DeleteSnapshot(ctx context.Context, who identity.Principal, t template.Template, tag string) error {
	if m.deps.Snapshots == nil || t.Kind != template.KindSnapshot || !maySee(who, t.Team) {
		return fmt.Errorf("snapshot %q: %w", t.ID, errdefs.ErrNotFound)
	}
	released, err := m.deps.Snapshots.DeleteSnapshot(ctx, t.ID, tag, who.KeyID)
	if err != nil {
		return err
	}
	m.deleteArtifacts(ctx, released)
	return nil
}

// resources settles what a sandbox of a build gets. A checkpoint keeps the
// limits that it was made under (decisions.md 12), so those of a snapshot are
// fixed.
func (m *Manager) resources(want provider.Resources, build template.Build) (provider.Resources, error) {
	if build.Artifact == nil {
		return m.cfg.resources(want, build.Resources)
	}
	fixed := build.Resources
	// The server's maxima may have become lower, and zero means no limit only
	// where the server has none.
	settled, err := m.cfg.resources(fixed, fixed)
	for _, f := range []struct {
		name                string
		want, have, settled int64
	}{
		{"memoryMiB", want.MemoryMiB, fixed.MemoryMiB, settled.MemoryMiB},
		{"cpus", int64(want.CPUs), int64(fixed.CPUs), int64(settled.CPUs)},
		{"diskMiB", want.DiskMiB, fixed.DiskMiB, settled.DiskMiB},
		{"processes", want.Processes, fixed.Processes, settled.Processes},
	} {
		if f.have != f.settled {
			return fixed, fmt.Errorf("the record of build %s lacks resources.%s, which its memory was saved with: build or save it again: %w",
				build.ID, f.name, errdefs.ErrFailedPrecondition)
		}
		if f.want != 0 && f.want != f.have {
			return fixed, apierr.Field("resources."+f.name,
				"a sandbox that starts from saved memory, of a snapshot or of a template with a start command, keeps the resources that it was saved with, %d; leave the member out", f.have)
		}
	}
	return fixed, err
}

// opened returns a snapshot's build with what its source's agent was told, so
// that it can be used like any other, and the private ports of its sandboxes. One
// that a template was built with is so already.
func (m *Manager) opened(t template.Template, build template.Build) (template.Build, []uint16, error) {
	if build.Artifact != nil {
		if err := m.canCopy(); err != nil {
			return build, nil, err
		}
	}
	if !build.FromSandbox() {
		return build, template.PrivatePorts(t, build), nil // what it was built with is no secret
	}
	g, err := m.unsealFor(string(build.ID), build.Sealed)
	if err != nil {
		return build, nil, fmt.Errorf("snapshot: %w", err)
	}
	build.Env, build.User, build.Workdir = g.Env, g.User, g.Workdir
	return build, g.PrivatePorts, nil
}

// descend makes a creation one from saved state, if its build has some: that of a
// snapshot, whose sandboxes are copies of another, or of a template, whose are not.
func (c *creation) descend() {
	if c.build.Artifact == nil {
		return
	}
	c.from, c.names = c.build.Artifact, string(c.build.ID)
	if !c.build.FromSandbox() {
		return
	}
	c.sb.Parent = c.build.Artifact.ID
	tag := template.DefaultTag
	if ref, err := template.ParseReference(c.req.Template); err == nil {
		tag = ref.Tag
	}
	c.sb.Origin = Origin{
		Sandbox:  ID(c.build.Sandbox),
		Snapshot: template.Snapshot{Template: c.tmpl.ID, Team: c.tmpl.Team, Name: first(c.tmpl.Names), Tag: tag}.Reference(),
	}
}

// inherit prepares a creation from saved state, once its record protects the
// build from being deleted.
func (m *Manager) inherit(ctx context.Context, c *creation) error {
	if c.from == nil {
		return nil
	}
	if c.build.Artifact != nil {
		now, err := m.deps.Templates.Build(ctx, c.build.ID)
		if errdefs.IsNotFound(err) || err == nil && now.Artifact == nil {
			return fmt.Errorf("what the sandbox was to start from was replaced meanwhile; try again: %w", errdefs.ErrUnavailable)
		}
		if err != nil {
			return because(ctx, err)
		}
	}
	if err := m.deps.Snapshots.CopyNames(ctx, c.names, string(c.sb.ID)); err != nil {
		return because(ctx, fmt.Errorf("inherit egress names: %w", err))
	}
	return nil
}

// restoreBox is the provider's Create for a creation from saved state.
func (m *Manager) restoreBox(ctx context.Context, c *creation, spec provider.Spec) (provider.Box, error) {
	box, err := m.startBox(ctx, c.sb, spec, c.from)
	if errors.Is(err, snapshot.ErrOtherEngine) {
		if c.build.Artifact != nil && !c.build.FromSandbox() {
			return nil, apierr.New(errdefs.ErrFailedPrecondition,
				"the template's memory was saved by another version of the engine, which this one cannot take up: build it again, or run the version that saved it").
				WithCode("engine_mismatch").WithCause(err)
		}
		return nil, errEngine(err)
	}
	return box, err
}

func errEngine(err error) error {
	return apierr.New(errdefs.ErrFailedPrecondition,
		"the snapshot was saved by another version of the engine, whose memory this one cannot take up: make it again from a new sandbox, or run the version that saved it").
		WithCode("engine_mismatch").WithCause(err)
}
