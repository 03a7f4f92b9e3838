"""The shapes that the runtime needs of others: a network, a router of hops, a delivery of emitted signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bitactor.messages.signal import Signal, Stimulus
from bitactor.plan.plan import PlanStep
from bitactor.saga import Emission
from mesh.runtime.live import LiveTransaction
from registry import Entry, Notice, Registry


class Network(Protocol):
    """What connects a node to others.  On the node's loop, and opened once the node has made its own parts."""

    @property
    def endpoint(self) -> str:
        """Where other nodes reach us."""

    async def open(self) -> Registry:
        """Bind, and connect to the registry."""

    async def announce(self) -> None:
        """Register what the node does."""

    async def withdraw(self) -> None:
        """Take no more work from others; what we have, we finish."""

    def send_stimulus(self, entry: Entry, stimulus: Stimulus) -> None:
        """Bring an emitted signal to another node."""

    def on_notice(self, notice: Notice) -> None:
        """The registry has changed."""

    def about(self) -> dict[str, Any]:
        """What came and went, as plain data."""

    async def close(self) -> None:
        """Leave at once for everyone, and release the sockets."""


class Router(Protocol):
    """Takes hops whose steps run elsewhere."""

    def dispatch(
        self, live: LiveTransaction, step: PlanStep, signal: Signal, values: Mapping[str, Any], result: Any
    ) -> None:
        """Bring it to a holder; what becomes of it comes back by `Supervisor.enqueue`."""

    def abandon(self, live: LiveTransaction, index: int) -> None:
        """Tell the holder to stop."""


class EmissionDelivery(Protocol):
    """Takes emitted signals."""

    def deliver(self, live: LiveTransaction, emission: Emission) -> None:
        """Bring it to one of each group; who has taken it comes back by `Supervisor.enqueue`."""
