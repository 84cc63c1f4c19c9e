-- +goose Up
-- What a build over the API is told and ends with: the tags that it gets when it
-- is ready, its commands, and which step failed.
ALTER TABLE builds ADD COLUMN tags TEXT NOT NULL DEFAULT 'null';
ALTER TABLE builds ADD COLUMN start_cmd TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN ready_cmd TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN failed_step TEXT NOT NULL DEFAULT '';
CREATE INDEX builds_status ON builds (status, created_at);
-- Sandboxes that were ever made of a template, and when the last one.
ALTER TABLE templates ADD COLUMN spawned BIGINT NOT NULL DEFAULT 0;
ALTER TABLE templates ADD COLUMN spawned_at BIGINT NOT NULL DEFAULT 0;
-- The recipe of a build under way, encrypted under the seed, for a server that
-- takes over; attempts counts how often it was begun. The row goes with its end.
CREATE TABLE build_recipes (
    build_id TEXT PRIMARY KEY REFERENCES builds (id) ON DELETE CASCADE,
    sealed   TEXT NOT NULL,
    attempts BIGINT NOT NULL
);
-- seq counts the lines of a build from 1 without gaps.
CREATE TABLE build_logs (
    build_id    TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    seq         BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    level       BIGINT NOT NULL,
    step        TEXT NOT NULL,
    line        TEXT NOT NULL,
    done        BIGINT NOT NULL,
    cached      BIGINT NOT NULL,
    duration_us BIGINT NOT NULL,
    PRIMARY KEY (build_id, seq)
);
-- Upload links that were used, until they would have expired anyway.
CREATE TABLE upload_uses (
    nonce      TEXT PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
-- The default tag of templates, which until now was their current build alone.
INSERT INTO template_tags (template_id, tag, build_id, assigned_at)
SELECT templates.id, 'default', templates.current, templates.updated_at
FROM templates JOIN builds ON builds.id = templates.current
WHERE templates.kind = '';
