-- The journal: who writes, what is being worked on, and what happened.
-- `transactions` and `pulses` are meant to be queried by people; nothing but BitActor may write them.

CREATE TABLE owners (
    owner           TEXT    NOT NULL PRIMARY KEY,
    pid             INTEGER NOT NULL,
    boot_id         TEXT    NOT NULL,  -- this boot of this machine, and the pid namespace `pid` is a number in
    process_started INTEGER NOT NULL,  -- clock ticks after boot; tells a process from a later one of the same pid
    expires_ns      INTEGER NOT NULL,  -- wall time; 0: the lease was given back
    fenced          TEXT    NOT NULL DEFAULT ''  -- the owner that took this one's transactions over
) WITHOUT ROWID;

CREATE TABLE transactions (
    transaction_id TEXT    NOT NULL PRIMARY KEY,  -- time-ordered
    root           TEXT    NOT NULL,
    parent         TEXT    NOT NULL,
    workflow       TEXT    NOT NULL,
    digest         TEXT    NOT NULL,  -- of the workflow's shape when it began
    key            TEXT    NOT NULL,  -- idempotency key, or ''
    status         TEXT    NOT NULL,
    open           INTEGER NOT NULL,  -- 1: something is left to do
    owner          TEXT    NOT NULL,
    epoch          INTEGER NOT NULL,
    created_ns     INTEGER NOT NULL,
    updated_ns     INTEGER NOT NULL   -- when status or open last changed
) WITHOUT ROWID;

CREATE UNIQUE INDEX transactions_by_key ON transactions (workflow, key) WHERE key <> '';
CREATE INDEX transactions_open ON transactions (owner) WHERE open = 1;
CREATE INDEX transactions_by_status ON transactions (status, transaction_id);
CREATE INDEX transactions_by_workflow ON transactions (workflow, transaction_id);

CREATE TABLE pulses (
    transaction_id TEXT    NOT NULL,
    seq            INTEGER NOT NULL,
    kind           TEXT    NOT NULL,
    step           TEXT    NOT NULL,
    hop            TEXT    NOT NULL,
    attempt        INTEGER NOT NULL,
    ttl            INTEGER NOT NULL,
    at_ns          INTEGER NOT NULL,
    elapsed_ns     INTEGER,
    error          TEXT,
    body           BLOB    NOT NULL,  -- msgpack of causes, spawn, direction, token_in, token_out, data, digest
    UNIQUE (transaction_id, seq)
);  -- in order of arrival: hundreds of transactions in flight then write to a few pages, not to hundreds

CREATE VIEW pulse_log AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%f', at_ns / 1e9, 'unixepoch') AS at,
    pulses.transaction_id, workflow, seq, kind, step, attempt, ttl, elapsed_ns / 1e6 AS elapsed_ms, error, hop
FROM pulses JOIN transactions USING (transaction_id);
