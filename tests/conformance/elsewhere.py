"""Workflows that are begun by a process of its own and carried on by another.

`python -m tests.conformance.elsewhere URL SCENARIO DIRECTORY` begins one, says its transaction, and dies or halts in
the middle.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bitactor import Halt, Workflow
from mesh import Mesh
from tests import warm
from tests.e2e.support import BOUND

ROOT: Final = Path(__file__).parents[2]
DEAD: Final = 9


class Notes:
    """What steps did, over all processes, and what they are to do."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, line: str) -> None:
        with (self._directory / "notes").open("a") as file:
            file.write(line + "\n")

    @property
    def lines(self) -> list[str]:
        path = self._directory / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def first_time(self, what: str) -> bool:
        """Whether nobody has asked this before."""
        try:
            (self._directory / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def halting(notes: Notes) -> Workflow:
    """Three steps, the second of which halts the first time."""
    workflow = Workflow("halting")

    @workflow.step
    async def first() -> str:
        notes.add("first")
        return "first"

    @workflow.step
    async def asks(first: str) -> Any:
        notes.add("asks")
        return Halt("ask somebody") if notes.first_time("asked") else "answered"

    @workflow.step
    async def last(asks: str) -> str:
        notes.add("last")
        return asks

    return workflow


def halting_inside(notes: Notes) -> Workflow:
    """The same, nested in a compose, between two steps of its own."""
    workflow = Workflow("halting inside", ttl=8)

    @workflow.step
    async def before() -> None:
        notes.add("before")

    workflow.compose("inner", halting(notes), after=["before"])

    @workflow.step
    async def after(inner: str) -> str:
        notes.add("after")
        return inner

    return workflow


def dying(notes: Notes) -> Workflow:
    """Three steps; the process dies in the second the first time."""
    workflow = Workflow("dying")

    @workflow.step
    async def first() -> str:
        notes.add("first")
        return "first"

    @workflow.step
    async def dies(first: str) -> str:
        notes.add("dies")
        if notes.first_time("died"):
            os._exit(DEAD)
        return "lives"

    @workflow.step
    async def last(dies: str) -> str:
        notes.add("last")
        return dies

    return workflow


def dying_beside(notes: Notes) -> Workflow:
    """Ten steps side by side, ended in an order of their own each time; the process dies after half of them."""
    workflow = Workflow("dying beside", ttl=2)
    ended = 0

    for number in range(10):

        @workflow.step(name=f"s{number}")
        async def works(number: int = number) -> int:
            nonlocal ended
            dead = not notes.first_time(f"began {number}")
            for _ in range(number if dead else 10 - number):
                await asyncio.sleep(0)
            ended += 1
            if ended == 5 and notes.first_time("died"):
                os._exit(DEAD)
            notes.add(f"s{number}")
            return number

    workflow.collect("all", [f"s{number}" for number in range(10)], transform=lambda found: sorted(found.values()))
    return workflow


def dying_map(notes: Notes) -> Workflow:
    """A map over a hundred numbers, ten a batch; the process dies in its fourth batch."""
    workflow = Workflow("dying map")

    def numbers(start: int) -> Iterator[int]:
        notes.add(f"opened at {start}")
        return iter(range(start, 100))

    @workflow.map(over=numbers, batch=10)
    def double(element: int) -> int:
        notes.add(f"element {element}")
        if element == 35 and notes.first_time("died"):
            os._exit(DEAD)
        return element * 2

    return workflow


SCENARIOS: Final = {made.__name__: made for made in (halting, halting_inside, dying, dying_beside, dying_map)}


def begin(scenario: str, url: str, directory: Path) -> str:
    """Have another process begin it, and be gone; the answer is the transaction."""
    words = ["-m", "tests.conformance.elsewhere", url, scenario, str(directory)]
    child = warm.run(words, cwd=ROOT, timeout=BOUND * 6)
    assert child.returncode == (0 if scenario.startswith("halting") else DEAD), child.stderr
    return child.stdout.strip()


async def main(url: str, scenario: str, directory: str) -> None:
    workflow = SCENARIOS[scenario](Notes(Path(directory)))
    async with Mesh(workflow, store=url) as mesh:
        accepted = asyncio.ensure_future(mesh.stimulate(workflow, key="the one"))
        transaction = await accepted
        print(transaction.id, flush=True)
        await transaction.ended(BOUND)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
