"""Workflows whose inputs, results and undos have models, and whose transactions lie in the stores of this folder that
have `typed` in their names; as `workflows` they must stay as they are.

The process that wrote them began a transaction for each place, with `hold` in its metadata, the key `key PLACE`, and
the input that the JSON file has, waited until each stood still, and was killed (see `write`).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from bitactor import Context, Halt, Workflow

PLACES = ("first", "join", "undo", "halt", "done", "failed")
"""Where a transaction of `typed` stands when its process dies, or how it has ended."""
UNDONE: list[tuple[str, Any]] = []
"""Transaction, and what the undo of `made` was given."""


class Colour(enum.Enum):
    RED = "red"


class Line(BaseModel):
    sku: str
    amount: int = 1


class Order(BaseModel):
    number: int
    lines: list[Line]
    placed: dt.datetime = Field(default_factory=lambda: dt.datetime.now(dt.UTC))
    tag: uuid.UUID = Field(default_factory=uuid.uuid4)
    fail: bool = False


class Receipt(BaseModel):
    number: int
    colour: Colour
    lines: list[Line]
    paid: dt.datetime


RECEIPT = Receipt(
    number=7, colour=Colour.RED, lines=[Line(sku="a", amount=2)], paid=dt.datetime(2026, 11, 27, tzinfo=dt.UTC)
)


def build(holding: bool) -> Sequence[Any]:
    """Everything that a mesh over such a store declares."""

    async def reach(ctx: Context, place: str) -> None:
        if holding and ctx.metadata.get("hold") == place:
            await asyncio.Event().wait()

    workflow = Workflow("typed", input=Order, ttl=8, grace=0.1)

    @workflow.step
    async def made(number: int, lines: list[Line], ctx: Context) -> Receipt:
        await reach(ctx, "first")
        return RECEIPT

    @made.undo(in_doubt=True)
    async def unmade(result: Receipt | None, ctx: Context) -> None:
        UNDONE.append((ctx.transaction, result))
        await reach(ctx, "undo")

    @workflow.step
    async def join(made: Receipt, lines: list[Line], fail: bool, ctx: Context) -> Any:
        await reach(ctx, "join")
        if holding and ctx.metadata.get("hold") == "halt":
            return Halt("somebody must look")
        if fail:
            raise ValueError("refused")
        return [type(made).__name__, made.lines[0].amount, type(lines[0]).__name__]

    return (workflow,)
