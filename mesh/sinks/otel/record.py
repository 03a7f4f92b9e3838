"""Spans: finished ones as records, whoever exports them, and the state kept of a transaction and its attempts until
their outcome is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bitactor.messages.ids import TransactionId, transaction_span_id
from bitactor.messages.pulse import Pulse

INTERNAL: Final = "internal"
CONSUMER: Final = "consumer"
PRODUCER: Final = "producer"
SERVER: Final = "server"
CLIENT: Final = "client"

MAX_EVENTS: Final = 128
"""The most events of one span; more are counted as dropped.  OpenTelemetry's own limit."""
MAX_LINKS: Final = 128
"""The most links of one span; more are counted as dropped.  OpenTelemetry's own limit."""
STEP_NS: Final = 1_000
"""Nanoseconds from the end of a span to the start of what it caused, at least: Jaeger cuts times to microseconds, and
its critical path goes from a span to one that ended strictly before."""
RECENT_ENDS: Final = 64
"""How many of a transaction's latest ends are known, for what they make ready and what is evaluated before it is
spawned."""

Attributes = dict[str, Any]


class SpanEvent(NamedTuple):
    """An event at one moment within a span."""

    name: str
    at_ns: int
    attributes: Mapping[str, Any]


class SpanRecord(NamedTuple):
    """A finished span, ids in hex as pulses have them."""

    trace_id: str
    span_id: str
    parent_id: str
    """Span id of the parent; empty for the root of a trace."""
    name: str
    kind: str
    """The span's kind: `internal`, `consumer`, `producer`, and of a user's own also `server` and `client`."""
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    events: tuple[SpanEvent, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """Linked spans as (trace id, span id)."""
    failed: bool = False
    """Whether the span's status is ERROR; otherwise it is UNSET."""
    description: str = ""
    dropped_events: int = 0
    dropped_links: int = 0
    scope: tuple[str, str] = ("", "")
    """Name and version of the instrumentation that made a user's own span; empty: ours."""
    ok: bool = False
    """Whether a user's own span has the status OK."""


class OpenSpan:
    """A span that has not ended, with at most `MAX_EVENTS` events."""

    __slots__ = ("dropped", "events", "reason", "start_ns")

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.events: list[SpanEvent] = []
        self.dropped = 0
        self.reason = ""  # the reason of a tombstone that came; empty without one

    def add(self, event: SpanEvent) -> None:
        """Add an event to the span."""
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.dropped += 1


class OpenHop(OpenSpan):
    """The span of an attempt that has no outcome yet, or of which something within still runs."""

    __slots__ = (
        "children", "deliveries", "ended", "ended_ns", "function", "is_told", "latest_ns", "parent", "provisional",
        "spawned",
    )  # fmt: skip

    def __init__(self, spawned: Pulse, start_ns: int, parent: OpenHop | None = None) -> None:
        super().__init__(start_ns)
        self.spawned = spawned
        self.parent = parent  # the container, or the function around it; None: the transaction
        self.deliveries = 1
        self.provisional: Pulse | None = None  # the `timed_out` pulse, while something may still follow it
        self.ended: Pulse | None = None  # the pulse with its outcome, while something within still runs
        self.ended_ns = 0  # when it timed out, or ended
        self.children = 0  # how many spans within have not ended
        self.latest_ns = 0  # the latest end of a span within
        self.function: OpenHop | None = None  # of a container: the function around the steps in it
        self.is_told = False  # whether another process, or this one before a halt, has told of it
        if parent is not None:
            parent.children += 1

    @property
    def is_container(self) -> bool:
        """Whether it is a container, whose work is done by other steps."""
        return "opening" in (self.spawned.data or {})


class OpenTransaction(OpenSpan):
    """The span of a transaction that has not finished; keeps no payloads.

    Its time never goes back, whatever the clocks of the processes that run it say: `now_ns` is the time of the latest
    pulse, or what the spans before ask for, each of which ends `STEP_NS` after the one that ended before it and
    `STEP_NS` before what follows.
    """

    __slots__ = (
        "attributes", "backing_off", "containers", "ended_ns", "ending", "ends", "first_record", "gapless",
        "halt_unseen", "halted_ns", "hops", "hops_begun", "is_resumption", "kind", "links", "name", "next_seq",
        "now_ns", "parent_id", "resumed_ns", "root", "span_id", "transaction",
    )  # fmt: skip

    def __init__(self, pulse: Pulse) -> None:
        super().__init__(pulse.at_ns)
        self.transaction = pulse.transaction
        self.root = pulse.root
        self.name = pulse.workflow
        self.span_id: str = transaction_span_id(TransactionId(pulse.transaction))
        self.parent_id = ""
        self.kind = INTERNAL
        self.next_seq = pulse.seq
        self.attributes: Attributes = {
            "bitactor.workflow": pulse.workflow,
            "bitactor.transaction": pulse.transaction,
            "workflow.name": pulse.workflow,
            "workflow.id": pulse.transaction,
        }
        self.links: tuple[tuple[str, str], ...] = ()
        self.hops: dict[str, OpenHop] = {}
        self.containers: dict[str, OpenHop] = {}  # path → container that is open
        self.ending: list[OpenHop] = []  # containers that ended, of which the pulse that says why has not come
        self.backing_off: dict[str, int] = {}  # hop of the next attempt → when the one before it ended
        self.ends: dict[str, int] = {}  # hop → when what it makes ready may begin, of the latest few
        self.hops_begun = 0
        self.first_record: SpanRecord | None = None  # of a consumer, until another hop begins
        self.now_ns = self.ended_ns = self.resumed_ns = 0
        self.halted_ns = 0
        self.halt_unseen = False  # whether another process may have told of its halt
        self.is_resumption = False
        # Whether every pulse since `accepted` was seen, so that an outcome without a `spawned` is a repetition, not a
        # gap.
        self.gapless = True

    def tick(self, at_ns: int) -> int:
        """The time of a pulse of `at_ns`."""
        self.now_ns = max(self.now_ns, at_ns)
        return self.now_ns

    def end(self, start_ns: int, within_ns: int = 0) -> int:
        """When a span that began at `start_ns` ends with the pulse whose time it is now; of a container, in which the
        latest ended at `within_ns`, together with that if nothing was between."""
        if 0 < within_ns == self.ended_ns >= self.now_ns - STEP_NS:
            return within_ns  # it ends with what ended last
        self.ended_ns = end_ns = max(self.now_ns - STEP_NS, start_ns + STEP_NS, within_ns, self.ended_ns + STEP_NS)
        self.now_ns = max(self.now_ns, end_ns + STEP_NS)
        return end_ns

    def note_end(self, hop: str) -> None:
        """Note that what waits for `hop` may begin."""
        ends = self.ends
        ends[hop] = self.now_ns
        if len(ends) > RECENT_ENDS:
            del ends[next(iter(ends))]

    def ready_ns(self, causes: tuple[str, ...]) -> int:
        """When a hop of these causes could begin: when the last of them had ended, as far as that is known."""
        known = [self.ends[cause] for cause in causes if cause in self.ends]
        if not known and causes:
            return self.now_ns
        return max(self.start_ns, self.resumed_ns, *known)
