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
	"github.com/caisson-dev/caisson/snapshot"
	"github.com/caisson-dev/caisson/template"
	"github.com/containerd/errdefs"
)

var _ template.Store = (*Store)(nil)

// PutTemplate implements template.Store. A zero b leaves the builds alone. A
// name that another template of the team has is errdefs.ErrAlreadyExists.
func (s *Store) PutTemplate(ctx context.Context, t template.Template, b template.Build) error {
	if t.ID == "" || t.Team == "" || (b.ID != "" && b.Template != t.ID) {
		return fmt.Errorf("template needs an id, a team, and a build of its own: %w", errdefs.ErrInvalidArgument)
	}
	return s.write(ctx, func(q *db.Queries) error {
		old, err := q.TemplateByID(ctx, string(t.ID))
		if err != nil {
			return fmt.Errorf("read template: %w", err)
		}
		current, kind := string(t.Current), "template.created"
		if len(old) > 0 {
			if old[0].TeamID != string(t.Team) {
				return fmt.Errorf("template %q belongs to another team: %w", t.ID, errdefs.ErrAlreadyExists)
			}
			current, kind = cmp.Or(current, old[0].Current), "template.updated"
		}
		if b.Status == template.Ready {
			current = string(b.ID)
		}
		if err := putTemplate(ctx, q, t, current); err != nil {
			return err
		}
		if err := putNames(ctx, q, t); err != nil {
			return err
		}
		if b.ID != "" {
			if err := putBuild(ctx, q, b); err != nil {
				return err
			}
		}
		if b.Status == template.Ready {
			if err := tagBuild(ctx, q, t.ID, b.ID, []string{template.DefaultTag}, b.FinishedAt); err != nil {
				return err
			}
		}
		return appendEvent(ctx, q, audit.Event{
			Type: kind, Team: string(t.Team), Actor: identity.System.KeyID, Reason: string(b.Status),
			Fields: map[string]string{"template": string(t.ID), "build": string(b.ID)},
		})
	})
}

func putTemplate(ctx context.Context, q *db.Queries, t template.Template, current string) error {
	created := cmp.Or(millis(t.CreatedAt), time.Now().UnixMilli())
	err := q.PutTemplate(ctx, db.PutTemplateParams{
		ID: string(t.ID), TeamID: string(t.Team), Public: flag(t.Public), Current: current,
		CreatedAt: created, UpdatedAt: cmp.Or(millis(t.UpdatedAt), created), Kind: t.Kind,
	})
	if err != nil {
		return fmt.Errorf("write template: %w", err)
	}
	return nil
}

func putBuild(ctx context.Context, q *db.Queries, b template.Build) error {
	var p packer
	row := db.PutBuildParams{
		ID: string(b.ID), TemplateID: string(b.Template), Status: string(b.Status), Reason: text(b.Reason, maxReason),
		Source: text(b.Source, maxSource), RootfsDigest: b.Rootfs.Digest, Rootfs: p.json(b.Rootfs), Resources: p.json(b.Resources),
		DefaultUser: b.User, Workdir: b.Workdir, Env: p.json(b.Env),
		CreatedAt: millis(b.CreatedAt), FinishedAt: millis(b.FinishedAt),
		Artifact: p.json(b.Artifact), Sealed: b.Sealed, SandboxID: b.Sandbox,
		Tags: p.json(b.Tags), StartCmd: b.Start, ReadyCmd: b.Ready, FailedStep: b.Step,
	}
	if p.err != nil {
		return p.err
	}
	if err := q.PutBuild(ctx, row); err != nil {
		return fmt.Errorf("write build: %w", err)
	}
	return nil
}

func putNames(ctx context.Context, q *db.Queries, t template.Template) error {
	if err := q.DeleteTemplateNames(ctx, string(t.ID)); err != nil {
		return fmt.Errorf("write template names: %w", err)
	}
	for i, name := range t.Names {
		other, err := q.TemplateByName(ctx, db.TemplateByNameParams{TeamID: string(t.Team), Name: name})
		if err == nil {
			return fmt.Errorf("template %q has the name %q: %w", other.ID, name, errdefs.ErrAlreadyExists)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("read template name: %w", err)
		}
		err = q.InsertTemplateName(ctx, db.InsertTemplateNameParams{
			TeamID: string(t.Team), Name: name, TemplateID: string(t.ID), Position: int64(i),
		})
		if err != nil {
			return fmt.Errorf("write template name %q: %w", name, err)
		}
	}
	return nil
}

// GetTemplate implements template.Store. An empty team sees every template by
// ID, and DefaultTeam's and public ones by name.
func (s *Store) GetTemplate(ctx context.Context, team identity.TeamID, ref string) (template.Template, error) {
	row, err := s.rq.GetTemplate(ctx, db.GetTemplateParams{ID: ref, TeamID: string(team)})
	if errors.Is(err, sql.ErrNoRows) {
		row, err = s.rq.TemplateByName(ctx, db.TemplateByNameParams{
			TeamID: string(cmp.Or(team, identity.DefaultTeam)), Name: ref,
		})
	}
	if errors.Is(err, sql.ErrNoRows) {
		var rows []db.Template
		if rows, err = s.rq.PublicTemplateByName(ctx, ref); err == nil {
			if len(rows) == 0 {
				err = sql.ErrNoRows
			} else {
				row = rows[0]
			}
		}
	}
	if err := found(err, "template", ref); err != nil {
		return template.Template{}, err
	}
	return s.unpackTemplate(ctx, row)
}

func (s *Store) unpackTemplate(ctx context.Context, row db.Template) (template.Template, error) {
	names, err := s.rq.TemplateNames(ctx, row.ID)
	if err != nil {
		return template.Template{}, fmt.Errorf("read template names: %w", err)
	}
	return templateOf(row, names), nil
}

func templateOf(row db.Template, names []string) template.Template {
	return template.Template{
		ID: template.ID(row.ID), Team: identity.TeamID(row.TeamID), Names: names, Public: row.Public != 0,
		Kind: row.Kind, Current: template.BuildID(row.Current),
		Spawned: template.Spawned{Count: row.Spawned, Last: fromMillis(row.SpawnedAt)}, CreatedAt: fromMillis(row.CreatedAt), UpdatedAt: fromMillis(row.UpdatedAt),
	}
}

// GetBuild implements template.Store.
func (s *Store) GetBuild(ctx context.Context, id template.BuildID) (template.Build, error) {
	row, err := s.rq.GetBuild(ctx, string(id))
	if err := found(err, "build", string(id)); err != nil {
		return template.Build{}, err
	}
	return unpackBuild(row)
}

func unpackBuild(row db.Build) (template.Build, error) {
	var p packer
	b := template.Build{
		ID: template.BuildID(row.ID), Template: template.ID(row.TemplateID), Status: template.Status(row.Status),
		Reason: row.Reason, Source: row.Source, User: row.DefaultUser, Workdir: row.Workdir,
		CreatedAt: fromMillis(row.CreatedAt), FinishedAt: fromMillis(row.FinishedAt),
		Sealed: row.Sealed, Sandbox: row.SandboxID, Start: row.StartCmd, Ready: row.ReadyCmd, Step: row.FailedStep,
	}
	p.parse(row.Tags, &b.Tags)
	p.parse(row.Artifact, &b.Artifact)
	p.parse(row.Rootfs, &b.Rootfs)
	p.parse(row.Resources, &b.Resources)
	p.parse(row.Env, &b.Env)
	return b, p.err
}

// ListTemplates implements template.Store: the team's own and public ones; all
// for the empty team.
func (s *Store) ListTemplates(ctx context.Context, team identity.TeamID) ([]template.Template, error) {
	rows, err := s.rq.ListTemplates(ctx, string(team))
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	out := make([]template.Template, 0, len(rows))
	for _, row := range rows {
		t, err := s.unpackTemplate(ctx, row)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// ListBuilds implements template.Store, newest first.
func (s *Store) ListBuilds(ctx context.Context, t template.ID) ([]template.Build, error) {
	rows, err := s.rq.ListBuilds(ctx, string(t))
	if err != nil {
		return nil, fmt.Errorf("list builds: %w", err)
	}
	out := make([]template.Build, 0, len(rows))
	for _, row := range rows {
		b, err := unpackBuild(row)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// DeleteTemplate implements template.Store.
func (s *Store) DeleteTemplate(ctx context.Context, id template.ID) error {
	return s.write(ctx, func(q *db.Queries) error {
		_, err := deleteTemplate(ctx, q, id, identity.System.KeyID)
		return err
	})
}

// deleteTemplate returns the artifacts that its builds had.
func deleteTemplate(ctx context.Context, q *db.Queries, id template.ID, actor string) ([]snapshot.ID, error) {
	n, err := q.LockTemplate(ctx, string(id))
	if err != nil || n == 0 {
		return nil, cmp.Or(err, fmt.Errorf("template %q: %w", id, errdefs.ErrNotFound))
	}
	live, err := q.CountTemplateSandboxes(ctx, string(id))
	if err != nil {
		return nil, fmt.Errorf("count sandboxes: %w", err)
	}
	if live > 0 {
		return nil, fmt.Errorf("template %q is in use by %d sandboxes that run or are paused; end them first: %w", id, live, errdefs.ErrFailedPrecondition)
	}
	rows, err := q.TemplateByID(ctx, string(id))
	if err != nil || len(rows) == 0 {
		return nil, cmp.Or(err, fmt.Errorf("template %q: %w", id, errdefs.ErrNotFound))
	}
	builds, err := q.ListBuilds(ctx, string(id))
	if err != nil {
		return nil, fmt.Errorf("read builds: %w", err)
	}
	var released []snapshot.ID
	for _, row := range builds {
		some, err := releaseBuild(ctx, q, row.ID)
		if err != nil {
			return nil, err
		}
		released = append(released, some...)
	}
	if _, err := q.DeleteTemplate(ctx, string(id)); err != nil {
		return nil, fmt.Errorf("delete template: %w", err)
	}
	kind := "template.deleted"
	if rows[0].Kind == template.KindSnapshot {
		kind = "snapshot.deleted"
	}
	return released, appendEvent(ctx, q, audit.Event{
		Type: kind, Team: rows[0].TeamID, Actor: actor, Fields: map[string]string{"template": string(id)},
	})
}

// RootfsDigests implements template.Store. Builds of live sandboxes are never
// deleted, so the builds' digests are all there is.
func (s *Store) RootfsDigests(ctx context.Context) ([]string, error) {
	return s.rq.RootfsDigests(ctx)
}

// PruneBuilds deletes builds that finished before t, are not their template's
// current one, and have no live sandbox; their images can then be collected.
func (s *Store) PruneBuilds(ctx context.Context, t time.Time) (int, error) {
	var n int64
	err := s.write(ctx, func(q *db.Queries) (err error) {
		if n, err = q.DeleteOldBuilds(ctx, millis(t)); err != nil {
			return err
		}
		if err := q.DeleteKeptNames(ctx); err != nil {
			return fmt.Errorf("delete kept names: %w", err)
		}
		return q.DeleteLostNames(ctx)
	})
	return int(n), err
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
