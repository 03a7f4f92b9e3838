"""Workflows whose transactions lie in the stores of this folder, as an earlier commit wrote them.

They must stay as they are: a store is read with the workflows that wrote it.  The stimulus' metadata names the place
where a transaction stands still in the process that writes the store, so that it can be killed there; built with
`holding=False`, nothing stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bitactor import Backoff, Context, Element, Halt, Result, Retry, Workflow, consumer

PLACES = (
    "first", "between", "backoff", "compensate", "join", "nested", "element", "round", "around", "undo", "halt",
    "heard", "nowhere", "nobody",
)  # fmt: skip
"""Where a transaction of `order` can stand when its process dies; `heard`: in the consumer of what it emitted."""


def build(holding: bool) -> Sequence[Any]:
    """Everything that a mesh over such a store declares."""

    async def reach(ctx: Context, place: str) -> None:
        if holding and ctx.metadata.get("hold") == place:
            await asyncio.Event().wait()

    line = Workflow("line", input={"sku": str, "amount": int}, ttl=8)

    @line.step
    async def reserve(sku: str, amount: int, ctx: Context) -> int:
        if amount == 3:
            await reach(ctx, "element")
        return amount * 10

    @reserve.undo(in_doubt=True)
    async def release(result: int | None) -> None: ...

    by_card = Workflow("by card", input={"total": int}, ttl=8)

    @by_card.step
    async def charge(total: int, ctx: Context) -> str:
        await reach(ctx, "nested")
        return f"card {total}"

    @charge.undo(in_doubt=True)
    async def refund(result: str | None) -> None: ...

    by_bill = Workflow("by bill", input={"total": int}, ttl=8)

    @by_bill.step
    async def bill(total: int) -> str:
        return f"bill {total}"

    halve = Workflow("halve", input={"number": int}, ttl=12)

    @halve.step
    async def half(number: int, ctx: Context) -> dict[str, int]:
        if number == 3:
            await reach(ctx, "round")
        return {"number": number // 2}

    packing = Workflow("packing", input={"total": int}, ttl=8)

    @packing.step
    async def wrap(total: int, ctx: Context) -> str:
        await reach(ctx, "around")
        return f"parcel of {total}"

    workflow = Workflow("order", input={"lines": list[dict[str, Any]], "by": str, "fail": bool}, ttl=30, grace=0.1)

    @workflow.step
    async def begin(by: str, ctx: Context) -> str:
        await reach(ctx, "first")
        return by

    @begin.undo(in_doubt=True)
    async def unbegin(result: str | None) -> None: ...

    @workflow.step(retries=2, backoff=Backoff(initial=0.05, jitter=0))
    async def price(begin: str, ctx: Context) -> int:
        await reach(ctx, "between")
        if holding and ctx.metadata.get("hold") in ("backoff", "compensate"):
            raise ConnectionError("it fails here")
        return 7

    @price.compensate
    async def again(error: Exception, ctx: Context) -> Retry:
        await reach(ctx, "compensate")
        return Retry(after=60 if holding else 0)

    @price.undo(in_doubt=True)
    async def unprice(result: int | None, ctx: Context) -> None:
        await reach(ctx, "undo")

    @workflow.step
    def stock(begin: str) -> str:
        return f"stock for {begin}"

    workflow.map(
        name="reserved", workflow=line, over="lines", bind={"sku": Element("sku"), "amount": Element("amount")}, batch=2
    )

    @workflow.map(over="reserved", batch=2)
    def doubled(element: int) -> int:
        return element * 2

    workflow.switch("paid", Result("begin"), {"card": by_card}, default=by_bill, bind={"total": Result("price")})
    workflow.recurse(
        "halved", halve, at_most=5, until=lambda result: result["number"] <= 1, bind={"number": Result("price")}
    )

    @workflow.around(workflow=packing, bind={"total": Result("price")})
    async def packed(proceed: Any) -> Any:
        return await proceed()

    @workflow.step
    async def join(
        price: int,
        stock: str,
        doubled: list[int],
        paid: str,
        halved: dict[str, int],
        packed: str,
        fail: bool,
        ctx: Context,
    ) -> Any:
        await reach(ctx, "join")
        if holding and ctx.metadata.get("hold") == "halt":
            return Halt("somebody must look")
        if fail:
            raise ValueError("refused")
        await ctx.emit("order.done", {"price": price})
        return {"price": price, "stock": stock, "doubled": doubled, "paid": paid, "halved": halved, "packed": packed}

    @consumer("order.done", concurrency=2)
    async def book(signal: Any, ctx: Context) -> None:
        await reach(ctx, "heard")

    stubborn = Workflow("stubborn", input={"n": int}, ttl=4)

    @stubborn.step
    async def act(n: int) -> int:
        return n

    @act.undo(retries=0)
    async def take_back() -> None:
        if holding:
            raise RuntimeError("cannot be taken back yet")

    @stubborn.step
    async def refuse(act: int) -> int:
        raise ValueError("refused")

    return workflow, stubborn, book
