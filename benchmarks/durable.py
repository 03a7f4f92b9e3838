"""Work whose journal is on disk."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path

from benchmarks.floors import RawJournal
from benchmarks.local import per_hop
from benchmarks.measuring import Contest, Sizes
from benchmarks.workflows import chain
from mesh import Mesh


def hop_sqlite(in_flight: int) -> Callable[[Sizes], AbstractAsyncContextManager[Contest]]:
    """µs for a hop that survives the death of the process.  A hop is two rows, `spawned` and `completed`; the floor is
    one."""

    @asynccontextmanager
    async def enter(sizes: Sizes) -> AsyncIterator[Contest]:
        workflow = chain("benchmarks.durable", sizes.pick(50, 5))
        transactions = in_flight * sizes.pick(20 if in_flight == 1 else 1, 1)
        rows_per_commit = 1 if in_flight == 1 else 1_000
        rows = rows_per_commit * sizes.pick(1_000 if in_flight == 1 else 10, 1)
        floor = "sqlite3: one row a commit" if in_flight == 1 else "sqlite3: a row of 1,000 a commit"
        with tempfile.TemporaryDirectory(prefix="ba-") as name:
            directory = Path(name)
            with closing(RawJournal(directory / "floor.db")) as journal:
                async with Mesh(workflow, store=f"sqlite:///{directory / 'pulses.db'}", durability="process") as mesh:
                    yield Contest(
                        partial(per_hop, mesh, workflow, transactions, in_flight),
                        {floor: partial(journal.per_row, rows, rows_per_commit)},
                    )

    return enter
