"""The event loop of a command."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from traceback import walk_tb
from typing import Any, Final

from bitactor.messages.values import shown
from mesh.cli.exits import CommandError
from mesh.hops.exits import run_on

_RUNNER: Final = asyncio.Runner.run.__code__.co_filename
"""Where asyncio raises what Ctrl-C comes to."""


def awaited(command: Coroutine[Any, Any, Any]) -> Any:
    """The answer of a command, whose loop goes on when a callback of the user's exits.

    Raises:
        CommandError: the command itself exits.
        KeyboardInterrupt: Ctrl-C.
    """
    with asyncio.Runner() as runner:
        task = runner.get_loop().create_task(command)

        async def ended() -> None:
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:  # Ctrl-C
                task.cancel()
                await asyncio.wait([task])
                raise

        def must_end(error: BaseException) -> bool:
            is_ctrl_c = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)][-1:] == [_RUNNER]
            return is_ctrl_c or (task.done() and not task.cancelled() and task.exception() is error)

        try:
            run_on(lambda: runner.run(ended()), must_end)
        except SystemExit as error:
            raise CommandError(f"the command was ended by {shown(error)}") from error
        return task.result()
