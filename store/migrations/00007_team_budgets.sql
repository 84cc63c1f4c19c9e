-- +goose Up
-- What a team may use in each period of time, where it is not the server's
-- default; 0 bounds nothing.
CREATE TABLE team_budgets (
    team_id      TEXT PRIMARY KEY REFERENCES teams (id),
    cpu_us       BIGINT NOT NULL,
    wall_us      BIGINT NOT NULL,
    egress_bytes BIGINT NOT NULL,
    period       TEXT NOT NULL
);
