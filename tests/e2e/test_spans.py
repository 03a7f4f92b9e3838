"""What a collector sees of a mesh: a real OTLP/HTTP receiver made from the official protobufs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bitactor import Workflow, WorkflowFailed
from bitactor.messages.ids import hop_id, transaction_span_id
from mesh import Mesh
from tests.e2e.apps import greet, ping, pong, serve, signup, spans
from tests.e2e.processes import PATIENCE, Town, town
from tests.otlp_receiver import OtlpReceiver, attributes

ERROR = 2
UNSET = 0


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


async def test_a_transaction_is_one_trace_of_the_right_shape(place: Town, collector: OtlpReceiver) -> None:
    async with Mesh(signup, greet, otlp=collector.endpoint, service_name="shop") as mesh:
        transaction = await mesh.stimulate(
            "users.signup",
            {"name": "Ada", "email": "ada@example.org"},
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        await transaction.result(timeout=PATIENCE)
    found = {span.name: span for span in collector.wait_for_spans(5)}
    assert {span.trace_id.hex() for span in found.values()} == {transaction.id}
    whole = found["users.signup"]
    assert whole.span_id.hex() == transaction_span_id(transaction.id)
    assert [link.span_id.hex() for link in whole.links] == ["b7ad6b7169203331"]
    for step in ("normalise", "create_user", "welcome"):
        span = found[f"users.signup/{step}"]
        assert span.span_id.hex() == hop_id(transaction.id, step)
        assert span.parent_span_id == whole.span_id
        assert span.status.code == UNSET
        assert (
            whole.start_time_unix_nano
            <= span.start_time_unix_nano
            <= span.end_time_unix_nano
            <= whole.end_time_unix_nano
        )
    created = found["users.signup/create_user"]
    assert [link.span_id for link in created.links] == [found["users.signup/normalise"].span_id]
    said = attributes(created.attributes)
    assert said["bitactor.workflow"] == "users.signup" and said["bitactor.step"] == "create_user"
    assert (said["bitactor.ttl"], said["bitactor.attempt"], said["bitactor.spawn"], said["bitactor.direction"]) == (
        6,
        1,
        "loop",
        "forward",
    )
    child = found["greet@user.created"]
    assert child.parent_span_id == found["users.signup/welcome"].span_id
    resource = attributes(collector.resource_spans[0].resource.attributes)
    assert resource["service.name"] == "shop" and resource["host.name"]


async def test_failures_are_errors_with_a_type(place: Town, collector: OtlpReceiver) -> None:
    async with Mesh(signup, otlp=collector.endpoint) as mesh:
        transaction = await mesh.stimulate("users.signup", {"name": "busy", "email": "b@example.org"})
        with pytest.raises(WorkflowFailed):
            await transaction.result(timeout=PATIENCE)
    found = collector.wait_for_spans(4)
    tries = [span for span in found if span.name == "users.signup/create_user"]
    assert len(tries) == 2
    assert {span.status.code for span in tries} == {ERROR}
    assert {attributes(span.attributes)["error.type"].rpartition(".")[2].rpartition(":")[2] for span in tries} == {
        "Busy"
    }


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_users_own_spans_are_children_of_their_hop(place: Town, elsewhere: bool) -> None:
    """In a process with a tracer provider, in every spawner, with and without another process between."""
    place.serve_registry()
    options = {"hosts": True} if elsewhere else {"registry": ""}
    worker = place.node("spans", spans=True, **options)
    if elsewhere:
        async with Mesh(spans, registry=place.registry, hosts=False) as mesh:
            transaction = await mesh.stimulate("spans")
            await transaction.result(timeout=PATIENCE)
            identity = transaction.id
            made = [worker.expect("span") for _ in range(3)]
    else:
        worker.tell("run spans {}")
        made = [worker.expect("span") for _ in range(3)]
        identity = worker.expect("ended")[1]
    assert {(trace, parent) for _, trace, parent in made} == {
        (identity, hop_id(identity, step)) for step in ("loop_span", "thread_span", "inline_span")
    }


async def test_signals_that_go_round_are_one_trace(collector: OtlpReceiver) -> None:
    async with Mesh(serve, ping, pong, otlp=collector.endpoint) as mesh:
        transaction = await mesh.stimulate("serve", {"ball": 0})
        await transaction.result(timeout=PATIENCE)
    found = collector.wait_for_spans(2 + 7 + 2)
    assert {span.trace_id.hex() for span in found} == {transaction.id}
    (buried,) = [span for span in found if span.name.startswith("tombstone ")]
    assert buried.status.code == ERROR
    assert buried.status.message == "ttl_expired: serve/hit → ping → pong → ping → pong → ping → pong → ping → pong"
    consumers = [span for span in found if span.kind == span.SPAN_KIND_CONSUMER]
    assert len(consumers) == 8 and {span.name for span in consumers} == {"ping@ping", "pong@pong"}


async def test_an_unreachable_collector_costs_a_shutdown_at_most_two_seconds() -> None:
    quick = Workflow("quick", ttl=2)

    @quick.step
    async def only() -> int:
        return 1

    mesh = Mesh(quick, otlp="http://127.0.0.1:1")
    async with mesh:
        for _ in range(100):
            transaction = await mesh.stimulate("quick")
            assert await transaction.result(timeout=PATIENCE) == 1
        started = time.monotonic()
    assert time.monotonic() - started < 2 + 3  # two, and room for a busy machine
