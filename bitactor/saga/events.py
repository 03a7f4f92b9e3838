"""The events that come into the saga: facts about one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from bitactor.messages.signal import Fault, Reply
from bitactor.plan.container import Opening


class Accept(NamedTuple):
    """The first stimulus of a transaction, with which it begins."""

    input: Any
    """The whole input, as one token."""
    inputs: tuple[Any, ...]
    """The input as a token for each of the plan's input fields."""
    ttl: int
    deadline_ns: int | None
    """Wall time; None: no deadline."""
    data: Mapping[str, Any] | None = None
    """Data of the `accepted` pulse: key, metadata, traceparent, …"""


class Evaluated(NamedTuple):
    """The supervisor has evaluated a step's transforms, predicate and guard, or asked a container what to open."""

    step: int
    run: bool
    arguments: Mapping[str, Any] | None = None
    """Tokens of transformed arguments."""
    fault: Fault | None = None
    answer: tuple[Any] | None = None
    """The token that a guard answers with instead of the step, or with which a container closes."""
    opening: Sequence[Opening] | None = None
    """The scopes that a container opens."""


class Replied(NamedTuple):
    """A hop's reply came in."""

    step: int
    reply: Reply
    holder: str | int = ""
    """Who ran the hop, where that is not the owner itself: another node by its id, a worker process by its pid."""


class Lost(NamedTuple):
    """The worker that ran this delivery is gone."""

    step: int
    delivery: int
    holder: str
    given_back: bool = False
    """True: the worker was stopped in order, so the loss spends none of the step's redeliveries."""
    hop: str = ""
    """The hop's id, since a step's own run and its undo may have had as many deliveries; empty: the one that runs."""


class Unrouted(NamedTuple):
    """No host was found for a hop in the time allowed to look for one."""

    step: int
    delivery: int
    fault: Fault
    hop: str = ""
    """As in `Lost`."""


class HopExpired(NamedTuple):
    """The timeout of one attempt is over."""

    step: int
    delivery: int
    fault: Fault
    holder: str | int = ""
    """As in `Replied`."""
    hop: str = ""
    """As in `Lost`."""


class RetryDue(NamedTuple):
    """The wait before the next attempt of a step is over."""

    step: int


class GraceExpired(NamedTuple):
    """The grace period for hops in flight is over."""


class DeadlineExpired(NamedTuple):
    """The transaction's deadline is over; or, while undoing, the time for undo."""

    fault: Fault


class CancelRequested(NamedTuple):
    """Cancelling the transaction was requested."""

    fault: Fault


class Proceeded(NamedTuple):
    """The function around nested steps asks for them to run."""

    step: int
    delivery: int


class UndoRequested(NamedTuple):
    """Undoing a completed transaction was requested."""

    fault: Fault


class ResumeRequested(NamedTuple):
    """Resuming a halted or stuck transaction was requested."""

    deadline_ns: int | None


class Recovered(NamedTuple):
    """This process has taken the transaction over from a dead owner; nothing of what was in flight here survives."""

    owner: str
    epoch: int
    given_back: bool = False
    """True: that owner ended in order, so hops that were in flight spend no redelivery."""


class EmissionAccepted(NamedTuple):
    """Every group that listens has accepted the emitted signal."""

    emit: str
    receivers: tuple[str, ...]


class EmissionUnrouted(NamedTuple):
    """The emitted signal found no consumer until its deadline."""

    emit: str
    reason: str


class SendAgainRequested(NamedTuple):
    """Sending an emitted signal again, which nobody took, was requested."""

    emit: str


Event = (
    Accept | Evaluated | Replied | Lost | Unrouted | HopExpired | RetryDue | GraceExpired | DeadlineExpired
    | CancelRequested | UndoRequested | Proceeded | ResumeRequested | Recovered | EmissionAccepted | EmissionUnrouted
    | SendAgainRequested
)  # fmt: skip

EVENTS: Final[tuple[type, ...]] = (
    Accept, Evaluated, Replied, Lost, Unrouted, HopExpired, RetryDue, GraceExpired, DeadlineExpired, CancelRequested,
    UndoRequested, Proceeded, ResumeRequested, Recovered, EmissionAccepted, EmissionUnrouted, SendAgainRequested,
)  # fmt: skip
