"""A shop in whose traces nearly everything can be seen: containers, a retry, a worker process, a user's own spans, a
consumer, a failure at the end, and undo."""

from __future__ import annotations

import asyncio

from opentelemetry import trace

from bitactor import Backoff, Context, Result, Signal, Value, Workflow, consumer

tracer = trace.get_tracer("shop", "1.0")
MAILED = asyncio.Event()
"""Set when the letter of the order that runs is written; for the order of what a picture shows."""


class Declined(Exception):
    """The courier does not come."""


payment = Workflow("shop.payment", input={"order": int})


@payment.step(retries=1, backoff=Backoff(0.005))
async def authorise(order: int, attempt: int) -> int:
    if attempt == 1:
        raise ConnectionError("the bank is busy")
    return order


@payment.step(spawn="process")
def capture(authorise: int) -> int:
    with tracer.start_as_current_span("bank call") as span:
        span.set_attribute("bank.order", authorise)
        return authorise


@capture.undo
async def refund(result: int) -> None:
    """Gives the money back."""


parcel = Workflow("shop.parcel", input={"order": int})


@parcel.step(spawn="thread")
def label(order: int) -> str:
    with tracer.start_as_current_span("print label"):
        return f"label {order}"


letter = Workflow("shop.letter", input={"order": int})


@letter.step
async def stamp(order: int) -> str:
    return f"stamp {order}"


order = Workflow("shop.order", input={"order": int}, errors=[Declined], ttl=20)


@order.step
async def reserve(order: int) -> int:
    return order


@reserve.undo
async def release(result: int) -> None:
    """Puts it back on the shelf."""


@order.map(over=Value([1, 2, 3, 4]), after=["reserve"], batch=2)
async def weigh(element: int) -> int:
    return element * 10


order.compose("pay", workflow=payment, bind={"order": Result(reserve)}, after=["weigh"])


@order.step(after=["pay"])
async def announce(order: int, ctx: Context) -> int:
    await ctx.emit("order.placed", order)
    return order


order.switch(
    "send",
    on=Result("weigh"),
    cases=[(lambda weights: sum(weights) > 50, parcel)],
    default=letter,
    bind={"order": Result(announce)},
)


@order.step(after=["send"])
async def hand_over(order: int) -> int:
    await asyncio.wait_for(MAILED.wait(), 30)
    raise Declined("no courier today")


@consumer("order.placed", group="mail")
async def write_letter(signal: Signal) -> None:
    with tracer.start_as_current_span("compose letter"):
        await asyncio.sleep(0)
    MAILED.set()


definitions = [order, write_letter]
