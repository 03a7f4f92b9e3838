"""The life of one resource, from its making to its end, in one task."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from bitactor.declare.functions import is_coroutine_function
from bitactor.declare.resource import Resource
from bitactor.errors import ResourceUnavailable
from bitactor.messages.values import named_text

logger = logging.getLogger("bitactor.resources")

CLOSE_WITHIN: Final = 2.0
"""Seconds that one resource may take to close."""
CANCEL_WITHIN: Final = 0.5
"""Seconds that a resource which was too slow to close may take to be cancelled."""
SLOW_AFTER: Final = 10.0
"""Seconds after which the log says that a resource is still being made."""


class ResourceLifecycle:
    """Makes a resource, keeps it, and ends it, all in one task and one context.

    So whatever a context manager enters (a task group, a cancel scope, a context variable), it leaves where it entered
    it.

    Args:
        needed: what the factory is called with.
        context: the context variables of its task.
        gone: called when the task has ended, perhaps by itself.
    """

    def __init__(
        self,
        resource: Resource,
        needed: Mapping[str, Any],
        context: contextvars.Context,
        on_ended: Callable[[ResourceLifecycle], None],
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.resource = resource
        # Resolved with the resource; fails with `ResourceUnavailable`
        self.ready: asyncio.Future[Any] = loop.create_future()
        self.checked_ns = 0
        self._end_requested = asyncio.Event()
        self._task = loop.create_task(self._run(needed), name=f"resource {resource.name}", context=context)
        self._task.add_done_callback(lambda _: on_ended(self))
        self._slow = loop.call_later(
            SLOW_AFTER, logger.warning, "resource %r is still being made after %g s", resource.name, SLOW_AFTER
        )

    @property
    def value(self) -> Any:
        """The resource, once it is made."""
        return self.ready.result()

    def end(self) -> None:
        """End the resource, as soon as it is made if it is not; does not wait."""
        self._end_requested.set()

    async def close(self) -> None:
        """End the resource and wait, for at most `CLOSE_WITHIN` and `CANCEL_WITHIN` seconds.  Twice is once."""
        self._end_requested.set()
        if not (await asyncio.wait([self._task], timeout=CLOSE_WITHIN))[0]:
            level, what = (logging.WARNING, "did not close") if self.ready.done() else (logging.INFO, "was not made")
            logger.log(level, "resource %r %s within %g s of closing", self.resource.name, what, CLOSE_WITHIN)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_WITHIN)

    async def _run(self, needed: Mapping[str, Any]) -> None:
        name = self.resource.name
        try:
            async with contextlib.AsyncExitStack() as stack:
                value = await _make(self.resource, needed, stack)
                self._slow.cancel()
                self.ready.set_result(value)
                await self._end_requested.wait()
        except BaseException as error:  # a factory may do anything, sys.exit() included
            if type(error) is GeneratorExit and not self._loop.is_running():
                raise  # the loop was closed around us
            self._slow.cancel()
            if self.ready.done():
                how = "did not close" if self._end_requested.is_set() else "ended by itself"
                logger.warning("resource %r %s: %s", name, how, named_text(error))
                return
            problem = ResourceUnavailable(f"resource {name!r} could not be made: {named_text(error)}")
            problem.__cause__ = error
            self.ready.set_exception(problem)
            self.ready.exception()  # also if nobody waits for it any longer


async def cancel_all(tasks: Collection[asyncio.Future[Any]], timeout: float) -> None:
    """Cancel `tasks` and wait for them, within `timeout` seconds."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)


async def call_user_function(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The answer of a user's function: an `async def` is awaited here, any other runs in a thread."""
    if is_coroutine_function(function):
        return await function(*arguments, **named)
    made = await asyncio.to_thread(without_stop_iteration, function, function, *arguments, **named)
    return await made if inspect.isawaitable(made) else made


async def _make(resource: Resource, needed: Mapping[str, Any], stack: contextlib.AsyncExitStack) -> Any:
    """The resource that the factory makes; what ends it is pushed on `stack`."""
    factory = resource.factory
    made = factory(**needed) if _makes_context(factory) else await call_user_function(factory, **needed)
    if isinstance(made, contextlib._AsyncGeneratorContextManager):
        return await stack.enter_async_context(made)
    if isinstance(made, contextlib._GeneratorContextManager):
        value = await asyncio.to_thread(made.__enter__)

        async def end(*error: Any) -> bool | None:
            return await asyncio.to_thread(made.__exit__, *error)

        stack.push_async_exit(end)
        return value
    if resource.close is not None:
        stack.push_async_callback(call_user_function, resource.close, made)
    return made


def _makes_context(function: Callable[..., Any]) -> bool:
    """Whether `function` was made by `@contextmanager` or `@asynccontextmanager`: calling it does nothing yet."""
    inner = inspect.unwrap(function)
    return inner is not function and (inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner))


def without_stop_iteration(who: object, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """What `function` answers with.  A future refuses a `StopIteration`, and who awaits it would wait for ever.

    Raises:
        RuntimeError: `who` raised a StopIteration.
    """
    try:
        return function(*arguments, **named)
    except StopIteration as error:
        raise RuntimeError(f"{who} raised StopIteration") from error
