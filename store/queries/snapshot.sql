-- name: TemplateTag :many
SELECT * FROM template_tags WHERE template_id = $1 AND tag = $2;

-- name: CountTemplateTags :one
SELECT COUNT(*) FROM template_tags WHERE template_id = $1;

-- name: PutTemplateTag :exec
INSERT INTO template_tags (template_id, tag, build_id, assigned_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (template_id, tag) DO UPDATE SET build_id = excluded.build_id, assigned_at = excluded.assigned_at;

-- name: CountBuildSandboxes :one
SELECT COUNT(*) FROM sandboxes
WHERE build_id = $1 AND state IN ('pending', 'running', 'pausing', 'paused', 'resuming', 'killing');

-- name: DropArtifact :exec
UPDATE builds SET artifact = 'null' WHERE id = $1;

-- name: DeleteBuild :exec
DELETE FROM builds WHERE id = $1;

-- name: ClearCurrent :exec
UPDATE templates SET current = '' WHERE id = @id AND current = @current;

-- name: ListSnapshotsDescending :many
SELECT template_tags.template_id, template_tags.tag, template_tags.assigned_at, templates.team_id, sqlc.embed(builds)
FROM template_tags
JOIN templates ON templates.id = template_tags.template_id
JOIN builds ON builds.id = template_tags.build_id
WHERE templates.team_id = @team_id AND templates.kind = 'snapshot'
  AND (builds.sandbox_id = @sandbox_id OR @sandbox_id = '')
  AND (template_tags.template_id = @template_id OR @template_id = '')
  AND (template_tags.tag = @tag OR @tag = '')
  AND (CAST(@newest AS BIGINT) = 0 OR NOT EXISTS (
      SELECT 1 FROM template_tags AS newer
      WHERE newer.template_id = template_tags.template_id
        AND (newer.assigned_at > template_tags.assigned_at
          OR (newer.assigned_at = template_tags.assigned_at AND newer.tag > template_tags.tag))
  ))
  AND (template_tags.assigned_at < @before_at
    OR (template_tags.assigned_at = @before_at AND template_tags.template_id || ':' || template_tags.tag < @before_id))
ORDER BY template_tags.assigned_at DESC, template_tags.template_id || ':' || template_tags.tag DESC
LIMIT @max_rows;

-- name: ReferredArtifacts :many
SELECT builds.artifact FROM builds
WHERE builds.artifact <> 'null' AND (
    EXISTS (SELECT 1 FROM template_tags WHERE template_tags.build_id = builds.id)
    OR EXISTS (
        SELECT 1 FROM sandboxes
        WHERE sandboxes.build_id = builds.id
          AND sandboxes.state IN ('pending', 'running', 'pausing', 'paused', 'resuming', 'killing')
    )
);

-- name: TeamArtifacts :many
SELECT template_tags.template_id, template_tags.tag, builds.artifact
FROM template_tags
JOIN templates ON templates.id = template_tags.template_id
JOIN builds ON builds.id = template_tags.build_id
WHERE templates.team_id = @team_id AND templates.kind = 'snapshot';
