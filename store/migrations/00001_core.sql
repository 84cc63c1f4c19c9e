-- One directory serves SQLite and PostgreSQL: only the common subset is used.
-- Times are Unix milliseconds (0: not set), JSON is TEXT, booleans are 0 or 1.

-- +goose Up
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Gapless sequences: a row is locked for the rest of the transaction, so the
-- order of numbers is the order of commits.
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('audit', 0);

CREATE TABLE teams (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    max_sandboxes BIGINT NOT NULL,
    created_at    BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    team_id      TEXT NOT NULL REFERENCES teams (id),
    name         TEXT NOT NULL,
    hash         TEXT NOT NULL UNIQUE,
    mask         TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    revoked_at   BIGINT NOT NULL
);
CREATE INDEX api_keys_team ON api_keys (team_id, created_at);

CREATE TABLE templates (
    id         TEXT PRIMARY KEY,
    team_id    TEXT NOT NULL REFERENCES teams (id),
    public     BIGINT NOT NULL,
    current    TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX templates_team ON templates (team_id);

CREATE TABLE template_names (
    team_id     TEXT NOT NULL,
    name        TEXT NOT NULL,
    template_id TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    position    BIGINT NOT NULL,
    PRIMARY KEY (team_id, name)
);
CREATE INDEX template_names_template ON template_names (template_id);

CREATE TABLE builds (
    id            TEXT PRIMARY KEY,
    template_id   TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    status        TEXT NOT NULL,
    reason        TEXT NOT NULL,
    source        TEXT NOT NULL,
    rootfs_digest TEXT NOT NULL,
    rootfs        TEXT NOT NULL,
    resources     TEXT NOT NULL,
    default_user  TEXT NOT NULL,
    workdir       TEXT NOT NULL,
    env           TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    finished_at   BIGINT NOT NULL
);
CREATE INDEX builds_template ON builds (template_id, created_at);

-- No foreign keys to templates and builds: the record of an ended sandbox
-- outlives its template.
CREATE TABLE sandboxes (
    id            TEXT PRIMARY KEY,
    team_id       TEXT NOT NULL REFERENCES teams (id),
    template_id   TEXT NOT NULL,
    alias         TEXT NOT NULL,
    name          TEXT NOT NULL,
    build_id      TEXT NOT NULL,
    state         TEXT NOT NULL,
    reason        TEXT NOT NULL,
    node          TEXT NOT NULL,
    handle        TEXT NOT NULL,
    network       TEXT NOT NULL,
    egress        TEXT NOT NULL,
    resources     TEXT NOT NULL,
    parent        TEXT NOT NULL,
    metadata      TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    started_at    BIGINT NOT NULL,
    ends_at       BIGINT NOT NULL,
    ended_at      BIGINT NOT NULL,
    -- started_at, or created_at while that is not set: the order of listings.
    listed_at     BIGINT NOT NULL,
    on_timeout    TEXT NOT NULL,
    lease_node    TEXT NOT NULL,
    leased_until  BIGINT NOT NULL,
    version       BIGINT NOT NULL
);
CREATE INDEX sandboxes_team_state ON sandboxes (team_id, state, listed_at, id);
CREATE INDEX sandboxes_state_ends ON sandboxes (state, ends_at);
CREATE INDEX sandboxes_template_state ON sandboxes (template_id, state);

CREATE TABLE audit_events (
    seq        BIGINT PRIMARY KEY,
    type       TEXT NOT NULL,
    at         BIGINT NOT NULL,
    team_id    TEXT NOT NULL,
    actor      TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    reason     TEXT NOT NULL,
    fields     TEXT NOT NULL
);
CREATE INDEX audit_events_sandbox ON audit_events (sandbox_id, seq);
CREATE INDEX audit_events_team ON audit_events (team_id, seq);
CREATE INDEX audit_events_at ON audit_events (at);

CREATE TABLE egress_records (
    sandbox_id  TEXT NOT NULL,
    seq         BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    kind        TEXT NOT NULL,
    host        TEXT NOT NULL,
    addr        TEXT NOT NULL,
    port        BIGINT NOT NULL,
    verdict     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    hint        TEXT NOT NULL,
    bytes_in    BIGINT NOT NULL,
    bytes_out   BIGINT NOT NULL,
    duration_us BIGINT NOT NULL,
    PRIMARY KEY (sandbox_id, seq)
);
CREATE INDEX egress_records_at ON egress_records (at);

CREATE TABLE egress_names (
    sandbox_id TEXT NOT NULL,
    name       TEXT NOT NULL,
    addr       TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, name),
    UNIQUE (sandbox_id, addr)
);
