"""The kinds that nest workflows: their paths, pulses, hop budgets and order of undo, and what cannot be declared."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from bitactor import (
    Context,
    CycleError,
    DefinitionError,
    DuplicateName,
    Element,
    Input,
    Result,
    UnknownArgument,
    Value,
    Workflow,
    WorkflowTooDeep,
)
from bitactor.errors import InvalidInput, InvalidOutcome, StepFailed
from bitactor.testing import Trace, run_workflow


def hops(trace: Trace) -> list[tuple[str, int]]:
    """Path and hop budget of each hop; containers are none, and spend nothing."""
    opened = {pulse.step for pulse in trace.pulses if pulse.data is not None and "opening" in pulse.data}
    return [(pulse.step, pulse.ttl) for pulse in trace.pulses if pulse.kind == "spawned" and pulse.step not in opened]


def billing(name: str = "billing") -> Workflow:
    """Two steps, both of which can be undone."""
    workflow = Workflow(name, input={"amount": int, "currency": (str, "EUR")})

    @workflow.step(spawn="inline")
    def reserve(amount: int) -> int:
        return amount

    reserve.undo(lambda: None)

    @workflow.step(spawn="inline")
    def charge(reserve: int, currency: str) -> str:
        return f"{reserve} {currency}"

    charge.undo(lambda: None)
    return workflow


def failing_after(workflow: Workflow, step: str) -> Workflow:
    workflow.flunk("stop", "no", after=[step])
    return workflow


# compose


def test_compose_is_a_pair_of_pulses_around_those_of_its_steps() -> None:
    workflow = Workflow("shop", input={"amount": int}, ttl=8)
    workflow.compose("bill", billing())
    workflow.step(name="thank", spawn="inline")(lambda bill: f"thanks for {bill}")
    trace = run_workflow(workflow, {"amount": 3})
    assert trace.kinds == [
        "accepted", "spawned bill", "spawned bill/reserve", "completed bill/reserve", "spawned bill/charge",
        "completed bill/charge", "completed bill", "spawned thank", "completed thank", "finished",
    ]  # fmt: skip
    assert trace.result == "thanks for 3 EUR"
    assert hops(trace) == [("bill/reserve", 7), ("bill/charge", 6), ("thank", 5)]
    assert trace.results == {"bill": "3 EUR", "thank": "thanks for 3 EUR"}


def test_the_first_hop_within_is_caused_by_the_container_and_it_by_what_it_waited_for() -> None:
    workflow = Workflow("shop", ttl=8)
    workflow.step(name="amount", spawn="inline")(lambda: 3)
    workflow.compose("bill", billing())
    trace = run_workflow(workflow)
    first = {pulse.step: pulse for pulse in reversed(trace.pulses) if pulse.kind == "spawned"}
    assert first["bill"].causes == (first["amount"].hop,)
    assert first["bill/reserve"].causes == (first["bill"].hop,)
    assert len({pulse.hop for pulse in first.values()}) == len(first)


def test_its_steps_are_undone_in_reverse_among_the_outer_ones() -> None:
    workflow = Workflow("shop")
    workflow.step(name="before", spawn="inline")(lambda: 1).undo(lambda: None)
    workflow.compose("bill", billing(), bind={"amount": Result("before")})
    workflow.step(name="behind", spawn="inline", after=["bill"])(lambda: 1).undo(lambda: None)
    trace = run_workflow(failing_after(workflow, "behind"))
    assert trace.undone == ["behind", "bill/charge", "bill/reserve", "before"]


def test_input_that_does_not_fit_fails_the_container_before_anything_of_it_runs() -> None:
    workflow = Workflow("shop")
    workflow.compose("bill", billing(), bind={"amount": Value("much")})
    trace = run_workflow(workflow)
    assert isinstance(trace.errors[0], InvalidInput)
    assert hops(trace) == []


def test_defaults_of_the_nested_input_hold_and_validated_values_are_handed_on() -> None:
    workflow = Workflow("shop")
    workflow.compose("bill", billing(), bind={"amount": Value("3"), "currency": Value("USD")})
    assert run_workflow(workflow).result == "3 USD"


@pytest.mark.parametrize("how", ["when", "guard"])
def test_a_container_can_be_skipped_or_answered_for(how: str) -> None:
    workflow = Workflow("shop", ttl=8)
    options: dict[str, Any] = (
        {"when": lambda amount: amount > 5} if how == "when" else {"guard": lambda amount: "known"}
    )
    workflow.compose("bill", billing(), bind={"amount": Value(1)}, **options)
    workflow.step(name="after", spawn="inline")(lambda bill: bill)
    trace = run_workflow(workflow)
    assert trace.result == (None if how == "when" else "known")
    assert hops(trace) == [("after", 7)]


# switch


def routing(**options: Any) -> Workflow:
    workflow = Workflow("route", input={"amount": int, "kind": Any})
    workflow.switch(
        "pay",
        on="kind",
        cases=[("card", billing()), (lambda kind: isinstance(kind, int) and kind > 5, by_hand)],
        **options,
    )
    workflow.step(name="after", spawn="inline")(lambda pay: pay)
    return workflow


def by_hand(amount: int) -> str:
    return f"by hand: {amount}"


@pytest.mark.parametrize(
    ("kind", "result", "first"),
    [("card", "2 EUR", "pay/reserve"), (6, "by hand: 2", "pay/by_hand"), ("?", "nothing", "pay/nothing")],
)
def test_the_first_case_that_fits_is_planned_and_no_other(kind: Any, result: str, first: str) -> None:
    def nothing() -> str:
        return "nothing"

    trace = run_workflow(routing(default=nothing), {"amount": 2, "kind": kind})
    assert trace.result == result
    assert hops(trace)[0] == (first, 7)


def test_no_case_and_no_default() -> None:
    trace = run_workflow(routing(), {"amount": 2, "kind": "cash"})
    assert isinstance(trace.errors[0], StepFailed)
    assert "no case for 'cash'; the cases are 'card', <lambda>; add one, a default, or optional=True" in str(
        trace.errors[0]
    )
    trace = run_workflow(routing(optional=True), {"amount": 2, "kind": "cash"})
    assert trace.result is None
    assert "skipped pay" in trace.kinds


def test_true_is_not_one() -> None:
    workflow = Workflow("w", input={"x": Any})
    workflow.switch("pick", on="x", cases=[(1, lambda: "one"), (True, lambda: "true")])
    assert run_workflow(workflow, {"x": True}).result == "true"
    assert run_workflow(workflow, {"x": 1}).result == "one"


# group


def test_a_group_is_three_parts_one_after_the_other() -> None:
    workflow = Workflow("w", input={"amount": int}, ttl=8)
    workflow.group(
        "bill",
        billing(),
        before_all=lambda amount: {"amount": amount + 1},
        after_all=lambda result, amount: (result, amount),
    )
    trace = run_workflow(workflow, {"amount": 3})
    assert [*trace.result] == ["4 EUR", 3]
    assert hops(trace) == [("bill/before", 7), ("bill/reserve", 6), ("bill/charge", 5), ("bill/after", 4)]


@pytest.mark.parametrize(
    ("answer", "message"), [(5, "answered 5; it answers None, or a mapping"), ({"amout": 1}, "Did you mean 'amount'?")]
)
def test_what_before_may_answer(answer: Any, message: str) -> None:
    workflow = Workflow("w", input={"amount": int})
    workflow.group("bill", billing(), before_all=lambda amount: answer)
    trace = run_workflow(workflow, {"amount": 3})
    assert isinstance(trace.errors[0], InvalidOutcome)
    assert message in str(trace.errors[0])
    assert [step for step, _ in hops(trace)] == ["bill/before"]


# recurse, iterate


def halving() -> Workflow:
    workflow = Workflow("halve", input={"n": int})

    @workflow.step(spawn="inline")
    def half(n: int) -> int:
        return n // 2

    half.undo(lambda: None)
    return workflow


def test_rounds_have_numbers_feed_each_other_and_end_when_it_is_enough() -> None:
    workflow = Workflow("w", ttl=12)
    workflow.recurse("descend", halving(), at_most=10, until=lambda result: result < 10, bind={"n": Value(100)})
    workflow.step(name="after", spawn="inline")(lambda descend: descend)
    trace = run_workflow(workflow)
    assert trace.result == 6
    assert hops(trace) == [
        ("descend/1/half", 11),
        ("descend/2/half", 10),
        ("descend/3/half", 9),
        ("descend/4/half", 8),
        ("after", 7),
    ]


def test_rounds_end_at_their_bound_and_are_undone_last_first() -> None:
    workflow = Workflow("w", ttl=12)
    workflow.recurse("descend", halving(), at_most=3, bind={"n": Value(100)})
    trace = run_workflow(failing_after(workflow, "descend"))
    assert trace.undone == ["descend/3/half", "descend/2/half", "descend/1/half"]


def test_a_result_that_cannot_feed_the_next_round() -> None:
    nested = Workflow("nested", input={"a": int, "b": int})
    nested.step(name="sum", spawn="inline")(lambda a, b: a + b)
    workflow = Workflow("w", ttl=12)
    workflow.recurse("grow", nested, at_most=3, bind={"a": Value(1), "b": Value(1)})
    trace = run_workflow(workflow)
    assert isinstance(trace.errors[0], InvalidOutcome)
    assert "the result 2 cannot feed the next round; return a mapping with some of a, b" in str(trace.errors[0])


def test_a_mapping_feeds_some_fields_and_the_outer_ones_stay() -> None:
    nested = Workflow("nested", input={"a": int, "b": int})
    nested.step(name="sum", spawn="inline")(lambda a, b: {"a": a + b, "else": 0})
    workflow = Workflow("w", ttl=12)
    workflow.recurse("grow", nested, at_most=3, bind={"a": Value(1), "b": Value(10)})
    assert run_workflow(workflow).result == {"a": 31, "else": 0}


def test_iterate_is_a_function_again_and_again() -> None:
    workflow = Workflow("w", input={"start": float, "target": float}, ttl=20)

    @workflow.iterate(start=Input("start"), until=lambda state: abs(state**2 - 2) < 1e-6, at_most=15, spawn="inline")
    def root(state: float, target: float, ctx: Context) -> float:
        return (state + target / state) / 2

    trace = run_workflow(workflow, {"start": 1.0, "target": 2.0})
    assert trace.result == pytest.approx(2**0.5)
    assert hops(trace) == [("root/1", 19), ("root/2", 18), ("root/3", 17), ("root/4", 16)]


# collect, template, debug, flunk


def test_the_small_kinds(caplog: pytest.LogCaptureFixture) -> None:
    workflow = Workflow("w", input={"user": dict}, ttl=8)
    workflow.step(name="count", spawn="inline")(lambda: 3)
    workflow.collect("both", ["count", "user"])
    workflow.collect("sum", {"a": Result("count"), "b": Value(4)}, transform=lambda found: found["a"] + found["b"])
    workflow.template("text", "{user.name} has {count}")
    workflow.debug("look", "count", "text", level="warning")
    with caplog.at_level(logging.WARNING):
        trace = run_workflow(workflow, {"user": {"name": "Ada"}})
    assert trace.results["both"] == {"count": 3, "user": {"name": "Ada"}}
    assert trace.results["sum"] == 7
    assert trace.results["text"] == "Ada has 3"
    assert trace.result == {"count": 3, "text": "Ada has 3"}
    assert "Ada has 3" in caplog.text


def test_flunk_says_what_it_was_told_to() -> None:
    workflow = Workflow("w", input={"user": dict})
    workflow.flunk("stop", "no place for {user.name}")
    trace = run_workflow(workflow, {"user": {"name": "Ada"}})
    assert isinstance(trace.errors[0], StepFailed)
    assert "no place for Ada" in str(trace.errors[0])


# Declaring


def test_a_workflow_in_itself_is_a_cycle_also_through_others() -> None:
    a, b = Workflow("a"), Workflow("b")
    a.compose("to-b", b)
    b.compose("to-a", a)
    for workflow in (a, b):
        with pytest.raises(CycleError, match="is nested in itself; to repeat a workflow, use recurse with a bound"):
            workflow.check()


def test_a_cycle_of_nested_steps_names_them() -> None:
    workflow = Workflow("w")
    workflow.compose("one", billing(), bind={"amount": Result("two")})
    with pytest.raises(CycleError, match=r"one → two → one|two → one → two"):
        workflow.compose("two", billing(), bind={"amount": Result("one")})


def test_a_recursion_deeper_than_the_budget_is_refused_with_its_path() -> None:
    workflow = Workflow("w", ttl=8)
    workflow.step(name="before", spawn="inline")(lambda: 100)
    workflow.recurse("descend", halving(), at_most=8, bind={"n": Result("before")})
    with pytest.raises(WorkflowTooDeep, match=r"9 hops in a row, but ttl=8: before → descend \(8 hops\)"):
        workflow.check()


def test_a_nested_workflow_too_deep_for_the_outer_one_is_refused() -> None:
    inner = Workflow("inner", ttl=20)
    for number in range(10):
        inner.step(name=f"s{number}", spawn="inline", after=[f"s{number - 1}"] if number else ())(lambda: 1)
    workflow = Workflow("w", ttl=8)
    workflow.compose("sub", inner)
    with pytest.raises(WorkflowTooDeep, match=r"sub \(10 hops\)"):
        workflow.check()


Declare = Callable[[Workflow], Any]
NONSENSE: dict[str, tuple[Declare, type[Exception], str]] = {
    "compose of no workflow": (lambda w: w.compose("x", by_hand), DefinitionError, "give a Workflow"),
    "compose without its input": (
        lambda w: w.compose("x", billing()),
        UnknownArgument,
        "'amount' is neither an input field nor a step",
    ),
    "compose of an unknown input": (
        lambda w: w.compose("x", billing(), bind={"amount": Value(1), "amuont": Value(1)}),
        UnknownArgument,
        "no parameter of the compose",
    ),
    "compose of a result of nobody": (
        lambda w: w.compose("x", billing(), bind={"amount": Result("nobody")}),
        UnknownArgument,
        "'nobody', which does not exist",
    ),
    "compose with retries": (
        lambda w: w.compose("x", billing(), bind={"amount": Value(1)}, retries=3),
        DefinitionError,
        "retries= is for the steps within it",
    ),
    "compose with an undo": (
        lambda w: w.compose("x", billing(), bind={"amount": Value(1)}).undo(lambda: None),
        DefinitionError,
        "cannot have undo",
    ),
    "compose with a compensate": (
        lambda w: w.compose("x", billing(), bind={"amount": Value(1)}).compensate(lambda: None),
        DefinitionError,
        "cannot have compensate",
    ),
    "an empty workflow": (lambda w: w.compose("x", Workflow("empty")), DefinitionError, "has no steps"),
    "switch without cases": (
        lambda w: w.switch("x", Value(1), {}),
        DefinitionError,
        "give a mapping of values to branches",
    ),
    "switch to nowhere": (
        lambda w: w.switch("x", Value(1), {1: "there"}),
        DefinitionError,
        "neither a workflow nor a function",
    ),
    "switch on nobody": (
        lambda w: w.switch("x", "nobody", {1: by_hand}),
        UnknownArgument,
        "'nobody', which does not exist",
    ),
    "switch optional and default": (
        lambda w: w.switch("x", Value(1), {1: by_hand}, default=by_hand, optional=True),
        DefinitionError,
        "leave out optional=True",
    ),
    "group without hooks": (lambda w: w.group("x", billing()), DefinitionError, "use compose"),
    "group with a hook that is none": (
        lambda w: w.group("x", billing(), before_all=3),
        DefinitionError,
        "give a function",
    ),
    "group with a hook that asks for the unknown": (
        lambda w: w.group("x", billing(), bind={"amount": Value(1)}, after_all=lambda reslt: 1),
        UnknownArgument,
        "'reslt'",
    ),
    "recurse without a bound": (
        lambda w: w.recurse("x", halving(), at_most=None),
        DefinitionError,
        "a bound is obligatory",
    ),
    "recurse not even once": (lambda w: w.recurse("x", halving(), at_most=0), DefinitionError, "at least 1"),
    "recurse until what": (
        lambda w: w.recurse("x", halving(), at_most=2, until=3),
        DefinitionError,
        "give a plain function",
    ),
    "iterate without a start": (
        lambda w: w.iterate(name="x", at_most=3)(lambda state: state),
        DefinitionError,
        "needs start=",
    ),
    "iterate without state": (
        lambda w: w.iterate(name="x", start=Value(1), at_most=3)(lambda other: other),
        DefinitionError,
        "give it that parameter",
    ),
    "around no workflow": (lambda w: w.around(workflow=None)(around), DefinitionError, "give a Workflow"),
    "around what does not wait": (
        lambda w: w.around(workflow=billing())(by_hand),
        DefinitionError,
        "make it `async def`",
    ),
    "around without proceed": (
        lambda w: w.around(workflow=billing())(aimless),
        DefinitionError,
        "give it a parameter `proceed`",
    ),
    "collect of nobody": (lambda w: w.collect("x", ["nobody"]), UnknownArgument, "'nobody', which does not exist"),
    "template of nobody": (
        lambda w: w.template("x", "{nobody}"),
        UnknownArgument,
        "'nobody' is neither an input field nor a step",
    ),
    "debug at no level": (lambda w: w.debug("x", level="loud"), DefinitionError, "loud"),
}


async def around(proceed: Any) -> None: ...


async def aimless() -> None: ...


@pytest.mark.parametrize("what", NONSENSE)
def test_what_cannot_work_is_refused_before_it_runs(what: str) -> None:
    declare, kind, message = NONSENSE[what]
    workflow = Workflow("w", input={"other": int})
    with pytest.raises(kind) as caught:
        declare(workflow)
        workflow.check()
    assert message in str(caught.value)


def test_a_group_s_steps_cannot_be_called_like_its_hooks() -> None:
    nested = Workflow("nested")
    nested.step(name="after", spawn="inline")(lambda: 1)
    with pytest.raises(DuplicateName, match="has a step 'after', and so has the group"):
        Workflow("w").group("x", nested, after_all=lambda result: result)


class Sizes(BaseModel):
    a: int
    b: int = 0


@dataclasses.dataclass
class SameSizes:
    a: int


@pytest.mark.parametrize("answer", [Sizes(a=2), SameSizes(2), {"a": 2}])
def test_a_model_overrides_inputs_as_the_mapping_of_its_fields(answer: Any) -> None:
    inner, seen = Workflow("inner", input=Sizes), list[int]()

    @inner.step(spawn="inline")
    def saw(a: int) -> Any:
        seen.append(a)
        return answer

    workflow = Workflow("sizes")
    workflow.recurse("rounds", inner, at_most=2, bind={"a": Value(1)})
    workflow.group("group", inner, before_all=lambda: answer, bind={"a": Value(1)}, after=["rounds"])
    trace = run_workflow(workflow)
    assert (trace.status, seen) == ("completed", [1, 2, 2]), trace.errors


def test_an_elements_transform_gets_plain_data_whatever_class_another_parameter_names() -> None:
    workflow = Workflow("sizes")

    def add(size: Sizes, more: int) -> int:
        return size.a + more

    bind: Any = {"size": Element(), "more": Element().map(lambda size: size["b"])}
    workflow.map(add, name="sums", over=Value([Sizes(a=1, b=2)]), bind=bind, spawn="inline")
    assert run_workflow(workflow).result == [3]
