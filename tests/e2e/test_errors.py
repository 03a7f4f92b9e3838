"""Whatever of a workflow fails, its error names the workflow, the path of the step, and the attempt, wherever it is
looked at; and what came with an exception is shown with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from bitactor import Element, Halt, Result, TtlExpired, Value, Workflow, WorkflowFailed, consumer
from bitactor.messages.faults import shortened
from bitactor.testing import Hang, Lose, run_workflow
from mesh import Mesh
from mesh.cli.waterfall.render import render
from mesh.sinks.otel.spans import SpanAssembler
from mesh.transaction import transaction_as_plain
from tests.e2e.support import BOUND


class Boom(Exception):
    """What user code here raises."""


def boom(*_: Any) -> Any:
    """Raise, whoever asks."""
    raise Boom("it broke")


def one() -> int:
    """A step that works."""
    return 1


def inner() -> Workflow:
    """A nested workflow whose only step fails."""
    workflow = Workflow("inner", input={"n": int})
    workflow.step(name="breaks", spawn="inline")(lambda n: boom())
    return workflow


def passing() -> Workflow:
    """A nested workflow that works."""
    workflow = Workflow("inner", input={"n": int})
    workflow.step(name="works", spawn="inline")(lambda n: n)
    return workflow


def _step(**options: Any) -> Callable[[Workflow], Any]:
    return lambda w: w.step(name="s", spawn="inline", **options)(lambda x=1: boom())


def _with(options: dict[str, Any], function: Callable[..., Any] = one) -> Callable[[Workflow], Any]:
    return lambda w: w.step(name="s", spawn="inline", **options)(function)


def _compensate(answer: Any) -> Callable[[Workflow], Any]:
    def declare(workflow: Workflow) -> None:
        workflow.step(name="s", spawn="inline")(lambda: boom()).compensate(lambda error: answer)

    return declare


def _compensate_raises(workflow: Workflow) -> None:
    workflow.step(name="s", spawn="inline")(lambda: boom()).compensate(lambda error: 1 / 0)


def _undo_fails(workflow: Workflow) -> None:
    workflow.step(name="s", spawn="inline")(one).undo(lambda: boom())
    workflow.step(name="t", spawn="inline", after=["s"])(lambda: boom())


def _around(workflow: Workflow) -> None:
    async def wrap(proceed: Any) -> Any:
        return await proceed()

    workflow.around(workflow=inner(), name="s", bind={"n": Value(1)})(wrap)


def _around_itself(workflow: Workflow) -> None:
    async def wrap(proceed: Any) -> Any:
        await proceed()
        boom()

    workflow.around(workflow=passing(), name="s", bind={"n": Value(1)})(wrap)


def _typed(workflow: Workflow) -> None:
    def takes(r: int) -> int:
        return r

    workflow.step(name="s", spawn="inline")(takes)


def _second_round_does_not_fit(workflow: Workflow) -> None:
    nested = Workflow("inner", input={"a": int, "b": int})
    nested.step(name="adds", spawn="inline")(lambda a, b: a + b)
    workflow.recurse("s", nested, at_most=3, bind={"a": Value(1), "b": Value(1)})


def _too_many_hops(workflow: Workflow) -> None:
    workflow.step(name="r", spawn="inline")(one)
    workflow.step(name="s", spawn="inline", after=["r"])(one)


class Case(NamedTuple):
    """A declaration that fails, and the path and attempt that its error is to name."""

    declare: Callable[[Workflow], Any]
    path: str = "s"
    attempt: int = 1
    faults: Any = None
    """What `run_workflow` injects; such a case is not run in a mesh."""
    options: Mapping[str, Any] = {}
    """Of the stimulus."""
    of: Mapping[str, Any] = {}
    """Of the workflow."""
    in_mesh_only: bool = False


CASES = {
    "step": Case(_step()),
    "step, third try": Case(_step(retries=2, backoff=lambda error, attempt: 0.0), attempt=3),
    "when": Case(_with({"when": lambda: boom()})),
    "when exits": Case(_with({"when": lambda: sys.exit(3)})),
    "guard": Case(_with({"guard": lambda: boom()})),
    "transform": Case(_with({"bind": {"x": Value(1).map(boom)}}, lambda x: x)),
    "a path that leads nowhere": Case(
        lambda w: (
            w.step(name="r", spawn="inline")(lambda: {"a": 1}),
            w.step(name="s", spawn="inline", bind={"x": Result("r", "b")})(lambda x: x),
        )
    ),
    "a result that cannot be carried": Case(_with({}, lambda: object())),
    "an argument of the wrong type": Case(lambda w: (w.step(name="r", spawn="inline")(lambda: "no"), _typed(w))),
    "compensate raises": Case(_compensate_raises),
    "compensate answers 5": Case(_compensate(5)),
    "backoff raises": Case(_step(retries=1, backoff=lambda error, attempt: 1 / 0)),
    "undo": Case(_undo_fails, path="t"),
    "nested": Case(lambda w: w.compose("s", inner(), bind={"n": Value(1)}), path="s/breaks"),
    "nested input": Case(lambda w: w.compose("s", inner(), bind={"n": Value("x")})),
    "map over a function": Case(
        lambda w: w.map(name="s", over=Value([1, 2]), spawn="inline")(lambda element: boom()), path="s/batch-0"
    ),
    "map over a workflow": Case(
        lambda w: w.map(workflow=inner(), name="s", over=Value([7]), bind={"n": Element()}), path="s/0/breaks"
    ),
    "reduce": Case(
        lambda w: w.map(name="s", over=Value([1]), reduce=boom, initial=0, spawn="inline")(lambda element: element),
        path="s/batch-0",
    ),
    "collect's transform": Case(lambda w: w.collect("s", {"a": Value(1)}, transform=boom)),
    "template": Case(lambda w: (w.step(name="r", spawn="inline")(one), w.template("s", "{r.gone}"))),
    "flunk": Case(lambda w: w.flunk("s", "no")),
    "switch predicate": Case(lambda w: w.switch("s", on=Value(1), cases=[(boom, one)])),
    "switch without a case": Case(lambda w: w.switch("s", on=Value(1), cases=[(2, one)])),
    "switch branch": Case(lambda w: w.switch("s", on=Value(1), cases=[(1, lambda: boom())]), path="s/lambda"),
    "group's before": Case(
        lambda w: w.group("s", passing(), before_all=lambda: boom(), bind={"n": Value(1)}), path="s/before"
    ),
    "group's before answers nonsense": Case(
        lambda w: w.group("s", passing(), before_all=lambda: {"m": 1}, bind={"n": Value(1)})
    ),
    "group's after": Case(
        lambda w: w.group("s", passing(), after_all=lambda: boom(), bind={"n": Value(1)}), path="s/after"
    ),
    "until": Case(lambda w: w.iterate(lambda state: state, name="s", start=Value(1), at_most=3, until=boom)),
    "recurse's until": Case(lambda w: w.recurse("s", passing(), at_most=3, until=boom, bind={"n": Value(1)})),
    "recurse, second round": Case(_second_round_does_not_fit),
    "nested in a function": Case(_around, path="s/breaks", in_mesh_only=True),
    "a function around steps": Case(_around_itself, path="s/around", in_mesh_only=True),
    "timeout": Case(lambda w: w.step(name="s", timeout=1.0)(one), faults={"s": Hang()}),
    "lost worker": Case(_with({}), faults={"s": [Lose()] * 9}),
    "deadline": Case(_with({}), faults={"s": Hang()}, options={"deadline": 2.0}),
    "SystemExit": Case(lambda w: w.step(name="s", spawn="inline")(lambda: sys.exit(3))),
    "halt": Case(_with({}, lambda: Halt("wait"))),
    "max_hops": Case(_too_many_hops, of={"max_hops": 1}),
    "ttl": Case(_too_many_hops, options={"ttl": 1}),
}


def _declared(case: Case) -> Workflow:
    workflow = Workflow("shop", **case.of)
    case.declare(workflow)
    return workflow


def _check(failure: WorkflowFailed, case: Case) -> None:
    where = f"shop/{case.path}"
    assert (failure.workflow, failure.step, failure.attempt) == ("shop", where, case.attempt)
    assert f"at '{where}', attempt {case.attempt}: " in str(failure)
    assert failure.__cause__ is (failure.errors[0] if failure.errors else None)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.in_mesh_only])
def test_the_error_names_workflow_step_and_attempt(name: str) -> None:
    case = CASES[name]
    trace = run_workflow(_declared(case), faults=case.faults, **case.options)
    assert trace.failure is not None
    _check(trace.failure, case)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.faults is None])
async def test_and_in_a_mesh(name: str) -> None:
    case = CASES[name]
    workflow = _declared(case)
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow, **case.options)
        with pytest.raises(WorkflowFailed) as caught:
            await transaction.result(BOUND)
        _check(caught.value, case)
        for error in (await transaction_as_plain(transaction)).get("errors", ())[:1]:
            assert (error["step"], error["direction"], error["attempt"]) == (case.path, "forward", case.attempt)


async def test_a_failed_undo_is_named_too() -> None:
    workflow = _declared(Case(_undo_fails))
    async with Mesh(workflow) as mesh:
        transaction = await mesh.stimulate(workflow)
        with pytest.raises(WorkflowFailed) as caught:
            await transaction.result(BOUND)
    assert caught.value.__notes__ == ["then at undo of 'shop/s', attempt 1: Boom: it broke"]
    failure = run_workflow(_declared(Case(_undo_fails))).failure
    assert str(failure).startswith("'shop' ended stuck at 'shop/t', attempt 1: Boom")


async def test_a_consumer_names_itself() -> None:
    @consumer("greeted", group="mails")
    def send(signal: Any) -> None:
        boom()

    trace = run_workflow(send, {"to": "Ada"})
    assert trace.failure is not None
    assert trace.failure.workflow
    assert trace.failure.step.startswith(trace.failure.workflow)
    assert trace.failure.attempt == 1


def test_what_came_with_an_error_is_shown_with_it() -> None:
    def breaks(element: int) -> None:
        try:
            boom()
        except Boom as broken:
            broken.add_note("seen here")
            raise ExceptionGroup("both", [ValueError("a"), TypeError("b")]) from broken

    workflow = Workflow("shop")
    workflow.map(name="s", over=Value([7]), spawn="inline")(breaks)
    trace = run_workflow(workflow)
    shown = [line.plain.strip(" └`") for line in render(trace.pulses)]
    assert shown[-6:] == [
        "ExceptionGroup: both (2 sub-exceptions)",
        "note: element 0 of step 's' of 'shop'",
        "caused by Boom: it broke",
        "note: seen here",
        "member ValueError: a",
        "member TypeError: b",
    ]


def test_an_error_is_an_event_of_the_step_that_raised_it_and_of_nothing_around_it() -> None:
    workflow = Workflow("shop")
    workflow.compose("s", inner(), bind={"n": Value(1)})
    spans = SpanAssembler().feed(run_workflow(workflow).pulses)
    assert [span.name for span in spans for event in span.events if event.name == "exception"] == ["shop/s/breaks"]


def test_what_is_open_when_the_time_is_up_ends_with_it() -> None:
    nested = Workflow("inner")
    nested.step(name="breaks", spawn="inline", retries=1, backoff=lambda: 60.0)(lambda: boom())
    workflow = Workflow("shop")
    workflow.compose("s", nested)
    trace = run_workflow(workflow, deadline=1.0)
    assert [pulse.kind for pulse in trace.of("s")] == ["spawned", "failed"]


def test_long_paths_are_shown_without_their_middle() -> None:
    workflow = Workflow("shop", ttl=40)
    for number in range(40):
        workflow.step(name=f"s{number}", spawn="inline", after=[f"s{number - 1}"] if number else [])(one)
    trace = run_workflow(workflow, ttl=30)
    (error,) = trace.errors
    assert isinstance(error, TtlExpired)
    assert error.path == tuple(f"shop/s{number}" for number in range(31))
    assert "after shop/s0 → shop/s1 → shop/s2 → shop/s3 → … 22 more … → shop/s26 → shop/s27 →" in str(error)
    (note,) = [line.plain for line in render(trace.pulses, 400) if "tombstone: " in line.plain]
    assert "shop/s3 > … 23 more … > shop/s27 >" in note
    (tombstone,) = [
        event for span in SpanAssembler().feed(trace.pulses) for event in span.events if event.name == "tombstone"
    ]
    assert tombstone.attributes["bitactor.tombstone.chain"] == " → ".join(shortened(error.path))
