"""A transaction's frames as a journal has them: parts of the archive, then what is only in the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bitactor.errors import StoreError
from mesh.stores.journal.frames import GENESIS, Digest, digest_of, frames_in
from mesh.stores.journal.parts import end_of_log, frames_of_log, frames_of_part

_PARTS = "SELECT seq, next_seq, log_id, body FROM archive WHERE transaction_id = ? ORDER BY seq"
_NEXT_PART = (
    "SELECT seq, next_seq, log_id, body FROM archive WHERE transaction_id = ? AND seq >= ? ORDER BY seq LIMIT 1"
)
_LOG = "SELECT id, body FROM log WHERE id >= ? AND id < ? ORDER BY id"


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
        ValueError: it is not 32 lower-case hex digits.
    """
    name = bytes.fromhex(transaction)
    if name.hex() != transaction or len(name) != 16:
        raise ValueError(f"{transaction!r} is no transaction's id: 32 lower-case hex digits")
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


def _tail_in_log(connection: sqlite3.Connection, transaction: str, log_from: int, seq: int, head: Digest) -> Tail:
    [tail] = tails_in_log(connection, ((transaction, log_from, seq, head),)).values()
    if isinstance(tail, StoreError):
        raise tail
    return tail


class _Wanted:
    """A transaction whose frames are looked for in the log."""

    __slots__ = ("damage", "first", "frames", "head", "log_from", "seq")

    def __init__(self, log_from: int, seq: int, head: Digest) -> None:
        self.log_from = log_from
        self.first = self.seq = seq
        self.head = head
        self.frames: list[bytes] = []
        self.damage: StoreError | None = None


def tails_in_log(
    connection: sqlite3.Connection, open_in_log: Iterable[tuple[str, int, int, Digest]]
) -> dict[str, Tail | StoreError]:
    """What transactions have only in the log, all of one owner; of one that is damaged, the reason.  Each is given with
    the row from which its frames are, the number of the first pulse, and the digest of the frame before."""
    wanted: dict[bytes, _Wanted] = {}
    found: dict[str, Tail | StoreError] = {}
    for transaction, log_from, seq, head in open_in_log:
        wanted[id_bytes(transaction)] = _Wanted(log_from, seq, head)
    first = min((one.log_from for one in wanted.values()), default=0)
    only = next(iter(wanted)) if len(wanted) == 1 else None
    for row, body in connection.execute(_LOG, (first, end_of_log(first))):
        try:
            data = frames_of_log(row, body)
        except StoreError as error:
            _blame(wanted, row, body, error)
            continue
        for frame in frames_in(data, only):
            one = wanted.get(frame.transaction)
            if one is None or one.damage is not None or row < one.log_from:
                continue
            if frame.seq != one.seq:
                one.damage = StoreError(f"pulse {one.seq} is missing: log row {row} goes on with pulse {frame.seq}")
                continue
            content = data[frame.start : frame.end]
            one.frames.append(content)
            one.seq, one.head = frame.seq + frame.pulses, digest_of(content)
    for name, one in wanted.items():
        if not one.frames and one.damage is None:
            one.damage = StoreError(f"log row {one.log_from} is missing")
        found[name.hex()] = one.damage or Tail(one.frames, one.head, one.first, one.seq, one.log_from)
    return found


def _blame(wanted: dict[bytes, _Wanted], row: int, body: bytes, error: StoreError) -> None:
    """Say of the transactions that a damaged row belongs to that they are damaged: it has their id, or, where that is
    what was hit, the digest of their frame before, or it is where they begin."""
    for name, one in wanted.items():
        if row >= one.log_from and (name in body or one.head in body or (row == one.log_from and not one.frames)):
            one.damage = one.damage or error
