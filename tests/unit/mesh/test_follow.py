"""Cursors of followers, and the file that they are of: after another was put in its place, or an older state of it, a
follower is told, instead of missing pulses."""

from __future__ import annotations

import shutil
import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import closing
from pathlib import Path

import msgpack
import pytest

from bitactor.errors import InvalidInput, StoreError
from mesh.stores import SqliteReader, SqliteStore
from tests.journal_damage import flip
from tests.store_writes import Told, first, fresh, last


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pulses.db"


def keep(path: Path, owner: str, *, ended: int = 0, begun: int = 0) -> list[str]:
    """Let an owner keep so many transactions that end, and then so many that do not, and leave."""
    store = SqliteStore(path, notify=lambda call: None)
    store.open(owner)
    names = sorted(fresh() for _ in range(ended + begun))
    for number, name in enumerate(names):
        told = Told()
        store.append([first(name)], told.done())
        if number < ended:
            store.append([last(name, 2)], told.done())
    store.close()
    return names


def followed(path: Path, cursor: str = "") -> tuple[set[str], str]:
    """What there is behind a cursor, and the next."""
    seen: set[str] = set()
    with SqliteReader(path) as reader:
        more = True
        while more:
            pulses, cursor, more = reader.follow(cursor)
            seen.update(pulse.transaction for pulse in pulses)
    return seen, cursor


def copy(path: Path, to: Path) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute("VACUUM INTO ?", (str(to),))


def text(place: object) -> str:
    """A place as the text of a cursor."""
    packed: bytes = msgpack.packb(place)
    return urlsafe_b64encode(packed).decode()


def put_back(path: Path, backup: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    shutil.copy(backup, path)


@pytest.mark.parametrize("what", ["ended", "begun"])
@pytest.mark.parametrize("after", [0, 1, 3, 9])
def test_a_cursor_over_a_backup_that_was_put_back_is_refused(path: Path, what: str, after: int) -> None:
    """At each place it may have come to since: behind the cursor, at it, and before it; in the archive and the log."""
    keep(path, "one", **{what: 2})
    copy(path, path.with_name("backup.db"))
    keep(path, "two", **{what: 3})
    _, cursor = followed(path)
    put_back(path, path.with_name("backup.db"))
    if after:
        keep(path, "three", **{what: after})
    with pytest.raises(InvalidInput, match="another file, or of a later state") as raised:
        followed(path, cursor)
    assert cursor in str(raised.value) and "begin with the empty cursor" in str(raised.value)
    assert len(followed(path)[0]) == 2 + after


def test_a_cursor_from_now_on_has_marks_too(path: Path) -> None:
    keep(path, "one", ended=1, begun=1)
    with SqliteReader(path) as reader:
        cursor = reader.follow().cursor
    path.unlink()
    keep(path, "one", ended=1, begun=1)
    with pytest.raises(InvalidInput, match="is not the one that it is behind"):
        followed(path, cursor)


def test_a_file_begun_anew_where_one_was_moved_away(path: Path) -> None:
    """A reader that has the old one open says so at a look that finds nothing; its cursor is none in the new one."""
    keep(path, "one", ended=3)
    with SqliteReader(path) as reader:
        cursor = reader.follow("").cursor
        assert not reader.follow(cursor).pulses and not reader.follow(cursor).pulses
        path.rename(path.with_name("old.db"))
        with pytest.raises(StoreError, match="moved away"):
            reader.follow(cursor)
        names = keep(path, "two", ended=5)
        with pytest.raises(StoreError, match="open a new reader"):
            reader.follow(cursor)
    with pytest.raises(InvalidInput, match="begun anew"):
        followed(path, cursor)
    assert followed(path)[0] == set(names)


def test_a_cursor_of_a_release_before_is_taken(path: Path) -> None:
    """It has no marks; that it is beyond the end is seen all the same."""
    keep(path, "one", ended=2, begun=2)
    _, cursor = followed(path)
    _, part, commits, *_ = msgpack.unpackb(urlsafe_b64decode(cursor), strict_map_key=False)
    old = [1, part, commits]
    names = keep(path, "two", ended=1)
    assert set(names) <= followed(path, text(old))[0]
    [number] = commits
    for beyond in ([1, part + 9, commits], [1, part, {9: (9 << 40) + 3}], [1, part, {number: commits[number] + 900}]):
        with pytest.raises(InvalidInput, match="later state"):
            followed(path, text(beyond))


@pytest.mark.parametrize(
    "place",
    [
        [3, 0, {}, b"", {}], [2, 0, {}], [1, 0, {}, b"", {}], [2, -1, {}, b"", {}], [2, 1 << 63, {}, b"", {}],
        [2, 0, {1: 7}, b"", {}], [2, 0, {1 << 23: 1 << 63}, b"", {}], [2, 0, {}, "", {}], [2, 0, {}, b"", {1: b"abcd"}],
        [2, 0, {1: 1 << 40}, b"", {1: 5}], [2, 0, [], b"", {}], 7, None,
    ],
)  # fmt: skip
def test_what_no_look_gave_is_no_cursor(path: Path, place: object) -> None:
    keep(path, "one", begun=1)
    with pytest.raises(InvalidInput, match="is none that a look at a journal gave"):
        followed(path, text(place))


def test_damage_behind_a_follower_stops_it_not(path: Path) -> None:
    """A row or part that is damaged says nothing of which file it is in, and one at another id is still there."""
    keep(path, "one", ended=2, begun=2)
    _, cursor = followed(path)
    names = keep(path, "two", begun=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for table in ("log", "archive"):
            row, body = file.execute(f"SELECT id, body FROM {table} WHERE id >> 40 < 2 ORDER BY id DESC").fetchone()
            file.execute(f"UPDATE {table} SET body = ? WHERE id = ?", (flip(body, 40), row))
    assert followed(path, cursor)[0] == set(names)


def test_a_newest_row_at_another_id_is_still_there(path: Path) -> None:
    keep(path, "one", begun=4)
    _, cursor = followed(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE log SET id = id + (1 << 20) WHERE id = (SELECT max(id) FROM log)")
    assert followed(path, cursor)[0] == set()


def test_what_a_damaged_row_had_comes_from_the_archive(path: Path) -> None:
    names = keep(path, "one", ended=3, begun=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE log SET body = x'00' WHERE id = (SELECT min(id) FROM log)")
        assert followed(path)[0] == set(names)
        file.execute("UPDATE log SET body = x'00'")
        assert followed(path)[0] == set(names[:3])


def test_a_damaged_word_is_named_in_words(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(path, "one", ended=3)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("UPDATE words SET body = x'00'")
    followed(path)
    assert "it uses word" in caplog.text and "which is damaged or missing" in caplog.text
