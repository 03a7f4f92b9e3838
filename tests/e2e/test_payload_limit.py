"""The payload limit as a setting: held on every way in, with whatever limit others have."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bitactor import SignalTooLarge, Value, Workflow, WorkflowFailed
from bitactor.errors import ConfigurationError, InvalidInput
from bitactor.messages.values import MAX_TOKEN_BYTES, PAYLOAD
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.ingress.http import application
from mesh.limits.payload import LEAST_LIMIT, MOST_LIMIT
from mesh.runtime.settings import settings
from tests.e2e.apps import definitions
from tests.e2e.processes import town
from tests.e2e.support import BOUND

MIB = 1024 * 1024
SMALL = LEAST_LIMIT
large = definitions["large"]


def test_a_limit_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings().payload_limit == MAX_TOKEN_BYTES
    for wrong in (SMALL - 1, MOST_LIMIT + 1, 0, "much"):
        with pytest.raises(ConfigurationError, match="BITACTOR_PAYLOAD_LIMIT"):
            settings(payload_limit=wrong)
    monkeypatch.setenv("BITACTOR_PAYLOAD_LIMIT", str(MIB))
    assert settings().payload_limit == MIB


async def test_a_process_has_one_limit() -> None:
    async with Mesh(large, payload_limit=MIB), Mesh(large, payload_limit=MIB):
        with pytest.raises(ConfigurationError, match=r"payload_limit=2,097,152.*has 1,048,576.*a process has one"):
            async with Mesh(large, payload_limit=2 * MIB):
                pass
        assert PAYLOAD.bytes == MIB
    assert PAYLOAD.bytes == MAX_TOKEN_BYTES, "given back"


@pytest.mark.parametrize("limit", [SMALL, MAX_TOKEN_BYTES, 12 * MIB])
@pytest.mark.parametrize("store", ["memory://", "sqlite"])
async def test_values_up_to_the_limit_go_through_and_larger_ones_are_refused(
    limit: int, store: str, tmp_path: Path
) -> None:
    """As an input, as a result, as an emitted signal."""
    store = f"sqlite:///{tmp_path}/pulses.db" if store == "sqlite" else store
    async with Mesh(large, store=store, payload_limit=limit) as mesh:
        most = limit - 100
        handle = await mesh.stimulate(large, {"text": "x" * most, "times": 1, "where": "result"})
        assert await handle.result(BOUND) == "x" * most
        with pytest.raises((SignalTooLarge, InvalidInput), match=rf"limit is {limit:,} \(payload_limit\)"):
            await mesh.stimulate(large, {"text": "x" * (limit + 1), "times": 1, "where": "result"})
        for where in ("result", "emitted"):
            half = "x" * (limit // 2 + 1)
            handle = await mesh.stimulate(large, {"text": half, "times": 2, "where": where})
            with pytest.raises(WorkflowFailed, match=f"SignalTooLarge.*limit is {limit:,}"):
                await handle.result(BOUND)


async def test_a_worker_process_has_the_limit_of_its_node() -> None:
    for limit in (SMALL, 6 * MIB):
        async with Mesh(definitions["large.in_process"], payload_limit=limit, processes=1) as mesh:
            given = {"text": "x" * 1000, "times": limit // 1000 - 1}
            handle = await mesh.stimulate("large.in_process", given)
            assert len(await handle.result(BOUND)) == given["times"] * 1000
            handle = await mesh.stimulate("large.in_process", given | {"times": limit // 1000 + 1})
            with pytest.raises(WorkflowFailed, match=f"SignalTooLarge.*limit is {limit:,}"):
                await handle.result(BOUND)


def mapped() -> Workflow:
    workflow = Workflow("mapped", ttl=9)
    workflow.map(name="each", over=Value([1] * 5), batch=1, spawn="inline")(lambda element: "x" * 1_000_000)
    return workflow


async def test_a_map_keeps_the_limit_that_its_transaction_began_with(tmp_path: Path) -> None:
    """So that what it came to is the same when it is read under another limit."""
    store = f"sqlite:///{tmp_path}/pulses.db"
    trace = run_workflow(mapped())
    assert isinstance(trace.errors[0], SignalTooLarge) and "4,194,304" in str(trace.errors[0])
    async with Mesh(mapped(), store=store, payload_limit=6 * MIB) as mesh:
        kept = await mesh.stimulate("mapped")
        assert len(await kept.result(BOUND)) == 5
    async with Mesh(mapped(), store=store) as mesh:
        refused = await mesh.stimulate("mapped")
        with pytest.raises(WorkflowFailed, match="more than 4,194,304 bytes"):
            await refused.result(BOUND)
    async with Mesh(mapped(), store=store, payload_limit=2 * MIB) as mesh:
        again = await mesh.transaction(kept.id)
        assert (again.status, len(await again.result(BOUND))) == ("completed", 5)
    async with Mesh(mapped(), store=store, payload_limit=8 * MIB) as mesh:
        again = await mesh.transaction(refused.id)
        with pytest.raises(WorkflowFailed, match="more than 4,194,304 bytes"):
            await again.result(BOUND)


async def test_a_body_may_be_as_large_as_a_value() -> None:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(Mesh(large, payload_limit=6 * MIB))
        transport = httpx2.ASGITransport(application(mesh))
        http = await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://mesh"))
        body: dict[str, Any] = {"text": "x" * (5 * MIB), "times": 1, "where": "result"}
        answer = await http.post("/stimuli/large", json=body, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200 and len(answer.json()["result"]) == 5 * MIB
        answer = await http.post("/stimuli/large", json=body | {"text": "x" * (6 * MIB)})
        assert answer.status_code == 413 and f"{6 * MIB:,}" in answer.json()["detail"]
    assert application(Mesh(large)).state.endpoints.max_body_bytes == MAX_TOKEN_BYTES


async def test_nodes_of_other_limits_say_whose_it_is() -> None:
    with town() as place:
        place.serve_registry()
        place.node("large", payload_limit=MIB)
        options: dict[str, Any] = {"registry": place.registry, "hosts": False}
        given = {"text": "x" * 1000, "times": 100, "where": "result"}
        async with Mesh(large, **options) as mesh:
            handle = await mesh.stimulate(large, given | {"text": "x" * (MIB + 1)})
            whose = rf"SignalTooLarge: 'text' of 'large/repeat'.* takes {MIB:,} \(its payload_limit"
            with pytest.raises(WorkflowFailed, match=whose):
                await handle.result(BOUND)
            handle = await mesh.stimulate(large, given)
            assert await handle.result(BOUND) == "x" * 100_000
        async with Mesh(large, payload_limit=SMALL, **options) as mesh:
            for where, what in (("result", "the result"), ("emitted", "the signal 'large.text' that it emits")):
                handle = await mesh.stimulate(large, given | {"where": where})
                with pytest.raises(WorkflowFailed, match=f"{what}: 100,00. bytes; .* takes {SMALL:,}"):
                    await handle.result(BOUND)
