"""Pools of permits: how many hops may hold one at once.

A `PermitSet` takes one permit from each of some pools.  It acquires all of them in one moment, or waits and holds none
of them: nobody ever holds one permit while waiting for another, so no circle of waits can close.  Whoever waits does so
in the queue of a pool that is exhausted; when that has a free permit again and another pool of the set is exhausted by
then, the set moves to that one's queue, and keeps its order.

A hop that waits for another transaction *lends* its permits meanwhile and reacquires them, ahead of everybody else,
before it goes on; so a transaction that needs the same pool as the hop that waits for it can run.  Nothing here
knows a thread or a clock; everything is called on one thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from typing import Final

from typing_extensions import override

from bitactor.errors import ConfigurationError, suggest
from bitactor.plan.plan import Plan
from mesh.limits.priority_queue import PriorityQueue, Rank


def usable_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use: those it is bound to, and no more than its container's `limit` (cgroup
    v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, ZeroDivisionError):  # there is none; the file says `max 100000`
        quota, period = map(int, limit.read_text(encoding="ascii").split())
        cores = min(cores, -(-quota // period))
    return max(cores, 1)


DEFAULT_THREADS: Final = min(32, usable_cores() + 4)
"""Permits of the pool of threads by default."""

NEW: Final = "new"
WAITING: Final = "waiting"
HELD: Final = "held"
LENT: Final = "lent"
REACQUIRING: Final = "reacquiring"
"""State of a permit set that waits to acquire again what it lent."""
RELEASED: Final = "released"

_arrivals = count()


class Pool:
    """A number of permits, those that hold one, and the queue of those that wait; users call a permit a place."""

    __slots__ = ("in_use", "lent", "name", "permits", "queue")

    def __init__(self, name: str, permits: int) -> None:
        self.name = name
        self.permits = permits
        self.in_use = 0
        self.lent = 0  # permit sets that have lent their permit here and will want it again; not counted in `in_use`
        self.queue: PriorityQueue[PermitSet] = PriorityQueue()

    def about(self) -> dict[str, int]:
        """The pool's permits (`places`), and how many permit sets have one (`taken`), are `waiting` for one, or have
        `lent` theirs."""
        return {"places": self.permits, "taken": self.in_use, "waiting": len(self.queue), "lent": self.lent}

    @override
    def __repr__(self) -> str:
        return f"<Pool {self.name!r}: {self.in_use} of {self.permits} taken, {len(self.queue)} waiting>"


class PermitSet:
    """One permit from each of some pools, all held or none; see the module.

    Args:
        lendable: pools whose permit is lent while its holder waits for a transaction.
        retained: pools whose permit is held until the end.
        rank: the permit set's order among those that wait.
    """

    __slots__ = ("_lendable", "_queue", "_retained", "arrival", "on_reacquired", "rank", "state")

    def __init__(self, lendable: tuple[Pool, ...], retained: tuple[Pool, ...], rank: Rank) -> None:
        self.rank = rank
        self.state = NEW
        # Called when the lent permits are held again, or never will be
        self.on_reacquired: Callable[[], None] | None = None
        self.arrival = next(_arrivals)  # the order among permit sets of the same rank: the smaller number goes first
        self._lendable = lendable
        self._retained = retained
        self._queue: PriorityQueue[PermitSet] | None = None

    def on_acquired(self) -> None:
        """Called when the wait that `acquire` began is over, while others are served: only note it."""

    def acquire(self) -> bool:
        """Take every permit now, or wait until `on_acquired` is called; True: all are held now."""
        self.state = WAITING
        return self._try_acquire()

    def lend(self) -> None:
        """Let others have the lendable permits while the holder waits.  Without effect on a set that holds nothing."""
        if self.state == HELD and self._lendable:
            self.state = LENT
            for pool in self._lendable:
                pool.lent += 1
            _release_permits(self._lendable)
        elif self.state == REACQUIRING:
            self._leave_queue()
            self.state = LENT

    def reacquire(self) -> bool:
        """Take the lent permits, or wait until `on_reacquired` is called; True: there is nothing to wait for."""
        if self.state == LENT:
            self.state = REACQUIRING
            self.arrival = next(_arrivals)
            self._try_acquire()
        return self.state != REACQUIRING

    def release(self) -> None:
        """Give all permits back, and wait for none.  Twice is once."""
        state, self.state = self.state, RELEASED
        self._leave_queue()
        on_reacquired, self.on_reacquired = self.on_reacquired, None
        if state == HELD:
            _release_permits(self._lendable + self._retained)
        elif state in (LENT, REACQUIRING):
            for pool in self._lendable:
                pool.lent -= 1
            _release_permits(self._retained)
            if on_reacquired is not None:
                on_reacquired()

    def _try_acquire(self) -> bool:
        """Take all permits and return True, or none and enter the queue of a pool that is exhausted."""
        reacquiring = self.state == REACQUIRING
        pools = self._lendable if reacquiring else self._lendable + self._retained
        for pool in pools:
            if pool.in_use >= pool.permits:
                self._queue = pool.queue
                pool.queue.add(self, (0, *self.rank[1:]) if reacquiring else self.rank, self.arrival)
                return False
        for pool in pools:
            pool.in_use += 1
            pool.lent -= reacquiring
        self._queue = None
        self.state = HELD
        return True

    def _leave_queue(self) -> None:
        if self._queue is not None:
            self._queue.discard(self)
            self._queue = None


def _release_permits(pools: tuple[Pool, ...]) -> None:
    """Give one permit back to each pool, and serve the permit sets that wait for them."""
    for pool in pools:
        pool.in_use -= 1
    served: list[tuple[PermitSet, bool]] = []
    while queues := [pool.queue for pool in pools if pool.queue and pool.in_use < pool.permits]:
        permit_set = min(queues, key=PriorityQueue.head).pop()
        reacquiring = permit_set.state == REACQUIRING
        if permit_set._try_acquire():
            served.append((permit_set, reacquiring))
    for permit_set, reacquiring in served:
        if not reacquiring:
            permit_set.on_acquired()
        elif permit_set.on_reacquired is not None:
            permit_set.on_reacquired()


class Pools:
    """The named pools of one mesh."""

    def __init__(self, permits: Mapping[str, int]) -> None:
        self._pools = {name: Pool(name, number) for name, number in permits.items()}
        # Names of workflows that nest others of which some have a `max_concurrency` of their own
        self.with_nested_limits: set[str] = set()

    def find(self, name: str, who: str) -> Pool:
        """The pool named `name`, by which `who` is limited.

        Raises:
            ConfigurationError: this mesh has no such pool.
        """
        pool = self._pools.get(name)
        if pool is None:
            raise ConfigurationError(
                f"{who} is limited by the pool {name!r}, which this mesh does not have; give it places: "
                f"Mesh(…, pools={{{name!r}: 10}}), or BITACTOR_POOLS.{suggest(name, self._pools)}"
            )
        return pool

    def declare(self, plan: Plan) -> None:
        """Check the pools of a workflow or consumer that will run here, and note its nested limits.

        Raises:
            ConfigurationError: one of its steps is limited by a pool that is not there.
        """
        for step in plan.all_steps():
            if step.limit is not None:
                self.find(step.limit, f"step {step.address!r}")
            if step.container is not None and any(body.max_concurrency is not None for body in step.container.bodies):
                self.with_nested_limits.add(plan.workflow)

    def about(self) -> dict[str, dict[str, int]]:
        """Name → `places`, and how many hops have `taken` one, are `waiting` for one, or have `lent` theirs."""
        return {name: pool.about() for name, pool in self._pools.items()}


class PermitLender:
    """Lends a hop's permits while any of its code is inside `async with lender`, and reacquires them before it goes on.

    Of several waits at once the last one to end reacquires them.  A hop that is asked to stop, or has had to be
    answered for, reacquires nothing; its permits are released by then.  On the loop's thread only.
    """

    __slots__ = ("_permit_sets", "_reacquired", "_waits", "depth", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int) -> None:
        self.loop = loop
        self.depth = depth  # how many hops wait for another above the transaction that this hop is of
        self._permit_sets: list[PermitSet] = []
        self._waits = 0
        self._reacquired: asyncio.Event | None = None

    def add(self, permit_set: PermitSet) -> None:
        """Lend `permit_set` as well.  Permit sets are reacquired in the order in which they were added, which is the
        order in which every hop acquires them."""
        self._permit_sets.append(permit_set)

    async def __aenter__(self) -> None:
        self._waits += 1
        if self._waits > 1:
            return
        if self._reacquired is None:
            self._reacquired = asyncio.Event()
        self._reacquired.set()
        for permit_set in self._permit_sets:
            permit_set.on_reacquired = self._reacquired.set
            permit_set.lend()

    async def __aexit__(self, *_: object) -> None:
        assert self._reacquired is not None
        self._waits -= 1
        while not self._waits and not all(permit_set.reacquire() for permit_set in self._permit_sets):
            self._reacquired.clear()
            await self._reacquired.wait()


LENDER: ContextVar[PermitLender | None] = ContextVar("bitactor_permit_lender", default=None)
"""The lender of the hop whose code runs; None if it holds nothing."""


def lend_permits(loop: asyncio.AbstractEventLoop) -> AbstractAsyncContextManager[None]:
    """A context manager for a wait on `loop` for other hops: if a hop waits there, its permits are lent meanwhile."""
    lender = LENDER.get()
    return nullcontext() if lender is None or lender.loop is not loop else lender
