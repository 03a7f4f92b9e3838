"""Live transactions: one transaction in this process, and the permits of its hops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import override

from bitactor.errors import InvalidInput, StaleOwner, StoreError
from bitactor.messages.faults import error_of, type_path
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import FORWARD, Fault
from bitactor.messages.values import named_text
from bitactor.plan.plan import Plan, PlanStep, Scope
from bitactor.ports import Clock
from bitactor.saga import Dispatch, Saga
from mesh.hops.actor import BitActor
from mesh.hops.ports import ActorPermits, Done
from mesh.limits.pools import Pool
from mesh.limits.priority_queue import rank_of
from mesh.limits.timing_wheel import Timer


class TransactionLimits:
    """The limits of one transaction's hops, and the permits they hold; see `mesh.runtime.admission`."""

    __slots__ = (
        "depth",
        "every_hop",
        "hop_permits",
        "max_concurrency",
        "priority",
        "scope_pools",
        "transaction_permit",
    )

    def __init__(self) -> None:
        self.every_hop = False
        """Whether each hop of the transaction needs permits, and not only those whose step has a limit."""
        self.max_concurrency: int | None = None
        self.priority = 0
        """The transaction's priority, added to its steps'."""
        self.depth = 0
        """How many hops wait for another above the transaction, as far as this process knows."""
        self.hop_permits: dict[int, HopPermits] = {}
        """Step → the permits that its hop holds, or waits for."""
        self.transaction_permit: HopPermits | None = None
        """The permit of a consumer's transaction, held from its first hop to its end."""
        self.scope_pools: dict[Scope | None, Pool] = {}
        """Scope → the pool that bounds the hops in it, for scopes that have a limit; None stands for the whole
        transaction."""


class LiveTransaction:
    """A transaction in this process: its saga, and the timers, actors and waiters it has."""

    __slots__ = (
        "accepted", "actors", "deadline_timer", "done", "errors", "failure", "grace_timer", "key", "limits",
        "offset_ns", "plan", "proceed_waiters", "resent", "retry_timers", "saga", "sent", "settled", "state", "waiters",
    )  # fmt: skip

    def __init__(self, saga: Saga, key: str = "", data: Mapping[str, Any] | None = None, depth: int = 0) -> None:
        self.saga = saga
        self.state = state = saga.state
        self.plan = plan = state.plan
        self.key = key
        self.offset_ns = 0
        """What makes the transaction's time of monotonic time.  It stays as it is while this process runs the
        transaction, so that nobody who moves the wall clock moves a deadline."""
        self.actors: dict[int, BitActor] = {}
        self.errors: dict[str, BaseException] = {}
        """Hop → the live exception, where the failure happened in this process."""
        self.waiters: list[asyncio.Future[None]] = []
        self.accepted: asyncio.Future[None] | None = None
        self.failure: BaseException | None = None
        """Set when this process can say nothing more about the transaction: its journal failed or was taken over."""
        self.deadline_timer: Timer | None = None
        self.grace_timer: Timer | None = None
        self.retry_timers: dict[int, Timer] = {}
        self.proceed_waiters: dict[int, asyncio.Future[Any]] | None = None
        """Step (a function around nested steps) → the future that its `proceed()` waits for."""
        self.limits = _limits_of(plan, data, depth)
        """The transaction's limits; None for most, which have none."""
        self.resent: dict[str, asyncio.Future[None]] | None = None
        """Emission → the future of who has it sent again, until the journal says so."""
        self.done: Done | None = None
        self.sent = 0
        """How many of its hops were sent to other nodes, and not refused for want of room."""
        self.settled = state.status != "running"
        """Whether nothing more happens to the transaction by itself, and the journal says so."""

    @property
    def given_up(self) -> bool:
        """Whether this process stopped with the transaction before it had settled: what its state here says need not
        be kept."""
        return self.failure is not None and not self.settled

    @property
    def was_taken(self) -> bool:
        """Whether it was given up here because another process has it, which carries it on."""
        return isinstance(self.failure, StaleOwner)

    def require_kept(self) -> None:
        """Raise why the transaction was given up, if it was: nothing here says what is kept of it."""
        if self.failure is not None and not self.settled:
            raise self.failure

    def require_status(self, statuses: Sequence[str], only: str) -> None:
        """Raise `InvalidInput` unless the transaction has settled so."""
        now = self.state.status if self.settled else "running"
        if now not in statuses:
            raise InvalidInput(f"transaction {self.state.transaction} is {now}; only {only}")

    @classmethod
    def fold(cls, plan: Plan, pulses: Sequence[Pulse]) -> LiveTransaction:
        """The transaction that a journal tells of.

        Raises:
            StoreError: it tells nothing that can be, at least not of this plan.
        """
        try:
            data = pulses[0].data or {} if pulses else {}
            return cls(Saga.fold(plan, pulses), data.get("key", ""), data)
        except StoreError:
            raise
        except Exception as error:  # of a journal that is not what was written, anything
            raise StoreError(f"its journal makes no sense: {named_text(error)}") from error

    def now_ns(self, clock: Clock) -> int:
        """The transaction's time: wall time, as it was when this process began with it, and what has passed since."""
        return clock.monotonic_ns() + self.offset_ns

    def continue_time(self, clock: Clock, since_ns: int) -> None:
        """Set the transaction's time by the wall clock; it does not go back behind `since_ns`, its latest pulse's."""
        monotonic_ns = clock.monotonic_ns()
        self.offset_ns = max(self.offset_ns, max(clock.wall_ns(), since_ns) - monotonic_ns)

    def disarm(self) -> None:
        """Cancel all timers of the transaction."""
        for timer in (self.deadline_timer, self.grace_timer, *self.retry_timers.values()):
            if timer is not None:
                timer.cancel()
        self.deadline_timer = self.grace_timer = None
        self.retry_timers.clear()

    def fail_resent(self, error: BaseException) -> None:
        """Tell those who have signals sent again that nothing comes of it here."""
        resent, self.resent = self.resent or {}, None
        for future in resent.values():
            if not future.done():
                future.set_exception(error)

    def error_for(self, hop: str, fault: Fault) -> BaseException:
        """The exception behind a recorded fault: the live one if it happened in this process."""
        raised = self.errors.get(hop)
        if raised is not None and fault.type == type_path(type(raised)):
            return raised
        return error_of(fault, self.plan.errors)


class HopPermits(ActorPermits):
    """The permits of one delivery of one hop; or a consumer's transaction permit, and the hop that waits for it.

    Args:
        limits: pools whose permit is lent while the hop waits, and those whose permit is held until the end.
        launch: called with these permits once those that had to be waited for are held.
    """

    __slots__ = ("_launch", "command", "delivery", "hop", "index", "live", "scopes")

    def __init__(
        self,
        live: LiveTransaction,
        step: PlanStep,
        command: Dispatch,
        limits: tuple[tuple[Pool, ...], tuple[Pool, ...]],
        launch: Callable[[HopPermits], None],
    ) -> None:
        index, direction, fault = command
        own = live.limits or TransactionLimits()
        priority = step.priority + own.priority
        rank = rank_of(direction, priority, depth=own.depth, compensating=fault is not None)
        super().__init__(*limits, rank, own.depth)
        self._launch = launch
        self.scopes: tuple[Scope | None, ...] = ()
        """Keys of these permits' pools in `TransactionLimits.scope_pools`."""
        self.live = live
        self.command: Dispatch | None = command
        """The command that waits for these permits; None once it has begun, or is not wanted any more."""
        self.index = index
        self.hop = live.state.hops[index] if direction is FORWARD else live.state.undo_hop(index)
        self.delivery = live.state.deliveries[index]

    @property
    def is_transaction_permit(self) -> bool:
        """Whether this is a consumer's transaction permit, so that its hop may have more to wait for."""
        return self.live.limits is not None and self.live.limits.transaction_permit is self

    @override
    def on_acquired(self) -> None:
        self._launch(self)


def _limits_of(plan: Plan, data: Mapping[str, Any] | None, depth: int) -> TransactionLimits | None:
    """The limits that the workflow declares, and in their place those given with the stimulus, which are kept with its
    `accepted` pulse."""
    max_concurrency, priority = plan.max_concurrency, 0
    if data:
        max_concurrency, priority = data.get("max_concurrency", max_concurrency), data.get("priority", 0)
    if max_concurrency is None and plan.concurrency is None and not priority and not depth:
        return None
    limits = TransactionLimits()
    limits.every_hop, limits.max_concurrency, limits.priority, limits.depth = True, max_concurrency, priority, depth
    return limits
