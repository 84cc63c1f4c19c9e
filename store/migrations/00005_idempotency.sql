-- +goose Up
-- The idempotency key that a sandbox was created with, what the request was,
-- and until when the key means this sandbox. Empty: none, or given up because
-- the create failed. A key of a team is held by one row.
ALTER TABLE sandboxes ADD COLUMN idem_key TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN idem_print TEXT NOT NULL DEFAULT '';
ALTER TABLE sandboxes ADD COLUMN idem_until BIGINT NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX sandboxes_idem ON sandboxes (team_id, idem_key) WHERE idem_key <> '';
