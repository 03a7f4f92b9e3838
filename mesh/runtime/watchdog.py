"""A watchdog of the event loop: it notices when the loop stands still, and logs whose code has stopped it."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Final

from mesh.hops.actor import BitActor
from mesh.hops.executor import Executor
from mesh.spawners.loop import InlineSpawner, LoopSpawner

logger = logging.getLogger("bitactor.watchdog")

SLICES: Final = 4
"""Looks in a row that a loop has to miss to count as blocked: so it stood still while this process had the processor,
and was not stopped as a whole."""
MOST_FRAMES: Final = 40
STOP_WITHIN: Final = 1.0
"""Seconds that the watchdog's thread may take to end."""

_CALLERS: Final = {
    LoopSpawner._drive.__code__: "",
    InlineSpawner.start.__code__: "",
    Executor._judge.__code__: "compensation or backoff of ",
}
"""Code that calls users' functions on the loop, with the hop as its local `actor` → what it calls of the hop."""


class Watchdog:
    """Looks at a loop from a thread of its own, and logs a warning, once for each time that the loop has not turned for
    `blocked_after` seconds; 0: it does not look.

    Time is real time, whatever clock the mesh has.  It costs the loop an empty callback for each quarter of
    `blocked_after`, and hops nothing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, blocked_after: float) -> None:
        self._loop = loop
        self._slice = blocked_after / SLICES
        self._loop_turned, self._stopped = threading.Event(), threading.Event()
        self._watched = 0
        self._count = 0
        self._longest = 0.0
        self._thread = threading.Thread(target=self._watch, name="bitactor-watchdog", daemon=True)

    def start(self) -> None:
        """Start the watching thread; called on the loop's thread."""
        self._watched = threading.get_ident()
        if self._slice:
            self._thread.start()

    def stop(self) -> None:
        """Stop the watching thread.  Twice is once."""
        self._stopped.set()
        self._loop_turned.set()
        if self._thread.is_alive():
            self._thread.join(STOP_WITHIN)

    def about(self) -> dict[str, float]:
        """How many `times` the loop has stood still, and the seconds of the `longest`, which may be going on."""
        return {"times": self._count, "longest": round(self._longest, 3)}

    def _watch(self) -> None:
        while not self._stopped.wait(self._slice):
            self._loop_turned.clear()
            asked = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._loop_turned.set)
            except RuntimeError:
                return  # the loop is closed
            if self._stopped.is_set() or any(self._loop_turned.wait(self._slice) for _ in range(SLICES)):
                continue
            running = self._loop.is_running()  # if not, somebody drives it piecemeal, and stands still beside it
            if running:
                self._record(asked)
                self._warn(time.monotonic() - asked)
                self._count += 1
            while not self._loop_turned.wait(self._slice):
                if running:
                    self._record(asked)

    def _record(self, since: float) -> None:
        self._longest = max(self._longest, time.monotonic() - since)

    def _warn(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = _stack_of(frame)
        culprit = _hop_in(stack)
        if culprit is None:
            task = asyncio.current_task(self._loop)
            what = "no step's code" if task is None else f"task {task.get_name()!r}"
            shown = stack[-MOST_FRAMES:]
            advice = "see the stack"
        else:
            position, role, actor = culprit
            signal = actor.signal
            about = f"spawn={actor.step.spawn!r}, attempt {signal.attempt}, transaction {signal.transaction}"
            what = f"{role}step {signal.name!r} ({about})"
            shown = stack[position + 1 :][-MOST_FRAMES:]
            advice = (
                "let it await what it waits for, or make it a plain `def` with spawn='thread' or, if it computes, "
                "spawn='process'"
            )
        lines = traceback.StackSummary.extract(((each, each.f_lineno) for each in shown), capture_locals=False).format()
        del frame, stack, shown
        logger.warning(
            "the event loop has not turned for %.3g s, and every other hop waits: it runs %s; %s\n%s",
            seconds, what, advice, "".join(lines).rstrip(),
        )  # fmt: skip


def _stack_of(frame: FrameType | None) -> list[FrameType]:
    """The frames of a stack, the outermost first."""
    stack: list[FrameType] = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    return stack[::-1]


def _hop_in(stack: list[FrameType]) -> tuple[int, str, BitActor] | None:
    """The innermost call of a user's function in the stack: its position, what it is of the hop, and the hop's
    actor."""
    for position in reversed(range(len(stack))):
        role = _CALLERS.get(stack[position].f_code)
        if role is not None:
            actor = stack[position].f_locals.get("actor")
            return (position, role, actor) if isinstance(actor, BitActor) else None
    return None
