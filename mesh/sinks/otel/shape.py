"""The shape of a trace: what is below what, and how attempts, moments and a consumer's hop become spans."""

from __future__ import annotations

from typing import Final

from bitactor.kinds.around import AROUND
from bitactor.messages import pulse as kinds
from bitactor.messages.ids import TransactionId, hop_id, transaction_span_id
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import FORWARD
from mesh.sinks.otel.attributes import details, short
from mesh.sinks.otel.record import INTERNAL, MAX_EVENTS, MAX_LINKS, OpenHop, OpenTransaction, SpanRecord

FAILURES: Final = frozenset((kinds.FAILED, kinds.RETRIED, kinds.TIMED_OUT, kinds.UNDO_FAILED))
"""Kinds of pulses that say that an attempt failed."""


def begin_resumption(state: OpenTransaction, pulse: Pulse, span: str) -> None:
    """Begin a span below the transaction's own, `span`, which has ended before, for what follows."""
    state.is_resumption = True
    state.parent_id, state.kind, state.first_record = span, INTERNAL, None
    state.span_id = hop_id(TransactionId(pulse.transaction), "", "transaction", pulse.seq)
    state.name = f"resume {pulse.workflow}"
    state.start_ns = state.tick(pulse.at_ns)
    for hop in state.hops.values():
        hop.is_told = True


def parent_of(state: OpenTransaction, pulse: Pulse) -> OpenHop | None:
    """The open container that a step going forward is in, or the function around it; None: the transaction."""
    path = pulse.step if pulse.direction == FORWARD and state.containers else ""
    while "/" in path:
        path = path.rpartition("/")[0]
        container = state.containers.get(path)
        if container is not None:
            function = container.function
            within = function is not None and function.ended is None and function.spawned.step != pulse.step
            return function if within else container
    return None


def is_function_around(pulse: Pulse, container: OpenHop) -> bool:
    """Whether a hop is the function around the steps of `container`, which then was opened with its scope alone."""
    opening = (container.spawned.data or {}).get("opening")
    return opening == [AROUND] and pulse.step == f"{container.spawned.step}/{AROUND}"


def span_above(state: OpenTransaction, hop: OpenHop) -> str:
    """The span below which that of a hop is."""
    if hop.parent is not None and not hop.parent.is_told:
        return hop.parent.spawned.hop
    return state.parent_id if state.is_resumption else state.span_id


def without_payloads(pulse: Pulse) -> Pulse:
    """What a span needs of the pulse that its hop began with."""
    data = pulse.data or {}
    kept = {name: data[name] for name in ("chain",) if name in data}
    if "opening" in data:
        kept["opening"] = [key for key, *_ in data["opening"]]
    return pulse._replace(token_in=None, token_out=None, data=kept or None)


def spawn_missed(state: OpenTransaction, pulse: Pulse) -> bool:
    """Whether the outcome of a hop not open here is that of one whose `spawned` was missed."""
    return not state.gapless and bool(pulse.step) and pulse.elapsed_ns is not None


def outcome(hop: OpenHop, pulse: Pulse) -> tuple[str, bool, str]:
    """(outcome, whether that is a failure, the error) of an attempt."""
    if pulse.kind == kinds.FINISHED:
        return ("tombstone", True, hop.reason) if hop.reason else ("unknown", False, "")
    error = pulse.error or (hop.provisional.error if hop.provisional else None) or hop.reason
    return pulse.kind, pulse.kind in FAILURES, error or ""


def joined(whole: SpanRecord, hop: SpanRecord) -> SpanRecord:
    """A consumer's transaction and its only hop as one span: the hop's, for what the function made is below that."""
    events = sorted((*whole.events, *hop.events), key=lambda event: event.at_ns)
    return whole._replace(
        span_id=hop.span_id,
        attributes={**hop.attributes, **whole.attributes},
        events=tuple(events[:MAX_EVENTS]),
        links=(*whole.links, *hop.links)[:MAX_LINKS],
        failed=whole.failed or hop.failed,
        description=whole.description or hop.description,
        dropped_events=whole.dropped_events + hop.dropped_events + max(0, len(events) - MAX_EVENTS),
    )


def instant_span(pulse: Pulse, span: str) -> SpanRecord:
    """A span without duration, below `span`, for a pulse that came after the transaction's end."""
    transaction = TransactionId(pulse.transaction)
    failed = pulse.kind == kinds.TOMBSTONE
    attributes = {
        "bitactor.workflow": pulse.workflow,
        "bitactor.transaction": pulse.transaction,
        "workflow.name": pulse.workflow,
        "workflow.id": pulse.transaction,
        **details(pulse),
    }
    attributes["bitactor.outcome"] = pulse.kind
    if failed:
        attributes["error.type"] = pulse.error or "unknown"
    return SpanRecord(
        pulse.root,
        hop_id(transaction, pulse.step, pulse.kind, pulse.seq),
        span or transaction_span_id(transaction),
        f"{pulse.kind} {pulse.workflow}/{pulse.step}" if pulse.step else f"{pulse.kind} {pulse.workflow}",
        INTERNAL,
        pulse.at_ns,
        pulse.at_ns,
        attributes,
        failed=failed,
        description=short(pulse.error or "") if failed else "",
    )


def created_ns(transaction: str) -> int:
    """When a uuid7 was made; 0 if the id is no uuid7."""
    return int(transaction[:12], 16) * 1_000_000 if transaction[12:13] == "7" else 0
