"""Commits to a journal: which writes are taken, which refused, and the few statements that make it so.

A commit is one row of the log, with the frames of all its writes.  As long as our own row in `owners` stands and is not
fenced, nobody else can have touched the open transactions we hold, so what the last commit knew of them is still true
and need not be read again: a commit of ordinary hops is a single statement, which writes only while we are not fenced.

What a transaction has in the log is copied to the archive in the commit that settles it, and sooner when it is much, or
old: so the log is short, and nothing in it is needed for long.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from bitactor.errors import BitActorError, InboxChanged, StoreError
from bitactor.messages.pulse import RECEIVING
from bitactor.ports import Refusal, Write
from mesh.stores.journal.blobs import keep_blobs
from mesh.stores.journal.frames import GENESIS, Blobs, Digest, LeanPacker, digest_of, make_frame
from mesh.stores.journal.inbox import read_messages
from mesh.stores.journal.parts import log_body, log_id, part_body
from mesh.stores.journal.state import ROW_ERRORS, Held, JournalState, conflict, new_transaction_row, refusal_of
from mesh.stores.journal.tail import Tail, id_bytes, read_tail
from mesh.stores.journal.takeover import INSERT_PART
from mesh.stores.journal.words import Words
from mesh.stores.lease import require_lease

_log = logging.getLogger("bitactor.store")

LOG_BYTES: Final = 4 * 1024 * 1024
"""Bytes of an owner's log that are not in the archive; more, and what is oldest goes there."""
PART_BYTES: Final = 64 * 1024
"""Bytes of one transaction in the log; more, and they go to the archive."""
ARCHIVED_A_COMMIT: Final = 256 * 1024
TRUNCATED: Final = range(128, 1_024)
"""Rows of the log that are deleted at once: at least, and at most."""


_new = tuple.__new__
"""Builds a named tuple in half the time of calling its class; for the tuples that every hop needs."""


PreparedWrite = tuple[Write, bytes, Blobs | None, Exception | None]
"""A write, its pulses as a frame's body (empty without any), tokens too long for that; or why it cannot be kept."""


class _Draft:
    """What a transaction becomes once the commit in the making is done."""

    __slots__ = ("added", "archived", "changed", "created", "head", "held", "state", "updated_ns")

    def __init__(self, held: Held) -> None:
        self.held = held
        self.state = held.state
        self.head = held.head
        self.added: list[bytes] = []
        self.created = False
        """Whether its row in `transactions` is new, and says from where on it is in the log."""
        self.changed = False
        """Whether that row is another."""
        self.archived = False
        """Whether all its frames are in the archive."""
        self.updated_ns = 0


_UNBEGUN: Final = Tail([], GENESIS, 0, 0, 0)
_INSERT_TRANSACTION: Final = "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?)"
_UPDATE_TRANSACTION: Final = (
    "UPDATE transactions SET status = ?, open = ?, owner = ?, epoch = ?, updated_ns = max(updated_ns, ?), dead = ?,"
    " due_ns = ?, receives = ?, log_from = ?, head = coalesce(?, head) WHERE transaction_id = ?"
)
_INSERT_ROW: Final = "INSERT INTO log VALUES (?, ?)"
_INSERT_ROW_ALONE: Final = (
    "INSERT INTO log SELECT ?, ? WHERE EXISTS (SELECT 1 FROM owners WHERE owner = ? AND fenced = '')"
)
_TRUNCATE: Final = "DELETE FROM log WHERE id >= ? AND id < ? AND id NOT IN (SELECT value FROM json_each(?))"


class Writer:
    """Makes the commits of one owner, one at a time.  Used by one thread at a time, on whichever connection belongs to
    that thread; `prepare` may be called meanwhile on another."""

    def __init__(self, owner: str, number: int, words: Words) -> None:
        self._words = words
        self._packer = LeanPacker(words.numbers)
        self.become(owner, number)

    def become(self, owner: str, number: int) -> None:
        """Write as this owner from now on; nothing that was known of any transaction is true for it."""
        self._owner = owner
        self._rows: deque[int] = deque()  # bytes of the log's rows up to the newest
        self._next_row = log_id(number, 1)
        # Open transactions that are ours and were written to; those to be read again are not among them
        self._held: dict[str, Held] = {}
        # The first row of the log in which each has frames, oldest first; also of those to be read again
        self._log_from: dict[str, int] = {}
        self._bytes = 0
        self._unreadable: set[str] = set()  # what stays in the log, damaged
        self._strange: set[int] = set()  # rows of the log that were there before they were written

    def newest_row(self) -> int:
        """The newest row of the log that was committed; 0: there is none.  From any thread; it stays in the file until
        another process takes over."""
        return self._next_row - 1 if self._rows else 0

    def prepare(self, writes: Iterable[Write]) -> list[PreparedWrite]:
        """The writes with their pulses packed now, so that nothing changes them any more."""
        items: list[PreparedWrite] = []
        packer = self._packer
        pack_pulses = packer.pack
        for write in writes:
            try:
                body = pack_pulses(write.pulses) if write.pulses else b""
                blobs = None
                if packer.blobs:
                    blobs, packer.blobs = packer.blobs, {}
                items.append((write, body, blobs, None))
            except (BitActorError, ValueError, TypeError, OverflowError, RecursionError) as error:
                refusal = StoreError(f"transaction {write.transaction}: a pulse cannot be stored: {error}")
                items.append((write, b"", None, refusal))
        return items

    def commit(self, connection: sqlite3.Connection, items: Sequence[PreparedWrite]) -> tuple[list[Refusal], int]:
        """Keep `items` in one database transaction; those that are refused leave no trace.  Returns the refusals, and
        how many bytes the log has more.

        Raises:
            StaleOwner: our lease was taken from us; nothing was written.
            sqlite3.Error: nothing was written; when busy, the same call can be made again.
        """
        while True:
            try:
                return self._commit(connection, items)
            except sqlite3.IntegrityError:
                if not self._step_over(connection):
                    raise

    def _commit(self, connection: sqlite3.Connection, items: Sequence[PreparedWrite]) -> tuple[list[Refusal], int]:
        batch = _Batch(self._owner, self._held, connection, self._next_row)
        wanted = list(self._packer.wanted)  # of a dictionary that `prepare` adds to on another thread, which this bears
        try:
            batch.write(items)
            body = b"".join(batch.frames)
            if wanted or batch.begun or self._bytes > LOG_BYTES:
                batch.begin()
                added = self._words.add(connection, wanted)
                batch.keep_transactions(self._old())
                deleted = self._truncate(batch)
                if body:
                    connection.execute(_INSERT_ROW, (batch.row, log_body(batch.row, body)))
                connection.execute("COMMIT")
                self._words.learn(added)
                for word in wanted:
                    self._packer.wanted.pop(word, None)
            else:
                deleted = 0
                if body:
                    batch.insert_alone(body)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self.invalidate(write.transaction for write, *_ in items)
            raise
        self._apply(batch, len(body), deleted)
        return batch.refusals, len(body)

    def invalidate(self, transactions: Iterable[str]) -> None:
        """Believe nothing of these transactions any more; the next write of each reads its state from the journal."""
        for transaction in transactions:
            self._held.pop(transaction, None)

    def _step_over(self, connection: sqlite3.Connection) -> bool:
        """Pass over the log's next id if there is a row already: it is out of its place, and stays for who looks."""
        row = self._next_row
        if connection.execute("SELECT 1 FROM log WHERE id = ?", (row,)).fetchone() is None:
            return False
        _log.error(
            "log row %d of owner %r is there and was not written by it, so it goes on with the next: the file is "
            "damaged; `bitactor verify` names the row", row, self._owner,
        )  # fmt: skip
        self._strange.add(row)
        self._next_row += 1
        self._rows.append(0)
        return True

    def _old(self) -> dict[str, Held | None]:
        """What the log has had for longest, to be taken to the archive, if the log is long; None: to be read again."""
        old: dict[str, Held | None] = {}
        if self._bytes > LOG_BYTES:
            middle, taken = self._next_row - len(self._rows) // 2, 0
            for transaction, log_from in self._log_from.items():
                if log_from >= middle or taken >= ARCHIVED_A_COMMIT:
                    break
                if transaction in self._unreadable:
                    continue
                held = old[transaction] = self._held.get(transaction)
                taken += held.size if held is not None else PART_BYTES
        return old

    def _truncate(self, batch: _Batch) -> int:
        """Delete the oldest rows of the log if all in them is in the archive; returns how many."""
        kept = (row for name, row in self._log_from.items() if not batch.takes_from_log(name))
        first = self._next_row - len(self._rows)
        rows = min(next(kept, self._next_row) - first, len(self._rows) - 1, TRUNCATED.stop)
        if rows < TRUNCATED.start and (rows <= 0 or self._bytes <= LOG_BYTES // 2):
            return 0
        batch.connection.execute(_TRUNCATE, (first, first + rows, json.dumps([*self._strange])))
        return rows

    def _apply(self, batch: _Batch, size: int, deleted: int) -> None:
        """Believe what was committed."""
        self._unreadable.update(batch.unreadable)
        if size:
            self._next_row += 1
            self._rows.append(size)
            self._bytes += size
        for _ in range(deleted):
            self._bytes -= self._rows.popleft()
        all_held, log_from = self._held, self._log_from
        for transaction, draft in batch.drafts.items():
            held, added = draft.held, draft.added
            held.state, held.head = draft.state, draft.head
            if draft.archived:
                held.frames, held.size, held.part_seq, held.log_from = [], 0, draft.state.next_seq, 0
                log_from.pop(transaction, None)
            elif added:
                held.frames += added
                held.size += len(added[0]) if len(added) == 1 else sum(map(len, added))
                if not held.log_from:
                    log_from[transaction] = held.log_from = batch.row
            if draft.state.open:
                all_held[transaction] = held
            else:
                all_held.pop(transaction, None)


class _Batch:
    """A database transaction in the making, with the writes of one commit."""

    def __init__(self, owner: str, held: Mapping[str, Held], connection: sqlite3.Connection, row: int) -> None:
        self._owner = owner
        self._held = held
        self._refused: dict[str, Exception] = {}
        self.connection = connection
        self.row = row
        """The id that the log's row gets."""
        self.begun = False
        self.frames: list[bytes] = []
        self.drafts: dict[str, _Draft] = {}
        self.refusals: list[Refusal] = []
        self.unreadable: list[str] = []
        """What was to go from the log to the archive, and cannot be read."""

    def begin(self) -> None:
        """Take the file's lock, and make sure that we may write; once."""
        if not self.begun:
            self.connection.execute("BEGIN IMMEDIATE")
            self.begun = True
            require_lease(self.connection, self._owner)

    def write(self, items: Sequence[PreparedWrite]) -> None:
        """Make the frames of the items, and rows for transactions that begin; refuse what has to be."""
        index = self._write_hops(items, 0)
        while index < len(items):
            self._write(index, items[index])
            index = self._write_hops(items, index + 1)

    def _write_hops(self, items: Sequence[PreparedWrite], index: int) -> int:
        """Make the frames of items from this one on, as long as they do no more than add pulses to what is held, which
        is right once this is committed (else nobody believes it); returns where that ends."""
        all_held, drafts, refused, frames = self._held, self.drafts, self._refused, self.frames
        for write, body, blobs, _ in items[index:] if index else items:
            transaction, epoch, pulses, status, is_open, _, dead, due_ns, receives, read, _ = write[:]
            held = all_held.get(transaction)
            if (
                held is None
                or not body
                or blobs is not None
                or pulses[0].seq != held.next_seq
                or status != held.status
                or epoch != held.epoch
                or is_open != held.open
                or dead != held.dead
                or due_ns != held.due_ns
                or receives != held.receives
                or read
                or held.size > PART_BYTES
                or not held.log_from
                or transaction in drafts
                or transaction in refused
            ):
                break
            frame = make_frame(held.name, held.next_seq, len(pulses), pulses[0].at_ns, held.head, body)
            held.head = digest_of(frame)
            held.next_seq += len(pulses)
            held.frames.append(frame)
            held.size += len(frame)
            frames.append(frame)
            index += 1
        return index

    def _write(self, index: int, item: PreparedWrite) -> None:
        """Make the frame of an item, and whatever else it is about, or refuse it."""
        write, body, blobs, error = item
        transaction, epoch, pulses, status, is_open, _, dead, due_ns, receives, read, _ = write
        if error is not None or transaction in self._refused:
            self._refuse(index, transaction, error or self._refused[transaction])
            return
        draft = self.drafts.get(transaction) or self._draft(write)
        if type(draft) is not _Draft:
            self._refuse(index, transaction, draft)
            return
        was_epoch, was, was_open, next_seq, was_dead, other_owner, was_due_ns, received = draft.state
        receives = receives and status in RECEIVING
        odd = epoch != was_epoch or other_owner or not pulses or pulses[0].seq != next_seq
        if odd and (error := conflict(write, draft.state)) is not None:
            self._refuse(index, transaction, error)
            return
        if read or (received and not receives):
            self.begin()
            error = read_messages(self.connection, write, closes=received and not receives)
            if error is not None:
                self._refuse(index, transaction, error)
                return
        if body:
            frame = make_frame(draft.held.name, next_seq, len(pulses), pulses[0].at_ns, draft.head, body)
            draft.head = digest_of(frame)
            draft.added.append(frame)
            self.frames.append(frame)
        if blobs:
            self.begin()
            keep_blobs(self.connection, transaction, blobs)
        if (
            status != was or is_open != was_open or epoch != was_epoch
            or dead != was_dead or due_ns != was_due_ns or receives != received
        ):  # fmt: skip
            self.begin()
            draft.changed = True
            if pulses and status != was:
                draft.updated_ns = pulses[-1].at_ns
        state = (epoch, status, is_open, next_seq + len(pulses), dead, "", due_ns, receives)
        draft.state = _new(JournalState, state)
        self.drafts[transaction] = draft

    def keep_transactions(self, old: Mapping[str, Held | None]) -> None:
        """Write what has changed of the transactions; to the archive goes what settles, has grown, or is `old`."""
        drafts = self.drafts
        for transaction, held in old.items():
            if transaction not in drafts:
                draft = _Draft(held) if held is not None else self._read(transaction)
                if type(draft) is _Draft and not draft.state.other_owner:
                    drafts[transaction] = draft
                else:
                    self.unreadable.append(transaction)
        for transaction, draft in drafts.items():
            held, state, added = draft.held, draft.state, draft.added
            size = held.size + sum(map(len, added))
            if not size:
                draft.archived = True
                if draft.changed:
                    self._update(transaction, draft, None, None)
            elif not state.open or transaction in old or size > PART_BYTES:
                frames = b"".join(held.frames) + b"".join(added)
                body = part_body(held.name, held.part_seq, state.next_seq, self.row, frames)
                self.connection.execute(INSERT_PART, (transaction, held.part_seq, state.next_seq, self.row, body))
                draft.archived = True
                self._update(transaction, draft, None, draft.head)
            elif draft.changed or not (held.log_from or draft.created):
                self._update(transaction, draft, held.log_from or (self.row if added else None), None)

    def insert_alone(self, body: bytes) -> None:
        """Keep the row of the log, which is all there is to keep, unless we are fenced."""
        values = (self.row, log_body(self.row, body), self._owner)
        if not self.connection.execute(_INSERT_ROW_ALONE, values).rowcount:
            require_lease(self.connection, self._owner)
            raise StoreError(f"owner {self._owner!r} could not write, for no reason that is known")

    def takes_from_log(self, transaction: str) -> bool:
        """Whether nothing of a transaction is only in the log once this is committed."""
        draft = self.drafts.get(transaction)
        return draft is not None and draft.archived

    def _update(self, transaction: str, draft: _Draft, log_from: int | None, head: Digest | None) -> None:
        epoch, status, is_open, _, dead, _, due_ns, receives = draft.state
        values = (
            status, is_open, self._owner, epoch, draft.updated_ns, dead, due_ns, receives, log_from, head, transaction
        )  # fmt: skip
        self.connection.execute(_UPDATE_TRANSACTION, values)

    def _draft(self, write: Write) -> _Draft | Exception:
        """The transaction as the journal has it, or why the write cannot be made."""
        transaction = write.transaction
        held = self._held.get(transaction)
        if held is not None and held.log_from and held.size <= PART_BYTES:
            return _Draft(held)
        self.begin()  # its row is to say from where on it is in the log, or it goes to the archive
        if held is not None:
            return _Draft(held)
        if write.pulses and write.pulses[0].seq == 0:
            return self._create(write)
        return self._read(transaction)

    def _read(self, transaction: str) -> _Draft | Exception:
        row = self.connection.execute(
            "SELECT epoch, status, open, dead, owner, due_ns, receives FROM transactions WHERE transaction_id = ?",
            (transaction,),
        ).fetchone()
        if row is None:
            return StoreError(f"transaction {transaction} is not in the journal")
        epoch, status, is_open, dead, owner, due_ns, receives = row
        other_owner = owner if is_open and owner != self._owner else ""
        try:
            tail = _UNBEGUN if other_owner else read_tail(self.connection, transaction)
            state = JournalState(
                epoch, status, bool(is_open), tail.next_seq, bool(dead), other_owner, due_ns, bool(receives)
            )
            return _Draft(Held(id_bytes(transaction), state, tail))
        except (StoreError, ValueError) as error:
            return error

    def _create(self, write: Write) -> _Draft | Exception:
        """Begin a transaction; or why its row is not taken."""
        if write.read:
            return InboxChanged(f"transaction {write.transaction}: it has no messages before it begins")
        receives = write.receives and write.status in RECEIVING
        try:
            name = id_bytes(write.transaction)
            self.connection.execute(_INSERT_TRANSACTION, new_transaction_row(write, self._owner, self.row, receives))
        except (StoreError, *ROW_ERRORS) as error:
            return refusal_of(self.connection, write, error)
        state = JournalState(write.epoch, write.status, write.open, 0, write.dead, "", write.due_ns, receives)
        draft = _Draft(Held(name, state, _UNBEGUN._replace(frames=[])))
        draft.created = True
        return draft

    def _refuse(self, index: int, transaction: str, error: Any) -> None:
        self._refused[transaction] = error
        self.refusals.append(Refusal(index, error))
