-- +goose Up
-- A snapshot is a template of kind 'snapshot' whose builds have an artifact:
-- sealed is what its source's agent was told (encrypted under the seed), and
-- sandbox_id the source. Tags name builds; for now only those of snapshots do.
ALTER TABLE templates ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN artifact TEXT NOT NULL DEFAULT 'null';
ALTER TABLE builds ADD COLUMN sealed TEXT NOT NULL DEFAULT '';
ALTER TABLE builds ADD COLUMN sandbox_id TEXT NOT NULL DEFAULT '';
CREATE TABLE template_tags (
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    tag         TEXT NOT NULL,
    build_id    TEXT NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    assigned_at BIGINT NOT NULL,
    PRIMARY KEY (template_id, tag)
);
CREATE INDEX template_tags_build ON template_tags (build_id);
CREATE INDEX template_tags_assigned ON template_tags (assigned_at);
-- Of what a sandbox is a copy: {"sandbox", "snapshot"}, or {}.
ALTER TABLE sandboxes ADD COLUMN origin TEXT NOT NULL DEFAULT '{}';
