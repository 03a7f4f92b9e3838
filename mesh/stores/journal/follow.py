"""Following a journal: what was kept since the last look, from a place in each owner's log.

A follower reads the log.  What it was away for may be gone from there; it is in the archive then, whose parts say which
commit wrote them, so that what the follower has had is told from what it has missed.
"""

from __future__ import annotations

import logging
import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple

import msgpack

from bitactor.errors import InvalidInput, StoreError
from mesh.stores.journal.frames import Frame, frames_in
from mesh.stores.journal.parts import (
    COMMIT_BITS,
    end_of_log,
    frames_of_log,
    frames_of_part,
    home_of_log,
    is_sound,
)
from mesh.stores.journal.tail import id_bytes

_log = logging.getLogger("bitactor.store")

_PARTS_A_LOOK: Final = 500
_BYTES_A_LOOK: Final = 4 * 1024 * 1024


class Place(NamedTuple):
    """How far a follower has come."""

    part: int
    """The last part of the archive that it need not look at."""
    commits: dict[int, int]
    """The last row that it has had of each owner's log, by the owner's number."""


START: Final = Place(0, {})


class Found(NamedTuple):
    """Frames that a look has found, and the data in which they are."""

    data: bytes
    frame: Frame


def cursor_of(place: Place) -> str:
    """A place as an opaque text."""
    packed: bytes = msgpack.packb([1, place.part, place.commits])
    return urlsafe_b64encode(packed).decode()


def place_of(cursor: str) -> Place:
    """The place that `cursor_of` made a text of.

    Raises:
        InvalidInput: it is none.
    """
    try:
        version, part, commits = msgpack.unpackb(urlsafe_b64decode(cursor.encode()), strict_map_key=False)
        if version != 1 or type(part) is not int or not all(type(k) is type(v) is int for k, v in commits.items()):
            raise ValueError
    except Exception as error:
        raise InvalidInput(f"cursor {cursor!r} is none that a look at a journal gave") from error
    return Place(part, commits)


def end_of_journal(connection: sqlite3.Connection) -> Place:
    """The place from which only what is kept from now on is seen; inside a database transaction."""
    return Place(_newest_part(connection), {number: last for number, _, last in _logs(connection)})


def look(connection: sqlite3.Connection, place: Place) -> tuple[list[Found], Place, bool]:
    """What was kept since `place`, the place after it, and whether there is more at once; inside a database
    transaction.  Of a transaction the frames are in order."""
    newest = _newest_part(connection)
    logs = list(_logs(connection))
    whole = {number for number, first, _ in logs if first <= max(place.commits.get(number, 0), _row(number, 0)) + 1}
    parts: list[Found] = []
    reached = place.part
    if newest > reached:
        rows = connection.execute(
            "SELECT id, transaction_id, seq, next_seq, log_id, body FROM archive WHERE id > ? ORDER BY id LIMIT ?",
            (reached, _PARTS_A_LOOK),
        )
        for reached, transaction, seq, next_seq, row, body in rows:
            if transaction and _missed(place, whole, row):
                try:
                    data = frames_of_part(id_bytes(transaction), seq, next_seq, row, body)
                    parts += [Found(data, frame) for frame in frames_in(data)]
                except Exception as error:  # of bytes that are not what was written, anything
                    _skip(f"part {reached} of the archive", error)
        if reached < newest:
            return parts, Place(reached, place.commits), True
    found, commits, more = _read_logs(connection, place, logs, whole, reached)
    return _in_order([*parts, *found]), Place(reached, commits), more


def _read_logs(
    connection: sqlite3.Connection, place: Place, logs: list[tuple[int, int, int]], whole: set[int], reached: int
) -> tuple[list[Found], dict[int, int], bool]:
    """The frames of all logs behind `place`, the new places in them, and whether there is more."""
    found: list[Found] = []
    commits: dict[int, int] = {}
    size = 0
    for number, _, last in logs:
        before = place.commits.get(number, _row(number, 0))
        commits[number] = before
        if last <= before or size > _BYTES_A_LOOK:
            continue
        for row, body in connection.execute(
            "SELECT id, CAST(body AS BLOB) FROM log WHERE id > ? AND id < ? ORDER BY id", (before, end_of_log(last))
        ):
            try:
                data = frames_of_log(row, body)
                found += [
                    Found(data, frame)
                    for frame in frames_in(data)
                    if number in whole or not _had_as_part(connection, place, frame, reached)
                ]
            except StoreError as error:
                if not is_sound(row, body) and home_of_log(row, body) is not None:
                    continue  # it is out of its place, of which it says nothing
                _skip(f"log row {row}", error)
            commits[number] = row
            size += len(body)
            if size > _BYTES_A_LOOK:
                break
    return found, commits, any(commits[number] < last for number, _, last in logs)


def _skip(what: str, error: Exception) -> None:
    _log.error("a follower of the journal leaves out %s, for it cannot be read: %s", what, error)


def _missed(place: Place, whole: set[int], row: int) -> bool:
    """Whether a part that the commit `row` wrote has what the follower has not had, and will not find in the log."""
    number = row >> COMMIT_BITS
    return row == 0 or (number not in whole and place.commits.get(number, 0) < row)


def _had_as_part(connection: sqlite3.Connection, place: Place, frame: Frame, reached: int) -> bool:
    """Whether a frame of a log, of which earlier rows are gone, is in a part that this follower was given in its
    place."""
    row = connection.execute(
        "SELECT id, log_id, next_seq FROM archive WHERE transaction_id = ? AND seq <= ? ORDER BY seq DESC LIMIT 1",
        (frame.transaction.hex(), frame.seq),
    ).fetchone()
    if row is None:
        return False
    part, written, next_seq = row
    number = written >> COMMIT_BITS
    return bool(part <= reached and frame.seq < next_seq and place.commits.get(number, 0) < written)


def _in_order(found: list[Found]) -> list[Found]:
    """The same with the frames of each transaction in order: two owners may have written one, one after the other."""
    last: dict[bytes, int] = {}
    mixed: set[bytes] = set()
    for _, frame in found:
        if frame.seq < last.get(frame.transaction, 0):
            mixed.add(frame.transaction)
        last[frame.transaction] = frame.seq
    for transaction in mixed:
        places = [index for index, (_, frame) in enumerate(found) if frame.transaction == transaction]
        ordered = sorted((found[index] for index in places), key=lambda item: item.frame.seq)
        for index, item in zip(places, ordered, strict=True):
            found[index] = item
    return found


def _newest_part(connection: sqlite3.Connection) -> int:
    (newest,) = connection.execute("SELECT max(id) FROM archive").fetchone()
    return newest or 0


def _logs(connection: sqlite3.Connection) -> Iterator[tuple[int, int, int]]:
    """Each owner's number with the first and the last row of its log."""
    (begin,) = connection.execute("SELECT min(id) FROM log").fetchone()
    while begin is not None:
        end = end_of_log(begin)
        first, last = (_edge(connection, begin, end, order) for order in ("ASC", "DESC"))
        if first is not None and last is not None:
            yield begin >> COMMIT_BITS, first, last
        (begin,) = connection.execute("SELECT min(id) FROM log WHERE id >= ?", (end,)).fetchone()


def _edge(connection: sqlite3.Connection, begin: int, end: int, order: str) -> int | None:
    """The first row of a part of the log, in this order, that is not out of its place."""
    rows = connection.execute(
        f"SELECT id, CAST(body AS BLOB) FROM log WHERE id >= ? AND id < ? ORDER BY id {order}", (begin, end)
    )
    with closing(rows):
        return next((row for row, body in rows if is_sound(row, body) or home_of_log(row, body) is None), None)


def _row(number: int, commit: int) -> int:
    return number << COMMIT_BITS | commit
