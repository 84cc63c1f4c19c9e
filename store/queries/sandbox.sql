-- name: InsertSandbox :exec
INSERT INTO sandboxes (
    id, team_id, template_id, alias, name, build_id, state, reason, node, handle,
    network, egress, resources, parent, metadata, created_at, started_at, ends_at,
    ended_at, listed_at, on_timeout, lifecycle, sealed, saved, origin,
    idem_key, idem_print, idem_until, lease_node, leased_until, version
) VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
    $11, $12, $13, $14, $15, $16, $17, $18,
    $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, '', 0, 1
);

-- name: GetSandbox :one
SELECT * FROM sandboxes WHERE id = $1;

-- name: SandboxByKey :one
SELECT * FROM sandboxes WHERE team_id = @team_id AND idem_key = @idem_key AND idem_key <> '';

-- name: ReleaseKey :exec
UPDATE sandboxes SET idem_key = '', version = version + 1 WHERE id = $1;

-- name: UpdateSandbox :execrows
UPDATE sandboxes SET
    state = @state, reason = @reason, node = @node, handle = @handle, network = @network,
    egress = @egress, resources = @resources, metadata = @metadata, started_at = @started_at,
    ends_at = @ends_at, ended_at = @ended_at, listed_at = @listed_at, on_timeout = @on_timeout,
    lifecycle = @lifecycle, sealed = @sealed, saved = @saved, idem_key = @idem_key,
    version = version + 1
WHERE id = @id AND version = @version;

-- name: CountTeamSandboxes :one
SELECT COUNT(*) FROM sandboxes
WHERE team_id = $1 AND state IN ('pending', 'running', 'resuming');

-- name: ListSandboxesAscending :many
SELECT * FROM sandboxes
WHERE team_id = @team_id
  AND state IN (@state1, @state2, @state3, @state4, @state5, @state6, @state7, @state8)
  AND (template_id = @template_id OR @template_id = '')
  AND listed_at >= @since
  AND (listed_at > @after_at OR (listed_at = @after_at AND id > @after_id))
ORDER BY listed_at, id
LIMIT @max_rows;

-- name: ListSandboxesDescending :many
SELECT * FROM sandboxes
WHERE team_id = @team_id
  AND state IN (@state1, @state2, @state3, @state4, @state5, @state6, @state7, @state8)
  AND (template_id = @template_id OR @template_id = '')
  AND listed_at >= @since
  AND (listed_at < @before_at OR (listed_at = @before_at AND id < @before_id))
ORDER BY listed_at DESC, id DESC
LIMIT @max_rows;

-- name: CountRunning :one
SELECT COUNT(*) FROM sandboxes
WHERE team_id = @team_id
  AND state = 'running'
  AND (template_id = @template_id OR @template_id = '')
  AND listed_at >= @since;

-- name: RunningMetadata :many
SELECT metadata FROM sandboxes
WHERE team_id = @team_id
  AND state = 'running'
  AND (template_id = @template_id OR @template_id = '')
  AND listed_at >= @since;

-- name: UnfinishedSandboxes :many
SELECT * FROM sandboxes
WHERE state IN ('pending', 'running', 'pausing', 'paused', 'resuming', 'killing')
ORDER BY id;

-- name: ExpiredSandboxes :many
SELECT id FROM sandboxes
WHERE state = 'running' AND ends_at <= @due AND (lease_node = @node OR leased_until <= @due)
ORDER BY ends_at, id
LIMIT @max_rows;

-- name: LeaseSandbox :many
UPDATE sandboxes SET lease_node = @node, leased_until = @leased_until
WHERE id = @id AND state = 'running' AND ends_at <= @due
  AND (lease_node = @node OR leased_until <= @due)
RETURNING *;

-- name: NextDeadline :many
SELECT ends_at FROM sandboxes
WHERE state = 'running' AND node = $1
ORDER BY ends_at
LIMIT 1;

-- name: CountTemplateSandboxes :one
SELECT COUNT(*) FROM sandboxes
WHERE template_id = $1 AND state IN ('pending', 'running', 'pausing', 'paused', 'resuming', 'killing');

-- name: EndedSandboxes :many
SELECT id FROM sandboxes
WHERE state IN ('killed', 'failed') AND ended_at < @before
  AND (idem_key = '' OR idem_until < @now)
ORDER BY ended_at
LIMIT 500;

-- name: DeleteSandbox :execrows
DELETE FROM sandboxes WHERE id = $1 AND state IN ('killed', 'failed');
