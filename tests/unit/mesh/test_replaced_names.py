"""Which names `steps=` of a mesh's fixture, and of `run_workflow`, takes where a step is made of other steps."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bitactor import Context, Element, Input, Retry, Workflow
from bitactor.errors import ConfigurationError, DefinitionError
from bitactor.testing import run_workflow
from mesh.testing.replace import replace_callbacks


def mapped(**options: Any) -> Workflow:
    """A map over a function, and a step after it."""
    workflow = Workflow("w")

    @workflow.map(over=lambda: range(3), batch=2)
    def load(element: int) -> int:
        return element

    @load.undo
    def unload(element: int) -> None: ...

    if options.get("report", True):

        @workflow.step
        def loaded(load: list[int]) -> int:
            return sum(load)

    return workflow


def inner() -> Workflow:
    workflow = Workflow("inner", input={"x": int})

    @workflow.step
    def charge(x: int) -> int:
        return x + 1

    return workflow


def outer() -> Workflow:
    workflow = Workflow("w", input={"x": int})
    workflow.compose("billing", inner(), bind={"x": Input("x")})
    workflow.map(name="orders", over=lambda: [1, 2], workflow=inner(), bind={"x": Element()})
    return workflow


def grown() -> Workflow:
    workflow = Workflow("w", input={"x": int})

    @workflow.iterate(start=Input("x"), at_most=2)
    def grow(state: int) -> int:
        return state + 1

    return workflow


def refusal(workflow: Workflow, name: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        replace_callbacks([workflow], {name: lambda: 1})
    return str(refused.value)


@pytest.mark.parametrize("name", ["load", "w/load", "load.undo", "w/load.undo"])
def test_a_maps_function_is_refused_with_what_to_do(name: str) -> None:
    said = refusal(mapped(), name)
    assert said.startswith(f"steps names {name!r}, which is a map: its functions are called for each element")
    assert "replace what they call" in said and "workflow=…" in said


def test_the_names_there_are_have_no_empty_one() -> None:
    assert refusal(mapped(report=False), "nonsense") == (
        "steps names 'nonsense', which is no step, undo or compensate here."
    )
    assert "Did you mean 'loaded'?" in refusal(mapped(), "loadd")
    assert "''" not in refusal(grown(), "nonsense")


@pytest.mark.parametrize("name", ["billing", "orders"])
def test_what_is_made_of_steps_is_refused_with_those(name: str) -> None:
    said = refusal(outer(), name)
    assert re.search(rf"made of steps \((compose|map)\); name one of them\..*'w/{name}/charge'", said), said


def test_steps_in_a_container_and_an_iterates_function_are_replaced() -> None:
    plans = replace_callbacks([outer()], {"w/orders/charge": lambda x: x * 100})
    assert plans["w"].at_address("w/orders/charge").run.function(x=2) == 200  # type: ignore[union-attr]
    assert plans["w"].at_address("w/billing/charge").run.function(x=2) == 3  # type: ignore[union-attr]
    for name in ("grow", "w/grow"):
        replaced = replace_callbacks([grown()], {name: lambda state: state * 10})
        assert replaced["w"].at_address("w/grow").run.function(state=2) == 20  # type: ignore[union-attr]


@pytest.mark.parametrize("prefix", ["", "w/"])
def test_an_undo_and_a_compensate_are_replaced_in_both(prefix: str) -> None:
    workflow, called = Workflow("w", input={"x": int}), list[object]()

    @workflow.step
    def a(x: int) -> int:
        return x

    a.undo(in_doubt=True, retries=1)(lambda result: called.append(("real", result)))

    @workflow.step(after=["a"])
    def b() -> None:
        raise ValueError("no")

    b.compensate(lambda error: called.append(("real", error)))

    async def undoes(result: int | None, x: int, ctx: Context) -> Retry | None:
        called.append((result, x, ctx.attempt))
        return Retry(after=0) if ctx.attempt == 1 else None

    steps = {f"{prefix}a.undo": undoes, f"{prefix}b.compensate": lambda error: called.append(str(error))}
    assert run_workflow(workflow, {"x": 1}, steps=steps).status == "compensated"
    assert called == ["no", (1, 1, 1), (1, 1, 2)]
    assert replace_callbacks([workflow], steps)["w"].at_address("w/a").undo.in_doubt  # type: ignore[union-attr]
    for wrong in ("b.undo", "a.compensate", "c.undo", "a.und", "w/c"):
        with pytest.raises(ConfigurationError, match="is no step, undo or compensate"):
            run_workflow(workflow, {"x": 1}, steps={wrong: undoes})
        with pytest.raises(ConfigurationError, match="is no step, undo or compensate"):
            replace_callbacks([workflow], {wrong: undoes})
    with pytest.raises(DefinitionError, match=r"replacement of 'w/a\.undo'.*'y'"):
        run_workflow(workflow, {"x": 1}, steps={"a.undo": lambda y: None})


def test_run_workflow_refuses_what_it_would_not_call() -> None:
    for workflow, name in ((mapped(), "load"), (outer(), "billing"), (outer(), "orders"), (grown(), "grow")):
        with pytest.raises(ConfigurationError, match=rf"steps names '{name}', which is made of other steps \("):
            run_workflow(workflow, {"x": 1} if workflow.input_model.model_fields else None, steps={name: lambda: 1})
    assert run_workflow(mapped(), steps={"loaded": lambda load: len(load)}).result == 3
