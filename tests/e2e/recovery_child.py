"""A process that dies at a given point of a transaction; see test_recovery.

`python -m tests.e2e.recovery_child URL POINT LOG [DURABILITY]`: each line of LOG is something a step did.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitactor import Backoff, Context, Halt, Retry, Workflow, consumer
from mesh import Mesh

POINTS = (
    "accepted", "in a", "after a", "in b", "backing off", "in compensate", "joining", "failing", "in undo",
    "between undos", "undo backing off", "halted", "emitting", "in consumer", "in thread",
)  # fmt: skip


def build(point: str, note: Callable[[str], None], die: Callable[[str], None]) -> tuple[Workflow, Any]:
    """a → (b, t) → c; with `point` among the failing ones, c fails and everything is undone."""
    workflow = Workflow("recovered", input={"fail": bool}, ttl=4, grace=0.2)

    @workflow.step
    async def a(fail: bool, ctx: Context) -> str:
        note(f"a {ctx.idempotency_key}")
        die("in a")
        return "a"

    @a.undo(in_doubt=True)
    async def una(result: str | None, ctx: Context) -> Any:
        note(f"undo a {result} {ctx.forward_key}")
        die("between undos")

    @workflow.step(retries=2, backoff=Backoff(initial=0.05, jitter=0))
    async def b(a: str, ctx: Context, attempt: int) -> str:
        note(f"b {attempt}")
        die("in b")
        if point in ("backing off", "in compensate") and attempt == 1:
            raise ConnectionError("the first try fails")
        return "b"

    if point == "in compensate":

        @b.compensate
        async def consider(error: Exception) -> Any:
            note("compensate b")
            die("in compensate")
            return Retry(after=0)

    @b.undo(in_doubt=True)
    async def unb(result: str | None, ctx: Context, attempt: int) -> Any:
        note(f"undo b {result}")
        die("in undo")
        if point == "undo backing off" and attempt == 1:
            return Retry(after=0.05)
        return None

    @workflow.step
    def t(a: str) -> str:
        note("t")
        die("in thread")
        return "t"

    @workflow.step
    async def c(b: str, t: str, fail: bool, ctx: Context) -> Any:
        note("c")
        die("joining")
        if point == "halted":
            return Halt("look")
        if fail:
            raise ValueError("c fails")
        await ctx.emit("done", "c")
        return "c"

    @consumer("done", retries=1)
    async def listen(signal: Any) -> None:
        note(f"heard {signal.token}")
        die("in consumer")

    return workflow, listen


async def main(url: str, point: str, log: str, durability: str) -> None:
    def note(line: str) -> None:
        with Path(log).open("a") as file:
            file.write(line + "\n")

    def die(here: str) -> None:
        if here == point:
            os._exit(9)

    workflow, listen = build(point, note, die)
    failing = point in ("failing", "in undo", "between undos", "undo backing off")
    async with Mesh(workflow, listen, store=url, durability=durability) as mesh:
        tx = await mesh.stimulate(workflow, {"fail": failing}, key="the one")
        print(tx.id, flush=True)
        die("accepted")
        while True:
            kinds = [f"{pulse.kind} {pulse.step} {pulse.direction}" for pulse in mesh.node.store.reader().pulses(tx.id)]
            if "completed a forward" in kinds:
                die("after a")
            if "retried b forward" in kinds:
                die("backing off")
            if "failed c forward" in kinds:
                die("failing")
            if "retried b undo" in kinds:
                die("undo backing off")
            if "completed c forward" in kinds:
                die("emitting")
            if "halted  forward" in kinds:
                die("halted")
            await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "process"))
