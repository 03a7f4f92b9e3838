"""A process that is killed in the middle of an undo of a model; see test_recovery.

`python -m tests.e2e.typed_undo_child URL LOG SPAWN`: each line of LOG is what an undo was given.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field, PrivateAttr, SecretStr, field_validator

from bitactor import Workflow
from mesh import Mesh
from tests.e2e.support import for_spawner


class Paid(BaseModel):
    """The class that the undo names."""

    number: int


class PaidByCard(Paid):
    """What the step makes: fields of a subclass, some left out of dumps, a validator that must not run again."""

    card: SecretStr
    at: dt.datetime
    trace: str = Field(exclude=True)
    by: str = Field("ada", alias="paidBy")
    _attempts: int = PrivateAttr(3)

    @property
    def attempts(self) -> int:
        """What only the object itself knows."""
        return self._attempts

    @field_validator("number")
    @classmethod
    def _doubled(cls, number: int) -> int:
        return number * 2


def paid() -> PaidByCard:
    """What was paid."""
    at = dt.datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    return PaidByCard(number=21, card=SecretStr("4711"), at=at, trace="t1", paidBy="bob")


def told(result: Any) -> str:
    """All there is to say of what an undo was given."""
    if not isinstance(result, PaidByCard):
        return repr(result)
    return (
        f"{result.number} {result.card.get_secret_value()} {result.at.isoformat()} {result.at.fold} {result.at.tzinfo} "
        + (f"{result.trace} {result.by} {result.attempts} {sorted(result.model_fields_set)}")
    )


def build(spawn: str, undoing: Callable[[str], None]) -> Workflow:
    """Two steps whose results are models, the second of which is undone first; then it fails."""
    workflow = Workflow("paying", ttl=5, grace=0.1)

    def pay() -> PaidByCard:
        return paid()

    def again(pay: Paid) -> Paid:
        return pay

    def undo_pay(result: Paid) -> None:
        undoing(f"pay {told(result)}")

    def undo_again(result: Paid | None) -> None:
        undoing(f"again {told(result)}")

    workflow.step(name="pay", spawn=spawn)(for_spawner(spawn, pay)).undo(for_spawner(spawn, undo_pay))
    workflow.step(name="again", spawn=spawn)(for_spawner(spawn, again)).undo(
        for_spawner(spawn, undo_again), in_doubt=True
    )
    workflow.flunk("end", "{again}")
    return workflow


async def main(url: str, log: str, spawn: str) -> None:
    def undoing(line: str) -> None:
        with Path(log).open("a") as file:
            file.write(line + "\n")
        if line.startswith("pay"):
            os.kill(os.getpid(), signal.SIGKILL)

    workflow = build(spawn, undoing)
    async with Mesh(workflow, store=url) as mesh:
        transaction = await mesh.stimulate(workflow, key="the one")
        await transaction.ended()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
