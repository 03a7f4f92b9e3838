"""Workflows whose steps say outside what they do, at their first line, and are all undone: for workers that are stopped
and woken."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from bitactor import Backoff, Context, Resource, Signal, Workflow, consumer
from bitactor.messages.ids import idempotency_key
from bitactor.patterns import RetryPolicy
from mesh import Mesh

WORK = 0.02
"""Seconds a step works after its effect."""


class Effect(NamedTuple):
    """A line of the file outside."""

    what: str
    """`did | undid`"""
    transaction: str
    step: str
    key: str
    delivery: int
    pid: int
    at_ns: int


def note(path: str, what: str, ctx: Context) -> None:
    """Say outside what a step does, in one write."""
    signal = ctx.signal
    key = idempotency_key(signal.transaction, ctx.step)
    line = f"{what} {signal.transaction} {ctx.step} {key} {signal.delivery} {os.getpid()} {time.monotonic_ns()}\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def effects(path: Path) -> list[Effect]:
    """What was done outside, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        what, transaction, step, key, delivery, pid, at_ns = line.split()
        found.append(Effect(what, transaction, step, key, int(delivery), int(pid), int(at_ns)))
    return found


def left_over(found: list[Effect]) -> list[Effect]:
    """What was begun too late: after the undo of its step, or after a later delivery of the same.  What counts is the
    moment that a line says, not its place: who is stopped between the two has begun."""
    undone: set[str] = set()
    newest: dict[tuple[str, str], int] = {}
    over = []
    for effect in sorted(found, key=lambda effect: effect.at_ns):
        run = effect.what, effect.key
        if effect.delivery < newest.get(run, 0) or (effect.what == "did" and effect.key in undone):
            over.append(effect)
        newest[run] = max(newest.get(run, 0), effect.delivery)
        if effect.what == "undid":
            undone.add(effect.key)
    return over


def redelivered(mesh: Mesh) -> int:
    """How many transactions have a hop that was delivered again."""
    rows = mesh.node.store.reader().list(limit=100_000)
    return sum(
        any(
            pulse.kind == "spawned" and "lost" in (pulse.data or {})
            for pulse in mesh.node.store.reader().pulses(row.transaction)
        )
        for row in rows
    )


errand = Workflow("errand", input={"notes": str}, ttl=8, grace=0.2, redeliveries=50, undo_timeout=600.0)


@errand.step
async def walk(notes: str, ctx: Context) -> str:
    note(notes, "did", ctx)
    await asyncio.sleep(WORK)
    return notes


@walk.undo(in_doubt=True)
async def walk_back(notes: str, ctx: Context) -> None:
    note(notes, "undid", ctx)


@errand.step(spawn="thread")
def carry(notes: str, ctx: Context) -> str:
    note(notes, "did", ctx)
    time.sleep(WORK)
    return notes


@carry.undo(in_doubt=True)
def carry_back(notes: str, ctx: Context) -> None:
    note(notes, "undid", ctx)


@errand.step(after=["walk", "carry"])
async def refuse() -> None:
    raise ValueError("all of it is undone")


computation = Workflow("computation", input={"notes": str}, ttl=8, grace=0.2, redeliveries=50, undo_timeout=600.0)


@computation.step(spawn="process")
def compute(notes: str, ctx: Context) -> str:
    note(notes, "did", ctx)
    time.sleep(WORK)
    return notes


@compute.undo(in_doubt=True)
def compute_back(notes: str, ctx: Context) -> None:
    note(notes, "undid", ctx)


@computation.step(after=["compute"])
async def reject() -> None:
    raise ValueError("all of it is undone")


async def saddle() -> str:
    """Takes its time."""
    await asyncio.sleep(0.3)
    return "horse"


ride = Workflow(
    "ride", input={"notes": str}, ttl=8, grace=0.2, redeliveries=50, undo_timeout=600.0,
    resources=[Resource("horse", saddle, check=lambda horse: False, check_every=0.1)],
)  # fmt: skip


@ride.step
async def gallop(notes: str, horse: str, ctx: Context) -> str:
    note(notes, "did", ctx)
    await asyncio.sleep(WORK)
    return notes


@gallop.undo(in_doubt=True)
async def gallop_back(notes: str, ctx: Context) -> None:
    note(notes, "undid", ctx)


@ride.step(after=["gallop"])
async def dismount() -> None:
    raise ValueError("all of it is undone")


knock = Workflow("knock", input={"notes": str}, ttl=8, grace=0.2, redeliveries=50, undo_timeout=600.0)
_knocks: Counter[tuple[str, int]] = Counter()
KNOCKS = 3
"""Runs of `rap` in one attempt, half a second apart; each has an effect."""


@knock.step(
    policies=[RetryPolicy("again", attempts=KNOCKS, backoff=Backoff(0.5, factor=1.0, jitter=0.0), on=ConnectionError)]
)
async def rap(notes: str, ctx: Context) -> str:
    note(notes, "did", ctx)
    run = ctx.idempotency_key, ctx.signal.delivery
    _knocks[run] += 1
    if _knocks[run] < KNOCKS:
        raise ConnectionError("nobody opens")
    del _knocks[run]
    return notes


@rap.undo(in_doubt=True)
async def rap_back(notes: str, ctx: Context) -> None:
    note(notes, "undid", ctx)


@knock.step(after=["rap"])
async def leave() -> None:
    raise ValueError("all of it is undone")


parcel = Workflow("parcel", input={"notes": str}, ttl=8)


@parcel.step
async def post(notes: str, ctx: Context) -> None:
    await ctx.emit("parcel.posted", notes)


@consumer("parcel.posted")
async def deliver(signal: Signal, ctx: Context) -> None:
    note(signal.token, "did", ctx)


DEFINITIONS: dict[str, Any] = {
    "errand": errand, "parcel": parcel, "deliver": deliver, "computation": computation, "ride": ride, "knock": knock,
}  # fmt: skip
