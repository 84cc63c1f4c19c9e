-- name: CountTeamBuilds :one
SELECT COUNT(*) FROM builds JOIN templates ON templates.id = builds.template_id
WHERE templates.team_id = @team_id AND builds.status = @status;

-- name: CountBuilds :one
SELECT COUNT(*) FROM builds WHERE status = $1;

-- name: BeginBuild :execrows
UPDATE builds SET status = 'building', source = @source, start_cmd = @start_cmd, ready_cmd = @ready_cmd
WHERE id = @id AND status = 'waiting';

-- name: PutRecipe :exec
INSERT INTO build_recipes (build_id, sealed, attempts) VALUES ($1, $2, 0);

-- name: AttemptRecipe :execrows
UPDATE build_recipes SET attempts = attempts + 1 WHERE build_id = $1 AND cancelled = 0;

-- name: RetractRecipe :exec
UPDATE build_recipes SET attempts = attempts - 1 WHERE build_id = $1 AND attempts > 0;

-- name: CancelRecipe :execrows
UPDATE build_recipes SET cancelled = 1
WHERE build_id = $1
  AND EXISTS (SELECT 1 FROM builds WHERE builds.id = build_recipes.build_id AND builds.status = 'building');

-- name: DeleteRecipe :exec
DELETE FROM build_recipes WHERE build_id = $1;

-- name: DeleteLiveRecipe :exec
DELETE FROM build_recipes WHERE build_id = $1 AND cancelled = 0;

-- name: CountRecipes :one
SELECT COUNT(*) FROM build_recipes WHERE build_id = $1;

-- name: PendingRecipes :many
SELECT build_recipes.build_id, build_recipes.sealed, build_recipes.attempts, build_recipes.cancelled, builds.template_id, templates.team_id
FROM build_recipes
JOIN builds ON builds.id = build_recipes.build_id
JOIN templates ON templates.id = builds.template_id
WHERE builds.status = 'building'
ORDER BY builds.created_at, builds.id;

-- name: ExpireBuilds :execrows
UPDATE builds SET status = 'error', reason = @reason, finished_at = @finished_at
WHERE status = 'waiting' AND created_at < @created_before;

-- name: DeleteWaitingBuild :execrows
DELETE FROM builds WHERE id = $1 AND status = 'waiting';

-- name: LastBuildLog :one
SELECT CAST(COALESCE(MAX(seq), 0) AS BIGINT) FROM build_logs WHERE build_id = $1;

-- name: InsertBuildLog :exec
INSERT INTO build_logs (build_id, seq, at, level, step, line, done, cached, duration_us)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: BuildLogForward :many
SELECT * FROM build_logs
WHERE build_id = @build_id AND level >= @least AND at >= @since AND seq > @after_seq
  AND (step = @step OR @step = '')
ORDER BY seq
LIMIT @max_rows OFFSET @skip;

-- name: BuildLogBackward :many
SELECT * FROM build_logs
WHERE build_id = @build_id AND level >= @least AND at <= @until
  AND (step = @step OR @step = '')
ORDER BY seq DESC
LIMIT @max_rows;

-- name: ListTemplateTags :many
SELECT * FROM template_tags WHERE template_id = $1 ORDER BY assigned_at DESC, tag;

-- name: CountBuildTags :one
SELECT COUNT(*) FROM template_tags WHERE build_id = $1;

-- name: DeleteTemplateTag :execrows
DELETE FROM template_tags WHERE template_id = $1 AND tag = $2;

-- name: SetTemplatePublic :execrows
UPDATE templates SET public = @public, updated_at = @updated_at WHERE id = @id;

-- name: SetTemplateCurrent :exec
UPDATE templates SET current = @current, updated_at = @updated_at WHERE id = @id;

-- name: SpawnTemplate :execrows
UPDATE templates SET spawned = spawned + 1, spawned_at = @spawned_at WHERE id = @id;

-- name: UseUpload :execrows
INSERT INTO upload_uses (nonce, expires_at) VALUES ($1, $2) ON CONFLICT (nonce) DO NOTHING;

-- name: PruneUploadUses :exec
DELETE FROM upload_uses WHERE expires_at < $1;
