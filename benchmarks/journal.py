"""A journal without a mesh: taken over, read while another process writes it, followed, verified."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path

from benchmarks.floors import PlainTable
from benchmarks.measuring import Contest, Other, Sample, Sizes
from benchmarks.peers import peer
from benchmarks.writes import (
    OLDEST,
    YOUNG,
    begin,
    chains,
    hop,
    keep,
    open_journal,
    recovered,
    transaction_id,
)
from mesh.stores import SqliteReader
from mesh.stores.journal.verify import Fault

_HOPS_OF_EACH = 5
"""Hops that each transaction to be recovered has behind it."""


@contextmanager
def _places() -> Iterator[tuple[Path, PlainTable]]:
    """The path for a journal, and a table in a file beside it."""
    with tempfile.TemporaryDirectory(prefix="ba-") as name, closing(PlainTable(Path(name) / "floor.db")) as table:
        yield Path(name) / "pulses.db", table


@asynccontextmanager
async def recovery(sizes: Sizes) -> AsyncIterator[Contest]:
    """ms to take over 10,000 open transactions and to have their pulses; each sample has a fresh copy of the file."""
    count = sizes.pick(10_000, 20)
    with _places() as (path, table):
        store = await open_journal(f"sqlite:///{path}", "before")
        for first in range(0, count, 200):
            names = [transaction_id(number) for number in range(first, min(first + 200, count))]
            commits = [[begin(name) for name in names]]
            commits += [[hop(name, number) for name in names] for number in range(_HOPS_OF_EACH)]
            for commit in commits:
                await keep(store, commit)
                table.add(commit)
        store.close()
        expected = count * (2 + 2 * _HOPS_OF_EACH)

        async def ours() -> float:
            copy = path.with_name("copy.db")
            shutil.copyfile(path, copy)
            heir = await open_journal(f"sqlite:///{copy}", "heir")
            try:
                began = time.perf_counter()
                pulses = await recovered(heir)
                took = time.perf_counter() - began
            finally:
                heir.close()
                copy.unlink()
            if pulses != expected:
                raise RuntimeError(f"{pulses} pulses were recovered of {expected}")
            return took * 1e3

        async def rows() -> float:
            began = time.perf_counter()
            if sum(map(table.read, table.transactions())) != expected:
                raise RuntimeError("the table lost pulses")
            return (time.perf_counter() - began) * 1e3

        yield Contest(ours, {"sqlite3: their pulses read by rows": rows})


@asynccontextmanager
async def reading(sizes: Sizes) -> AsyncIterator[Contest]:
    """ms to read a running transaction of another process behind a million hops: one that has just begun, and one that
    began before all others."""
    hops = sizes.pick(1_000_000, 10_000)
    with _places() as (path, table), peer("journal", str(path), str(hops)), SqliteReader(path) as reader:
        table.add([begin(YOUNG), *(hop(YOUNG, number) for number in range(3))])

        def sample(read: Callable[[], int], times: int) -> Sample:
            async def run() -> float:
                began = time.perf_counter()
                for _ in range(times):
                    if not read():
                        raise RuntimeError("a running transaction has no pulses")
                return (time.perf_counter() - began) / times * 1e3

            return run

        times = sizes.pick(20, 1)
        yield Contest(
            sample(lambda: len(reader.pulses(YOUNG)), times),
            {"sqlite3: the same pulses read by rows": sample(lambda: table.read(YOUNG), times)},
            {"oldest": Other(sample(lambda: len(reader.pulses(OLDEST)), times), 60)},
        )


@asynccontextmanager
async def empty_look(sizes: Sizes) -> AsyncIterator[Contest]:
    """µs for a look at a journal in which nothing has happened since the look before."""
    looks = sizes.pick(10_000, 10)
    with _places() as (path, table):
        store = await open_journal(f"sqlite:///{path}", "writer")
        try:
            for commit in chains(sizes.pick(10_000, 50)):
                await keep(store, commit)
            with SqliteReader(path) as reader:
                cursor = reader.follow().cursor

                async def ours() -> float:
                    began = time.perf_counter()
                    for _ in range(looks):
                        if reader.follow(cursor).pulses:
                            raise RuntimeError("a journal in which nothing happens had pulses")
                    return (time.perf_counter() - began) / looks * 1e6

                async def asked() -> float:
                    began = time.perf_counter()
                    for _ in range(looks):
                        table.version()
                    return (time.perf_counter() - began) / looks * 1e6

                yield Contest(ours, {"sqlite3: PRAGMA data_version": asked})
        finally:
            store.close()


def all_pulses(read_all: Callable[[SqliteReader], int]) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """Pulses a second of somebody who goes through all of a journal."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        expected = 0
        with _places() as (path, table):
            store = await open_journal(f"sqlite:///{path}", "writer")
            try:
                for commit in chains(sizes.pick(50_000, 500)):
                    await keep(store, commit)
                    table.add(commit)
                    expected += sum(len(write.pulses) for write in commit)
                with SqliteReader(path) as reader:

                    async def ours() -> float:
                        began = time.perf_counter()
                        pulses = read_all(reader)
                        took = time.perf_counter() - began
                        if pulses < expected:
                            raise RuntimeError(f"{pulses} pulses were seen of {expected}")
                        return pulses / took

                    async def rows() -> float:
                        began = time.perf_counter()
                        return table.read_all() / (time.perf_counter() - began)

                    yield Contest(ours, {"sqlite3: rows read in one query": rows})
            finally:
                store.close()

    return enter


def catch_up(reader: SqliteReader) -> int:
    """Follow a journal from its first pulse to its last; how many there were."""
    seen, cursor, more = 0, "", True
    while more:
        pulses, cursor, more = reader.follow(cursor)
        seen += len(pulses)
    return seen


def verify(reader: SqliteReader) -> int:
    """Verify all of a journal; how many pulses were looked at."""
    seen = 0
    for found in reader.verify():
        if isinstance(found, Fault):
            raise RuntimeError(f"a sound journal has a fault: {found.why}")
        seen = found.pulses
    return seen
