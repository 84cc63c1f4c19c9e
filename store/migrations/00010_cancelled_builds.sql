-- +goose Up
-- Whether a build under way is to be ended, by a server that takes over too.
ALTER TABLE build_recipes ADD COLUMN cancelled BIGINT NOT NULL DEFAULT 0;
