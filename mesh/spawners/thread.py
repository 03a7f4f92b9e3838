"""The thread spawner: pooled threads, for `def` functions that block."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from types import CoroutineType
from typing import Any, Final

from typing_extensions import override

from bitactor.declare.spawners import SPAWNERS
from mesh.hops.ports import REPLIED, Actor, Spawner
from mesh.limits.pools import DEFAULT_THREADS, LENDER, PermitLender, PermitSet, Pool
from mesh.spawners.loop import LoopSpawner

MAX_ZOMBIES = 256
"""Threads that may be stuck in fenced functions; beyond that, no replacements are started for them."""

MAX_LENT = 256
"""Hops of one depth whose threads may wait for other transactions; beyond that, no hop of that depth is started beside
them."""

_NOT_STARTED: Final = object()
"""In place of a function's value: it was not called, for that came too late."""

_Job = tuple[Actor, contextvars.Context]


class ThreadPermit(PermitSet):
    """A hop's permits for a thread, and for a place at its depth."""

    __slots__ = ("_actor", "_start")

    def __init__(
        self, actor: Actor, pools: tuple[tuple[Pool, ...], tuple[Pool, ...]], start: Callable[[Actor], None]
    ) -> None:
        super().__init__(*pools, actor.rank)
        self._actor = actor
        self._start = start

    @override
    def on_acquired(self) -> None:
        self._start(self._actor)


class ThreadSpawner(Spawner):
    """A pool of daemon threads, started when first needed.

    A thread cannot be stopped from outside.  A function that outlives its attempt is *fenced*: its actor has answered
    for it, its thread is replaced, and what it returns in the end is told as a late reply.  A function that blocks on
    another transaction (`mesh.run`, `BlockingTransaction.result`) does not count either, until it goes on.

    Who waits is served by rank (undo, then the highest priority), and in order of arrival among equals.
    """

    traits = SPAWNERS["thread"]

    def __init__(self, threads: int = DEFAULT_THREADS) -> None:
        self._limit = threads
        self._pool = Pool("threads", threads)
        # Depth → its pool: each has a limit of its own, so that neither can hops that wait for others take all threads
        # there could be, nor do the others find none.
        self._depth_pools: dict[int, Pool] = {}
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._permits: dict[Actor, ThreadPermit] = {}
        self._running: set[Actor] = set()  # actors whose function has a thread, whether it counts or not
        self._fenced: set[Actor] = set()
        self._threads: set[threading.Thread] = set()
        self._thread_count = 0  # threads that have not been told to end: at least one for each function that runs
        self._rest = LoopSpawner()  # awaits the coroutines that functions have passed on
        self._finished: deque[tuple[Actor, Any, BaseException | None]] = deque()

    @override
    def start(self, actor: Actor) -> None:
        """The actor waits for a free thread; its time does not count meanwhile."""
        pool = self._depth_pool(0 if actor.permits is None else actor.permits.depth)
        permit = self._permits[actor] = ThreadPermit(actor, ((self._pool,), (pool,)), self._begin)
        if permit.acquire():
            self._begin(actor)

    @override
    def abandon(self, actor: Actor) -> None:
        """Forgets an actor that waits; the thread of one that has replied already does not count any more."""
        permit = self._permits.get(actor)
        if permit is None:
            return
        if actor not in self._running:
            del self._permits[actor]
            permit.release()
        elif actor.state == REPLIED and actor not in self._fenced and len(self._fenced) < MAX_ZOMBIES:
            self._fenced.add(actor)
            permit.release()

    @override
    async def close(self, timeout: float) -> None:
        """Lets idle threads end, and waits for running functions as long as there is time.  Threads that are stuck die
        with the process."""
        for actor in [actor for actor in self._permits if actor not in self._running]:
            self.abandon(actor)
        await self._rest.close(timeout)
        for _ in list(self._threads):
            self._jobs.put(None)
        deadline = asyncio.get_running_loop().time() + timeout
        for thread in list(self._threads):
            left = deadline - asyncio.get_running_loop().time()
            if left > 0 and thread.is_alive():
                await asyncio.to_thread(thread.join, left)

    def about(self) -> dict[str, Any]:
        """Counts of `threads` that serve, of hops `claimed` (waiting, running or fenced) and `running`; its places as
        `Pool.about` says them, and under `depths` those of each depth of transactions that others wait for.
        """
        return {
            "threads": self._thread_count,
            "claimed": len(self._permits),
            "running": len(self._running),
            **self._pool.about(),
            "depths": {str(depth): pool.about() for depth, pool in list(self._depth_pools.items())},
        }

    def _depth_pool(self, depth: int) -> Pool:
        pool = self._depth_pools.get(depth)
        if pool is None:
            pool = self._depth_pools[depth] = Pool(f"threads at depth {depth}", self._limit + MAX_LENT)
        return pool

    def _begin(self, actor: Actor) -> None:
        if not actor.begin():
            # In the loop's next turn, or many that may not start would be deep in each other.
            actor.executor.loop.call_soon(self._permits.pop(actor).release)
            return
        context = actor.executor.contextvars_for(actor)
        context.run(_lend_thread, actor, self._permits[actor])
        self._running.add(actor)
        if self._thread_count < len(self._running):
            thread = threading.Thread(target=self._work, name="bitactor-thread", daemon=True)
            thread.start()
            self._threads.add(thread)
            self._thread_count += 1
        self._jobs.put((actor, context))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            actor, context = job
            value, error = None, None
            if actor.executor.monotonic_ns() >= actor.starts_until_ns():
                value = _NOT_STARTED
            else:
                try:
                    value = context.run(actor.callback.function, **actor.kwargs)
                except BaseException as raised:
                    error = raised
            self._finished.append((actor, value, error))
            try:
                actor.executor.call_threadsafe(self._collect)
            except RuntimeError:
                return  # the loop is closed; nobody is left to tell
            del job, actor, context, value, error
        self._threads.discard(threading.current_thread())

    def _collect(self) -> None:
        while self._finished:
            actor, value, error = self._finished.popleft()
            self._running.discard(actor)
            self._fenced.discard(actor)
            self._permits.pop(actor).release()
            if value is _NOT_STARTED:
                actor.give_back()
            elif type(value) is CoroutineType:
                self._rest.take_over(actor, value)
            else:
                actor.finish(value, error)
        while self._thread_count > max(self._limit, len(self._running)):  # started in place of some that are back
            self._thread_count -= 1
            self._jobs.put(None)


def _lend_thread(actor: Actor, permit: ThreadPermit) -> None:
    """Have a hop that is about to start lend its thread too while it waits; called in the hop's context."""
    lender = LENDER.get()
    if lender is None:
        lender = PermitLender(actor.executor.loop, 0)
        LENDER.set(lender)
    lender.add(permit)
