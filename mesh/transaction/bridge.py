"""The bridge from threads to the event loop that a mesh lives on, and such a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from types import CoroutineType
from typing import Any, Final, ParamSpec, TypeVar, overload

from bitactor.errors import BitActorError
from mesh.hops.exits import run_on

P = ParamSpec("P")
T = TypeVar("T")

PATROL_SECONDS: Final = 0.4
"""Seconds after which a thread that waits looks whether the loop still runs; twice not, and it waits no more."""


class Bridge:
    """Runs calls on an event loop for threads that are not the loop's.  Each call gives its value or raises what it
    raised, whatever that is.  Made on the loop.

    Args:
        closed: whether what is called has been closed: it waits for nothing any more, so it answers on any thread.
    """

    def __init__(self, closed: Callable[[], bool] = lambda: False) -> None:
        self.loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._closed = closed

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the loop's, where that does not run."""
        return os.getpid() != self._process

    @overload
    def call(self, function: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **options: P.kwargs) -> T: ...
    @overload
    def call(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T: ...
    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The value of `function(*arguments, **options)`, awaited on the loop if it is a coroutine.

        Raises:
            BitActorError: called on the loop's own thread, where waiting would be a deadlock; in a fork; or the loop
                ended meanwhile.
            What the call raises.
        """
        if self.forked:
            raise BitActorError(
                f"this mesh was opened by process {self._process}, of which process {os.getpid()} is a fork: its loop "
                "and threads are not here; open a mesh in this process"
            )
        if self._closed():
            return _value(function(*arguments, **options))
        if threading.get_ident() == self._thread:
            raise BitActorError(
                "a blocking call on the mesh's own loop would wait for itself for ever; await the async one instead"
            )
        future: Future[Any] = Future()
        try:
            # Called there, where no Ctrl-C can come between making a coroutine and starting it.
            self.loop.call_soon_threadsafe(self._start, future, lambda: function(*arguments, **options))
        except RuntimeError:
            raise self._gone() from None
        try:
            self._wait(future)
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # no circle of it, its exception, and that one's traceback

    def _start(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Begin a call, on the loop, unless nobody waits for it any more."""
        if future.cancelled():
            return
        try:
            value = call()
            if self._closed():
                value = _value(value)
            if type(value) is CoroutineType:
                _Awaiting(self.loop, value, future)
                return
        except BaseException as error:
            _fail(future, error)
        else:
            _answer(future, value)

    def _wait(self, future: Future[Any]) -> None:
        """Wait for a call's end; raises `BitActorError` if the loop ends before."""
        idle = 0
        while not wait([future], timeout=PATROL_SECONDS).done:
            idle = 0 if self.loop.is_running() else idle + 1
            if idle == 2 or self.loop.is_closed():
                raise self._gone()

    def _gone(self) -> BitActorError:
        return BitActorError(
            "this mesh was closed meanwhile"
            if self._closed()
            else "the event loop that this mesh lives on does not run any more; close the mesh before its loop ends"
        )


class _Awaiting:
    """A coroutine that runs on the loop for a thread which waits in `future`; cancelled when that gives up."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], future: Future[Any]
    ) -> None:
        self._loop = loop
        self._coroutine = coroutine
        self._future = future
        settling = self._settle()
        try:
            self._task = loop.create_task(settling)
        except BaseException:  # of a task factory
            settling.close()
            coroutine.close()
            raise
        self._task.add_done_callback(self._ended)
        future.add_done_callback(self._cancel)

    async def _settle(self) -> None:
        """Hand the outcome over.  No exception leaves this: asyncio lets some of them end the loop."""
        try:
            value = await self._coroutine
        except BaseException as error:
            _fail(self._future, _closing() if _is_stopped(error) else error)
        else:
            _answer(self._future, value)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._coroutine.close()  # without effect, unless the task was cancelled before it began
        _fail(self._future, _closing())

    def _cancel(self, future: Future[Any]) -> None:
        if future.cancelled():
            with suppress(RuntimeError):  # the loop is closed, and the task with it
                self._loop.call_soon_threadsafe(self._task.cancel)


class LoopThread:
    """An event loop in a thread of its own, until `close`."""

    def __init__(self, name: str) -> None:
        self._closing = threading.Event()
        started: Future[Bridge] = Future()
        self._thread = threading.Thread(target=self._live, args=(started,), name=name, daemon=True)
        self._thread.start()
        try:
            self.bridge: Final = started.result()
        except BaseException:  # Ctrl-C
            self._closing.set()
            started.add_done_callback(lambda future: self._stop(future.result().loop))
            raise

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop."""
        return self.bridge.loop

    def call(self, function: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **options: P.kwargs) -> T:
        """Await `function(*arguments, **options)` on the loop, and return what it returns."""
        return self.bridge.call(function, *arguments, **options)

    def close(self) -> None:
        """End the loop; what still runs on it is cancelled.  Twice is once."""
        self._closing.set()
        self._stop(self.loop)
        self._thread.join()

    @staticmethod
    def _stop(loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # closed already
            loop.call_soon_threadsafe(loop.stop)

    def _live(self, started: Future[Bridge]) -> None:
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:
            _fail(started, error)
            return
        try:
            asyncio.set_event_loop(loop)
            loop.call_soon(lambda: started.set_result(Bridge()))
            run_on(lambda: None if self._closing.is_set() and started.done() else loop.run_forever())
        finally:
            loop.run_until_complete(_cancel_others())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            loop.close()


def _value(result: Any) -> Any:
    """The result of a call to what is closed; a coroutine's too, which waits for nothing there."""
    if type(result) is not CoroutineType:
        return result
    try:
        result.send(None)
    except StopIteration as end:
        return end.value
    finally:
        result.close()
    raise _closing()


def _is_stopped(error: BaseException) -> bool:
    """Whether the current task was cancelled from outside; otherwise what runs in it has raised CancelledError."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _closing() -> BitActorError:
    return BitActorError("this mesh was closed meanwhile")


def _answer(future: Future[Any], value: Any) -> None:
    """Give a waiting thread the value, unless it has given up."""
    with suppress(InvalidStateError):
        future.set_result(value)


def _fail(future: Future[Any], error: BaseException) -> None:
    """Give a waiting thread an exception, unless it has an outcome or has given up."""
    with suppress(InvalidStateError):
        future.set_exception(error)


async def _cancel_others() -> None:
    """Cancel all other tasks on this loop, which ends."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=1.0)
