"""One transaction in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bitactor.saga import Saga
from bitactor.signal import Reply
from mesh.actor import BitActor
from mesh.wheel import Timer


class Run:
    """One transaction in this process: its saga, and what is armed and running for it."""

    __slots__ = (
        "accepted", "actors", "deadline", "done", "errors", "failure", "grace", "held", "key", "plan", "retries", "saga", "settled",
        "waiters",
    )  # fmt: skip

    def __init__(self, saga: Saga, key: str = "") -> None:
        self.saga = saga
        self.plan = saga.plan
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
        self.held = False
        self.done: Callable[[BitActor, Reply, BaseException | None], None] | None = None
        self.settled = saga.status != "running"
        """Nothing more happens by itself, and the journal says so."""
