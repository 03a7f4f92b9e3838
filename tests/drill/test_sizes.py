"""Many transactions: a process does not grow by them, and a file with a million opens and is listed at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from benchmarks.peers import resident_kib
from benchmarks.writes import begin, end, keep, open_journal, transaction_id
from bitactor import Workflow
from mesh import Mesh
from mesh.stores import SqliteReader

TRANSACTIONS, WARM = 200_000, 20_000
AT_ONCE = 100
GROWTH = 1.05

KEPT, A_COMMIT = 1_000_000, 2_000
OPENED_WITHIN, LISTED_WITHIN = 2.0, 0.020

pytestmark = pytest.mark.drill

pair = Workflow("drill.pair", input={"number": int})


@pair.step
async def one(number: int) -> int:
    return number


@pair.step
async def two(one: int) -> int:
    return one + 1


async def run(mesh: Mesh, transactions: int) -> None:
    """Run so many, `AT_ONCE` side by side."""

    async def client(first: int) -> None:
        for number in range(first, transactions, AT_ONCE):
            transaction = await mesh.stimulate(pair, {"number": number})
            assert await transaction.result(timeout=60) == number + 1

    await asyncio.gather(*map(client, range(AT_ONCE)))


async def test_200_000_transactions_leave_memory_as_it_was(tmp_path: Path) -> None:
    async with Mesh(pair, store=f"sqlite:///{tmp_path / 'pulses.db'}") as mesh:
        await run(mesh, WARM)
        resident = [resident_kib()]
        for _ in range((TRANSACTIONS - WARM) // WARM):
            await run(mesh, WARM)
            resident.append(resident_kib())
    print("MiB after each 20,000:", *(f"{kib / 1024:.1f}" for kib in resident))
    assert max(resident) <= resident[0] * GROWTH


async def test_a_file_of_a_million_transactions_opens_and_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pulses.db"
    store = await open_journal(f"sqlite:///{path}", "writer")
    for first in range(0, KEPT, A_COMMIT):
        names = [transaction_id(number) for number in range(first, first + A_COMMIT)]
        await keep(store, [write for name in names for write in (begin(name), end(name, 0))])
    store.close()

    began = time.perf_counter()
    again = await open_journal(f"sqlite:///{path}", "reader")
    opened = time.perf_counter() - began
    again.close()
    listed: list[float] = []
    with SqliteReader(path) as reader:
        for _ in range(5):
            began = time.perf_counter()
            rows = reader.list()
            listed.append(time.perf_counter() - began)
            assert rows[0].transaction == transaction_id(KEPT - 1) and len(rows) == 100
    size = path.stat().st_size / 2**20
    print(f"{size:.0f} MiB, opened in {opened:.3f} s, listed in {max(listed) * 1e3:.1f} ms at most")
    assert opened < OPENED_WITHIN
    assert max(listed) < LISTED_WITHIN
