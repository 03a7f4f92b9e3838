"""What the drill with random faults runs: a saga, a map, a deadline and consumers, whose steps note what they do.

Each line of the file that `DRILL_EFFECTS` names is an `Effect`, written at the first instruction of a step or an undo:
what happens later in a step that had begun is its own affair, what begins too late is the runtime's.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any, NamedTuple

from bitactor import Context, Element, Workflow, consumer

WORK = 0.02
"""Seconds a step goes on after its effect, so that a fault meets it there too."""

HURRY = 1.5
"""Seconds that `hurried` may take."""

ENOUGH = 1_000
"""Deliveries after which a hop would count as poison: more than there are faults."""

FAILS = ("", "reserve", "pay", "label", "ship")
"""Where a saga may be told to fail; the first: nowhere."""


class Effect(NamedTuple):
    """A line of the file outside."""

    at_ns: int
    """`CLOCK_BOOTTIME`, which one machine has only one of."""
    transaction: str
    step: str
    direction: str
    attempt: int
    delivery: int
    hop: str
    key: str
    pid: int
    thread: int


def read_effects(path: str | os.PathLike[str]) -> list[Effect]:
    """The effects in the order in which they happened."""
    found = []
    with open(path) as lines:  # noqa: PTH123 (a path of either kind)
        for line in lines:
            words = line.split()
            numbers = {index: int(words[index]) for index in (0, 4, 5, 8, 9)}
            found.append(Effect(*(numbers.get(index, word) for index, word in enumerate(words))))  # type: ignore[arg-type]
    return found


def note(ctx: Context) -> None:
    """Write down that the step, or its undo, has begun."""
    signal = ctx.signal
    effect = Effect(
        time.clock_gettime_ns(time.CLOCK_BOOTTIME), signal.transaction, ctx.step, signal.direction, signal.attempt,
        signal.delivery, signal.hop, ctx.idempotency_key, os.getpid(), threading.get_ident(),
    )  # fmt: skip
    line = f"{' '.join(map(str, effect))}\n".encode()
    file = os.open(os.environ["DRILL_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        assert os.write(file, line) == len(line)
    finally:
        os.close(file)


def fail_at(step: str, fails: str) -> None:
    """Raise if the step is the one that is to fail; it has done nothing then."""
    if step == fails:
        raise ValueError(f"told to fail at {step}")


async def undo(ctx: Context) -> None:
    note(ctx)
    await asyncio.sleep(WORK)


def undo_beside(ctx: Context) -> None:
    note(ctx)
    time.sleep(WORK)


saga = Workflow(
    "saga", input={"number": int, "fails": str}, ttl=16, grace=0.2, undo_timeout=3600.0, redeliveries=ENOUGH
)


@saga.step
async def reserve(number: int, fails: str, ctx: Context) -> int:
    fail_at("reserve", fails)
    note(ctx)
    await asyncio.sleep(WORK)
    return number


@saga.step(spawn="thread")
def pay(reserve: int, fails: str, ctx: Context) -> int:
    fail_at("pay", fails)
    note(ctx)
    time.sleep(WORK)
    return reserve + 1


@saga.step(spawn="process")
def label(pay: int, fails: str, ctx: Context) -> int:
    fail_at("label", fails)
    note(ctx)
    time.sleep(WORK)
    return pay + 1


@saga.step
async def ship(label: int, fails: str, ctx: Context) -> int:
    fail_at("ship", fails)
    note(ctx)
    await asyncio.sleep(WORK)
    await ctx.emit("shipped", label)
    return label + 1


reserve.undo(in_doubt=True)(undo)
pay.undo(in_doubt=True)(undo_beside)
label.undo(in_doubt=True)(undo_beside)
ship.undo(in_doubt=True)(undo)

packing = Workflow("packing", input={"item": int})


@packing.step
async def wrap(item: int, ctx: Context) -> int:
    note(ctx)
    await asyncio.sleep(WORK)
    await ctx.emit("wrapped", item)
    return item * 2


wrap.undo(in_doubt=True)(undo)

parcels = Workflow(
    "parcels", input={"number": int, "fails": str}, ttl=16, grace=0.2, undo_timeout=3600.0, redeliveries=ENOUGH
)


@parcels.step
async def items(number: int) -> list[int]:
    return [number, number + 1, number + 2]


parcels.map(name="pack", workflow=packing, over="items", bind={"item": Element()})


@parcels.step
async def close(pack: list[int], fails: str, ctx: Context) -> int:
    fail_at("close", fails)
    note(ctx)
    await asyncio.sleep(WORK)
    return sum(pack)


close.undo(in_doubt=True)(undo)

hurried = Workflow(
    "hurried", input={"number": int, "takes": float}, deadline=HURRY, grace=0.2, undo_timeout=3600.0,
    redeliveries=ENOUGH,
)  # fmt: skip


@hurried.step
async def knock(number: int, ctx: Context) -> int:
    note(ctx)
    return number


@hurried.step
async def wait(knock: int, takes: float, ctx: Context) -> int:
    note(ctx)
    await asyncio.sleep(takes)
    return knock + 1


knock.undo(in_doubt=True)(undo)
wait.undo(in_doubt=True)(undo)


@consumer("shipped", retries=1)
async def thank(signal: Any, ctx: Context) -> None:
    note(ctx)
    await asyncio.sleep(WORK)


@consumer("shipped", spawn="thread")
def invoice(signal: Any, ctx: Context) -> None:
    note(ctx)


@consumer("wrapped")
async def count(signal: Any, ctx: Context) -> None:
    note(ctx)


definitions = [saga, parcels, hurried, thank, invoice, count]

STEPS = {
    "saga": frozenset(("reserve", "pay", "label", "ship")),
    "parcels": frozenset(("pack/0/wrap", "pack/1/wrap", "pack/2/wrap", "close")),
    "hurried": frozenset(("knock", "wait")),
} | {one.name: frozenset((one.listens,)) for one in (thank, invoice, count)}
"""Workflow or consumer → the steps that have an effect."""

GROUPS = {
    name: tuple(one.group for one in (thank, invoice, count) if one.listens == name) for name in ("shipped", "wrapped")
}
"""Signal → the groups that each get it."""


def result_of(workflow: str, number: int) -> tuple[str, int]:
    """The step whose result is the workflow's, and that result."""
    if workflow == "saga":
        return "ship", number + 3
    if workflow == "parcels":
        return "close", 2 * (3 * number + 3)
    return "wait", number + 1
