package store

import (
	"cmp"
	"context"
	"fmt"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/sandbox"
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

var _ sandbox.Snapshots = (*Store)(nil)

// PutSnapshot implements sandbox.Snapshots.
func (s *Store) PutSnapshot(ctx context.Context, snap template.Snapshot, most sandbox.SnapshotQuota, ev audit.Event) (_ template.Snapshot, released []snapshot.ID, err error) {
	b := snap.Build
	if snap.Template == "" || snap.Team == "" || snap.Tag == "" || b.ID == "" || b.Artifact == nil {
		return snap, nil, fmt.Errorf("snapshot needs a template, a team, a tag and a build with an artifact: %w", errdefs.ErrInvalidArgument)
	}
	err = s.write(ctx, func(q *db.Queries) error {
		released = nil
		t := template.Template{
			ID: snap.Template, Team: snap.Team, Kind: template.KindSnapshot, CreatedAt: snap.TaggedAt, UpdatedAt: snap.TaggedAt,
		}
		fresh, err := q.TemplateByID(ctx, string(t.ID))
		if err != nil {
			return fmt.Errorf("read template: %w", err)
		}
		if len(fresh) == 0 {
			if snap.Name != "" {
				t.Names = []string{snap.Name}
			}
			if err := insertSnapshotTemplate(ctx, q, t); err != nil {
				return err
			}
		} else if fresh[0].TeamID != string(t.Team) || fresh[0].Kind != template.KindSnapshot {
			return fmt.Errorf("template %q is no snapshot of this team: %w", t.ID, errdefs.ErrAlreadyExists)
		}
		if n, err := q.LockTemplate(ctx, string(t.ID)); err != nil || n == 0 {
			return cmp.Or(err, error(errConflict))
		}
		old, err := q.TemplateTag(ctx, db.TemplateTagParams{TemplateID: string(t.ID), Tag: snap.Tag})
		if err != nil {
			return fmt.Errorf("read tag: %w", err)
		}
		if err := withinQuota(ctx, q, snap, most); err != nil {
			return err
		}
		b.Template = t.ID
		if err := putBuild(ctx, q, b); err != nil {
			return err
		}
		err = q.PutTemplateTag(ctx, db.PutTemplateTagParams{
			TemplateID: string(t.ID), Tag: snap.Tag, BuildID: string(b.ID), AssignedAt: millis(snap.TaggedAt),
		})
		if err != nil {
			return fmt.Errorf("write tag: %w", err)
		}
		current := ""
		if len(fresh) > 0 {
			current = fresh[0].Current
		}
		if snap.Tag == template.DefaultTag {
			current = string(b.ID)
		}
		if err := putTemplate(ctx, q, t, current); err != nil {
			return err
		}
		// What processes of the source had resolved keeps its addresses.
		if err := q.CopyNames(ctx, db.CopyNamesParams{FromSandbox: b.Sandbox, ToSandbox: string(b.ID)}); err != nil {
			return fmt.Errorf("copy names: %w", err)
		}
		if len(old) > 0 {
			if released, err = releaseBuild(ctx, q, old[0].BuildID); err != nil {
				return err
			}
		}
		return appendEvent(ctx, q, ev)
	})
	snap.Build.Template = snap.Template
	return snap, released, err
}

// withinQuota refuses what would be above a team's quota. Locking the team makes
// counting and adding one step.
func withinQuota(ctx context.Context, q *db.Queries, snap template.Snapshot, most sandbox.SnapshotQuota) error {
	if most == (sandbox.SnapshotQuota{}) {
		return nil
	}
	if _, err := q.LockTeam(ctx, string(snap.Team)); err != nil {
		return fmt.Errorf("lock team: %w", err)
	}
	used, err := snapshotsUsed(ctx, q, snap)
	if err != nil {
		return err
	}
	return most.Allow(snap.Team, used, snap.Build.Artifact.SizeBytes)
}

// SnapshotsUsed implements sandbox.Snapshots.
func (s *Store) SnapshotsUsed(ctx context.Context, but template.Snapshot) (sandbox.SnapshotQuota, error) {
	return snapshotsUsed(ctx, s.rq, but)
}

func snapshotsUsed(ctx context.Context, q *db.Queries, but template.Snapshot) (sandbox.SnapshotQuota, error) {
	var used sandbox.SnapshotQuota
	rows, err := q.TeamArtifacts(ctx, string(but.Team))
	if err != nil {
		return used, fmt.Errorf("read snapshots: %w", err)
	}
	var p packer
	for _, row := range rows {
		if row.TemplateID == string(but.Template) && row.Tag == but.Tag {
			continue // is let go of when the tag moves
		}
		var a *snapshot.Artifact
		p.parse(row.Artifact, &a)
		used.Count++
		if a != nil {
			used.Bytes += a.SizeBytes
		}
	}
	return used, p.err
}

func insertSnapshotTemplate(ctx context.Context, q *db.Queries, t template.Template) error {
	if err := putTemplate(ctx, q, t, ""); err != nil {
		return err
	}
	return putNames(ctx, q, t)
}

// releaseBuild lets go of the artifact of a build that has lost its tag, unless
// a live sandbox was made from it: then the sweep does so later.
func releaseBuild(ctx context.Context, q *db.Queries, id string) ([]snapshot.ID, error) {
	live, err := q.CountBuildSandboxes(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("count sandboxes: %w", err)
	}
	if live > 0 {
		return nil, nil
	}
	row, err := q.GetBuild(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read build: %w", err)
	}
	b, err := unpackBuild(row)
	if err != nil {
		return nil, err
	}
	if err := q.DropArtifact(ctx, id); err != nil {
		return nil, fmt.Errorf("update build: %w", err)
	}
	if err := q.DeleteSandboxNames(ctx, id); err != nil {
		return nil, fmt.Errorf("delete names: %w", err)
	}
	if b.Artifact == nil {
		return nil, nil
	}
	return []snapshot.ID{b.Artifact.ID}, nil
}

// ListSnapshots implements sandbox.Snapshots, newest first.
func (s *Store) ListSnapshots(ctx context.Context, f template.SnapshotFilter) (page []template.Snapshot, next string, err error) {
	from, err := parseCursor(f.Cursor, false)
	if err != nil {
		return nil, "", err
	}
	limit := f.Limit
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	rows, err := s.rq.ListSnapshotsDescending(ctx, db.ListSnapshotsDescendingParams{
		TeamID: string(f.Team), SandboxID: f.Sandbox, TemplateID: string(f.Template), Tag: f.Tag, Newest: flag(f.NewestTag),
		BeforeAt: from.at, BeforeID: from.id, MaxRows: int32(limit) + 1, //nolint:gosec // at most maxPage
	})
	if err != nil {
		return nil, "", fmt.Errorf("list snapshots: %w", err)
	}
	if len(rows) > limit {
		last := rows[limit-1]
		next = position{at: last.AssignedAt, id: last.TemplateID + ":" + last.Tag}.cursor(false)
		rows = rows[:limit]
	}
	for _, row := range rows {
		b, err := unpackBuild(row.Build)
		if err != nil {
			return nil, "", err
		}
		names, err := s.rq.TemplateNames(ctx, row.TemplateID)
		if err != nil {
			return nil, "", fmt.Errorf("read template names: %w", err)
		}
		snap := template.Snapshot{
			Template: template.ID(row.TemplateID), Team: identity.TeamID(row.TeamID), Tag: row.Tag,
			Build: b, TaggedAt: fromMillis(row.AssignedAt),
		}
		if len(names) > 0 {
			snap.Name = names[0]
		}
		page = append(page, snap)
	}
	return page, next, nil
}

// TaggedBuild implements template.Store.
func (s *Store) TaggedBuild(ctx context.Context, t template.ID, tag string) (template.BuildID, error) {
	rows, err := s.rq.TemplateTag(ctx, db.TemplateTagParams{TemplateID: string(t), Tag: tag})
	if err != nil {
		return "", fmt.Errorf("read tag: %w", err)
	}
	if len(rows) == 0 {
		return "", fmt.Errorf("template %q has no tag %q: %w", t, tag, errdefs.ErrNotFound)
	}
	return template.BuildID(rows[0].BuildID), nil
}

// DeleteSnapshot implements sandbox.Snapshots.
func (s *Store) DeleteSnapshot(ctx context.Context, id template.ID, tag, actor string) (released []snapshot.ID, err error) {
	err = s.write(ctx, func(q *db.Queries) error {
		released = nil
		n, err := q.LockTemplate(ctx, string(id))
		if err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("snapshot %q: %w", id, errdefs.ErrNotFound))
		}
		if tag != "" {
			rows, err := q.TemplateTag(ctx, db.TemplateTagParams{TemplateID: string(id), Tag: tag})
			if err != nil {
				return fmt.Errorf("read tag: %w", err)
			}
			if len(rows) == 0 {
				return fmt.Errorf("snapshot %q has no tag %q: %w", id, tag, errdefs.ErrNotFound)
			}
			tags, err := q.CountTemplateTags(ctx, string(id))
			if err != nil {
				return fmt.Errorf("count tags: %w", err)
			}
			if tags > 1 {
				released, err = deleteTag(ctx, q, rows[0], actor)
				return err
			}
		}
		released, err = deleteTemplate(ctx, q, id, actor)
		return err
	})
	return released, err
}

func deleteTag(ctx context.Context, q *db.Queries, tag db.TemplateTag, actor string) ([]snapshot.ID, error) {
	live, err := q.CountBuildSandboxes(ctx, tag.BuildID)
	if err != nil {
		return nil, fmt.Errorf("count sandboxes: %w", err)
	}
	if live > 0 {
		return nil, fmt.Errorf("snapshot %q is in use by %d sandboxes that run or are paused; end them first: %w", tag.TemplateID+":"+tag.Tag, live, errdefs.ErrFailedPrecondition)
	}
	rows, err := q.TemplateByID(ctx, tag.TemplateID)
	if err != nil || len(rows) == 0 {
		return nil, cmp.Or(err, fmt.Errorf("snapshot %q: %w", tag.TemplateID, errdefs.ErrNotFound))
	}
	released, err := releaseBuild(ctx, q, tag.BuildID)
	if err != nil {
		return nil, err
	}
	if err := q.ClearCurrent(ctx, db.ClearCurrentParams{ID: tag.TemplateID, Current: tag.BuildID}); err != nil {
		return nil, fmt.Errorf("update template: %w", err)
	}
	if err := q.DeleteBuild(ctx, tag.BuildID); err != nil {
		return nil, fmt.Errorf("delete build: %w", err)
	}
	return released, appendEvent(ctx, q, audit.Event{
		Type: "snapshot.deleted", Team: rows[0].TeamID, Actor: actor,
		Fields: map[string]string{"template": tag.TemplateID, "tag": tag.Tag},
	})
}

// Artifacts implements sandbox.Snapshots.
func (s *Store) Artifacts(ctx context.Context) ([]snapshot.Artifact, error) {
	rows, err := s.rq.ReferredArtifacts(ctx)
	if err != nil {
		return nil, fmt.Errorf("read artifacts of builds: %w", err)
	}
	var p packer
	all := make([]snapshot.Artifact, 0, len(rows))
	for _, row := range rows {
		var a snapshot.Artifact
		p.parse(row, &a)
		all = append(all, a)
	}
	return all, p.err
}
