-- name: PutTemplate :exec
INSERT INTO templates (id, team_id, public, current, created_at, updated_at, kind)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (id) DO UPDATE SET
    public = excluded.public, current = excluded.current, updated_at = excluded.updated_at;

-- name: TemplateByID :many
SELECT * FROM templates WHERE id = $1;

-- name: GetTemplate :one
SELECT * FROM templates WHERE id = @id AND (team_id = @team_id OR public = 1 OR @team_id = '');

-- name: TemplateByName :one
SELECT templates.* FROM templates
JOIN template_names ON template_names.template_id = templates.id
WHERE template_names.team_id = $1 AND template_names.name = $2;

-- name: PublicTemplateByName :many
SELECT templates.* FROM templates
JOIN template_names ON template_names.template_id = templates.id
WHERE template_names.name = $1 AND templates.public = 1
ORDER BY templates.created_at, templates.id
LIMIT 1;

-- name: ListTemplates :many
SELECT * FROM templates
WHERE kind = '' AND (team_id = @team_id OR public = 1 OR @team_id = '')
ORDER BY created_at, id;

-- name: DeleteTemplate :execrows
DELETE FROM templates WHERE id = $1;

-- name: LockTemplate :execrows
UPDATE templates SET public = public WHERE id = $1;

-- name: DeleteTemplateNames :exec
DELETE FROM template_names WHERE template_id = $1;

-- name: InsertTemplateName :exec
INSERT INTO template_names (team_id, name, template_id, position) VALUES ($1, $2, $3, $4);

-- name: TemplateNames :many
SELECT name FROM template_names WHERE template_id = $1 ORDER BY position;

-- name: PutBuild :exec
INSERT INTO builds (
    id, template_id, status, reason, source, rootfs_digest, rootfs, resources,
    default_user, workdir, env, created_at, finished_at, artifact, sealed, sandbox_id,
    tags, start_cmd, ready_cmd, failed_step
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
ON CONFLICT (id) DO UPDATE SET
    status = excluded.status, reason = excluded.reason, source = excluded.source,
    rootfs_digest = excluded.rootfs_digest, rootfs = excluded.rootfs,
    resources = excluded.resources, default_user = excluded.default_user,
    workdir = excluded.workdir, env = excluded.env, finished_at = excluded.finished_at,
    artifact = excluded.artifact, sealed = excluded.sealed, sandbox_id = excluded.sandbox_id,
    tags = excluded.tags, start_cmd = excluded.start_cmd, ready_cmd = excluded.ready_cmd,
    failed_step = excluded.failed_step;

-- name: GetBuild :one
SELECT * FROM builds WHERE id = $1;

-- name: ListBuilds :many
SELECT * FROM builds WHERE template_id = $1 ORDER BY created_at DESC, id;

-- name: RootfsDigests :many
SELECT DISTINCT rootfs_digest FROM builds WHERE rootfs_digest <> '' ORDER BY rootfs_digest;

-- name: DeleteOldBuilds :execrows
DELETE FROM builds
WHERE builds.finished_at > 0 AND builds.finished_at < @finished_before
  AND NOT EXISTS (SELECT 1 FROM templates WHERE templates.current = builds.id)
  AND NOT EXISTS (SELECT 1 FROM template_tags WHERE template_tags.build_id = builds.id)
  AND NOT EXISTS (
      SELECT 1 FROM sandboxes
      WHERE sandboxes.build_id = builds.id
        AND sandboxes.state IN ('pending', 'running', 'pausing', 'paused', 'resuming', 'killing')
  );
