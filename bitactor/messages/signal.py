"""The messages that cross between actors, supervisors and processes.

All are named tuples: frozen, slotted, and cheap enough to make one a hop.  `wire` turns them into bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bitactor.messages.pulse import masks_secrets

FORWARD = "forward"
UNDO = "undo"

DEFAULT_TTL = 8
MAX_TTL = 1_000


@masks_secrets
class Fault(NamedTuple):
    """An error in the form in which it is carried between processes and kept in the journal; never a pickle."""

    type: str
    """`module:QualName` of the exception's class."""
    message: str
    traceback: str = ""
    arguments: bytes | None = None
    """The exception's `args`, packed, when all of them can be carried."""
    beside: bytes | None = None
    """The error raised by `compensate` or `backoff` while this one was dealt with: another fault's fields, packed."""
    chain: bytes | None = None
    """What came with the exception, packed: `notes`, the fields of the faults of its `cause` or `context`, and of the
    `members` of a group; see `bitactor.messages.faults`."""

    def fields(self) -> list[Any]:
        """The fault as a journal and a wire have it: without a chain as releases of before wrote it."""
        return list(self[:-1] if self.chain is None else self)

    def summary(self) -> str:
        """`Name: message`, as a pulse shows it."""
        name = self.type.rpartition(":")[2].rpartition(".")[2]
        return f"{name}: {self.message}" if self.message else name


class Sending(NamedTuple):
    """To whom and when a signal or stimulus was sent, by which its receiver knows whether it may still begin."""

    grant: int
    """Epoch of the receiver's grant on its name in the registry, as the sender saw it."""
    clock: int
    """Which clock `sent_ns` was read from: processes with the same number can compare theirs; 0: nobody can."""
    sent_ns: int
    """When it was sent, by the sender's clock."""
    within_ns: int | None
    """Nanoseconds from then on in which the receiver may begin: later the sender may have given up.  None: at any
    time."""
    asked_ns: int = 0
    """When the receiver asked, by its own clock, whether it is still to begin; 0: it has not asked."""


@masks_secrets
class Signal(NamedTuple):
    """The message that a hop's actor gets: what to do, and how many hops and how much time are left."""

    name: str
    """The address: `workflow/step path`, or the name that a consumer listens to."""
    transaction: str
    """The transaction's id."""
    root: str
    """The root transaction's id, which is the trace id."""
    hop: str
    """The hop's id, which is its span id."""
    causes: tuple[str, ...]
    """Ids of the hops whose completion made this one ready; empty for the first ones."""
    direction: str
    """`forward` or `undo`."""
    attempt: int
    """Number of the attempt: 1 for the first, and one more for each retry, and for each run after a halt."""
    delivery: int
    """Number of the delivery of this attempt: 1 for the first, and one more for each redelivery after a lost worker."""
    epoch: int
    """The owner's fencing epoch; a reply to an older one is not taken."""
    ttl: int
    """Hop budget that this hop carries: the least of its causes', minus one."""
    budget_ns: int | None
    """Nanoseconds left until this attempt's deadline; relative, because clocks differ."""
    token: Any
    """The payload: on the wire packed bytes, in an actor a mapping of arguments (for a consumer: the emitted value)."""
    reply_to: str = ""
    """The endpoint of the supervisor that owns the transaction; empty when that is in this process."""
    fault: Fault | None = None
    """Set: the hop was lost or timed out, and its compensation is to decide; the step itself is not run."""
    parent: str = ""
    """The transaction that emitted the signal this transaction came from, if any."""
    metadata: Mapping[str, Any] | None = None
    """The metadata of the stimulus."""
    in_doubt: bool = False
    """True, in an undo: nobody knows whether the step happened."""
    retries_left: int = 0
    """How many retries of the step are left."""
    trail: tuple[str, ...] = ()
    """Names that this work came through across transactions, oldest first (the last 32)."""
    path: str = ""
    """The step's path within the transaction, where that is more than `name` says: in a scope, or a later
    generation."""
    sending: Sending | None = None
    """To whom and when it was sent; None: it was not, or the receiver does not say that it looks at that."""


_TOKEN: Final = Signal._fields.index("token")
"""Where the payload of a signal is; `reply_to` comes after it, `sending` at the end."""


def addressed(signal: Signal, token: Any, reply_to: str, sending: Sending | None) -> Signal:
    """The signal with another payload, and as it is sent: `_replace` in a quarter of the time."""
    return tuple.__new__(Signal, (*signal[:_TOKEN], token, reply_to, *signal[_TOKEN + 2 : -1], sending))


@masks_secrets
class Reply(NamedTuple):
    """The outcome of one delivery of one signal."""

    transaction: str
    hop: str
    delivery: int
    epoch: int
    outcome: str
    """`ok | continue | retry | fail | halt | timed_out | cancelled`; `lost` with its worker process; `busy`: the hop
    has not begun, for there is no room, or (with `after_ns`) the holder is not sure that it is still wanted."""
    token: Any = None
    fault: Fault | None = None
    after_ns: int | None = None
    """Of a `retry`: nanoseconds to wait, when the step or its backoff said so.  Of a `busy`: when the holder asked, by
    its own clock, whether it is still to begin; the sender repeats it."""
    emits: tuple[tuple[str, Any], ...] = ()
    """Emitted signals, as (name, token), in order."""
    elapsed_ns: int = 0
    reason: str = ""
    planned: bytes | None = None
    """The data of the steps that a `Then` plans, packed."""
    pid: int = 0
    """On the wire between nodes: the id of the worker process that ran it; 0: none did, or the node that sent the hop
    does not say that it takes that."""


class Cancel(NamedTuple):
    """A request to stop working on a delivery; its reply is not wanted any more, or only to know what happened."""

    transaction: str
    hop: str
    delivery: int
    epoch: int


@masks_secrets
class Stimulus(NamedTuple):
    """A request to accept a transaction of the receiver's own: an emitted signal, or a call from another process."""

    id: str
    """An id that is the same over all deliveries; the receiver accepts it once."""
    name: str
    group: str
    """The consumer group addressed; empty for a workflow."""
    token: Any
    ttl: int
    budget_ns: int | None
    reply_to: str
    root: str = ""
    parent: str = ""
    hop: str = ""
    """The id of the hop that emitted the signal."""
    trail: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    key: str = ""
    sending: Sending | None = None
    """To whom and when it was sent, as in a `Signal`."""


class Receipt(NamedTuple):
    """The answer to a `Stimulus`: accepted durably as `transaction`, or refused with `error`."""

    id: str
    transaction: str
    error: str = ""
    asked_ns: int = 0
    """Not 0: it was not accepted, for the receiver is not sure that it is still wanted; when it asked that, by its own
    clock, which the sender repeats."""


@masks_secrets
class Question(NamedTuple):
    """A control call: asks a node about something (`status`, `pulses`, `result`, `cancel`, `list`, `nodes`, …)."""

    id: str
    verb: str
    argument: Any
    reply_to: str


@masks_secrets
class Answer(NamedTuple):
    """The answer to a `Question`; `error` is empty when it went well."""

    id: str
    value: Any = None
    error: str = ""
    error_type: str = ""


Message = Signal | Reply | Cancel | Stimulus | Receipt | Question | Answer
