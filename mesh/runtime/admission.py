"""Admission: the permits that a hop with a limit acquires before it is launched, and releases when it has ended.

Three limits: the named pool of its step; `max_concurrency` of its transaction, and of each nested workflow that it is
in; and for consumers `concurrency`, a permit that the whole transaction holds over its retries.  The transaction's
permit comes first, then the others in one moment; who holds those never waits for a transaction's permit.  While a hop
waits for another transaction, or for the steps that it is around, the others are lent.

Undo needs its step's permits too, and so does compensation that is asked after the fact; both go ahead of what begins.
A hop that outlives its attempt does not count any more, just as its thread does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from bitactor.plan.plan import PlanStep, Scope
from bitactor.saga import Dispatch, HopExpired, Lost, Replied, Unrouted
from mesh.limits.pools import LENT, REACQUIRING, Pool, Pools
from mesh.runtime.live import HopPermits, LiveTransaction, TransactionLimits

DeliveryEnd = Replied | Lost | HopExpired | Unrouted
DELIVERY_ENDS: Final = frozenset((Replied, Lost, HopExpired, Unrouted))
"""Events which say that a delivery is over."""


class Admission:
    """The limits of all hops that one supervisor dispatches.

    Args:
        launch: called on a turn of its own with the permits that had to be waited for and are held now; what each
            waited to do is its `command`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pools: Pools, launch: Callable[[list[HopPermits]], None]
    ) -> None:
        self._loop = loop
        self._pools = pools
        self._launch = launch
        self._consumer_pools: dict[str, Pool] = {}  # consumer → pool of its transactions' permits
        self._acquired: list[HopPermits] = []

    def register(self, live: LiveTransaction) -> None:
        """Note the limits of a transaction that begins here, or goes on."""
        if live.plan.workflow in self._pools.with_nested_limits:
            live.limits = live.limits or TransactionLimits()
            live.limits.every_hop = True

    def acquire(self, live: LiveTransaction, step: PlanStep, command: Dispatch) -> HopPermits | None:
        """The permits of a hop, held until `release`; None if the hop has to wait for them, or for its transaction's.

        Raises:
            ConfigurationError: its step is limited by a pool that is not there.
        """
        limits = live.limits
        if limits is None:
            limits = live.limits = TransactionLimits()
        if live.plan.concurrency is not None and not self._acquire_transaction_permit(live, limits, step, command):
            return None
        pool = () if step.limit is None else (self._pools.find(step.limit, f"step {step.address!r}"),)
        scope_pools = self._scope_pools(live, limits, step)
        permits = HopPermits(live, step, command, ((*pool, *scope_pools.values()), ()), self._launch_soon)
        permits.scopes = tuple(scope_pools)
        limits.hop_permits[permits.index] = permits
        if not permits.acquire():
            return None
        permits.command = None
        return permits

    def release(self, permits: HopPermits) -> None:
        """Release the permits of a delivery that is over.  Twice is once."""
        self._detach(permits)
        self._release(permits)

    def release_soon(self, permits: HopPermits) -> None:
        """Release, in the loop's next turn, the permits of a delivery that is over but whose function may still run: if
        it obeys at once, it has the time to."""
        self._detach(permits)
        self._loop.call_soon(self._release, permits)

    def delivery_ended(self, live: LiveTransaction, end: DeliveryEnd) -> None:
        """Release the permits of a delivery that ran elsewhere, or could not even begin, and is over."""
        permits = live.limits.hop_permits.get(end.step) if live.limits is not None else None
        if permits is None or permits.command is not None:
            return
        if _is_end_of(end, permits):
            self.release(permits)

    def withdraw(self, live: LiveTransaction, index: int) -> Dispatch | None:
        """Let a hop wait no more; returns the command that it waited to do, None if it was not waiting."""
        limits = live.limits
        if limits is None:
            return None
        for permits in (limits.transaction_permit, limits.hop_permits.get(index)):
            if permits is not None and permits.command is not None and permits.index == index:
                command, permits.command = permits.command, None
                if permits is limits.transaction_permit:
                    limits.transaction_permit = None
                self.release(permits)
                return command
        return None

    def release_lent(self, live: LiveTransaction, index: int) -> None:
        """Release the permits of a hop that was told to stop, if they are lent: it ends without reacquiring them."""
        permits = live.limits.hop_permits.get(index) if live.limits is not None else None
        if permits is not None and permits.state in (LENT, REACQUIRING):
            permits.release()

    def release_hop(self, live: LiveTransaction, index: int) -> None:
        """Release the permits of a hop that nobody waits for any more, whatever its function still does."""
        permits = live.limits.hop_permits.get(index) if live.limits is not None else None
        if permits is not None:
            self.release(permits)

    def release_all(self, live: LiveTransaction) -> None:
        """Release everything that a transaction holds or waits for; it has settled, or is relinquished here."""
        limits = live.limits
        if limits is None:
            return
        for permits in (
            *limits.hop_permits.values(),
            *(() if limits.transaction_permit is None else (limits.transaction_permit,)),
        ):
            permits.command = None
            permits.release()
        limits.hop_permits, limits.scope_pools, limits.transaction_permit = {}, {}, None

    def waiting(self, workflow: str) -> int:
        """How many transactions of a consumer wait for their permit."""
        pool = self._consumer_pools.get(workflow)
        return len(pool.queue) if pool is not None else 0

    def about(self) -> dict[str, dict[str, int]]:
        """Consumer → how many of its transactions may run at once, have their permit, and wait for one; see
        `Pool.about`."""
        return {name: pool.about() for name, pool in list(self._consumer_pools.items())}

    def _launch_soon(self, permits: HopPermits) -> None:
        if not self._acquired:
            self._loop.call_soon(self._flush)
        self._acquired.append(permits)

    def _detach(self, permits: HopPermits) -> None:
        limits = permits.live.limits
        if limits is not None and limits.hop_permits.get(permits.index) is permits:
            del limits.hop_permits[permits.index]

    def _release(self, permits: HopPermits) -> None:
        permits.release()
        limits = permits.live.limits
        if limits is not None:
            for scope in permits.scopes:
                pool = limits.scope_pools.get(scope)
                if pool is not None and not pool.in_use and not pool.lent and not pool.queue:
                    del limits.scope_pools[scope]  # there may be as many scopes as a map has elements

    def _scope_pools(self, live: LiveTransaction, own: TransactionLimits, step: PlanStep) -> dict[Scope | None, Pool]:
        """The pools of the transaction and of the scopes around a step, of those that limit how many hops run in them
        at once."""
        limits: list[tuple[Scope | None, int]] = [] if own.max_concurrency is None else [(None, own.max_concurrency)]
        scope = step.scope
        while scope is not None:
            if scope.body.max_concurrency is not None:
                limits.append((scope, scope.body.max_concurrency))
            scope = live.state.steps[scope.container].scope
        return {scope: own.scope_pools.setdefault(scope, Pool(step.address, permits)) for scope, permits in limits}

    def _flush(self) -> None:
        acquired, self._acquired = self._acquired, []
        self._launch(acquired)

    def _acquire_transaction_permit(
        self, live: LiveTransaction, limits: TransactionLimits, step: PlanStep, command: Dispatch
    ) -> bool:
        if limits.transaction_permit is not None:
            return True
        name = live.plan.workflow
        pool = self._consumer_pools.get(name)
        if pool is None:
            pool = self._consumer_pools[name] = Pool(name, live.plan.concurrency or 1)
        limits.transaction_permit = transaction_permit = HopPermits(
            live, step, command, ((), (pool,)), self._launch_soon
        )
        if not transaction_permit.acquire():
            return False
        transaction_permit.command = None
        return True


def _is_end_of(end: DeliveryEnd, permits: HopPermits) -> bool:
    if isinstance(end, Replied):
        return (end.reply.hop, end.reply.delivery) == (permits.hop, permits.delivery)
    return end.delivery == permits.delivery and end.hop in ("", permits.hop)
