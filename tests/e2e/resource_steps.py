"""Workflows whose resources live in worker processes; found there by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitactor import Context, Resource, Workflow


class Marks:
    """Counts its uses, and leaves marks in a file when it is first used and when it is closed."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.uses = 0

    def use(self, path: str) -> int:
        if self.path is None:
            self.path = Path(path)
            self.mark("made")
        self.uses += 1
        return self.uses

    def mark(self, what: str) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(f"{what}\n")


@contextlib.contextmanager
def open_marks() -> Iterator[Marks]:
    marks = Marks()
    yield marks
    marks.mark("closed")


def make_slowly() -> str:
    time.sleep(1.5)
    return "made at last"


MARKS = Resource("marks", open_marks)

in_process = Workflow("process.marks", input={"path": str}, resources=[MARKS])


@in_process.step(spawn="process")
def leave_mark(path: str, marks: Any) -> int:
    return int(marks.use(path))


slow_in_process = Workflow("process.slow", resources=[Resource("slow", make_slowly)])


@slow_in_process.step(spawn="process", timeout=1.0)
def use_slow(slow: str) -> str:
    return slow


asking_in_process = Workflow("process.asking", resources=[MARKS])


@asking_in_process.step(spawn="process")
async def ask(ctx: Context) -> None:
    await ctx.resources.get("marks")


def _by_role(role: str) -> Workflow:
    workflow = Workflow(f"process.{role}", resources=[MARKS])
    step = workflow.step(spawn="process", name="leave_mark")(_takes if role == "run" else _nothing)
    if role == "undo":
        step.undo(_takes)
    if role == "compensate":
        step.compensate(_takes)
    return workflow


def _takes(marks: Any) -> None:
    return None


def _nothing() -> None:
    return None


in_process_by_role = {role: _by_role(role) for role in ("run", "undo", "compensate")}
