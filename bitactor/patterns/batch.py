"""Batching: many calls become one."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple

from typing_extensions import override

from bitactor.declare.functions import may_need_awaiting, refuse_uncallable
from bitactor.declare.policy import Call, Policy, PolicyState, Proceed, is_verdict
from bitactor.messages.duration import nanoseconds
from bitactor.messages.outcome import Ok
from bitactor.messages.values import named_text, type_name
from bitactor.patterns.errors import BatchFailed
from bitactor.patterns.options import check_count, check_name, check_seconds, refuse
from bitactor.patterns.tasks import TaskResult, capture
from bitactor.ports import Clock, TimerHandle

Handler = Callable[[list[Any]], Awaitable[Sequence[Any]]]
"""Handles a batch; answers with one result for each item, in their order.  A result that is an exception is that item's
error."""

CLEANUP_SECONDS: Final = 0.5
"""Seconds that a batch which is cancelled as the mesh closes may take to clean up."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batching(Policy):
    """Gathers what the step returns, over all transactions of the mesh, and has it handled together.

        @orders.step(policies=[Batching("audit", size=50, interval=0.2, handler=insert_many)])
        async def record(order: dict, ctx: Context) -> dict:
            return {"key": ctx.idempotency_key, **order}            # the item

        async def insert_many(items: list[dict]) -> list[int]: ...  # a result for each, in order

    The step's function makes the item; the handler's result for it is the step's value.  A batch is handed over when it
    has `size` items, when its first has waited `interval` seconds, and when the mesh closes.  Whatever is handed over
    is answered for: an error of the handler is the error of each item, and a wrong number of results is one.  A call
    that is cancelled (or timed out) takes its item back if it has not been handed over; else its result is dropped.
    `Retry`, `Fail` and `Halt` are no items and pass through.

    Args:
        size: items a batch has at most.
        interval: seconds an item waits at most for others.
        handler: an `async def` over a list of items; several batches may be under way at once.

    Raises:
        DefinitionError: an option is invalid.
    """

    pattern: ClassVar[str] = "batching"
    name: str
    size: int
    interval: float
    handler: Handler

    def __post_init__(self) -> None:
        check_name(self)
        check_count(self, "size")
        check_seconds(self, "interval")
        if not callable(self.handler) or not may_need_awaiting(self.handler):
            raise refuse(
                self,
                "handler",
                "give an `async def` over a list of items; a plain function would stop the loop while it works",
            )
        refuse_uncallable(f"Batching({self.name!r}): handler=", self.handler, ("items",), may_await=True)

    @override
    def open(self, clock: Clock) -> BatchingState:
        return BatchingState(self, clock)


class _Batch(NamedTuple):
    waiters: list[asyncio.Future[TaskResult]]
    items: list[Any]


class BatchingState(PolicyState):
    """The items being gathered, and the batches under way."""

    def __init__(self, policy: Batching, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._waiting: dict[asyncio.Future[TaskResult], Any] = {}
        self._timer: TimerHandle | None = None
        self._under_way: dict[asyncio.Task[None], _Batch] = {}
        # The one that the state was opened in: a batch belongs to none of the hops that it serves.
        self._context = contextvars.copy_context()
        self._closing = self._closed = False
        self._calls = self._flushed = self._handled = self._failed = self._withdrawn = 0

    @override
    async def around(self, call: Call, proceed: Proceed) -> Any:
        """The step's value is an item, which is gathered; the answer is the handler's result for it.  Verdicts pass
        through.

        Raises:
            BatchFailed: there is no result for this item.
        """
        self._calls += 1
        item = await proceed()
        if issubclass(type(item), Ok):
            item = item.value
        if is_verdict(item):
            return item
        if self._closed:
            raise BatchFailed(f"batch {self._policy.name!r} is closed, for its mesh is; the item was not handed over")
        waiter = self._gather(item)
        try:
            task_result = await waiter
        finally:
            self._withdraw(waiter)
        return task_result.get()

    @override
    def about(self) -> Mapping[str, Any]:
        return {
            "calls": self._calls,
            "waiting": len(self._waiting),
            "under_way": len(self._under_way),
            "flushed": self._flushed,
            "handled": self._handled,
            "failed": self._failed,
            "withdrawn": self._withdrawn,
        }

    @override
    def drain(self) -> None:
        """Hand over the gathered items, and from now on every item at once."""
        self._closing = True
        self._flush()

    @override
    async def close(self, timeout: float) -> None:
        """Hand over the gathered items and wait for all batches; a batch not done in time is logged, and its items
        fail."""
        # The time to close in is real time, as for everything that closes: with a clock that stands still it must end
        # too.
        until = asyncio.get_running_loop().time() + timeout
        self.drain()
        try:
            await self._all_done(until)
        finally:  # also when whoever closes has lost patience first
            self._closed = True
            tasks = self._fail_rest(f"was not done within the {timeout:g} s that its mesh took to close")
        if tasks:
            await asyncio.wait(tasks, timeout=CLEANUP_SECONDS)

    async def _all_done(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while self._under_way and (left := until - loop.time()) > 0:
            await asyncio.wait(self._under_way, timeout=left)
            await asyncio.sleep(0)  # those who waited go on, perhaps with a further item

    def _fail_rest(self, why: str) -> list[asyncio.Task[None]]:
        """Fail the items of all batches under way, and cancel these; answers with their tasks."""
        tasks = list(self._under_way)
        for batch in self._under_way.values():
            _log.error("batch %r with %d items %s; they fail", self._policy.name, len(batch.items), why)
            self._resolve(
                batch, [TaskResult(None, BatchFailed(f"batch {self._policy.name!r} {why}"))] * len(batch.items)
            )
        for task in tasks:
            task.cancel()
        return tasks

    def _gather(self, item: Any) -> asyncio.Future[TaskResult]:
        waiter: asyncio.Future[TaskResult] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = item
        if len(self._waiting) >= self._policy.size or self._closing:
            self._flush()
        elif self._timer is None:
            self._timer = self._clock.call_at(
                self._clock.monotonic_ns() + nanoseconds(self._policy.interval), self._flush
            )
        return waiter

    def _withdraw(self, waiter: asyncio.Future[TaskResult]) -> None:
        if waiter in self._waiting:
            del self._waiting[waiter]
            self._withdrawn += 1
            if not self._waiting:
                self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush(self) -> None:
        self._stop_timer()
        if not self._waiting:
            return
        batch = _Batch(list(self._waiting), list(self._waiting.values()))
        self._waiting = {}
        self._flushed += 1
        task = asyncio.get_running_loop().create_task(self._handle(batch), context=self._context.copy())
        self._under_way[task] = batch
        task.add_done_callback(partial(self._task_done, batch))

    async def _handle(self, batch: _Batch) -> None:
        for index in reversed(range(len(batch.waiters))):
            if batch.waiters[index].done():  # cancelled in the turn in which the batch was made
                del batch.waiters[index], batch.items[index]
                self._withdrawn += 1
        if batch.items:
            task_result = await capture(lambda: self._policy.handler(list(batch.items)))
            count = len(batch.items)
            try:
                task_results = self._task_results(task_result, count)
            except BaseException as error:  # of what the handler answered with
                problem = BatchFailed(f"batch {self._policy.name!r}: its results cannot be read: {named_text(error)}")
                problem.__cause__ = error
                task_results = [TaskResult(None, problem)] * count
            self._resolve(batch, task_results)

    def _task_results(self, task_result: TaskResult, count: int) -> list[TaskResult]:
        """One result or error for each of `count` items, from how the handler ended."""
        name = self._policy.name
        error, results = task_result.error, task_result.value
        if issubclass(type(error), asyncio.CancelledError):
            error = BatchFailed(f"batch {name!r}: its handler was cancelled")
        elif error is None and (not isinstance(results, Sequence) or isinstance(results, str | bytes)):
            error = BatchFailed(
                f"batch {name!r}: the handler returned a {type_name(results)} for {count} items; return a list of "
                "results"
            )
        elif error is None and len(results := list(results)) != count:
            error = BatchFailed(
                f"batch {name!r}: the handler returned {len(results)} results for {count} items; return one for each, "
                "in order"
            )
        if error is not None:
            return [TaskResult(None, error)] * count
        return [
            TaskResult(None, result) if issubclass(type(result), BaseException) else TaskResult(result, None)
            for result in results
        ]

    def _resolve(self, batch: _Batch, task_results: Sequence[TaskResult]) -> None:
        for waiter, task_result in zip(batch.waiters, task_results, strict=True):
            self._handled += task_result.error is None
            self._failed += task_result.error is not None
            if not waiter.done():
                waiter.set_result(task_result)
        batch.waiters.clear()
        batch.items.clear()

    def _task_done(self, batch: _Batch, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        if batch.waiters:  # it was cancelled before it could begin
            error = BatchFailed(f"batch {self._policy.name!r}: its handler was cancelled")
            self._resolve(batch, [TaskResult(None, error)] * len(batch.waiters))
