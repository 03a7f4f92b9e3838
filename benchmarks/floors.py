"""What the work would cost with nothing of ours in it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgpack
import pykka

from benchmarks.workflows import first, following
from bitactor.ports import Write

ROW = b"\x00" * 200
"""About what one pulse takes in the journal."""

TICK_NS = 4_000_000


async def chained_tasks(length: int) -> None:
    """A chain of steps as tasks on this loop, each awaited before the next begins."""
    value = await asyncio.create_task(first())
    for _ in range(length - 1):
        value = await asyncio.create_task(following(value))
    if value != length:
        raise RuntimeError(f"a chain of {length} gave {value}")


async def per_task(chains: int, length: int) -> float:
    """µs for `create_task` and await."""
    began = time.perf_counter()
    for _ in range(chains):
        await chained_tasks(length)
    return (time.perf_counter() - began) / (chains * length) * 1e6


async def task_chains_per_second(chains: int, length: int, in_flight: int) -> float:
    """How many chains of tasks end a second, `in_flight` of them side by side."""

    async def run() -> None:
        for _ in range(chains // in_flight):
            await chained_tasks(length)

    began = time.perf_counter()
    if in_flight == 1:
        await run()
    else:
        await asyncio.gather(*(run() for _ in range(in_flight)))
    return chains / (time.perf_counter() - began)


async def gathered(width: int) -> float:
    """ms for `width` tasks and one `gather` of them."""
    began = time.perf_counter()
    await asyncio.gather(*[asyncio.create_task(first()) for _ in range(width)])
    return (time.perf_counter() - began) * 1e3


class BareActor(pykka.Actor):
    """The least that is a pykka actor, takes one signal, is timed, and is gone."""

    def __init__(self, signal: tuple[Any, ...], function: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.signal = signal
        self.function = function

    @staticmethod
    def _create_actor_inbox() -> Any:
        raise NotImplementedError

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        raise NotImplementedError

    def _start_actor_loop(self) -> None:
        raise NotImplementedError

    def expire(self) -> None:
        """The timer's callback, which nothing here ever needs."""

    def run(self, *arguments: Any) -> Any:
        """Drive the coroutine through its first step, which is its last."""
        coroutine = self.function(*arguments)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        raise RuntimeError("a step of the floor does not suspend")


async def per_bare_actor(chains: int, length: int) -> float:
    """µs for a hop of a loop written by hand: actor, saga counters, timer, pulse; no task, no journal, no faults."""
    wheel: dict[int, dict[BareActor, None]] = {}
    began = time.perf_counter()
    for chain in range(chains):
        missing = [1] * length
        missing[0] = 0
        ttls = [0] * length
        tokens: list[Any] = [None] * length
        pulses: list[tuple[Any, ...]] = []
        unsettled, index, ttl = length, 0, length
        while unsettled:
            ttl -= 1
            ttls[index] = ttl
            signal = (chain, index, ttl)
            actor = BareActor(signal, following if index else first)
            started = time.monotonic_ns()
            tick = (started + 30_000_000_000) // TICK_NS
            bucket = wheel.get(tick)
            if bucket is None:
                bucket = wheel[tick] = {}
            bucket[actor] = None
            value = actor.run(tokens[index - 1]) if index else actor.run()
            del bucket[actor]
            tokens[index] = value
            pulses.append((chain, len(pulses), index, "completed", ttl, value, time.monotonic_ns() - started))
            unsettled -= 1
            index += 1
            if unsettled:
                missing[index] -= 1
        if tokens[-1] != length:
            raise RuntimeError(f"a chain of {length} gave {tokens[-1]}")
    return (time.perf_counter() - began) / (chains * length) * 1e6


class RawJournal:
    """A table in a file of its own, written with `sqlite3` and nothing else, WAL as ours; with `full_sync` each commit
    waits for the disk."""

    def __init__(self, path: Path, *, full_sync: bool = False) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        self._connection.execute("CREATE TABLE pulses (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)")

    async def per_row(self, rows: int, rows_per_commit: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """µs for a row."""
        execute = self._connection.execute
        began = clock()
        for _ in range(rows // rows_per_commit):
            execute("BEGIN IMMEDIATE")
            if rows_per_commit == 1:
                execute("INSERT INTO pulses (body) VALUES (?)", (ROW,))
            else:
                self._connection.executemany(
                    "INSERT INTO pulses (body) VALUES (?)", ((ROW,) for _ in range(rows_per_commit))
                )
            execute("COMMIT")
        return (clock() - began) / rows * 1e6

    def close(self) -> None:
        """Release the file."""
        self._connection.close()


class PlainTable:
    """Pulses in a table of a file of its own, a row a pulse, as anybody would keep them."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(
            "CREATE TABLE pulses (id TEXT, seq INTEGER, body BLOB NOT NULL, PRIMARY KEY (id, seq)) WITHOUT ROWID"
        )

    def add(self, writes: Iterable[Write]) -> None:
        """Keep the pulses of these writes, in one commit."""
        self._connection.execute("BEGIN")
        for write in writes:
            rows = [(write.transaction, pulse.seq, msgpack.packb(pulse[4:], default=list)) for pulse in write.pulses]
            self._connection.executemany("INSERT INTO pulses VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def transactions(self) -> list[str]:
        """The ids of all that is there."""
        return [name for (name,) in self._connection.execute("SELECT DISTINCT id FROM pulses")]

    def read(self, transaction: str) -> int:
        """Read the pulses of one transaction, a row each; how many they were."""
        rows = self._connection.execute("SELECT body FROM pulses WHERE id = ? ORDER BY seq", (transaction,))
        return len([msgpack.unpackb(body, strict_map_key=False) for (body,) in rows])

    def read_all(self) -> int:
        """The same of all, in one query."""
        rows = self._connection.execute("SELECT body FROM pulses ORDER BY id, seq")
        return len([msgpack.unpackb(body, strict_map_key=False) for (body,) in rows])

    def version(self) -> int:
        """SQLite's number that another process's commits change."""
        number: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        return number

    def close(self) -> None:
        """Release the file."""
        self._connection.close()


async def per_thread(count: int) -> float:
    """µs to start a thread that does nothing, and wait for its end."""
    began = time.perf_counter()
    for _ in range(count):
        thread = threading.Thread(target=_nothing)
        thread.start()
        thread.join()
    return (time.perf_counter() - began) / count * 1e6


def _nothing() -> None:
    return None
