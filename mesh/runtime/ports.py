"""The ports of the runtime: a network, a router of hops, a delivery of emitted signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from bitactor.messages.codec import Packed
from bitactor.messages.signal import Cancel, Signal, Stimulus
from bitactor.plan.plan import PlanStep
from mesh.runtime.live import LiveTransaction
from registry import Entry, Notice, Registry


class Enqueue(Protocol):
    """Takes an event of a transaction; `first`: ahead of what else has come in."""

    def __call__(self, live: LiveTransaction, event: Any, *, first: bool = False) -> None: ...


class Router(Protocol):
    """Sends hops whose steps run elsewhere to nodes that run them."""

    def dispatch(self, live: LiveTransaction, step: PlanStep, signal: Signal, values: Packed, result: Any) -> None:
        """Send the hop to a holder of its step, with its arguments as `BoundArguments.packed` gives them; its outcome
        comes back as an event of the transaction."""

    def abandon(self, live: LiveTransaction, index: int) -> None:
        """Tell the holder of this step's hop to stop it."""

    def waits_for(self, live: LiveTransaction) -> str:
        """What the transaction waits for to be sent, in words; empty if for nothing."""


class Network(Protocol):
    """What connects a node to others.  Used on the node's loop, and opened once the node has made its own parts."""

    registry: Registry
    """The registry that the node shares with others, once the network is open."""
    router: Router | None
    """Where hops go whose steps run elsewhere; None: all run here."""

    @property
    def endpoint(self) -> str:
        """Where other nodes reach this one."""

    async def open(self) -> None:
        """Bind the endpoint, and connect to the registry."""

    async def announce(self, consumers: Mapping[str, Any]) -> None:
        """Register the workflows and steps that the node has, and its `consumers`: name → value."""

    async def withdraw(self) -> None:
        """Take no more work from others; the work that is here is finished."""

    def revoke(self, address: str, cancel: Cancel) -> None:
        """Ask each node that runs the step at `address` to stop a delivery that the owner before may have sent it."""

    def send_stimulus(self, entry: Entry, stimulus: Stimulus, asked_ns: int = 0) -> None:
        """Send an emitted signal to the node that `entry` names; `asked_ns`: once more, for it asked at that moment."""

    def on_notice(self, notice: Notice) -> None:
        """Take a change of the registry."""

    def about(self) -> dict[str, Any]:
        """Counters of messages, as plain data."""

    async def close(self) -> None:
        """Leave the registry at once, and release the sockets."""
