"""The faults of `run_workflow` where a step is made of other steps: each meets a hop, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from bitactor import Element, Input, Signal, Workflow, consumer
from bitactor.errors import ConfigurationError, StepTimeout, WorkerLost
from bitactor.testing import Crash, Hang, Lose, NeedsMesh, run_workflow


def mapping(starts: list[int] | None = None, *, undo: bool = False) -> Workflow:
    """A map over four elements in batches of two."""
    workflow = Workflow("w")

    def source(start: int) -> range:
        if starts is not None:
            starts.append(start)
        return range(start, 4)

    @workflow.map(over=source, batch=2, timeout=1.0)
    def load(element: int) -> int:
        return element * 10

    if undo:

        @load.undo
        def unload(element: int) -> None: ...

    @workflow.step(spawn="inline")
    def report(load: list[int]) -> int:
        return sum(load)

    return workflow


def nested() -> Workflow:
    workflow = Workflow("inner", input={"x": int})

    @workflow.step(timeout=1.0)
    def charge(x: int) -> int:
        return x + 1

    @charge.undo(in_doubt=True)
    def refund(x: int) -> None: ...

    return workflow


def spawned(workflow: Workflow, name: str, faults: Any, value: Any = None) -> int:
    """How often a hop was given to a worker in a run that these faults do not fail."""
    trace = run_workflow(workflow, value, faults=faults)
    assert trace.status == "completed", trace.errors
    return trace.kinds.count(f"spawned {name}")


def test_a_fault_of_a_map_meets_the_hops_of_its_batches() -> None:
    lost = run_workflow(mapping(), faults={"load": Lose()})
    assert (lost.status, type(lost.errors[0])) == ("compensated", WorkerLost)
    late = run_workflow(mapping(), faults={"load": Hang()})
    assert (late.status, type(late.errors[0])) == ("compensated", StepTimeout)
    assert run_workflow(mapping()).result == 60


@pytest.mark.parametrize(
    ("given", "first", "second"),
    [([Lose()], 2, 1), ([Lose(), Lose()], 3, 1), ([None, Lose()], 1, 2), ([None, None, Lose()], 1, 1), (Crash(), 2, 1)],
)
def test_a_list_meets_the_deliveries_of_the_batches_in_order(given: Any, first: int, second: int) -> None:
    for batch, expected in (("load/batch-0", first), ("load/batch-1", second)):
        assert spawned(mapping(), batch, {"load": given}) == expected


def test_after_a_crash_the_source_is_opened_again_where_the_map_was() -> None:
    starts: list[int] = []
    trace = run_workflow(mapping(starts), faults={"load": [None, Crash()]})
    assert (trace.result, starts, trace.kinds.count("resumed")) == (60, [0, 2], 1)


def test_the_undo_of_a_map_has_faults_of_its_own() -> None:
    trace = run_workflow(mapping(undo=True), faults={"report": Lose(), "load.undo": [Lose()]})
    assert (trace.status, trace.undone) == ("compensated", ["load/batch-1", "load/batch-0"])
    spawns = [trace.kinds.count(f"spawned load/batch-{number}") for number in (0, 1)]
    assert spawns == [2, 3], trace.kinds
    assert run_workflow(mapping(undo=True), faults={"report": Lose(), "load.undo": Lose()}).status == "stuck"


def test_a_map_over_a_workflow_and_the_steps_in_it() -> None:
    workflow = Workflow("w")
    workflow.map(name="orders", over=lambda: [1, 2], workflow=nested(), bind={"x": Element()})
    assert spawned(workflow, "orders/batch-0", {"orders": [Lose()]}) == 2
    assert spawned(workflow, "orders/0/charge", {"orders/charge": [Lose()]}) == 2
    assert spawned(workflow, "orders/1/charge", {"orders/charge": [None, Lose()]}) == 2
    assert run_workflow(workflow, faults={"orders/charge": Hang()}).status == "compensated"


def test_an_iterate_meets_it_in_its_rounds() -> None:
    workflow = Workflow("w", input={"x": int})

    @workflow.iterate(start=Input("x"), at_most=3)
    def grow(state: int) -> int:
        return state + 1

    assert spawned(workflow, "grow/2", {"grow": [None, Lose()]}, {"x": 0}) == 2
    assert run_workflow(workflow, {"x": 0}, faults={"grow": Lose()}).status == "compensated"


def containers() -> Workflow:
    workflow = Workflow("w", input={"x": int})
    bind = {"x": Input("x")}
    workflow.compose("billing", nested(), bind=bind)
    workflow.recurse("again", nested(), at_most=2, bind=bind)
    workflow.group("grouped", nested(), before_all=lambda x: None, after_all=lambda x: x, bind=bind)
    workflow.switch("route", "x", {1: nested()}, default=lambda x: x, bind=bind)
    return workflow


@pytest.mark.parametrize(
    ("hop", "name"),
    [
        ("billing/charge", "billing/charge"),
        ("again/2/charge", "again/charge"),
        ("grouped/before", "grouped/before"),
        ("grouped/charge", "grouped/charge"),
        ("grouped/after", "grouped/after"),
        ("route/charge", "route/charge"),
    ],
)
def test_a_step_in_a_container_is_named_with_what_it_is_nested_in(hop: str, name: str) -> None:
    faults = {name: [None, Lose()] if hop.startswith("again") else [Lose()]}
    assert spawned(containers(), hop, faults, {"x": 1}) == 2
    assert run_workflow(containers(), {"x": 1}, faults={name: Lose()}).status == "compensated"


@pytest.mark.parametrize("name", ["billing", "again", "grouped", "route"])
def test_what_is_no_hop_itself_is_refused_with_the_steps_in_it(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"'{name}', which is no hop itself .*; name a step in it\..*'{name}/"
    ):
        run_workflow(containers(), {"x": 1}, faults={name: Lose()})
    with pytest.raises(ConfigurationError, match="which is no step of 'w'"):
        run_workflow(containers(), {"x": 1}, faults={f"{name}.undo": Lose()})
    with pytest.raises(ConfigurationError, match=r"Did you mean 'billing/charge.undo'"):
        run_workflow(containers(), {"x": 1}, faults={"billing/charge.undu": Lose()})


def test_a_function_around_steps_still_needs_a_mesh() -> None:
    workflow = Workflow("w", input={"x": int})

    @workflow.around(workflow=nested())
    async def locked(proceed: Any) -> Any:
        return await proceed()

    with pytest.raises(ConfigurationError, match="'locked/around', 'locked/charge'"):
        run_workflow(workflow, {"x": 1}, faults={"locked": Lose()})
    with pytest.raises(NeedsMesh):
        run_workflow(workflow, {"x": 1}, faults={"locked/charge": Lose()})


def test_a_consumer_meets_it_by_the_name_of_its_function() -> None:
    @consumer("user.created")
    def greet(signal: Signal) -> int:
        return 1

    trace = run_workflow(greet, "Ada", faults={"greet": [Lose()]})
    assert (trace.status, trace.kinds.count("spawned greet")) == ("completed", 2)
    with pytest.raises(ConfigurationError, match=r"'user\.created', which is no step .* Known: 'greet'"):
        run_workflow(greet, "Ada", faults={"user.created": Lose()})
