"""An event loop in a thread of its own, for tests that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from mesh.transaction.bridge import LoopThread

T = TypeVar("T")


class Portal(LoopThread):
    """A loop in a thread that runs coroutines for a thread without one.  All meshes of such a test share it, and with
    it one fake clock."""

    def __init__(self) -> None:
        super().__init__("bitactor-test-loop")

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine on the portal's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


def in_a_loop() -> bool:
    """Whether this is called on an event loop of asyncio, in a coroutine or a callback."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
