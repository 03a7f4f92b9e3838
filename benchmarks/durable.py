"""Work whose journal is on disk."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.floors import RawJournal
from benchmarks.local import per_hop, run_chains
from benchmarks.measuring import Contest, Sizes
from benchmarks.peers import answer_of
from benchmarks.workflows import chain
from bitactor import Workflow
from mesh import Mesh
from mesh.stores import Durability, MemoryStore, register_store

ONE_ROW = "sqlite3: one row a commit"
BATCHED_ROW = "batched sqlite3: a row of 1,000 a commit"


class BatchedMemoryStore(MemoryStore):
    """A store in memory whose writes go the way of those that are on disk: what becomes due meanwhile in one batch."""

    synchronous = False


def _open_batched(_url: str, **_options: Any) -> MemoryStore:
    return BatchedMemoryStore()


register_store("batched", _open_batched)


def hop_sqlite(
    in_flight: int, durability: Durability = "process"
) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """µs for a hop that survives the death of the process, or of the machine.  A hop is two pulses, `spawned` and
    `completed`; the floor is one row."""
    full_sync = durability == "power"

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        workflow = chain("benchmarks.durable", sizes.pick(50, 5))
        transactions = in_flight * sizes.pick((4 if full_sync else 20) if in_flight == 1 else 1, 1)
        rows_per_commit = 1 if in_flight == 1 or full_sync else 1_000
        rows = rows_per_commit * sizes.pick(10 if rows_per_commit > 1 else 200 if full_sync else 1_000, 1)
        floor = "sqlite3: a row of 1,000 a commit" if rows_per_commit > 1 else ONE_ROW
        if full_sync:
            floor += ", full sync"
        with tempfile.TemporaryDirectory(prefix="ba-") as name:
            directory = Path(name)
            with closing(RawJournal(directory / "floor.db", full_sync=full_sync)) as journal:
                async with Mesh(workflow, store=f"sqlite:///{directory / 'pulses.db'}", durability=durability) as mesh:
                    yield Contest(
                        partial(per_hop, mesh, workflow, transactions, in_flight),
                        {floor: partial(journal.per_row, rows, rows_per_commit)},
                    )

    return enter


def share(in_flight: int) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """µs of processor time that a hop in SQLite takes more than the same on a store in memory that is given the same
    batches; that of the store's own threads is counted."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        workflow = chain("benchmarks.durable", sizes.pick(50, 5))
        transactions = in_flight * sizes.pick({1: 20, 20: 4}.get(in_flight, 1), 1)
        with tempfile.TemporaryDirectory(prefix="ba-") as name:
            directory = Path(name)
            with closing(RawJournal(directory / "floor.db")) as journal:
                async with (
                    Mesh(workflow, store="batched://") as memory,
                    Mesh(workflow, store=f"sqlite:///{directory / 'pulses.db'}", durability="process") as sqlite,
                ):

                    async def difference() -> float:
                        took = {memory: 0.0, sqlite: 0.0}
                        for mesh in (memory, sqlite, sqlite, memory):
                            gc.collect()
                            took[mesh] += await _processor_per_hop(mesh, workflow, transactions, in_flight)
                        return (took[sqlite] - took[memory]) / 2

                    one, many = sizes.pick(1_000, 1), 1_000 * sizes.pick(10, 1)
                    yield Contest(
                        difference,
                        {
                            ONE_ROW: partial(journal.per_row, one, 1, time.process_time),
                            BATCHED_ROW: partial(journal.per_row, many, 1_000, time.process_time),
                        },
                    )

    return enter


async def _processor_per_hop(mesh: Mesh, workflow: Workflow, transactions: int, in_flight: int) -> float:
    began = time.process_time()
    await run_chains(mesh, workflow, transactions, in_flight)
    return (time.process_time() - began) / (transactions * len(workflow.steps)) * 1e6


def file_bytes(
    length: int, transactions: int, in_flight: int
) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """Bytes of the file for a hop, after the mesh has ended; held against a table with two rows a hop."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        workflow = chain("benchmarks.bytes", sizes.pick(length, 5))
        count = sizes.pick(transactions, in_flight)
        hops = count * len(workflow.steps)

        async def ours() -> float:
            with tempfile.TemporaryDirectory(prefix="ba-") as name:
                async with Mesh(workflow, store=f"sqlite:///{Path(name) / 'pulses.db'}", durability="process") as mesh:
                    await run_chains(mesh, workflow, count, in_flight)
                return _bytes_in(Path(name)) / hops

        async def rows() -> float:
            with tempfile.TemporaryDirectory(prefix="ba-") as name:
                with closing(RawJournal(Path(name) / "floor.db")) as journal:
                    await journal.per_row(hops * 2, hops * 2)
                return _bytes_in(Path(name)) / hops

        yield Contest(ours, {"sqlite3: two rows of 200 bytes": rows})

    return enter


def _bytes_in(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


@asynccontextmanager
async def beside_dbos(sizes: Sizes) -> AsyncIterator[Contest]:
    """µs for a step that survives the death of the machine, 100 transactions in flight; held against DBOS with SQLite
    as it comes, in a process of its own."""
    in_flight = 100
    workflow = chain("benchmarks.dbos", 10)

    async def theirs() -> float:
        return float(await answer_of("dbos", str(in_flight), str(sizes.pick(10, 2))))

    with tempfile.TemporaryDirectory(prefix="ba-") as name:
        async with Mesh(workflow, store=f"sqlite:///{Path(name) / 'pulses.db'}", durability="power") as mesh:
            yield Contest(
                partial(per_hop, mesh, workflow, in_flight * sizes.pick(4, 1), in_flight),
                {"DBOS: a step, SQLite as it comes": theirs},
            )
