package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

// tagBuild gives a build its tags; what they were taken from may lose its
// artifact. The caller holds the lock of the template's row.
func tagBuild(ctx context.Context, q *db.Queries, t template.ID, b template.BuildID, tags []string, at time.Time) error {
	for _, tag := range tags {
		old, err := q.TemplateTag(ctx, db.TemplateTagParams{TemplateID: string(t), Tag: tag})
		if err != nil {
			return fmt.Errorf("read tag: %w", err)
		}
		err = q.PutTemplateTag(ctx, db.PutTemplateTagParams{TemplateID: string(t), Tag: tag, BuildID: string(b), AssignedAt: cmp.Or(millis(at), time.Now().UnixMilli())})
		if err != nil {
			return fmt.Errorf("write tag %q: %w", tag, err)
		}
		if tag == template.DefaultTag {
			err := q.SetTemplateCurrent(ctx, db.SetTemplateCurrentParams{ID: string(t), Current: string(b), UpdatedAt: cmp.Or(millis(at), time.Now().UnixMilli())})
			if err != nil {
				return fmt.Errorf("update template: %w", err)
			}
		}
		if len(old) > 0 && old[0].BuildID != string(b) {
			if err := releaseUntagged(ctx, q, old[0].BuildID); err != nil {
				return err
			}
		}
	}
	return nil
}

// freeTags returns those of tags that a build may take when it ends: none of a build
// that was registered after it, as an older one that takes longer does not put itself
// before a newer one. A renewal of saved memory takes only what the build still has that
// it renews: what was done to tags meanwhile stays done.
func freeTags(ctx context.Context, q *db.Queries, b db.Build, tags []string) ([]string, error) {
	renewed, renewal := template.Build{Source: b.Source}.Renews()
	var free []string
	for _, tag := range tags {
		rows, err := q.TemplateTag(ctx, db.TemplateTagParams{TemplateID: b.TemplateID, Tag: tag})
		if err != nil {
			return nil, fmt.Errorf("read tag: %w", err)
		}
		if renewal && (len(rows) == 0 || rows[0].BuildID != string(renewed)) {
			continue
		}
		if len(rows) > 0 {
			holder, err := q.GetBuild(ctx, rows[0].BuildID)
			if err != nil {
				return nil, fmt.Errorf("read build of tag %q: %w", tag, err)
			}
			if holder.CreatedAt > b.CreatedAt {
				continue
			}
		}
		free = append(free, tag)
	}
	return free, nil
}

// releaseUntagged lets go of the artifact of a build that no tag means any more;
// the sweep deletes it.
func releaseUntagged(ctx context.Context, q *db.Queries, build string) error {
	n, err := q.CountBuildTags(ctx, build)
	if err != nil {
		return fmt.Errorf("count tags: %w", err)
	}
	if n > 0 {
		return nil
	}
	_, err = releaseBuild(ctx, q, build)
	return err
}

// ListTags implements queue.Tags.
func (s *Store) ListTags(ctx context.Context, t template.ID) ([]template.Tag, error) {
	rows, err := s.rq.ListTemplateTags(ctx, string(t))
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	out := make([]template.Tag, 0, len(rows))
	for _, r := range rows {
		out = append(out, template.Tag{Name: r.Tag, Build: template.BuildID(r.BuildID), AssignedAt: fromMillis(r.AssignedAt)})
	}
	return out, nil
}

// AssignTags implements queue.Tags.
func (s *Store) AssignTags(ctx context.Context, t template.ID, source string, tags []string, actor string) (build template.BuildID, err error) {
	err = s.writeTags(ctx, t, actor, "template.tagged", tags, func(q *db.Queries) error {
		rows, err := q.TemplateTag(ctx, db.TemplateTagParams{TemplateID: string(t), Tag: source})
		if err != nil {
			return fmt.Errorf("read tag: %w", err)
		}
		if len(rows) == 0 {
			return fmt.Errorf("template %q has no tag %q: %w", t, source, errdefs.ErrNotFound)
		}
		build = template.BuildID(rows[0].BuildID)
		return tagBuild(ctx, q, t, build, tags, time.Now())
	})
	return build, err
}

// RemoveTags implements queue.Tags.
func (s *Store) RemoveTags(ctx context.Context, t template.ID, tags []string, actor string) error {
	if slices.Contains(tags, template.DefaultTag) {
		return fmt.Errorf("the tag %q cannot be removed: %w", template.DefaultTag, errdefs.ErrInvalidArgument)
	}
	return s.writeTags(ctx, t, actor, "template.untagged", tags, func(q *db.Queries) error {
		for _, tag := range tags {
			rows, err := q.TemplateTag(ctx, db.TemplateTagParams{TemplateID: string(t), Tag: tag})
			if err != nil {
				return fmt.Errorf("read tag: %w", err)
			}
			if len(rows) == 0 {
				return fmt.Errorf("template %q has no tag %q: %w", t, tag, errdefs.ErrNotFound)
			}
			if _, err := q.DeleteTemplateTag(ctx, db.DeleteTemplateTagParams{TemplateID: string(t), Tag: tag}); err != nil {
				return fmt.Errorf("delete tag: %w", err)
			}
			if err := releaseUntagged(ctx, q, rows[0].BuildID); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetPublic implements queue.Tags.
func (s *Store) SetPublic(ctx context.Context, t template.ID, public bool, actor string) error {
	kind := "template.unpublished"
	if public {
		kind = "template.published"
	}
	return s.writeTags(ctx, t, actor, kind, nil, func(q *db.Queries) error {
		_, err := q.SetTemplatePublic(ctx, db.SetTemplatePublicParams{ID: string(t), Public: flag(public), UpdatedAt: time.Now().UnixMilli()})
		return err
	})
}

// writeTags runs fn with a template's row locked, and records what it did.
func (s *Store) writeTags(ctx context.Context, t template.ID, actor, kind string, tags []string, fn func(*db.Queries) error) error {
	return s.write(ctx, func(q *db.Queries) error {
		if n, err := q.LockTemplate(ctx, string(t)); err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("template %q: %w", t, errdefs.ErrNotFound))
		}
		rows, err := q.TemplateByID(ctx, string(t))
		if err != nil || len(rows) == 0 {
			return cmp.Or(err, fmt.Errorf("template %q: %w", t, errdefs.ErrNotFound))
		}
		if rows[0].Kind == template.KindSnapshot {
			return fmt.Errorf("%q is a snapshot: its tags are set by saving, and it belongs to its team: %w", t, errdefs.ErrInvalidArgument)
		}
		if err := fn(q); err != nil {
			return err
		}
		fields := map[string]string{"template": string(t)}
		if len(tags) > 0 {
			fields["tags"] = text(fmt.Sprint(tags), maxReason)
		}
		return appendEvent(ctx, q, audit.Event{Type: kind, Team: rows[0].TeamID, Actor: actor, Fields: fields})
	})
}
