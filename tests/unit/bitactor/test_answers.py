"""Answers of functions that are called where nothing is awaited: a coroutine or a verdict is no truth value, and fails
the step with words; what is to be awaited is closed."""

from __future__ import annotations

import decimal
import functools
from collections.abc import Callable
from typing import Any

import pytest

from bitactor import Continue, Element, Fail, Input, InvalidOutcome, Ok, Retry, Then, Workflow
from bitactor.patterns.cache import KeyFunction
from bitactor.testing import run_workflow


async def no(*_: Any, **__: Any) -> bool:
    return False


def iterated(*_: Any) -> Any:
    yield False


def nested() -> Workflow:
    workflow = Workflow("n", input={"x": int})
    workflow.add(lambda x: x, name="k")
    return workflow


Declare = Callable[[Workflow, Callable[..., Any]], object]
PREDICATES: dict[str, tuple[Declare, str]] = {
    "when": (lambda w, f: w.add(lambda x: x, name="a", when=lambda x: f(x)), "`when`"),
    "until of an iterate": (
        lambda w, f: w.iterate(lambda state: state, name="a", start="x", until=lambda r: f(r), at_most=5),
        "until=",
    ),
    "until of a recurse": (lambda w, f: w.recurse("a", nested(), until=lambda r: f(r), at_most=5), "until="),
    "a predicate": (lambda w, f: w.switch("a", "x", {(lambda x: f(x)): nested()}), "the predicate of case 1"),
}
OTHERS: dict[str, tuple[Declare, str]] = {
    "guard": (lambda w, f: w.add(lambda x: x, name="a", guard=lambda x: f(x)), "`guard`"),
    "a transform": (
        lambda w, f: w.add(lambda v: v, name="a", bind={"v": Input("x").map(lambda x: f(x))}),
        "the transform for 'v'",
    ),
    "the last of two transforms": (
        lambda w, f: w.add(lambda v: v, name="a", bind={"v": Input("x").map(str).map(lambda x: f(x))}),
        "the transform for 'v'",
    ),
    "a transform of an element": (
        lambda w, f: w.map(lambda v: v, name="a", over="xs", bind={"v": Element().map(lambda x: f(x))}),
        "the transform of an element",
    ),
    "reduce": (
        lambda w, f: w.map(lambda element: 1, name="a", over="xs", reduce=lambda a, b: f(a)),
        "reduce=",
    ),
    "a collect's transform": (lambda w, f: w.collect("a", ["x"], transform=lambda given: f(given)), "transform="),
}  # fmt: skip


def run(declare: Declare, answer: Callable[..., Any]) -> Any:
    workflow = Workflow("w", input={"x": int, "xs": list[int]})
    declare(workflow, answer)
    return run_workflow(workflow, {"x": 1, "xs": [1]})


def said(outcome: Any) -> str:
    assert outcome.errors
    return " ".join(map(str, outcome.errors))


@pytest.mark.parametrize("name", [*PREDICATES, *OTHERS])
def test_a_coroutine_fails_the_step_and_is_closed(name: str) -> None:
    declare, place = (PREDICATES | OTHERS)[name]
    for answer in (no, functools.partial(no)):
        outcome = run(declare, answer)
        assert outcome.status == "compensated"
        assert place in said(outcome), said(outcome)
        assert "not awaited there; make it a plain function" in said(outcome)


@pytest.mark.parametrize("name", PREDICATES)
@pytest.mark.parametrize(
    "verdict", [Ok(False), Continue(False), Then(False, []), iterated], ids=("Ok", "Continue", "Then", "iterated")
)
def test_a_verdict_is_no_truth_value(name: str, verdict: Any) -> None:
    declare, place = PREDICATES[name]
    outcome = run(declare, lambda *_: verdict() if callable(verdict) else verdict)
    assert outcome.status == "compensated"
    assert place in said(outcome), said(outcome)
    assert "neither true nor false; return True or False" in said(outcome)


@pytest.mark.parametrize("name", PREDICATES)
def test_a_verdict_that_is_returned_is_as_one_that_is_raised(name: str) -> None:
    declare, _ = PREDICATES[name]
    assert "too little" in said(run(declare, lambda *_: Fail("too little")))
    assert "Retry is for a step's function to say" in said(run(declare, lambda *_: Retry()))


@pytest.mark.parametrize("name", PREDICATES)
@pytest.mark.parametrize("answer", [1, [0], "yes", True], ids=repr)
def test_what_is_true_as_python_has_it_counts(name: str, answer: Any) -> None:
    declare, _ = PREDICATES[name]
    assert run(declare, lambda *_: answer).status == "completed"


def test_a_key_cannot_be_awaited() -> None:
    with pytest.raises(InvalidOutcome, match=r"the key of c answered a .*not awaited there"):
        KeyFunction(lambda x: no(x), "the key of c")({"x": 1})


@pytest.mark.parametrize("after", [True, False, "5", b"5", [], float("nan"), -1, decimal.Decimal("-1")], ids=repr)
def test_a_delay_that_is_none_is_refused_with_words(after: Any) -> None:
    with pytest.raises(ValueError, match=r"Retry\(after=.*a delay is a number of seconds, zero or more"):
        Retry(after=after)


def test_a_delay_that_became_none_fails_the_step() -> None:
    def again() -> Retry:
        verdict = Retry()
        verdict.after = "5"  # type: ignore[assignment]
        return verdict

    workflow = Workflow("w")
    workflow.add(again, name="a", retries=1)
    outcome = run_workflow(workflow)
    assert isinstance(outcome.errors[0], InvalidOutcome)
    assert "a delay is a number of seconds" in said(outcome)


@pytest.mark.parametrize(
    "after", [1e300, float("inf"), 10**400, decimal.Decimal("1e30")], ids=lambda after: str(after)[:9]
)
def test_a_delay_of_ages_is_the_longest(after: Any) -> None:
    def again(attempt: int) -> Any:
        return Retry(after=after) if attempt == 1 else "done"

    def raising(attempt: int, again: str) -> str:
        return str(1 / (attempt - 1))

    workflow = Workflow("w")
    workflow.add(again, retries=1)
    if not isinstance(after, decimal.Decimal):
        workflow.add(raising, retries=1, backoff=lambda error: after)
    waits = [
        pulse.data["after_ns"] for pulse in run_workflow(workflow).pulses if pulse.kind == "retried" and pulse.data
    ]
    assert waits == [10**18] * len(workflow.steps)
