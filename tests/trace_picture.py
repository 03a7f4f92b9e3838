"""The trace of one order of `tests.traced_shop`: as an OTLP file that Jaeger reads, and its tree as text.

python -m tests.trace_picture    writes docs/trace.json and docs/trace.txt
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.json_format import MessageToDict, ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typing_extensions import override

from bitactor import WorkflowFailed
from bitactor.messages.ids import transaction_span_id
from bitactor.messages.pulse import Pulse
from bitactor.ports import Sink
from mesh import Mesh
from tests import traced_shop
from tests.critical_path import Bar, drawn, said
from tests.otlp_receiver import OtlpReceiver, attributes

DOCS: Final = Path(__file__).parents[1] / "docs"
JSON, TEXT = DOCS / "trace.json", DOCS / "trace.txt"
WITHIN: Final = 60
_IDS: Final = ("traceId", "spanId", "parentSpanId")
_KINDS: Final = {2: "server", 3: "client", 4: "producer", 5: "consumer"}
_ERROR: Final = 2


class Recorder(Sink):
    """A sink that keeps all pulses."""

    def __init__(self) -> None:
        self.pulses: list[Pulse] = []

    @override
    def receive(self, pulses: Sequence[Pulse]) -> None:
        self.pulses += pulses

    @override
    def close(self, timeout: float) -> None:
        """Nothing is to be flushed."""


class Shown(NamedTuple):
    """What a run exported, and the pulses that say what happened."""

    request: ExportTraceServiceRequest
    pulses: list[Pulse]


def run() -> Shown:
    """Run an order that fails at its end and is undone."""
    recorder = Recorder()

    async def order(endpoint: str) -> None:
        traced_shop.MAILED = asyncio.Event()
        mesh = Mesh(*traced_shop.definitions, otlp=endpoint, service_name="shop", sinks=[recorder], processes=1)
        async with mesh:
            transaction = await mesh.stimulate(traced_shop.order, {"order": 17}, metadata={"why": "a picture"})
            try:
                await transaction.result(timeout=WITHIN)
            except WorkflowFailed:
                return
        raise AssertionError("it was to fail at its end")

    with OtlpReceiver() as receiver:
        asyncio.run(order(receiver.endpoint))
        request = ExportTraceServiceRequest(resource_spans=receiver.resource_spans)
    _without_this_machine(request)
    return Shown(request, recorder.pulses)


def _without_this_machine(request: ExportTraceServiceRequest) -> None:
    for group in request.resource_spans:
        for pair in group.resource.attributes:
            if pair.key == "host.name":
                pair.value.string_value = "shop-1"
    for span in spans(request):
        for event in span.events:
            for pair in event.attributes:
                if pair.key == "exception.stacktrace":
                    pair.value.string_value = pair.value.string_value.rstrip().rpartition("\n")[2]


def spans(request: ExportTraceServiceRequest) -> list[Span]:
    """All spans of a request."""
    return [span for group in request.resource_spans for scoped in group.scope_spans for span in scoped.spans]


def bars(given: Iterable[Span]) -> list[Bar]:
    """Spans as the Jaeger UI has them: times in microseconds."""
    return [
        Bar(
            span.span_id.hex(), span.parent_span_id.hex(), span.start_time_unix_nano // 1_000,
            span.end_time_unix_nano // 1_000, _KINDS.get(span.kind, "internal"),
        )
        for span in given
    ]  # fmt: skip


def check_paths(pulses: Sequence[Pulse], exported: Sequence[Span]) -> int:
    """That the critical path which the UI draws of each transaction is the one that its pulses say; returns how many
    transactions there were."""
    whole = bars(exported)
    holding = {bar.parent for bar in whole}
    logs: dict[str, list[Pulse]] = {}
    for pulse in pulses:
        logs.setdefault(pulse.transaction, []).append(pulse)
    known = {bar.id for bar in whole}
    for transaction, log in logs.items():
        root = transaction_span_id(transaction)
        if root not in known:  # a consumer's, which is one with its hop
            continue
        hops = {pulse.hop for pulse in log if pulse.step} - holding
        own = [bar._replace(parent="") if bar.id == root else bar for bar in whole]
        path = [section.id for section in drawn(own, root) if section.id in hops]
        assert path == [hop for hop in said(log) if hop in hops], log[0].workflow
    return len(logs)


def tree(request: ExportTraceServiceRequest) -> str:
    """The spans as text, each below its parent: `*` on the critical path, `!` with an error."""
    return "".join(f"{line}\n" for line in _lines(spans(request)))


def _lines(given: Sequence[Span]) -> Iterator[str]:
    below: dict[bytes, list[Span]] = {}
    for span in sorted(given, key=lambda span: span.start_time_unix_nano):
        below.setdefault(span.parent_span_id, []).append(span)
    critical = {section.id for root in below[b""] for section in drawn(bars(given), root.span_id.hex())}

    def walk(parent: bytes, before: str) -> Iterator[str]:
        children = below.get(parent, [])
        for number, span in enumerate(children, 1):
            told = attributes(span.attributes)
            outcome = told.get("bitactor.status") or told.get("bitactor.outcome") or ""
            kind = f"[{_KINDS[span.kind]}]" if span.kind in _KINDS else ""
            mark = f"{'*' if span.span_id.hex() in critical else ' '}{'!' if span.status.code == _ERROR else ' '}"
            branch, beyond = ("└─ ", "   ") if number == len(children) else ("├─ ", "│  ")
            branch, beyond = (branch, beyond) if parent else ("", "")
            words = " ".join(part for part in (f"{before}{branch}{span.name}", outcome, kind) if part)
            yield f"{mark} {words}" + (f": {span.status.message}" if span.status.message else "")
            yield from walk(span.span_id, before + beyond)

    yield from walk(b"", "")


def to_json(request: ExportTraceServiceRequest) -> str:
    """A request as OTLP writes JSON: ids in hex, enumerations as numbers."""
    data = MessageToDict(request, use_integers_for_enums=True)
    _convert_ids(data, lambda text: base64.b64decode(text).hex())
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n"


def from_json(text: str) -> ExportTraceServiceRequest:
    """The request that `to_json` wrote."""
    data = json.loads(text)
    _convert_ids(data, lambda text: base64.b64encode(bytes.fromhex(text)).decode())
    return ParseDict(data, ExportTraceServiceRequest())


def _convert_ids(data: Any, convert: Any) -> None:
    if isinstance(data, list):
        for item in data:
            _convert_ids(item, convert)
    elif isinstance(data, dict):
        for key, value in data.items():
            if key in _IDS:
                data[key] = convert(value)
            else:
                _convert_ids(value, convert)


_OF_ONE_RUN: Final = frozenset(
    (
        "bitactor.hop", "bitactor.transaction", "bitactor.parent", "bitactor.elapsed_ns", "bitactor.holder",
        "workflow.id", "process.pid", "messaging.message.id",
    )
)  # fmt: skip


def normalised(request: ExportTraceServiceRequest) -> list[str]:
    """What is the same in every run, a line for each span and event."""
    found = []
    for span in spans(request):
        told = _told(span.attributes)
        found.append(f"{span.name} {span.kind} {span.status.code} {len(span.links)} {told}")
        found += [f"{span.name}: {event.name} {_told(event.attributes)}" for event in span.events]
    return sorted(found)


def _told(pairs: Sequence[KeyValue]) -> list[tuple[str, Any]]:
    return sorted((key, "…" if key in _OF_ONE_RUN else value) for key, value in attributes(pairs).items())


if __name__ == "__main__":
    shown = run()
    JSON.write_text(to_json(shown.request))
    TEXT.write_text(tree(shown.request))
    print(tree(shown.request), end="")
