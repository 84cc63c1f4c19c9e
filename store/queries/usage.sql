-- name: BeginRun :execrows
INSERT INTO usage_runs (
    sandbox_id, kind, started_at, ended_at, team_id, template_id, alias, labels, cpus, memory_mib, disk_mib,
    sampled_at, cpu_us, memory_mib_ms, memory_peak, egress_in, egress_out, saved_bytes
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, 0, 0, 0, 0, 0, $12)
ON CONFLICT DO NOTHING;

-- name: LastRun :many
SELECT * FROM usage_runs WHERE sandbox_id = @sandbox_id AND kind = @kind ORDER BY started_at DESC LIMIT 1;

-- name: EndRun :exec
UPDATE usage_runs SET ended_at = @ended_at
WHERE sandbox_id = @sandbox_id AND kind = @kind AND started_at = @started_at;

-- name: GrowRun :exec
UPDATE usage_runs SET
    sampled_at = @sampled_at, cpu_us = @cpu_us, memory_mib_ms = @memory_mib_ms, memory_peak = @memory_peak,
    egress_in = @egress_in, egress_out = @egress_out
WHERE sandbox_id = @sandbox_id AND kind = 'run' AND started_at = @started_at
  -- What is written late must not take back what the end of the run has written.
  AND sampled_at <= @sampled_at;

-- name: SandboxRuns :many
SELECT * FROM usage_runs
WHERE sandbox_id = @sandbox_id AND kind = 'run' AND team_id = @team_id
ORDER BY started_at;

-- name: TeamRuns :many
SELECT * FROM usage_runs
WHERE team_id = @team_id AND ended_at > @since AND started_at < @before
  AND (ended_at > @after_end OR (ended_at = @after_end AND sandbox_id > @after_id)
    OR (ended_at = @after_end AND sandbox_id = @after_id AND started_at > @after_start))
ORDER BY ended_at, sandbox_id, started_at
LIMIT @max_rows;

-- name: TeamSpans :many
SELECT started_at, ended_at FROM usage_runs
WHERE team_id = @team_id AND kind = 'run' AND ended_at > @since AND started_at < @before
ORDER BY ended_at DESC
LIMIT @max_rows;

-- name: DeleteRunsBefore :execrows
DELETE FROM usage_runs WHERE ended_at < $1;

-- name: AddSample :exec
INSERT INTO usage_samples (sandbox_id, at, run_at, tier, cpu_us, memory, cache, disk)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT DO NOTHING;

-- name: ListSamples :many
SELECT * FROM usage_samples
WHERE sandbox_id = @sandbox_id AND at >= @since AND at <= @until
ORDER BY at
LIMIT @max_rows;

-- name: LastSamples :many
SELECT * FROM usage_samples
WHERE sandbox_id = @sandbox_id
ORDER BY at DESC
LIMIT @max_rows;

-- name: OldestSample :many
SELECT at FROM usage_samples WHERE tier = $1 ORDER BY at LIMIT 1;

-- name: DeleteSamplesBefore :execrows
DELETE FROM usage_samples WHERE tier = @tier AND at < @before;

-- name: TeamUsedEnded :one
SELECT
    CAST(COALESCE(SUM(cpu_us), 0) AS BIGINT) AS cpu_us,
    CAST(COALESCE(SUM(egress_in + egress_out), 0) AS BIGINT) AS egress,
    CAST(COALESCE(SUM(ended_at - started_at), 0) AS BIGINT) AS wall_ms
FROM usage_runs
WHERE team_id = @team_id AND kind = 'run' AND ended_at > @since AND started_at >= @since AND ended_at < @open_end;

-- name: TeamUsedOpen :one
SELECT
    CAST(COALESCE(SUM(cpu_us), 0) AS BIGINT) AS cpu_us,
    CAST(COALESCE(SUM(egress_in + egress_out), 0) AS BIGINT) AS egress,
    COUNT(*) AS runs,
    CAST(COALESCE(SUM(started_at), 0) AS BIGINT) AS started
FROM usage_runs
WHERE team_id = @team_id AND kind = 'run' AND ended_at = @open_end AND started_at >= @since;

-- name: TeamRunsAcross :many
SELECT * FROM usage_runs
WHERE team_id = @team_id AND kind = 'run' AND ended_at > @since AND started_at < @since;

-- name: TeamBudget :many
SELECT * FROM team_budgets WHERE team_id = $1;

-- name: PutTeamBudget :exec
INSERT INTO team_budgets (team_id, cpu_us, wall_us, egress_bytes, period) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (team_id) DO UPDATE SET
    cpu_us = excluded.cpu_us, wall_us = excluded.wall_us, egress_bytes = excluded.egress_bytes, period = excluded.period;

-- name: DeleteTeamBudget :exec
DELETE FROM team_budgets WHERE team_id = $1;
