"""What a pulse says, as the name, attributes and events of a span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bitactor.messages import pulse as kinds
from bitactor.messages.faults import full_traceback, shortened
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import UNDO, Fault
from mesh.sinks.otel.record import Attributes, OpenHop

# Longest text kept of a message or traceback, in characters, so that no span outgrows what collectors take
_MAX_TEXT: Final = 16_384


def hop_name(pulse: Pulse) -> str:
    """The name of a hop's span."""
    name = f"{pulse.workflow}/{pulse.step}" if pulse.step else pulse.workflow
    return f"undo {name}" if pulse.direction == UNDO else name


def step_attributes(pulse: Pulse) -> Attributes:
    """Attributes of a span that tells of a step."""
    return {
        "bitactor.workflow": pulse.workflow,
        "bitactor.step": pulse.step,
        "bitactor.hop": pulse.hop,
        "bitactor.transaction": pulse.transaction,
        "bitactor.ttl": pulse.ttl,
        "bitactor.attempt": pulse.attempt,
        "bitactor.spawn": pulse.spawn,
        "bitactor.direction": pulse.direction,
        "workflow.name": pulse.workflow,
        "workflow.id": pulse.transaction,
    }


def hop_attributes(hop: OpenHop, pulse: Pulse, holder: str) -> Attributes:
    """Attributes of the span of an attempt that ended with `pulse`; `holder` is this node, which ran it unless the
    pulse says otherwise."""
    attributes = step_attributes(hop.spawned)
    if hop.deliveries > 1:
        attributes["bitactor.delivery"] = hop.deliveries
    reply = hop.provisional if pulse.elapsed_ns is None and hop.provisional is not None else pulse
    if reply.elapsed_ns is not None and not hop.is_container:  # else it was lost, or never ran
        attributes["bitactor.elapsed_ns"] = reply.elapsed_ns
        attributes |= holder_attributes((reply.data or {}).get("holder"), holder)
    return attributes


def holder_attributes(given: Any, own: str) -> Attributes:
    """Who ran a hop: another node by its id, a worker process of this one by its pid or of another as `node/pid`, else
    this one."""
    if isinstance(given, int):
        return {"bitactor.holder": f"{own}/{given}" if own else str(given), "process.pid": given}
    holder = given if isinstance(given, str) and given else own
    said: Attributes = {"bitactor.holder": holder} if holder else {}
    pid = holder.rpartition("/")[2] if holder != own and "/" in holder else ""
    return {**said, "process.pid": int(pid)} if len(pid) <= 10 and pid.isdecimal() and pid.isascii() else said


def details(pulse: Pulse) -> Attributes:
    """Attributes of an event."""
    said: Attributes = {}
    if pulse.step:
        said |= {"bitactor.step": pulse.step, "bitactor.hop": pulse.hop, "bitactor.ttl": pulse.ttl}
    elif pulse.kind == kinds.EMITTED:
        said["bitactor.hop"] = pulse.hop
    data = pulse.data or {}
    if isinstance(data.get("reason"), str):
        said["bitactor.reason"] = short(data["reason"])
    if pulse.error:
        said["bitactor.error"] = short(pulse.error)
    if pulse.kind == kinds.EMITTED:
        said |= sent_attributes([data.get("name")], str(data.get("emit") or ""))
    if pulse.kind == kinds.TOMBSTONE:
        said["bitactor.tombstone.reason"] = pulse.error or "unknown"
        if chain := chain_words(pulse):
            said["bitactor.tombstone.chain"] = chain
    return said


def chain_words(pulse: Pulse) -> str:
    """The names along which a hop budget was spent, in words; empty if the pulse has none."""
    chain = (pulse.data or {}).get("chain")
    return " → ".join(map(str, shortened(chain))) if isinstance(chain, list | tuple) else ""


# Messages, as OpenTelemetry's semantic conventions name what is said of them


def sent_attributes(names: Sequence[Any], message: str = "") -> Attributes:
    """Attributes of what emitted signals of these names."""
    attributes: Attributes = _messaging("send")
    if len({*names}) == 1 and isinstance(names[0], str) and names[0]:
        attributes["messaging.destination.name"] = names[0]
    if len(names) > 1:
        attributes["messaging.batch.message_count"] = len(names)
    return attributes | {"messaging.message.id": message} if message else attributes


def taken_attributes(pulse: Pulse) -> Attributes:
    """Attributes of a consumer's transaction, which begins with `pulse`; its key is that of the delivery, the message
    and the group."""
    attributes: Attributes = _messaging("process")
    _, _, listens = pulse.workflow.partition("@")
    attributes["messaging.destination.name"] = listens or pulse.workflow
    message, _, group = str((pulse.data or {}).get("key") or "").partition(">")
    if group:
        attributes["messaging.message.id"] = message
        attributes["messaging.consumer.group.name"] = group.partition("@@")[0]
    return attributes


def _messaging(operation: str) -> Attributes:
    return {
        "messaging.system": "bitactor",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


# The error that a pulse carries, for span attributes and for people


def error_name(summary: str) -> str:
    """`Name` of a summary `Name: message`; a tombstone's reason is its own name."""
    return short(summary.partition(":")[0], 256)


def short(text: str, limit: int = _MAX_TEXT) -> str:
    """`text`, cut if it is longer than spans should hold."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def exception_attributes(pulse: Pulse) -> Mapping[str, Any]:
    """Attributes of an `exception` event."""
    if pulse.data and pulse.data.get("fault"):
        fault = Fault(*pulse.data["fault"])
    else:
        name, _, message = (pulse.error or pulse.kind).partition(": ")
        fault = Fault(name, message)
    module, _, name = fault.type.rpartition(":")
    attributes = {"exception.type": name if module in ("", "builtins") else f"{module}.{name}"}
    if fault.message:
        attributes["exception.message"] = short(fault.message)
    if fault.chain is not None:
        attributes["exception.stacktrace"] = full_traceback(fault, _MAX_TEXT)
    elif fault.traceback:
        # The end of a traceback tells more than its beginning.
        end = fault.traceback[1 - _MAX_TEXT :]
        attributes["exception.stacktrace"] = fault.traceback if len(fault.traceback) <= _MAX_TEXT else "…" + end
    return attributes
