package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/caisson-dev/caisson/audit"
	"github.com/caisson-dev/caisson/gen/db"
	"github.com/caisson-dev/caisson/identity"
	"github.com/caisson-dev/caisson/internal/apierr"
	"github.com/caisson-dev/caisson/template"
	"github.com/caisson-dev/caisson/template/queue"
	"github.com/containerd/errdefs"
)

var (
	_ queue.Store = (*Store)(nil)
	_ queue.Tags  = (*Store)(nil)
)

const (
	// maxBuildText bounds a line of a log and a command in a record.
	maxBuildText = 64 << 10
	// maxSource bounds a source, which lists have, of other teams' public templates too.
	maxSource = 2 << 10
)

// RegisterBuild implements queue.Store.
func (s *Store) RegisterBuild(ctx context.Context, team identity.TeamID, name string, b template.Build, most int, actor string) (t template.Template, err error) {
	if team == "" || name == "" || b.ID == "" || b.Status != template.Waiting {
		return t, fmt.Errorf("a build needs an id, a team, a name and the state waiting: %w", errdefs.ErrInvalidArgument)
	}
	err = s.write(ctx, func(q *db.Queries) error {
		if _, err := q.LockTeam(ctx, string(team)); err != nil {
			return found(err, "team", string(team))
		}
		waiting, err := q.CountTeamBuilds(ctx, db.CountTeamBuildsParams{TeamID: string(team), Status: string(template.Waiting)})
		if err != nil {
			return fmt.Errorf("count builds: %w", err)
		}
		if most > 0 && waiting >= int64(most) {
			return apierr.New(errdefs.ErrResourceExhausted, "team %s has %d builds that were registered and not started, which is the limit: start them, or wait until they expire", team, waiting)
		}
		if t, err = s.templateForBuild(ctx, q, team, name, b); err != nil {
			return err
		}
		b.Template = t.ID
		if err := putBuild(ctx, q, b); err != nil {
			return err
		}
		return appendEvent(ctx, q, audit.Event{
			Type: "template.build_registered", At: b.CreatedAt, Team: string(team), Actor: actor,
			Fields: map[string]string{"template": string(t.ID), "build": string(b.ID)},
		})
	})
	return t, err
}

// templateForBuild returns the team's template of a name or id, made when there
// is none.
func (s *Store) templateForBuild(ctx context.Context, q *db.Queries, team identity.TeamID, name string, b template.Build) (template.Template, error) {
	row, err := q.TemplateByName(ctx, db.TemplateByNameParams{TeamID: string(team), Name: name})
	if errors.Is(err, sql.ErrNoRows) {
		var rows []db.Template
		if rows, err = q.TemplateByID(ctx, name); err == nil && (len(rows) == 0 || rows[0].TeamID != string(team)) {
			err = sql.ErrNoRows
		} else if err == nil {
			row = rows[0]
		}
	}
	if errors.Is(err, sql.ErrNoRows) {
		t := template.Template{ID: b.Template, Team: team, Names: []string{name}, CreatedAt: b.CreatedAt, UpdatedAt: b.CreatedAt}
		if err := putTemplate(ctx, q, t, ""); err != nil {
			return t, err
		}
		return t, putNames(ctx, q, t)
	}
	if err != nil {
		return template.Template{}, fmt.Errorf("read template %q: %w", name, err)
	}
	if row.Kind == template.KindSnapshot {
		return template.Template{}, apierr.New(errdefs.ErrAlreadyExists, "%q is a snapshot: choose another name, or delete it first", name)
	}
	names, err := q.TemplateNames(ctx, row.ID)
	if err != nil {
		return template.Template{}, fmt.Errorf("read template names: %w", err)
	}
	return templateOf(row, names), nil
}

// BeginBuild implements queue.Store.
func (s *Store) BeginBuild(ctx context.Context, team identity.TeamID, b template.Build, sealed string, l queue.Limits, actor string) error {
	return s.write(ctx, func(q *db.Queries) error {
		if _, err := q.LockTeam(ctx, string(team)); err != nil {
			return found(err, "team", string(team))
		}
		own, err := q.CountTeamBuilds(ctx, db.CountTeamBuildsParams{TeamID: string(team), Status: string(template.Building)})
		if err != nil {
			return fmt.Errorf("count builds: %w", err)
		}
		if l.PerTeam > 0 && own >= int64(l.PerTeam) {
			e := apierr.New(errdefs.ErrResourceExhausted, "team %s has %d builds under way and the limit is %d", team, own, l.PerTeam)
			e.Limit = "template.builds_per_team"
			return e
		}
		all, err := q.CountBuilds(ctx, string(template.Building))
		if err != nil {
			return fmt.Errorf("count builds: %w", err)
		}
		if l.Total > 0 && all >= int64(l.Total) {
			e := apierr.New(errdefs.ErrResourceExhausted, "%d builds are under way or wait on this server, which is its limit: try again later", all)
			e.Limit = "template.build_queue"
			return e
		}
		n, err := q.BeginBuild(ctx, db.BeginBuildParams{
			ID: string(b.ID), Source: text(b.Source, maxSource), StartCmd: text(b.Start, maxBuildText), ReadyCmd: text(b.Ready, maxBuildText),
		})
		if err != nil {
			return fmt.Errorf("write build: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("build %q is not waiting to be started: %w", b.ID, errdefs.ErrFailedPrecondition)
		}
		if err := q.PutRecipe(ctx, db.PutRecipeParams{BuildID: string(b.ID), Sealed: sealed}); err != nil {
			return fmt.Errorf("write recipe: %w", err)
		}
		return appendEvent(ctx, q, audit.Event{
			Type: "template.build_started", Team: string(team), Actor: actor,
			Fields: map[string]string{"template": string(b.Template), "build": string(b.ID)},
		})
	})
}

// AttemptBuild implements queue.Store.
func (s *Store) AttemptBuild(ctx context.Context, id template.BuildID) error {
	return s.write(ctx, func(q *db.Queries) error {
		n, err := q.AttemptRecipe(ctx, string(id))
		if err != nil {
			return fmt.Errorf("write recipe: %w", err)
		}
		if n > 0 {
			return nil
		}
		return cmp.Or(uncancelled(ctx, q, id), fmt.Errorf("build %q: %w", id, errdefs.ErrNotFound))
	})
}

// uncancelled returns queue.ErrCancelled when a build has a recipe still, where one
// that is not cancelled has none any more.
func uncancelled(ctx context.Context, q *db.Queries, id template.BuildID) error {
	n, err := q.CountRecipes(ctx, string(id))
	if err != nil {
		return fmt.Errorf("read recipe: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("build %q: %w", id, queue.ErrCancelled)
	}
	return nil
}

// endRecipe deletes the recipe of a build that ends. One whose cancelling was
// acknowledged is not ready any more: the two statements meet at the recipe's row.
func endRecipe(ctx context.Context, q *db.Queries, b template.Build) error {
	if b.Status != template.Ready {
		if err := q.DeleteRecipe(ctx, string(b.ID)); err != nil {
			return fmt.Errorf("delete recipe: %w", err)
		}
		return nil
	}
	if err := q.DeleteLiveRecipe(ctx, string(b.ID)); err != nil {
		return fmt.Errorf("delete recipe: %w", err)
	}
	return uncancelled(ctx, q, b.ID)
}

// RetractAttempt implements queue.Store.
func (s *Store) RetractAttempt(ctx context.Context, id template.BuildID) error {
	return s.write(ctx, func(q *db.Queries) error { return q.RetractRecipe(ctx, string(id)) })
}

// CancelBuild implements queue.Store.
func (s *Store) CancelBuild(ctx context.Context, team identity.TeamID, b template.Build, actor string) error {
	return s.write(ctx, func(q *db.Queries) error {
		n, err := q.CancelRecipe(ctx, string(b.ID))
		if err != nil {
			return fmt.Errorf("write recipe: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("build %q is not under way: %w", b.ID, errdefs.ErrFailedPrecondition)
		}
		return appendEvent(ctx, q, audit.Event{
			Type: "template.build_cancelled", Team: string(team), Actor: actor,
			Fields: map[string]string{"template": string(b.Template), "build": string(b.ID)},
		})
	})
}

// PendingBuilds implements queue.Store.
func (s *Store) PendingBuilds(ctx context.Context) ([]template.Pending, error) {
	rows, err := s.rq.PendingRecipes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read builds under way: %w", err)
	}
	out := make([]template.Pending, 0, len(rows))
	for _, r := range rows {
		out = append(out, template.Pending{
			Build: template.BuildID(r.BuildID), Template: template.ID(r.TemplateID), Team: identity.TeamID(r.TeamID),
			Sealed: r.Sealed, Attempts: int(r.Attempts), Cancelled: r.Cancelled != 0,
		})
	}
	return out, nil
}

// FinishBuild implements queue.Store.
func (s *Store) FinishBuild(ctx context.Context, b template.Build, actor string) error {
	if b.Status != template.Ready && b.Status != template.Failed {
		return fmt.Errorf("a build does not end in state %q: %w", b.Status, errdefs.ErrInvalidArgument)
	}
	return s.write(ctx, func(q *db.Queries) error {
		if n, err := q.LockTemplate(ctx, string(b.Template)); err != nil || n == 0 {
			return cmp.Or(err, fmt.Errorf("template %q: %w", b.Template, errdefs.ErrNotFound))
		}
		row, err := q.GetBuild(ctx, string(b.ID))
		if err := found(err, "build", string(b.ID)); err != nil {
			return err
		}
		if row.Status != string(template.Building) && row.Status != string(template.Waiting) {
			return fmt.Errorf("build %q ended already, in state %s: %w", b.ID, row.Status, errdefs.ErrFailedPrecondition)
		}
		if err := endRecipe(ctx, q, b); err != nil {
			return err
		}
		if err := putBuild(ctx, q, b); err != nil {
			return err
		}
		if b.Status == template.Ready {
			tags, err := freeTags(ctx, q, row, b.Tags)
			if err != nil {
				return err
			}
			if err := tagBuild(ctx, q, b.Template, b.ID, tags, b.FinishedAt); err != nil {
				return err
			}
			if err := releaseUntagged(ctx, q, string(b.ID)); err != nil {
				return err
			}
		}
		rows, err := q.TemplateByID(ctx, string(b.Template))
		if err != nil || len(rows) == 0 {
			return cmp.Or(err, fmt.Errorf("template %q: %w", b.Template, errdefs.ErrNotFound))
		}
		return appendEvent(ctx, q, audit.Event{
			Type: "template.build_finished", At: b.FinishedAt, Team: rows[0].TeamID, Actor: actor, Reason: string(b.Status),
			Fields: map[string]string{"template": string(b.Template), "build": string(b.ID), "step": b.Step},
		})
	})
}

// DiscardBuild implements queue.Store.
func (s *Store) DiscardBuild(ctx context.Context, b template.Build, actor string) error {
	return s.write(ctx, func(q *db.Queries) error {
		if n, err := q.LockTemplate(ctx, string(b.Template)); err != nil || n == 0 {
			return err
		}
		n, err := q.DeleteWaitingBuild(ctx, string(b.ID))
		if err != nil || n == 0 {
			return err
		}
		left, err := q.ListBuilds(ctx, string(b.Template))
		if err != nil {
			return fmt.Errorf("read builds: %w", err)
		}
		if len(left) > 0 {
			return nil
		}
		_, err = deleteTemplate(ctx, q, b.Template, actor)
		return err
	})
}

// ExpireBuilds implements queue.Store.
func (s *Store) ExpireBuilds(ctx context.Context, before time.Time, reason string) (int, error) {
	var n int64
	err := s.write(ctx, func(q *db.Queries) (err error) {
		n, err = q.ExpireBuilds(ctx, db.ExpireBuildsParams{Reason: reason, FinishedAt: time.Now().UnixMilli(), CreatedBefore: millis(before)})
		if err == nil {
			err = q.PruneUploadUses(ctx, time.Now().UnixMilli())
		}
		return err
	})
	return int(n), err
}

// AppendBuildLog implements queue.Store.
func (s *Store) AppendBuildLog(ctx context.Context, id template.BuildID, entries []template.Entry) error {
	return s.write(ctx, func(q *db.Queries) error {
		for _, e := range entries {
			err := q.InsertBuildLog(ctx, db.InsertBuildLogParams{
				BuildID: string(id), Seq: e.Seq, At: millis(e.At), Level: int64(e.Level), Step: e.Step, Line: text(e.Text, maxBuildText),
				Done: flag(e.Done), Cached: flag(e.Cached), DurationUs: e.Duration.Microseconds(),
			})
			if err != nil {
				return fmt.Errorf("write build log: %w", err)
			}
		}
		return nil
	})
}

// LastBuildLog implements queue.Store.
func (s *Store) LastBuildLog(ctx context.Context, id template.BuildID) (int64, error) {
	n, err := s.rq.LastBuildLog(ctx, string(id))
	if err != nil {
		return 0, fmt.Errorf("read build log: %w", err)
	}
	return n, nil
}

// BuildLog implements queue.Store.
func (s *Store) BuildLog(ctx context.Context, id template.BuildID, f template.LogFilter) ([]template.Entry, error) {
	limit := int32(max(1, min(f.Limit, 1000))) //nolint:gosec // bounded on the spot
	var rows []db.BuildLog
	var err error
	if f.Backward {
		until := int64(1)<<62 - 1
		if !f.Until.IsZero() {
			until = millis(f.Until)
		}
		rows, err = s.rq.BuildLogBackward(ctx, db.BuildLogBackwardParams{
			BuildID: string(id), Least: int64(f.Least), Until: until, Step: f.Step, MaxRows: limit,
		})
	} else {
		p := db.BuildLogForwardParams{BuildID: string(id), Least: int64(f.Least), Since: millis(f.Since), Step: f.Step, MaxRows: limit}
		// The number of a line says how many are before it, unless some are left out.
		if f.Least == template.Debug && f.Step == "" && f.Since.IsZero() {
			p.AfterSeq = f.Skip
		} else {
			p.Skip = int32(min(f.Skip, 1<<31-1)) //nolint:gosec // bounded on the spot
		}
		rows, err = s.rq.BuildLogForward(ctx, p)
	}
	if err != nil {
		return nil, fmt.Errorf("read build log: %w", err)
	}
	out := make([]template.Entry, 0, len(rows))
	for _, r := range rows {
		out = append(out, template.Entry{
			Seq: r.Seq, At: fromMillis(r.At), Level: template.Level(r.Level), Step: r.Step, Text: r.Line,
			Done: r.Done != 0, Cached: r.Cached != 0, Duration: time.Duration(r.DurationUs) * time.Microsecond,
		})
	}
	return out, nil
}

// UseUpload implements queue.Store.
func (s *Store) UseUpload(ctx context.Context, nonce string, expires time.Time) error {
	return s.write(ctx, func(q *db.Queries) error {
		n, err := q.UseUpload(ctx, db.UseUploadParams{Nonce: nonce, ExpiresAt: millis(expires)})
		if err != nil {
			return fmt.Errorf("write use of a link: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("the link was used: %w", errdefs.ErrAlreadyExists)
		}
		return nil
	})
}
