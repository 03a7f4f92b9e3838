"""What a trace viewer shows of a transaction."""

from __future__ import annotations

from opentelemetry import trace

from bitactor import Context, Result, Signal, Workflow, WorkflowFailed, consumer
from bitactor.messages.ids import hop_id
from mesh import Mesh
from tests.conformance.claims import claim
from tests.critical_path import drawn, said
from tests.e2e.processes import PATIENCE
from tests.otlp_receiver import OtlpReceiver, attributes
from tests.trace_picture import Recorder, bars

ERROR = 2


def shop() -> Workflow:
    """A container with two steps, after two that run side by side; the last step fails."""
    inner = Workflow("inner", input={"first": int})

    @inner.step
    async def one(first: int) -> int:
        with trace.get_tracer("shop").start_as_current_span("a query"):
            return first

    @inner.step
    async def two(one: int) -> int:
        return one

    outer = Workflow("outer", ttl=9)

    @outer.step
    async def first() -> int:
        return 1

    @outer.step(when=lambda: True)
    async def beside() -> int:
        return 2

    outer.compose("box", workflow=inner)

    @outer.step(after=["beside"], bind={"box": Result("box")})
    async def last(box: int) -> None:
        raise ValueError("no")

    @first.undo
    async def back(result: int) -> None:
        """Takes it back."""

    return outer


@claim("Traces", "The critical path that Jaeger draws is the chain of causes that the pulses say.")
@claim("Traces", "The steps of a container are below it, undo is below the transaction.")
@claim("Traces", "A user's own span inside a step is below the hop's, without further set-up.")
@claim("Traces", "A hop's span says which process ran it.")
async def test_a_transaction_as_a_trace() -> None:
    recorder = Recorder()
    with OtlpReceiver() as receiver:
        async with Mesh(shop(), otlp=receiver.endpoint, sinks=[recorder]) as mesh:
            transaction = await mesh.stimulate("outer")
            try:
                await transaction.result(timeout=PATIENCE)
            except WorkflowFailed:
                node = mesh.node.id
        spans = receiver.spans
    found = {span.name: span for span in spans}
    root, box = found["outer"], found["outer/box"]
    assert {span.name for span in spans if span.parent_span_id == box.span_id} == {"outer/box/one", "outer/box/two"}
    assert found["undo outer/first"].parent_span_id == box.parent_span_id == root.span_id
    assert found["a query"].parent_span_id.hex() == hop_id(transaction.id, "box/one")
    assert attributes(found["outer/first"].attributes)["bitactor.holder"] == node
    path = [section.id for section in drawn(bars(spans), root.span_id.hex())]
    held = {span.parent_span_id.hex() for span in spans}
    hops = [hop for hop in said(recorder.pulses) if hop not in held]
    assert [span for span in path if span in hops] == hops


@claim("Traces", "A consumer's transaction and its only hop are one span, with the message's id and the group.")
@claim("Traces", "A hop budget that is spent is a span with an error, whose status is the chain in words.")
async def test_signals_in_a_trace() -> None:
    begin = Workflow("begin", ttl=2)

    @begin.step
    async def send(ctx: Context) -> None:
        await ctx.emit("knock", 1)

    @consumer("knock", group="door")
    async def answer(signal: Signal, ctx: Context) -> None:
        await ctx.emit("knock", 2)

    with OtlpReceiver() as receiver:
        async with Mesh(begin, answer, otlp=receiver.endpoint) as mesh:
            transaction = await mesh.stimulate("begin")
            await transaction.result(timeout=PATIENCE)
        spans = receiver.wait_for_spans(5)
    first, second = sorted(
        (span for span in spans if span.name == "answer@knock"), key=lambda span: span.start_time_unix_nano
    )
    hop = hop_id(transaction.id, "send")
    assert first.kind == second.kind == first.SPAN_KIND_CONSUMER
    assert first.parent_span_id.hex() == hop and second.parent_span_id == first.span_id
    told = attributes(first.attributes)
    assert told["bitactor.outcome"] == told["bitactor.status"] == "completed"
    assert told["messaging.message.id"] == f"{hop}:0" and told["messaging.consumer.group.name"] == "door"
    (buried,) = [span for span in spans if span.name == "tombstone answer@knock/answer"]
    assert (buried.status.code, buried.status.message) == (ERROR, "ttl_expired: begin/send → knock → knock")
    assert buried.parent_span_id == second.span_id
