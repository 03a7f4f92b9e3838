-- One row a commit in `log`, and what a transaction has there goes to `archive` in the commit that settles it.
-- Nobody of the release before may write from now on: its table has another name until its rows are in `archive`, its
-- owners are fenced, and who has no number registers no more.

DROP VIEW pulse_log;
ALTER TABLE pulses RENAME TO unconverted_pulses;

CREATE TABLE numbered_owners (
    owner           TEXT    NOT NULL PRIMARY KEY,
    pid             INTEGER NOT NULL,
    boot_id         TEXT    NOT NULL,  -- this boot of this machine, and the pid namespace `pid` is a number in
    process_started INTEGER NOT NULL,  -- clock ticks after boot; tells a process from a later one of the same pid
    expires_ns      INTEGER NOT NULL,  -- wall time; 0: the lease was given back
    fenced          TEXT    NOT NULL DEFAULT '',  -- the owner that took this one's transactions over
    number          INTEGER NOT NULL  -- of this owner's rows in `log`; given once in a file; 0: of a release before
) WITHOUT ROWID;
INSERT INTO numbered_owners
SELECT owner, pid, boot_id, process_started, expires_ns, CASE fenced WHEN '' THEN 'a later release' ELSE fenced END, 0
FROM owners;
DROP TABLE owners;
ALTER TABLE numbered_owners RENAME TO owners;

ALTER TABLE transactions ADD COLUMN log_from INTEGER;  -- `log.id` from which its frames are not in the archive yet
ALTER TABLE transactions ADD COLUMN head BLOB;  -- digest of its last frame in the archive
ALTER TABLE transactions ADD COLUMN due_ns INTEGER NOT NULL DEFAULT 0;  -- wall time to look at it again; 0: none
ALTER TABLE transactions ADD COLUMN receives INTEGER NOT NULL DEFAULT 0;  -- 1: it can be sent messages

CREATE INDEX transactions_due ON transactions (owner, due_ns) WHERE due_ns > 0 AND open = 1;
CREATE INDEX transactions_ended ON transactions (updated_ns)
WHERE open = 0 AND status IN ('completed', 'compensated', 'cancelled');

CREATE TABLE numbers (
    name TEXT    NOT NULL PRIMARY KEY,
    last INTEGER NOT NULL  -- the last that was given
) WITHOUT ROWID;
INSERT INTO numbers VALUES ('owner', 0);

CREATE TABLE log (
    id   INTEGER PRIMARY KEY,  -- owner's number << 40 | number of the commit
    body BLOB    NOT NULL      -- frames of pulses, then a checksum
);

CREATE TABLE archive (
    id             INTEGER PRIMARY KEY,
    transaction_id TEXT    NOT NULL,
    seq            INTEGER NOT NULL,  -- of the first pulse in it
    next_seq       INTEGER NOT NULL,
    log_id         INTEGER NOT NULL,  -- the commit that wrote it; 0: it was brought here from a release before
    body           BLOB    NOT NULL,  -- checksum, then frames of pulses, compressed
    UNIQUE (transaction_id, seq)
);

CREATE TABLE blobs (
    id   INTEGER PRIMARY KEY,
    hash BLOB    NOT NULL UNIQUE,  -- BLAKE2b of the body
    body BLOB    NOT NULL          -- a token that is too long for a frame
);

CREATE TABLE blob_uses (
    transaction_id TEXT NOT NULL,
    hash           BLOB NOT NULL,
    PRIMARY KEY (transaction_id, hash)
) WITHOUT ROWID;
CREATE INDEX blob_uses_by_hash ON blob_uses (hash);

CREATE TABLE words (
    word INTEGER PRIMARY KEY,
    body BLOB    NOT NULL  -- checksum, then msgpack of kind, step, spawn, direction, digest, token_in
);

CREATE TABLE inbox (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order in which they were kept; never given again
    transaction_id TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    key            TEXT    NOT NULL,  -- '': none
    digest         BLOB    NOT NULL,  -- of the transaction, name, key and body
    body           BLOB,              -- NULL: it was read, and its key is still known
    sent_ns        INTEGER NOT NULL,
    sender         TEXT    NOT NULL
);
CREATE INDEX inbox_unread ON inbox (transaction_id, id) WHERE body IS NOT NULL;
CREATE UNIQUE INDEX inbox_by_key ON inbox (transaction_id, name, key) WHERE key <> '';
