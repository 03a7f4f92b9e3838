"""One transaction in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bitactor.plan import Plan
from bitactor.saga import Saga
from bitactor.signal import Reply
from mesh.actor import BitActor
from mesh.pools import Pool
from mesh.wheel import Timer

if TYPE_CHECKING:
    from bitactor.kinds.scope import Scope
    from mesh.gate import Hold


class Bounds:
    """How much of a transaction may run at once, where that is bounded; and what its hops hold of that.  See
    `mesh.gate`."""

    __slots__ = ("always", "depth", "holds", "max_concurrency", "priority", "turn", "widths")

    def __init__(self) -> None:
        self.always = False
        """Whether each of its hops has to pass the gate, and not only those whose step has a limit."""
        self.max_concurrency: int | None = None
        self.priority = 0
        """Added to those of its steps."""
        self.depth = 0
        """How many hops wait for another above it, as far as this process knows."""
        self.holds: dict[int, Hold] = {}
        """Step → what its hop has passed the gate with, or waits there for."""
        self.turn: Hold | None = None
        """Of a consumer's transaction."""
        self.widths: dict[Scope | None, Pool] = {}
        """Where only so many hops may run at once: places for those of the transaction (None), and of those of its
        scopes that have some."""


class Run:
    """One transaction in this process: its saga, and what is armed and running for it."""

    __slots__ = (
        "accepted", "actors", "bounds", "deadline", "done", "errors", "failure", "grace", "key", "plan", "proceeding",
        "retries", "saga", "settled", "waiters",
    )  # fmt: skip

    def __init__(self, saga: Saga, key: str = "", data: Mapping[str, Any] | None = None, depth: int = 0) -> None:
        self.saga = saga
        self.plan = plan = saga.plan
        self.key = key
        self.actors: dict[int, BitActor] = {}
        self.errors: dict[str, BaseException] = {}
        """Hop → the live exception, where the failure happened in this process."""
        self.waiters: list[asyncio.Future[None]] = []
        self.accepted: asyncio.Future[None] | None = None
        self.failure: BaseException | None = None
        """Set when this process can say nothing more about the transaction: its journal failed or was taken over."""
        self.deadline: Timer | None = None
        self.grace: Timer | None = None
        self.retries: dict[int, Timer] = {}
        self.proceeding: dict[int, asyncio.Future[Any]] | None = None
        """Functions around nested steps that wait for them."""
        self.bounds = _bounds(plan, data, depth)
        """None for most: of nothing of it may only so much run at once."""
        self.done: Callable[[BitActor, Reply, BaseException | None], None] | None = None
        self.settled = saga.status != "running"
        """Nothing more happens by itself, and the journal says so."""


def _bounds(plan: Plan, data: Mapping[str, Any] | None, depth: int) -> Bounds | None:
    """What its workflow says, and what whoever began it said instead, which is kept with its `accepted` pulse."""
    width, priority = plan.max_concurrency, 0
    if data:
        width, priority = data.get("max_concurrency", width), data.get("priority", 0)
    if width is None and plan.concurrency is None and not priority and not depth:
        return None
    bounds = Bounds()
    bounds.always, bounds.max_concurrency, bounds.priority, bounds.depth = True, width, priority, depth
    return bounds
