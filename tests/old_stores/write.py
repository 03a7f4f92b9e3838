"""Writes a store with transactions in every situation, its process killed: `python -m tests.old_stores.write NAME`,
from the root of a checkout.

Run in the checkout whose form of the store is to be kept.  NAME.db and NAME.json in this folder are then committed, and
`test_old_stores` opens them ever after.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from mesh import Mesh, Transaction
from tests.old_stores.workflows import PLACES, build

HERE = Path(__file__).parent
LINES = [{"sku": "a", "amount": 1}, {"sku": "b", "amount": 2}, {"sku": "c", "amount": 3}, {"sku": "d", "amount": 4}]
QUIET = 0.5
"""Seconds without a pulse after which a transaction stands where it is to stand."""


async def write(name: str) -> None:
    """Writes both files, and ends the process as a kill does."""
    written: list[dict[str, Any]] = []
    mesh = Mesh(*build(holding=True), store=f"sqlite:///{HERE / name}.db", drain=0)
    await mesh.__aenter__()

    async def begin(workflow: str, given: Any, place: str, key: str | None) -> None:
        transaction = await mesh.stimulate(workflow, given, key=key, metadata={"hold": place})
        await _quiet(transaction)
        written.append({"id": transaction.id, "workflow": workflow, "input": given, "place": place, "key": key})

    for place in PLACES:
        given = {"lines": LINES, "by": "bill" if place == "between" else "card", "fail": place in ("undo", "nobody")}
        await begin("order", given, place, None if place in ("first", "nowhere") else f"key {place}")
    await begin("stubborn", {"n": 1}, "stuck", "key stuck")
    for row in written:
        transaction = await mesh.transaction(row["id"])
        pulses = transaction.pulses()
        row |= {"status": transaction.status, "pulses": len(pulses), "digest": pulses[0].digest}
    known = {row["id"] for row in written}
    children = [row.transaction for row in await mesh.transactions(limit=1000) if row.transaction not in known]
    (HERE / f"{name}.json").write_text(json.dumps({"transactions": written, "children": children}, indent=1) + "\n")
    os._exit(9)


async def _quiet(transaction: Transaction) -> None:
    seen = -1
    while seen != len(transaction.pulses()):
        seen = len(transaction.pulses())
        await asyncio.sleep(QUIET)


def main(name: str) -> None:
    """Has a child write, and brings what it left in its write-ahead log into the one file."""
    subprocess.run([sys.executable, "-m", "tests.old_stores.write", name, "and die"], check=False)
    store = sqlite3.connect(HERE / f"{name}.db")
    store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        asyncio.run(write(sys.argv[1]))
