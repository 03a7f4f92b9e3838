-- One row a commit in `log`, and what a transaction has there goes to `archive` in the commit that settles it.
-- `transactions` and `owners` stay what they were; `pulses` is emptied into `archive`, and then dropped.

ALTER TABLE owners ADD COLUMN number INTEGER NOT NULL DEFAULT 0;  -- of this owner's rows in `log`; given once in a file

ALTER TABLE transactions ADD COLUMN log_from INTEGER;  -- `log.id` from which its frames are not in the archive yet
ALTER TABLE transactions ADD COLUMN head BLOB;  -- digest of its last frame in the archive

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
    log_id         INTEGER NOT NULL,  -- the commit that wrote it
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
