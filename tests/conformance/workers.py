"""Workflows of worker processes, which import this module by its name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from bitactor import Workflow
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
