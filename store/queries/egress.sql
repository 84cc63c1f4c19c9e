-- name: LastRecord :many
SELECT seq FROM egress_records WHERE sandbox_id = $1 ORDER BY seq DESC LIMIT 1;

-- name: InsertRecord :exec
INSERT INTO egress_records (
    sandbox_id, seq, at, kind, host, addr, port, verdict, reason, hint, bytes_in, bytes_out, duration_us
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: ListRecords :many
SELECT * FROM egress_records
WHERE sandbox_id = @sandbox_id AND seq > @after_seq
ORDER BY seq
LIMIT @max_rows;

-- name: TrimRecords :execrows
DELETE FROM egress_records WHERE sandbox_id = @sandbox_id AND seq <= @up_to;

-- name: DeleteRecordsBefore :execrows
DELETE FROM egress_records WHERE at < $1;

-- name: DeleteSandboxRecords :exec
DELETE FROM egress_records WHERE sandbox_id = $1;

-- name: Names :many
SELECT name, addr FROM egress_names WHERE sandbox_id = $1;

-- name: AddName :execrows
INSERT INTO egress_names (sandbox_id, name, addr) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING;

-- name: GetName :many
SELECT addr FROM egress_names WHERE sandbox_id = $1 AND name = $2;

-- name: CopyNames :exec
INSERT INTO egress_names (sandbox_id, name, addr)
SELECT @to_sandbox, source.name, source.addr FROM egress_names AS source WHERE source.sandbox_id = @from_sandbox;

-- name: DeleteSandboxNames :exec
DELETE FROM egress_names WHERE sandbox_id = $1;

-- name: MoveNames :execrows
UPDATE egress_names SET sandbox_id = @to_sandbox WHERE sandbox_id = @from_sandbox;

-- name: DeleteMark :exec
DELETE FROM egress_names WHERE sandbox_id = $1 AND name = '';

-- name: DeleteLostNames :exec
DELETE FROM egress_names
WHERE LENGTH(egress_names.sandbox_id) = 36 -- a build's
  AND NOT EXISTS (SELECT 1 FROM builds WHERE builds.id = egress_names.sandbox_id);

-- name: DeleteKeptNames :exec
DELETE FROM egress_names
WHERE LENGTH(egress_names.sandbox_id) = 26 -- of a sandbox, by the artifact that it was saved as
  AND NOT EXISTS (
      SELECT 1 FROM sandboxes
      WHERE sandboxes.state IN ('paused', 'resuming')
        AND sandboxes.saved LIKE '%' || egress_names.sandbox_id || '%'
  );
