-- Which transactions have dead letters: something of theirs ended as `unroutable` or `poison`, or they are stuck.

ALTER TABLE transactions ADD COLUMN dead INTEGER NOT NULL DEFAULT 0;  -- 1: a tombstone of theirs is one of these two

CREATE INDEX transactions_dead ON transactions (transaction_id) WHERE dead = 1 OR status = 'stuck';
