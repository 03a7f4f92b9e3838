"""Spans that users make: whose sink gets them, and how they come from a worker process."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanKind, StatusCode

from bitactor.messages.codec import decode_token, encode_token
from mesh.sinks.otel.context import hop_context_in
from mesh.sinks.otel.own_spans import collect, context_of, packed, record_of, unpacked

TRACE, HOP = "ab" * 16, "cd" * 8
TRACER = trace.get_tracer("shop", "2.0")


def make_span(context: Context, name: str) -> None:
    token = attach(context)
    try:
        with TRACER.start_as_current_span(name):
            pass
    finally:
        detach(token)


def test_a_span_goes_to_the_mesh_in_whose_hop_it_ended() -> None:
    first: list[ReadableSpan] = []
    second: list[ReadableSpan] = []
    take_first, take_second = first.append, second.append
    stop_first, stop_second = collect(take_first), collect(take_second)
    assert stop_first is not None and stop_second is not None
    make_span(hop_context_in(context_of(take_first), TRACE, HOP), "in the first")
    make_span(hop_context_in(context_of(take_second), TRACE, HOP), "in the second")
    make_span(hop_context_in(context_of(None), TRACE, HOP), "in one that exports nothing")
    make_span(Context(), "outside")
    stop_second()
    make_span(hop_context_in(context_of(take_second), TRACE, HOP), "late")
    stop_first()
    make_span(hop_context_in(context_of(take_first), TRACE, HOP), "too late")
    assert [span.name for span in first] == ["in the first", "late"]
    assert [span.name for span in second] == ["in the second", "outside"]


def test_a_span_comes_from_a_worker_process_as_it_is() -> None:
    made: list[ReadableSpan] = []
    stop = collect(made.append)
    assert stop is not None
    token = attach(hop_context_in(context_of(made.append), TRACE, HOP))
    link = trace.get_current_span().get_span_context()
    with TRACER.start_as_current_span("well") as span:
        span.set_status(StatusCode.OK)
    with TRACER.start_as_current_span("query", kind=SpanKind.CLIENT, links=[Link(link)]) as span:
        span.set_attributes({"rows": 3, "names": ["a", "b"]})
        span.add_event("sent", {"bytes": 1})
        span.set_status(StatusCode.ERROR, "no")
    detach(token)
    stop()
    well, record = unpacked(decode_token(encode_token(packed(made))))
    assert [well, record] == list(map(record_of, made))
    assert (well.ok, well.failed, record.ok) == (True, False, False)
    assert (record.trace_id, record.parent_id, record.kind, record.scope) == (TRACE, HOP, "client", ("shop", "2.0"))
    assert (record.failed, record.description, record.links) == (True, "no", ((TRACE, HOP),))
    assert record.attributes == {"rows": 3, "names": ["a", "b"]}
    assert [(event.name, event.attributes) for event in record.events] == [("sent", {"bytes": 1})]
