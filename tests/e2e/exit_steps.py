"""Workflows whose steps exit; worker processes and the command line import this module by its name."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr, field_validator

from bitactor import Input, Workflow


class Leaving(Mapping[str, int]):
    """A mapping that exits when it is read."""

    def __getitem__(self, name: str) -> int:
        raise SystemExit(0)

    def __iter__(self) -> Iterator[str]:
        raise SystemExit(0)

    def __len__(self) -> int:
        return 1


class Checked(BaseModel):
    """A model that exits when it is made."""

    way: str
    token: SecretStr = SecretStr("hunter2")
    more: Any = object()

    @field_validator("way")
    @classmethod
    def _checked(cls, way: str) -> str:
        if way == "validator":
            sys.exit(0)
        return way


async def child() -> None:
    await asyncio.sleep(0)
    raise SystemExit(0)


def interrupt() -> None:
    raise KeyboardInterrupt


async def leave(way: str) -> Any:
    """Exit in that way."""
    match way:
        case "raises":
            sys.exit(0)
        case "in a group":
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
        case "in a task":
            await asyncio.create_task(child())
        case "unnoticed":
            await asyncio.wait([asyncio.create_task(child())])
        case "late":
            left.add(asyncio.create_task(child()))
        case "in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, 0)
            await asyncio.sleep(0)
        case "interrupted in a callback":
            asyncio.get_running_loop().call_soon(interrupt)
            await asyncio.sleep(0)
        case "result":
            return Leaving()
        case "release":
            gate.set()
    return "still here"


async def check(checked: Checked) -> str:
    return checked.way


gate = asyncio.Event()
left: set[asyncio.Task[None]] = set()
innocent = Workflow("exits.innocent", ttl=1)


@innocent.step
async def wait() -> str:
    await gate.wait()
    return "done"


exiting = Workflow("exits.in_process", input={"way": str}, ttl=1)
exiting.step(name="it", spawn="process")(leave)
on_loop = Workflow("exits.on_loop", input={"way": str}, ttl=1)
on_loop.step(name="it")(leave)
validated = Workflow("exits.validated", input=Checked, ttl=1)
validated.step(name="it")(leave)
argued = Workflow("exits.argued", input={"way": str}, ttl=1)
argued.step(name="it", spawn="process", bind={"checked": Input("way").map(lambda way: {"way": way})})(check)

everything = [on_loop, validated, innocent]
