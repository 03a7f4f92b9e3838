"""Workflows of worker processes, which import this module by its name."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitactor import Input, Workflow
from tests.conformance.elsewhere import Notes

deadly = Workflow("deadly", input={"directory": str, "times": int}, redeliveries=2, grace=0.2)
"""Runs in a worker process, and kills that so many times."""


@deadly.step(spawn="process")
def explode(directory: str, times: int) -> int:
    """Answers with the process that has survived."""
    notes = Notes(Path(directory))
    notes.add("explode")
    if len(notes.lines) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


@explode.compensate
async def consider(error: Exception, directory: str) -> None:
    """Is asked in the supervisor's process."""
    Notes(Path(directory)).add(f"compensate {type(error).__name__}")


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `def` that passes a coroutine on, as decorators do."""

    @functools.wraps(function)
    def run(**arguments: Any) -> Any:
        return function(**arguments)

    return run


@passed_on
async def worker(x: int) -> list[int]:
    await asyncio.sleep(0)
    return [x, os.getpid()]


@passed_on
async def forget(result: list[int], directory: str, parent: int) -> None:
    await asyncio.sleep(0)
    Notes(Path(directory)).add(f"forget {result[0]}, {[pid == parent for pid in (os.getpid(), result[1])]}")


decorated = Workflow("decorated", input={"x": int, "where": str, "process": int})
"""Its step, and the undo that `bind` tells more than the step, are decorated, and run in a worker process."""
decorated.add(worker, spawn="process", bind={"directory": Input("where"), "parent": Input("process")}, undo=forget)
decorated.flunk("last", "no {worker}")
