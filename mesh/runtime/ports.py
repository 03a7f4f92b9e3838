"""The ports of the runtime: a network, a router of hops, a delivery of emitted signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bitactor.messages.signal import Signal, Stimulus
from bitactor.plan.plan import PlanStep
from bitactor.saga import Emission
from mesh.runtime.live import LiveTransaction
from registry import Entry, Notice, Registry


class Network(Protocol):
    """What connects a node to others.  Used on the node's loop, and opened once the node has made its own parts."""

    @property
    def endpoint(self) -> str:
        """Where other nodes reach this one."""

    async def open(self) -> Registry:
        """Bind the endpoint, and connect to the registry, which is returned."""

    async def announce(self) -> None:
        """Register the workflows, steps and consumers that the node has."""

    async def withdraw(self) -> None:
        """Take no more work from others; the work that is here is finished."""

    def send_stimulus(self, entry: Entry, stimulus: Stimulus) -> None:
        """Send an emitted signal to the node that `entry` names."""

    def on_notice(self, notice: Notice) -> None:
        """Take a change of the registry."""

    def about(self) -> dict[str, Any]:
        """Counters of messages, as plain data."""

    async def close(self) -> None:
        """Leave the registry at once, and release the sockets."""


class Router(Protocol):
    """Sends hops whose steps run elsewhere to nodes that run them."""

    def dispatch(
        self, live: LiveTransaction, step: PlanStep, signal: Signal, values: Mapping[str, Any], result: Any
    ) -> None:
        """Send the hop to a holder of its step; its outcome comes back by `Supervisor.enqueue`."""

    def abandon(self, live: LiveTransaction, index: int) -> None:
        """Tell the holder of this step's hop to stop it."""


class EmissionDelivery(Protocol):
    """Delivers emitted signals to consumers."""

    def deliver(self, live: LiveTransaction, emission: Emission) -> None:
        """Bring the signal to one consumer of each group; who has accepted it comes back by `Supervisor.enqueue`."""
