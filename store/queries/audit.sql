-- name: NextValue :one
UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value;

-- name: InsertEvent :exec
INSERT INTO audit_events (seq, type, at, team_id, actor, sandbox_id, reason, fields)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: ListEvents :many
SELECT * FROM audit_events
WHERE seq > @after_seq AND at >= @since
ORDER BY seq
LIMIT @max_rows;

-- name: ListTeamEvents :many
SELECT * FROM audit_events
WHERE team_id = @team_id AND seq > @after_seq AND at >= @since
ORDER BY seq
LIMIT @max_rows;

-- name: ListSandboxEvents :many
SELECT * FROM audit_events
WHERE sandbox_id = @sandbox_id AND (team_id = @team_id OR @team_id = '') AND seq > @after_seq AND at >= @since
ORDER BY seq
LIMIT @max_rows;

-- name: DeleteEvents :execrows
DELETE FROM audit_events WHERE at < $1;
