"""What people see of a mesh in Jaeger: the critical path, who ran what, users' own spans, the picture in the docs."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitactor.messages.ids import hop_id
from mesh import Mesh
from tests import trace_picture
from tests.amounts import LONG
from tests.e2e.apps import spans
from tests.e2e.processes import PATIENCE, Town, town
from tests.otlp_receiver import OtlpReceiver, attributes
from tests.trace_picture import Recorder, Shown, check_paths

ROOT = Path(__file__).parents[2]
QUICK = {"etl": [[]], "kailash": [["sources"], ["service"]], "payment": [[]]}
EXAMPLES = {
    **QUICK,
    "api_aggregation": [[]],
    "etl": [[], ["--directory", "broken", "--break-archive"]],
    "kailash": [["api"], ["sources"], ["files"], ["service"]],
}


@pytest.fixture
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


@pytest.fixture(scope="module")
def order() -> Shown:
    return trace_picture.run()


def test_the_picture_in_the_docs_is_what_a_run_makes(order: Shown) -> None:
    kept = trace_picture.from_json(trace_picture.JSON.read_text())
    assert trace_picture.normalised(order.request) == trace_picture.normalised(kept)
    assert trace_picture.tree(kept) == trace_picture.TEXT.read_text()
    assert trace_picture.tree(order.request) == trace_picture.TEXT.read_text()


def test_the_critical_path_of_an_order_is_the_true_one(order: Shown) -> None:
    assert check_paths(order.pulses, trace_picture.spans(order.request)) == 2


def test_a_users_own_spans_are_below_their_hops_without_set_up(order: Shown) -> None:
    transaction = order.pulses[0].transaction
    found = {span.name: span for span in trace_picture.spans(order.request)}
    hops = {"bank call": hop_id(transaction, "pay/capture"), "print label": hop_id(transaction, "send/label")}
    for name, hop in hops.items():
        assert found[name].parent_span_id.hex() == hop
        assert found[name].trace_id.hex() == transaction
        above = next(span for span in found.values() if span.span_id.hex() == hop)
        assert above.start_time_unix_nano <= found[name].start_time_unix_nano
        assert found[name].end_time_unix_nano <= above.end_time_unix_nano
    assert found["compose letter"].parent_span_id == found["write_letter@order.placed"].span_id
    scopes = [scoped.scope for group in order.request.resource_spans for scoped in group.scope_spans]
    assert ("shop", "1.0") in {(scope.name, scope.version) for scope in scopes}


def test_a_hop_says_which_process_ran_it(order: Shown) -> None:
    (instance,) = {
        attributes(group.resource.attributes)["service.instance.id"] for group in order.request.resource_spans
    }
    said_of = {span.name: attributes(span.attributes) for span in trace_picture.spans(order.request)}
    assert said_of["shop.order/reserve"]["bitactor.holder"] == instance
    capture = said_of["shop.order/pay/capture"]
    assert capture["bitactor.holder"] == f"{instance}/{capture['process.pid']}"
    assert "bitactor.holder" not in said_of["shop.order/pay"], "a container runs nowhere"


async def test_hops_of_other_nodes(place: Town, collector: OtlpReceiver) -> None:
    place.serve_registry()
    node = place.node("spans", hosts=True)
    recorder = Recorder()
    async with Mesh(spans, registry=place.registry, hosts=False, otlp=collector.endpoint, sinks=[recorder]) as mesh:
        transaction = await mesh.stimulate("spans")
        await transaction.result(timeout=PATIENCE)
    assert node
    hops = [span for span in collector.spans if "/" in span.name]
    (holder,) = {attributes(span.attributes)["bitactor.holder"] for span in hops}
    (group, *_) = collector.resource_spans
    assert holder.startswith("n") and holder != attributes(group.resource.attributes)["service.instance.id"]
    assert check_paths(recorder.pulses, collector.spans) == 1


def test_a_tracer_provider_that_the_user_has_set_is_used_and_left_alone(place: Town, collector: OtlpReceiver) -> None:
    node = place.node("spans", spans=True, registry="", otlp=collector.endpoint)
    node.tell("run spans {}")
    assert len([node.expect("span") for _ in range(3)]) == 3
    node.expect("ended")
    node.close()
    assert {scoped.scope.name for group in collector.resource_spans for scoped in group.scope_spans} == {"bitactor"}


@pytest.mark.parametrize("name", EXAMPLES if LONG else QUICK)
def test_the_critical_path_of_every_example_is_the_true_one(
    name: str, collector: OtlpReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    make: Any = Mesh.__init__

    def traced(self: Mesh, *definitions: Any, sinks: Any = (), **options: Any) -> None:
        make(self, *definitions, sinks=[*sinks, recorder], otlp=collector.endpoint, **options)

    monkeypatch.setattr(Mesh, "__init__", traced)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "examples" / name), *sys.path])
    before = set(sys.modules)
    runs = (EXAMPLES if LONG else QUICK)[name]
    for arguments in runs:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / "docs" / "examples" / name), run_name="__main__")
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(ROOT / "docs")):
            del sys.modules[module]
    assert check_paths(recorder.pulses, collector.spans) >= len(runs)
