-- +goose Up
-- What a sandbox needs to be paused and resumed: lifecycle is how it wants it,
-- sealed what its agent is told (encrypted under the seed), saved the artifact
-- while it is paused.
ALTER TABLE sandboxes ADD COLUMN lifecycle TEXT NOT NULL DEFAULT '{}';
ALTER TABLE sandboxes ADD COLUMN sealed TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN saved TEXT NOT NULL DEFAULT 'null';
