"""One transaction in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from bitactor.saga import Saga
from bitactor.signal import Reply
from mesh.actor import BitActor
from mesh.pools import Pool
from mesh.wheel import Timer

if TYPE_CHECKING:
    from mesh.gate import Hold


class Run:
    """One transaction in this process: its saga, and what is armed and running for it."""

    __slots__ = (
        "accepted", "actors", "bounded", "deadline", "depth", "done", "errors", "failure", "grace", "holds", "key", "max_concurrency",
        "plan", "priority", "proceeding", "retries", "saga", "settled", "turn", "waiters", "widths",
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
        self.max_concurrency: int | None = None
        self.widths: dict[int, Pool] | None = None
        """Where only so many hops may run at once: places for those of the transaction (-1) and of its scopes (their base) that have some."""
        self.priority = 0
        """Added to those of its steps."""
        self.depth = depth
        """How many hops wait for another above it, as far as this process knows."""
        self.bounded = depth > 0 or plan.concurrency is not None
        """Whether each of its hops has to pass the gate, and not only those whose step has a limit."""
        self.holds: dict[int, Hold] | None = None
        """Step → what its hop has passed the gate with, or waits there for."""
        self.turn: Hold | None = None
        """Of a consumer's transaction."""
        if data or plan.max_concurrency is not None:
            self._bound(data or {})
        self.done: Callable[[BitActor, Reply, BaseException | None], None] | None = None
        self.settled = saga.status != "running"
        """Nothing more happens by itself, and the journal says so."""

    def _bound(self, data: Mapping[str, Any]) -> None:
        """What its workflow says, and what whoever began it said instead, which is kept with its `accepted` pulse."""
        self.max_concurrency = data.get("max_concurrency", self.plan.max_concurrency)
        self.priority = data.get("priority", 0)
        if self.max_concurrency is not None or self.priority:
            self.bounded = True
