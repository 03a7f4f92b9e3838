"""Steps that exit: a `SystemExit` or `KeyboardInterrupt` that a task of a step raises is an error of that task.

asyncio lets these two out of any task and out of the loop, which would end the whole node for what one step has done.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Final

from bitactor.errors import StepExited

IN_STEP: Final = contextvars.ContextVar("bitactor_in_step", default=False)
"""Whether this is the context of a step, or of a task that a step has made."""


def contain_exits(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Have the loop contain what tasks of steps raise; returns what undoes that.

    Tasks that are made elsewhere are made as before.
    """
    before = loop.get_task_factory()

    def make(
        loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: contextvars.Context | None = None, **options: Any
    ) -> Any:
        in_step = IN_STEP.get() if context is None else context.get(IN_STEP, False)
        if in_step and asyncio.iscoroutine(coroutine):
            coroutine = _contained(coroutine)
        if context is not None:
            options["context"] = context
        if before is not None:
            return before(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)

    def restore() -> None:
        if loop.get_task_factory() is make:
            loop.set_task_factory(before)

    loop.set_task_factory(make)
    return restore


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise StepExited(f"a task of a step raised {error!r}") from error
