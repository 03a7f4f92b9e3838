"""Following a journal: what was kept since the last look, from a place in each owner's log.

A follower reads the log.  What it was away for may be gone from there; it is in the archive then, whose parts say which
commit wrote them, so that what the follower has had is told from what it has missed.

A place has marks of what it was taken at, the checksums of the last part and of the last row of each log: in another
file, or after an older state was put back, there is something else there, or nothing, and the place is refused.
"""

from __future__ import annotations

import logging
import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator
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
    mark_of_log,
    mark_of_part,
)
from mesh.stores.journal.tail import id_bytes, rows_beside

_log = logging.getLogger("bitactor.store")

_END: Final = 1 << 63
_PARTS_A_LOOK: Final = 500
_BYTES_A_LOOK: Final = 4 * 1024 * 1024


class Place(NamedTuple):
    """How far a follower has come."""

    part: int
    """The last part of the archive that it need not look at."""
    commits: dict[int, int]
    """The last row that it has had of each owner's log, by the owner's number."""
    part_mark: bytes = b""
    """The checksum of that part; empty: nothing can be said of it."""
    marks: dict[int, bytes] = {}
    """The checksums of those rows, of those that were sound."""
    cursor: str = ""
    """The text that it was read from."""


START: Final = Place(0, {})


class Found(NamedTuple):
    """Frames that a look has found, and the data in which they are."""

    data: bytes
    frame: Frame


def cursor_of(place: Place) -> str:
    """A place as an opaque text."""
    packed: bytes = msgpack.packb([2, place.part, place.commits, place.part_mark, place.marks])
    return urlsafe_b64encode(packed).decode()


def place_of(cursor: str) -> Place:
    """The place that `cursor_of` made a text of.

    Raises:
        InvalidInput: it is none.
    """
    try:
        version, part, commits, *marked = msgpack.unpackb(urlsafe_b64decode(cursor.encode()), strict_map_key=False)
        part_mark, marks = marked if version == 2 else (b"", {}, *marked)  # 1: of a release that gave no marks
        if not (
            version in (1, 2)
            and type(part) is int and 0 <= part < _END
            and all(type(k) is type(v) is int and v >> COMMIT_BITS == k for k, v in commits.items())
            and all(-_END <= row < _END for row in commits.values())
            and type(part_mark) is bytes and all(k in commits and type(v) is bytes for k, v in marks.items())
        ):  # fmt: skip
            raise ValueError
    except Exception as error:
        raise InvalidInput(f"cursor {cursor!r} is none that a look at a journal gave") from error
    return Place(part, commits, part_mark, marks, cursor)


def end_of_journal(connection: sqlite3.Connection) -> Place:
    """The place from which only what is kept from now on is seen; inside a database transaction."""
    newest = _newest_part(connection)
    commits = {number: last for number, _, last in _logs(connection)}
    marks = {number: mark for number, row in commits.items() if (mark := _row_mark(connection, row))}
    return Place(newest, commits, _part_mark(connection, newest), marks)


def _require_here(
    connection: sqlite3.Connection, place: Place, newest: int, logs: Iterable[tuple[int, int, int]]
) -> None:
    """Refuse a place that is none in this journal as it is now.

    Raises:
        InvalidInput: it is of another file, or of a later state of this one.
    """
    ends = {number: last for number, _, last in logs}
    why = ""
    if place.part > newest:
        why = f"it is behind part {place.part} of the archive, and the newest is {newest}"
    elif place.part_mark and (mark := _part_mark(connection, place.part)) and mark != place.part_mark:
        why = f"part {place.part} of the archive is not the one that it is behind"
    [given] = connection.execute("SELECT last FROM numbers WHERE name = 'owner'").fetchone() or [None]
    for number, row in place.commits.items():
        if number not in ends:
            if type(given) is int and number > given:
                why = why or f"it is in the log of owner {number}, and there were {given}"
        elif row > ends[number] and not rows_beside(connection, row):  # one that a damaged bit gave another id is there
            why = why or f"it is behind log row {row}, and the newest of that owner is {ends[number]}"
        elif number in place.marks and (mark := _row_mark(connection, row)) and mark != place.marks[number]:
            why = why or f"log row {row} is not the one that it is behind"
    if why:
        raise InvalidInput(
            f"cursor {place.cursor!r} is of another file, or of a later state of this one (was an older one put back, "
            f"or the journal begun anew?): {why}; begin with the empty cursor, ''"
        )


def _part_mark(connection: sqlite3.Connection, part: int) -> bytes:
    """The checksum of a part of the archive; empty if there is none, or it is damaged or nobody's."""
    for transaction, seq, next_seq, row, body in connection.execute(
        "SELECT transaction_id, seq, next_seq, log_id, CAST(body AS BLOB) FROM archive WHERE id = ?", (part,)
    ):
        try:
            return mark_of_part(id_bytes(transaction), seq, next_seq, row, body)
        except Exception:  # of what is not as it was written, anything
            return b""
    return b""


def _row_mark(connection: sqlite3.Connection, row: int) -> bytes:
    """The checksum of a row of the log; empty if there is none, or it is damaged."""
    for _, body in connection.execute("SELECT id, CAST(body AS BLOB) FROM log WHERE id = ?", (row,)):
        return mark_of_log(row, body)
    return b""


def look(connection: sqlite3.Connection, place: Place) -> tuple[list[Found], Place, bool]:
    """What was kept since `place`, the place after it, and whether there is more at once; inside a database
    transaction.  Of a transaction the frames are in order.

    Raises:
        InvalidInput: the place is none in this journal.
    """
    newest = _newest_part(connection)
    logs = list(_logs(connection))
    _require_here(connection, place, newest, logs)
    whole = {number for number, first, _ in logs if first <= max(place.commits.get(number, 0), _row(number, 0)) + 1}
    if newest > place.part:  # of a log with a damaged row, the archive may have what was there
        whole = {number for number in whole if not _is_damaged(connection, place, number)}
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
            return parts, Place(reached, place.commits, _part_mark(connection, reached), place.marks), True
    found, commits, more = _read_logs(connection, place, logs, whole, reached)
    part_mark = place.part_mark if reached == place.part else _part_mark(connection, reached)
    marks = {
        number: mark
        for number, row in commits.items()
        if (mark := place.marks.get(number) if row == place.commits.get(number) else _row_mark(connection, row))
    }
    return _in_order([*parts, *found]), Place(reached, commits, part_mark, marks), more


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


def _is_damaged(connection: sqlite3.Connection, place: Place, number: int) -> bool:
    """Whether a row of a log behind `place` is not what was written there."""
    before = place.commits.get(number, _row(number, 0))
    rows = connection.execute(
        "SELECT id, CAST(body AS BLOB) FROM log WHERE id > ? AND id < ?", (before, end_of_log(before))
    )
    with closing(rows):
        return not all(is_sound(row, body) for row, body in rows)


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
