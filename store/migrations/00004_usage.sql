-- +goose Up
-- A run is one stretch of a sandbox's life with a box (kind 'run'), or paused
-- without one (kind 'saved'). It begins and ends in the transaction that
-- changes the sandbox's state; the figures grow as it is measured. No foreign
-- key to sandboxes: what was used outlives the record.
CREATE TABLE usage_runs (
    sandbox_id    TEXT NOT NULL,
    kind          TEXT NOT NULL,
    started_at    BIGINT NOT NULL,
    -- The greatest BIGINT while it lasts, so that one index finds both.
    ended_at      BIGINT NOT NULL,
    team_id       TEXT NOT NULL,
    template_id   TEXT NOT NULL,
    alias         TEXT NOT NULL,
    labels        TEXT NOT NULL,
    cpus          BIGINT NOT NULL,
    memory_mib    BIGINT NOT NULL,
    disk_mib      BIGINT NOT NULL,
    sampled_at    BIGINT NOT NULL,
    cpu_us        BIGINT NOT NULL,
    memory_mib_ms BIGINT NOT NULL,
    memory_peak   BIGINT NOT NULL,
    egress_in     BIGINT NOT NULL,
    egress_out    BIGINT NOT NULL,
    saved_bytes   BIGINT NOT NULL,
    PRIMARY KEY (sandbox_id, kind, started_at)
);
CREATE INDEX usage_runs_team ON usage_runs (team_id, ended_at);

-- cpu_us is of the whole run up to this sample, so that thinning loses no CPU
-- time; rows of a lower tier are deleted earlier.
CREATE TABLE usage_samples (
    sandbox_id TEXT NOT NULL,
    at         BIGINT NOT NULL,
    run_at     BIGINT NOT NULL,
    tier       BIGINT NOT NULL,
    cpu_us     BIGINT NOT NULL,
    memory     BIGINT NOT NULL,
    cache      BIGINT NOT NULL,
    disk       BIGINT NOT NULL,
    PRIMARY KEY (sandbox_id, at)
);
CREATE INDEX usage_samples_tier ON usage_samples (tier, at);
