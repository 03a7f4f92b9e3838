"""Files that we create are for their user alone, whatever the umask; those that are there keep their mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.sinks import JsonlSink
from mesh.stores import SqliteStore
from registry.support.bind import BootEpoch
from tests.pulse_log import chain
from tests.store_writes import BOUND, Loop, first, fresh


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def write_one(path: Path, owner: str = "one") -> SqliteStore:
    store = SqliteStore(path, notify=Loop().notify)
    store.open(owner)
    store.append([first(fresh())], lambda refusals, error: None)
    return store


def test_a_journal_with_its_companions(umask: int, tmp_path: Path) -> None:
    store = write_one(tmp_path / "pulses.db")
    try:
        assert modes(tmp_path) == {"pulses.db": 0o600, "pulses.db-wal": 0o600, "pulses.db-shm": 0o600}
    finally:
        store.close()


def test_a_journal_behind_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("pulses.db")
    write_one(tmp_path / "link.db").close()
    assert modes(tmp_path)["pulses.db"] == 0o600


def test_a_journal_that_a_group_shares_stays_shared(tmp_path: Path) -> None:
    path = tmp_path / "pulses.db"
    write_one(path).close()
    path.chmod(0o660)
    store = write_one(path, "two")
    try:
        assert set(modes(tmp_path).values()) == {0o660}
    finally:
        store.close()


def test_lines_of_json(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "pulses.jsonl"
    JsonlSink(path).close(BOUND)
    assert modes(tmp_path) == {"pulses.jsonl": 0o600}
    path.chmod(0o644)
    JsonlSink(path).close(BOUND)
    assert modes(tmp_path) == {"pulses.jsonl": 0o644}


def test_lines_of_json_go_on_where_their_file_was_moved_away(tmp_path: Path) -> None:
    path, moved = tmp_path / "pulses.jsonl", tmp_path / "pulses.jsonl.1"
    sink = JsonlSink(path)
    path.rename(moved)
    sink.receive(chain(1))
    sink.close(BOUND)
    assert lines(moved) == 0 and lines(path) == len(list(chain(1))) == sink.statistics().written
    assert modes(tmp_path)["pulses.jsonl"] == 0o600


def test_the_boot_epoch(umask: int, tmp_path: Path) -> None:
    for number in (1, 2):
        epoch = BootEpoch(tmp_path / "boot")
        epoch.release()
        assert epoch.number == number
    assert {mode & 0o077 for mode in modes(tmp_path).values()} == {0}
