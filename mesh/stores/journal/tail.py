"""A transaction's frames as a journal has them: parts of the archive, then what is only in the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bitactor.errors import StoreError
from mesh.stores.journal.frames import GENESIS, Digest, Frame, digest_of, frames_in, last_frame_at
from mesh.stores.journal.parts import (
    COMMIT_BITS,
    end_of_log,
    frames_of_log,
    frames_of_part,
    home_of_log,
    ids_beside,
    is_sound,
)

_PARTS = "SELECT seq, next_seq, log_id, CAST(body AS BLOB) FROM archive WHERE transaction_id = ? ORDER BY seq"
_NEXT_PART = (
    "SELECT seq, next_seq, log_id, CAST(body AS BLOB) FROM archive WHERE transaction_id = ? AND seq >= ?"
    " ORDER BY seq LIMIT 1"
)
_BOUNDS = "SELECT (SELECT min(id) FROM log), (SELECT max(id) FROM log)"
_LOG = "SELECT id, CAST(body AS BLOB) FROM log WHERE id >= ? AND id < ? ORDER BY id"


class Tail(NamedTuple):
    """What a transaction has only in the log, and where it stands."""

    frames: list[bytes]
    head: Digest
    """The digest of its last frame."""
    part_seq: int
    """The number of the first pulse that is not in the archive."""
    next_seq: int
    log_from: int
    """The log's row from which its frames are; 0: it has none there."""


@contextmanager
def one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """What is read inside is as of one moment."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def id_bytes(transaction: str) -> bytes:
    """A transaction's id as 16 bytes.

    Raises:
        StoreError: it is not 32 lower-case hex digits.
    """
    try:
        name = bytes.fromhex(transaction)
    except (ValueError, TypeError):
        name = b""
    if name.hex() != transaction or len(name) != 16:
        raise StoreError(f"{transaction!a} is no transaction's id: 32 lower-case hex digits")
    return name


def read_tail(connection: sqlite3.Connection, transaction: str) -> Tail:
    """What the log has of a transaction that `transactions` has; inside a database transaction.

    Raises:
        StoreError: a row in which it is, or should be, is damaged.
    """
    log_from, head = connection.execute(
        "SELECT log_from, head FROM transactions WHERE transaction_id = ?", (transaction,)
    ).fetchone() or (None, None)
    (part_seq,) = connection.execute(
        "SELECT max(next_seq) FROM archive WHERE transaction_id = ?", (transaction,)
    ).fetchone()
    part_seq = part_seq or 0
    head = head or GENESIS
    if not log_from:
        return Tail([], head, part_seq, part_seq, 0)
    return _tail_in_log(connection, transaction, log_from, part_seq, head)


def read_frames(connection: sqlite3.Connection, transaction: str, log_from: int | None, head: bytes | None) -> bytes:
    """All frames of a transaction, one after the other; inside a database transaction.

    Raises:
        StoreError: some of them are damaged or missing.
    """
    name = id_bytes(transaction)
    found: list[bytes] = []
    reached = 0
    for seq, next_seq, row, body in connection.execute(_PARTS, (transaction,)):
        if seq != reached:
            raise StoreError(f"pulses {reached} to {seq} are not in the archive")
        found.append(frames_of_part(name, seq, next_seq, row, body))
        reached = next_seq
    if _last_digest(found) != (head or GENESIS):
        raise StoreError(f"what the archive has of it ends at pulse {reached}, and that is not its end")
    if log_from:
        found += _tail_in_log(connection, transaction, log_from, reached, head or GENESIS).frames
    return b"".join(found)


def read_piece(connection: sqlite3.Connection, transaction: str, seq: int) -> tuple[bytes, bool]:
    """The frames of a transaction from pulse `seq` on, as far as one part of the archive has them, or, behind the last
    part, the log; and whether there are no more.  Inside a database transaction.

    Raises:
        StoreError: they are damaged or missing.
    """
    part = connection.execute(_NEXT_PART, (transaction, seq)).fetchone()
    if part is None:
        tail = read_tail(connection, transaction)
        if tail.part_seq != seq:
            raise StoreError(f"pulses {seq} to {tail.part_seq} are not in the archive")
        return b"".join(tail.frames), True
    if part[0] != seq:
        raise StoreError(f"pulses {seq} to {part[0]} are not in the archive")
    return frames_of_part(id_bytes(transaction), *part), False


def _last_digest(parts: list[bytes]) -> Digest:
    """The digest of the last frame in these parts."""
    if not parts:
        return GENESIS
    return digest_of(memoryview(parts[-1])[last_frame_at(parts[-1]) :])


def _tail_in_log(connection: sqlite3.Connection, transaction: str, log_from: int, seq: int, head: Digest) -> Tail:
    if type(log_from) is not int:
        raise StoreError(f"its row says {log_from!r} of where it is in the log")
    [tail] = tails_in_log(connection, ((transaction, log_from, seq, head),)).values()
    if isinstance(tail, StoreError):
        raise tail
    return tail


class DamagedTail(StoreError):
    """What a transaction has in the log cannot be read."""

    pulse = 0
    """The first that cannot be read."""


class _Wanted:
    """A transaction whose frames are looked for in the log."""

    __slots__ = ("began", "damage", "first", "frames", "head", "log_from", "lost", "seq")

    def __init__(self, log_from: int, seq: int, head: Digest) -> None:
        self.log_from = log_from
        self.first = self.seq = seq
        self.began = self.head = head
        self.frames: list[bytes] = []
        self.damage: DamagedTail | None = None
        self.lost = -1
        """A row that is missing, and may have had the next frame; -1: there is none."""

    def refuse(self, why: str) -> None:
        """Say why it cannot be read any further; the first reason stands."""
        if self.damage is None:
            self.damage = DamagedTail(why)
            self.damage.pulse = self.seq

    def take(self, row: int, frame: Frame, data: bytes) -> None:
        """Take its next frame."""
        if frame.seq != self.seq:
            self.refuse(f"pulse {self.seq} is missing: log row {row} goes on with pulse {frame.seq}")
        elif frame.before != self.head:
            self.refuse(f"what comes before pulse {self.seq} is not what it was when log row {row} was written")
        else:
            content = data[frame.start : frame.end]
            self.frames.append(content)
            self.seq, self.head = frame.seq + frame.pulses, digest_of(content)
            self.lost = -1

    def result(self) -> Tail | StoreError:
        """What was found."""
        if self.lost >= 0:
            self.refuse(f"pulse {self.seq} may be missing: log row {self.lost} is")
        elif not self.frames:
            self.refuse(f"log row {self.log_from} is missing")
        return self.damage or Tail(self.frames, self.head, self.first, self.seq, self.log_from)


def tails_in_log(
    connection: sqlite3.Connection, open_in_log: Iterable[tuple[str, int, int, Digest]]
) -> dict[str, Tail | StoreError]:
    """What transactions have only in the log, all of one owner; of one that is damaged, the reason.  Each is given with
    the row from which its frames are, the number of the first pulse, and the digest of the frame before."""
    wanted: dict[bytes, _Wanted] = {}
    found: dict[str, Tail | StoreError] = {}
    for transaction, log_from, seq, head in open_in_log:
        try:
            wanted[id_bytes(transaction)] = _Wanted(log_from, seq, head)
        except StoreError as error:
            found[transaction] = error
    if not wanted:
        return found
    first = min(one.log_from for one in wanted.values())
    if not _take_all(connection, wanted, first):
        wanted = {name: _Wanted(one.log_from, one.first, one.began) for name, one in wanted.items()}
        _take_sound(connection, wanted, first)
    found |= {name.hex(): one.result() for name, one in wanted.items()}
    return found


def _take_all(connection: sqlite3.Connection, wanted: dict[bytes, _Wanted], first: int) -> bool:
    """Take all rows of a log; False: something is wrong with one."""
    only = next(iter(wanted)) if len(wanted) == 1 else None
    expected = first
    for row, body in connection.execute(_LOG, (first, end_of_log(first))):
        if row != expected:
            return False
        expected += 1
        try:
            _take_row(wanted, row, frames_of_log(row, body), only)
        except StoreError:
            return False
    return not rows_beside(connection, expected, first)


def _take_row(wanted: dict[bytes, _Wanted], row: int, data: bytes, only: bytes | None = None) -> None:
    for frame in frames_in(data, only):
        one = wanted.get(frame.transaction)
        if one is not None and one.damage is None and row >= one.log_from:
            one.take(row, frame, data)


def _take_sound(connection: sqlite3.Connection, wanted: dict[bytes, _Wanted], first: int) -> None:
    """Take the sound rows of a log; a damaged one belongs to whom it names, and of one that is missing, who is not
    shown to go on behind it may have lost something."""
    damaged: dict[int, bytes] = {}
    sound: set[int] = set()
    for row, body in connection.execute(_LOG, (end_of_log(first) - (1 << COMMIT_BITS), end_of_log(first))):
        if is_sound(row, body):
            sound.add(row)
        else:
            damaged[row] = body
    known = sound or {first}  # what a damaged row of a transaction says of where it begins may be anywhere
    unsound = {first, *range(min(known), max(known) + 2), *damaged} - sound
    moved = {
        row: (other, body)
        for row in unsound
        for other, body in (*damaged.items(), *rows_beside(connection, row))
        if other != row and is_sound(row, body)
    }
    strange = {place for place, _ in moved.values()}  # rows where no other of this owner's has been
    for other, body in list(damaged.items()):
        if (home_of_log(other, body) or other) != other or other in strange:
            strange.add(other)
            del damaged[other]
    newest = max((*sound, *damaged), default=first)
    for row in sorted(unsound | sound):
        if row in sound:
            for _, body in connection.execute(_LOG, (row, row + 1)):
                try:
                    _take_row(wanted, row, frames_of_log(row, body))
                except StoreError as error:  # what was written there was no frame
                    _blame(wanted, row, body, f"log row {row} cannot be read: {error}")
        elif row in moved:
            other, body = moved[row]
            _blame(wanted, row, body, f"log row {row} has another id, {other}")
        elif row in damaged:
            _blame(wanted, row, damaged[row], f"log row {row} is damaged")
        elif row < newest and row not in strange:
            for one in wanted.values():
                if row >= one.log_from and one.lost < 0:
                    one.lost = row


def rows_beside(connection: sqlite3.Connection, row: int, first: int = 0) -> list[tuple[int, bytes]]:
    """Rows that are at other ids, by one bit, than the one that is theirs, which is `row`; with `first`, those from
    there up to it are known to be where they belong."""
    lowest, highest = connection.execute(_BOUNDS).fetchone()
    if lowest is None:
        return []
    first = first or row
    ids = [other for other in ids_beside(row) if lowest <= other <= highest and not first <= other <= row]
    if not ids:
        return []
    marks = ", ".join("?" * len(ids))
    rows = connection.execute(f"SELECT id, CAST(body AS BLOB) FROM log WHERE id IN ({marks})", ids).fetchall()
    return [(other, body) for other, body in rows if is_sound(row, body)]


def _blame(wanted: dict[bytes, _Wanted], row: int, body: bytes, why: str) -> None:
    """Say of the transactions that a damaged row belongs to that they are damaged: it has their id, or, where that is
    what was hit, the digest of their frame before, or it is where they begin."""
    for name, one in wanted.items():
        if row >= one.log_from and (name in body or (one.head in body if one.frames else row == one.log_from)):
            one.refuse(why)
