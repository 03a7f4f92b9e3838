"""Writes a large store with the packages of an earlier release, its process killed at the end:
`python -m tests.old_stores.load STORE OPEN ENDED`, from a directory with those packages."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mesh import Mesh, Transaction
from tests.old_stores.workflows import PLACES, build

AT_ONCE = 40
"""Transactions that are under way at one time."""


def given(place: str) -> dict[str, object]:
    """The input of a transaction that is to stand at this place; every key gets the same."""
    lines = [{"sku": letter, "amount": number} for number, letter in enumerate("abcd", 1)]
    return {"lines": lines, "by": "bill" if place == "between" else "card", "fail": place in ("undo", "nobody")}


def place_of(number: int) -> str:
    """Where an open one stands."""
    return PLACES[number % len(PLACES)]


def ends(number: int) -> str:
    """The place of one that ends; one in five is compensated."""
    return "nobody" if number % 5 == 0 else "nowhere"


async def write(store: Path, number_open: int, ended: int) -> None:
    """One of three has a key."""
    mesh = Mesh(*build(holding=True), store=f"sqlite:///{store}", drain=0)
    await mesh.__aenter__()
    room = asyncio.Semaphore(AT_ONCE)

    async def end(number: int) -> None:
        async with room:
            key = f"ended {number}" if number % 3 == 0 else None
            transaction = await mesh.stimulate("order", given(ends(number)), key=key)
            await transaction.ended()

    async with asyncio.TaskGroup() as group:
        for number in range(ended):
            group.create_task(end(number))
    held: list[Transaction] = []
    for number in range(number_open):
        place = place_of(number)
        key = f"open {number}" if number % 3 == 0 else None
        held.append(await mesh.stimulate("order", given(place), key=key, metadata={"hold": place}))
    before, seen = -1, 0
    while seen != before:
        await asyncio.sleep(1.0)
        before, seen = seen, sum(len(transaction.pulses()) for transaction in held)
    os._exit(9)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
