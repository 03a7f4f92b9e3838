"""Journals of an earlier release, a row a pulse, brought into the form of this one.

The first step raises the version that the file says, fences the owners there were, and takes the name of the table
away: no process of the earlier release writes there any more.  Each further step brings some of its rows into the
archive, and is kept: who is killed in between goes on where it was, and several processes take turns.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from bitactor.errors import StoreError
from bitactor.messages.pulse import Pulse
from bitactor.messages.values import named_text
from mesh.stores.database import (
    connect,
    is_busy,
    preparing,
    require_file,
    sleep_through,
    store_error,
    tries,
    write_transaction,
)
from mesh.stores.journal.blobs import keep_blobs
from mesh.stores.journal.frames import GENESIS, Digest, LeanPacker, Word, digest_of, make_frame
from mesh.stores.journal.parts import part_body, unreadable_part
from mesh.stores.journal.schema import UNCONVERTED
from mesh.stores.journal.tail import id_bytes
from mesh.stores.journal.takeover import INSERT_PART
from mesh.stores.journal.words import Words
from mesh.stores.lease import refuse_living
from mesh.stores.rows import BODY, PULSE_COLUMNS, SEQ, PulseRow, pulse_from_row

_log = logging.getLogger("bitactor.store")

DAMAGED: Final = "damaged_pulses"
"""The table of rows of an earlier release that cannot be read."""

PATIENCE: Final = 30.0
"""Seconds for which another process may keep the file locked without having done anything in it."""
STEP_BYTES: Final = 512 * 1024
"""Bytes of pulses, about, that are converted in one commit."""
_PART_BYTES: Final = 64 * 1024
_FRAME_BYTES: Final = 32 * 1024
_FRAME_PULSES: Final = 16
_ROW_BYTES: Final = 128
"""Bytes that a row counts for, beside its body."""
_CHECKPOINT_PAGES: Final = 1_000
_MOST_ONCE: Final = 65_536
SAY_EVERY: Final = 3.0
"""Seconds between words on how far it is."""

_FIRST: Final = f"SELECT rowid, transaction_id FROM {UNCONVERTED} ORDER BY transaction_id, seq LIMIT 1"
_OF: Final = "transaction_id = CAST(? AS TEXT)"
_ROWS: Final = f"SELECT {PULSE_COLUMNS} FROM {UNCONVERTED} WHERE {_OF} ORDER BY seq"
_PLACE: Final = (
    "SELECT head, coalesce((SELECT max(next_seq) FROM archive WHERE archive.transaction_id ="
    f" transactions.transaction_id), 0) FROM transactions WHERE {_OF}"
)
_DELETE: Final = f"DELETE FROM {UNCONVERTED} WHERE {_OF} AND seq >= ? AND seq < ? AND typeof(seq) = 'integer'"
_ASIDE: Final = (
    f"CREATE TABLE IF NOT EXISTS {DAMAGED} (transaction_id TEXT, seq INTEGER, kind TEXT, step TEXT, hop TEXT,"
    " attempt INTEGER, ttl INTEGER, at_ns INTEGER, elapsed_ns INTEGER, error TEXT, body BLOB)"
)


def migrating(path: Path, now_ns: Callable[[], int]) -> Generator[float, None, int]:
    """Make sure `path` is a journal of this release, creating it if it does not exist; yields as `tries` does, and
    returns how many pulses were converted.

    Raises:
        StoreError: the file cannot be created or written, belongs to another program or to a later release, or a
            process of an earlier one still uses it.
    """
    yield from preparing(path, partial(refuse_living, path, now_ns))
    try:
        opening = partial(connect, path, synchronous="NORMAL", timeout=0, checkpoint_pages=_CHECKPOINT_PAGES)
        with closing((yield from tries(opening, PATIENCE, path))) as connection:
            return (yield from _converting(connection, path))
    except sqlite3.Error as error:
        raise store_error(error, path) from error


def migrate(path: Path) -> int:
    """Make sure that the journal at `path`, which is there, is one of this release; returns how many pulses were
    converted.  Sleeps on this thread meanwhile.

    Raises:
        StoreError: as for `migrating`, or there is no such file.
    """
    path = path.absolute()
    require_file(path)
    return sleep_through(migrating(path, time.time_ns))


def _converting(connection: sqlite3.Connection, path: Path) -> Generator[float, None, int]:
    """Convert what is left of the rows, a step at a time; how many these were."""
    if not (yield from tries(lambda: _is_left(connection), PATIENCE, path)):
        return 0
    connection.text_factory = _any_text
    conversion = _Conversion(connection, path)
    (left,) = connection.execute(f"SELECT coalesce(max(rowid) - min(rowid) + 1, 0) FROM {UNCONVERTED}").fetchone()
    began = said = time.monotonic()
    seen = _commits_of_others(connection)
    while _is_left(connection):
        try:
            yield from tries(conversion.step, PATIENCE, path)
        except sqlite3.OperationalError as error:
            if not is_busy(error) or _commits_of_others(connection) == seen:
                raise
        seen = _commits_of_others(connection)
        now = time.monotonic()
        if now - said >= SAY_EVERY:
            said = now
            _log.warning(
                "%s: its pulses are brought into the form of this release, %d of about %d so far; what is done stays, "
                "who is interrupted goes on from there", path, conversion.pulses, left,
            )  # fmt: skip
        yield 0.0
    if conversion.pulses:
        _log.warning(
            "%s: its pulses (%d) were brought into the form of this release in %.1f s; an earlier one opens it no more",
            path, conversion.pulses, time.monotonic() - began,
        )  # fmt: skip
    return conversion.pulses


def _is_left(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (UNCONVERTED,)).fetchone()
    return found is not None


def _commits_of_others(connection: sqlite3.Connection) -> int:
    """A number that is another one whenever another connection has committed."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _any_text(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


class _Unreadable(Exception):
    """Why a pulse cannot be converted."""


class _Part(NamedTuple):
    """A part of the archive in the making."""

    seq: int
    next_seq: int
    head: Digest
    """The digest of its last frame."""
    frames: bytes
    size: int
    """Bytes of its frames, and of the blobs that they name."""


class _Conversion:
    """A process's share in converting a journal.

    A word gets a number when it is seen in a second transaction: what only one has, such as the paths of its many
    batches, would use the numbers up.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._words = Words()
        self._words.load(connection)
        self._packer = LeanPacker(self._words.numbers)
        self._once: dict[Word, str] = {}
        """Words that have no number → the transaction that they were seen in."""
        self._twice: dict[Word, None] = {}
        self.pulses = 0
        """How many it has converted so far."""

    def step(self) -> None:
        """Convert some rows, in one commit; with none left, their table goes."""
        connection = self._connection
        done = size = 0
        with write_transaction(connection):
            while size < STEP_BYTES and _is_left(connection):
                first = connection.execute(_FIRST).fetchone()
                if first is None:
                    connection.execute(f"DROP TABLE {UNCONVERTED}")
                    break
                pulses, more = self._convert(first[0], first[1], STEP_BYTES - size)
                done += pulses
                size += more
            added = self._words.add(connection, self._twice)
        self._words.learn(added)
        self._twice.clear()
        self.pulses += done

    def _convert(self, row: int, transaction: object, room: int) -> tuple[int, int]:
        """Convert a transaction, or about so many bytes of it as there is room for; returns how many pulses that were,
        and how many bytes."""
        connection = self._connection
        if type(transaction) is not str:
            self._put_aside("a row's transaction_id is no text", "rowid = ?", row)
            return 0, _ROW_BYTES
        name = transaction.encode("utf-8", "surrogateescape")
        place = connection.execute(_PLACE, (name,)).fetchone()
        try:
            key = id_bytes(transaction)
        except StoreError:
            place = None
        if place is None:
            self._put_aside(f"{transaction!a} is no transaction of this journal", _OF, name)
            return 0, _ROW_BYTES
        head, begun = place
        head, seq, size, why = head or GENESIS, begun, 0, ""
        try:
            with closing(self._parts(name, key, seq, head)) as parts:
                for part in parts:
                    seq, head = part.next_seq, part.head
                    body = part_body(key, part.seq, seq, 0, part.frames)
                    connection.execute(INSERT_PART, (transaction, part.seq, seq, 0, body))
                    size += part.size + (seq - part.seq) * _ROW_BYTES
                    if size >= room:
                        break
        except _Unreadable as error:
            why = str(error)
        self._count(transaction)
        connection.execute(_DELETE, (name, begun, seq))
        connection.execute("UPDATE transactions SET head = ? WHERE transaction_id = ?", (head, transaction))
        if why:
            self._put_aside(f"transaction {transaction} cannot be read: {why}", _OF, name)
            connection.execute(INSERT_PART, (transaction, seq, seq, 0, unreadable_part(key, seq, why)))
        return seq - begun, size + _ROW_BYTES

    def _parts(self, name: bytes, key: bytes, seq: int, head: Digest) -> Generator[_Part]:
        """What is left of a transaction, from pulse `seq` on.

        Raises:
            _Unreadable: what comes next cannot be read.
        """
        with closing(self._connection.execute(_ROWS, (name,))) as rows:
            begun, frames, size = seq, [], 0
            groups = _groups(rows, seq)
            unreadable: _Unreadable | None = None
            while unreadable is None:
                try:
                    pulses = next(groups, None)
                    if pulses is None:
                        break
                    frame, blobs = self._frame(key, seq, pulses, head)
                except _Unreadable as error:
                    unreadable = error
                else:
                    seq, head = seq + len(pulses), digest_of(frame)
                    frames.append(frame)
                    size += len(frame) + blobs
                if size >= _PART_BYTES:
                    yield _Part(begun, seq, head, b"".join(frames), size)
                    begun, frames, size = seq, [], 0
            if frames:
                yield _Part(begun, seq, head, b"".join(frames), size)
            if unreadable is not None:
                raise unreadable

    def _frame(self, key: bytes, seq: int, pulses: Sequence[Pulse], head: Digest) -> tuple[bytes, int]:
        """A frame, and how many bytes are kept as blobs for it."""
        packer = self._packer
        try:
            frame = make_frame(key, seq, len(pulses), pulses[0].at_ns, head, packer.pack(pulses))
            keep_blobs(self._connection, key.hex(), packer.blobs)
            return frame, sum(map(len, packer.blobs.values()))
        except sqlite3.Error:
            raise
        except Exception as error:  # of bytes that are not what was written, anything
            raise _Unreadable(f"pulses {seq} to {seq + len(pulses)} cannot be kept: {named_text(error)}") from error
        finally:
            packer.blobs = {}

    def _put_aside(self, why: str, which: str, value: int | bytes) -> None:
        """Keep rows that cannot be read in a table of their own."""
        connection = self._connection
        connection.execute(_ASIDE)
        connection.execute(f"INSERT INTO {DAMAGED} SELECT * FROM {UNCONVERTED} WHERE {which}", (value,))
        connection.execute(f"DELETE FROM {UNCONVERTED} WHERE {which}", (value,))
        _log.error("%s: %s; its rows are kept in the table %s", self._path, why, DAMAGED)

    def _count(self, transaction: str) -> None:
        """Count the words that this one has and that have no number yet."""
        once, words = self._once, self._packer.wanted
        if len(once) > _MOST_ONCE:
            once.clear()
        for word in words:
            if once.setdefault(word, transaction) != transaction:
                self._twice[word] = None
        words.clear()


def _groups(rows: Iterable[PulseRow], seq: int) -> Iterator[list[Pulse]]:
    """The pulses of rows, the first of which shall be pulse `seq`, in groups for a frame.

    Raises:
        _Unreadable: the next one cannot be read, or is missing.
    """
    pulses: list[Pulse] = []
    size = 0
    try:
        for row in rows:
            if row[SEQ] != seq:
                raise _Unreadable(f"pulse {seq} is missing")
            pulses.append(_pulse(row))
            seq += 1
            size += len(row[BODY])
            if len(pulses) >= _FRAME_PULSES or size >= _FRAME_BYTES:
                yield pulses
                pulses, size = [], 0
    except _Unreadable:
        if pulses:
            yield pulses
        raise
    if pulses:
        yield pulses


def _pulse(row: PulseRow) -> Pulse:
    try:
        for text in row:
            if type(text) is str:
                text.encode()
        return pulse_from_row("", "", row)
    except Exception as error:  # of bytes that are not what was written, anything
        raise _Unreadable(f"pulse {row[SEQ]} cannot be read: {named_text(error)}") from error
