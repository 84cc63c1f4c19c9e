-- name: GetMeta :one
SELECT value FROM meta WHERE name = $1;

-- name: PutMeta :exec
INSERT INTO meta (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: AddMeta :execrows
INSERT INTO meta (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO NOTHING;

-- name: InsertTeam :execrows
INSERT INTO teams (id, name, max_sandboxes, created_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (id) DO NOTHING;

-- name: GetTeam :one
SELECT * FROM teams WHERE id = $1;

-- name: ListTeams :many
SELECT * FROM teams ORDER BY id;

-- name: SetTeamLimit :execrows
UPDATE teams SET max_sandboxes = @max_sandboxes WHERE id = @id;

-- The column is no key: setting one, even to itself, has the children checked.
-- name: LockTeam :one
UPDATE teams SET max_sandboxes = max_sandboxes WHERE id = $1 RETURNING max_sandboxes;

-- name: InsertKey :exec
INSERT INTO api_keys (id, team_id, name, hash, mask, created_at, last_used_at, revoked_at)
VALUES ($1, $2, $3, $4, $5, $6, 0, 0);

-- name: KeyByHash :one
SELECT * FROM api_keys WHERE hash = $1 AND revoked_at = 0;

-- name: ListKeys :many
SELECT * FROM api_keys WHERE team_id = $1 AND revoked_at = 0 ORDER BY created_at, id;

-- name: CountKeys :one
SELECT COUNT(*) FROM api_keys;

-- name: RevokeKey :execrows
UPDATE api_keys SET revoked_at = @revoked_at WHERE team_id = @team_id AND id = @id AND revoked_at = 0;

-- name: TouchKey :exec
UPDATE api_keys SET last_used_at = @last_used_at WHERE id = @id AND last_used_at < @last_used_at;
