"""What arrives at a real OTLP/HTTP receiver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh.sinks import OtelSink, SinkRelay, open_sink
from tests.otlp_receiver import OtlpReceiver, attributes
from tests.pulse_log import PulseLog, chain, eventful


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


def test_a_whole_story_arrives_as_one_trace(receiver: OtlpReceiver) -> None:
    log = eventful()
    relay = SinkRelay(
        OtelSink(receiver.endpoint, service_name="users", resource={"deployment.environment.name": "test"})
    )
    for pulse in log.pulses:
        relay.offer([pulse])
    relay.close(5)

    spans = receiver.spans
    assert len(spans) == 8
    assert {span.trace_id.hex() for span in spans} == {log.id}
    transaction = next(span for span in spans if not span.parent_span_id)
    assert transaction.name == "users.signup"
    assert {span.parent_span_id for span in spans if span is not transaction} == {transaction.span_id}
    assert {span.flags & 0xFF for span in spans} == {1}

    retried = next(span for span in spans if attributes(span.attributes).get("bitactor.outcome") == "retried")
    assert retried.status.code == retried.status.STATUS_CODE_ERROR
    assert retried.status.message == "Busy: try later"
    assert attributes(retried.events[0].attributes) == {
        "exception.type": "app.errors.Busy",
        "exception.message": "try later",
        "exception.stacktrace": "Traceback …\nBusy: try later",
    }
    assert retried.links[0].span_id in {span.span_id for span in spans}

    (group,) = receiver.resource_spans
    resource = attributes(group.resource.attributes)
    assert resource["service.name"] == "users"
    assert resource["deployment.environment.name"] == "test"
    assert resource["telemetry.sdk.language"] == "python"
    assert resource["host.name"]
    assert resource["service.instance.id"]
    assert group.scope_spans[0].scope.name == "bitactor"


def test_a_child_transaction_in_another_process_joins_the_trace(receiver: OtlpReceiver) -> None:
    parent = PulseLog(1)
    hop = parent.spawn("welcome")
    parent.complete(hop)
    here, there = OtelSink(receiver.endpoint, service_name="users"), OtelSink(receiver.endpoint, service_name="mail")
    here.receive(parent.finish())
    there.receive(chain(2, 1, workflow="greet", root=parent.id, parent=parent.id, parent_hop=hop))
    here.close(5)
    there.close(5)
    found = {span.name: span for span in receiver.spans}
    assert {span.trace_id.hex() for span in found.values()} == {parent.id}
    assert found["greet"].parent_span_id.hex() == hop
    assert found["greet"].kind == found["greet"].SPAN_KIND_CONSUMER


def test_the_environment_configures_the_sink(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint + "/prefix")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret%20one")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=core,service.instance.id=one")
    sink = open_sink("otel://")
    sink.receive(chain())
    sink.close(5)
    assert len(receiver.spans) == 4
    assert receiver.paths == ["/prefix/v1/traces"]
    assert receiver.requests[0]["api-key"] == "secret one"
    assert receiver.requests[0]["content-encoding"] == "gzip"
    assert receiver.requests[0]["content-type"] == "application/x-protobuf"
    resource = attributes(receiver.resource_spans[0].resource.attributes)
    assert (resource["service.name"], resource["team"], resource["service.instance.id"]) == (
        "from-environment",
        "core",
        "one",
    )


def test_a_url_names_collector_and_service(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    sink = open_sink(receiver.endpoint.replace("http://", "otel://") + "?service_name=named")
    sink.receive(chain())
    sink.close(5)
    assert len(receiver.spans) == 4
    assert attributes(receiver.resource_spans[0].resource.attributes)["service.name"] == "named"
