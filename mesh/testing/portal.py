"""An event loop in a thread of its own, for tests that are no coroutines."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """A loop in a thread that runs coroutines for a thread without one.  All meshes of such a test share it, and with
    it one fake clock."""

    def __init__(self) -> None:
        started = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(started,), name="bitactor-test-loop", daemon=True)
        self._thread.start()
        started.wait()

    def _live(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._until_closed(started))

    async def _until_closed(self, started: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        started.set()
        await self._closing.wait()

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any, **options: Any) -> T:
        """Await `function(*arguments, **options)` on the portal's loop, and return what it returns."""
        return self.start(function(*arguments, **options)).result()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin a coroutine on the portal's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        """End the portal's loop; what still runs on it is cancelled."""
        self.loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()


def in_a_loop() -> bool:
    """Whether this is called on an event loop of asyncio, in a coroutine or a callback."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
