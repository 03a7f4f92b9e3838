"""A service that is killed again and again; see test_kills.

`python -m tests.drill.service STORE EFFECTS`: prints `ready URL`, and ends when its standard input does.  Each line of
EFFECTS is something
a step did outside: `did` or `undid`, the step's key, its transaction, its path.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from bitactor import Backoff, Context, Element, Workflow, consumer
from bitactor.messages.ids import idempotency_key
from mesh import Mesh
from mesh.ingress.http import HttpServer

WORK = 0.01
"""Seconds a step works before and after its effect, so that a kill meets it on either side."""

ENOUGH = 1_000
"""Deliveries after which a hop would count as poison: more than there are kills."""


def definitions(effects: str) -> tuple[Workflow, Any]:
    """reserve → (pay, wrap each item) → ship, which emits, or fails and has everything undone."""

    def note(what: str, ctx: Context) -> None:
        key = idempotency_key(ctx.signal.transaction, ctx.step)
        line = f"{what} {key} {ctx.signal.transaction} {ctx.step}\n".encode()
        file = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            assert os.write(file, line) == len(line)
        finally:
            os.close(file)

    async def do(ctx: Context) -> None:
        await asyncio.sleep(WORK)
        note("did", ctx)
        await asyncio.sleep(WORK)

    async def undo(ctx: Context) -> None:
        await asyncio.sleep(WORK)
        note("undid", ctx)
        await asyncio.sleep(WORK)

    order = Workflow("order", input={"number": int}, ttl=16, grace=0.1, undo_timeout=3600.0, redeliveries=ENOUGH)

    @order.step
    async def reserve(number: int, ctx: Context) -> int:
        await do(ctx)
        return number

    reserve.undo(in_doubt=True)(undo)

    @order.step(spawn="thread", retries=2, backoff=Backoff(initial=0.02, jitter=0))
    def pay(reserve: int, ctx: Context, attempt: int) -> int:
        time.sleep(WORK)
        note("did", ctx)
        time.sleep(WORK)
        if attempt == 1 and reserve % 3 == 0:
            raise ConnectionError("paid, and the answer is lost")
        return reserve

    @pay.undo(in_doubt=True)
    def refund(ctx: Context) -> None:
        note("undid", ctx)

    @order.step
    async def items(reserve: int) -> list[int]:
        return [1, 2, 3]

    packing = Workflow("packing", input={"item": int})

    @packing.step
    async def wrap(item: int, ctx: Context) -> int:
        await do(ctx)
        return item

    wrap.undo(in_doubt=True)(undo)
    order.map(name="pack", workflow=packing, over="items", bind={"item": Element()})

    @order.step
    async def ship(pay: int, pack: list[int], ctx: Context) -> str:
        if pay % 4 == 0:
            raise ValueError("nobody is at home")
        await do(ctx)
        await ctx.emit("shipped", pay)
        return "shipped"

    ship.undo(in_doubt=True)(undo)

    @consumer("shipped", retries=1)
    async def thank(signal: Any, ctx: Context) -> None:
        await do(ctx)

    return order, thank


async def main(store: str, effects: str) -> None:
    server = HttpServer(
        Mesh(*definitions(effects), store=store), port=0, ready=lambda url: print("ready", url, flush=True)
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run())
        await asyncio.to_thread(sys.stdin.read)
        server.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
