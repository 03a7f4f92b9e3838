"""The contract of resilience patterns, over each of them and one from outside; a new one is one more line in
`POLICIES`.  What is particular to a pattern is in `tests/unit/bitactor/patterns`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

import bitactor.patterns
from bitactor import Context, Continue, DefinitionError, Fail, Halt, Retry, Workflow
from bitactor.messages.outcome import Outcome
from bitactor.patterns import (
    Batching,
    Bulkhead,
    Cache,
    CircuitBreaker,
    ErrorHandler,
    Fallback,
    Policy,
    RateLimit,
    RetryPolicy,
    Timeout,
)
from bitactor.testing import run_workflow
from mesh import Mesh
from tests.extensions import CallCount
from tests.unit.bitactor.patterns.pattern_calls import BOUND, Bench, Step, soon, turns


async def handle(items: list[Any]) -> list[Any]:
    return items


POLICIES: dict[type[Policy], dict[str, Any]] = {
    Batching: {"size": 1, "interval": 1.0, "handler": handle},
    Bulkhead: {"concurrent": 1},
    Cache: {"key": "{item}"},
    CircuitBreaker: {},
    ErrorHandler: {"handle": "log"},
    Fallback: {"fallback": None, "on": LookupError},
    RateLimit: {"per_second": 1_000, "burst": 100},
    RetryPolicy: {"on": LookupError},
    Timeout: {"seconds": 60.0},
    CallCount: {},
}
every_pattern = pytest.mark.parametrize("kind", POLICIES, ids=lambda kind: kind.__name__)


def policy(kind: Any, name: str = "shop") -> Policy:
    made: Policy = kind(name, **POLICIES[kind])
    return made


def fetch(item: int) -> int:
    return item


def fetching(policies: Sequence[Policy]) -> Workflow:
    workflow = Workflow("w", input={"item": int})
    workflow.add(fetch, policies=policies)
    return workflow


def test_every_pattern_is_here() -> None:
    named = [getattr(bitactor.patterns, name) for name in bitactor.patterns.__all__]
    ours = {thing for thing in named if isinstance(thing, type) and issubclass(thing, Policy)}
    assert ours - {Policy} == {*POLICIES} - {CallCount}
    assert len({kind.pattern for kind in POLICIES}) == len(POLICIES)


# As declared


@every_pattern
def test_bad_options_are_refused(kind: Any) -> None:
    with pytest.raises(DefinitionError, match="name"):
        policy(kind, "")
    with pytest.raises(TypeError, match="unheard_of"):
        kind("shop", **POLICIES[kind], unheard_of=1)


@every_pattern
def test_equal_options_make_equal_policies_that_show_what_they_are(kind: type[Policy]) -> None:
    one, same, other = policy(kind), policy(kind), policy(kind, "other")
    assert one == same != other and hash(one) == hash(same)
    assert one.key == (kind.pattern, "shop") != other.key
    assert repr(one).startswith(f"{kind.__name__}(") and "'shop'" in repr(one)
    with pytest.raises(AttributeError):
        one.name = "other"


@every_pattern
def test_as_data_and_back_it_is_equal(kind: type[Policy]) -> None:
    workflow = fetching([policy(kind)])
    data = workflow.to_dict()
    again = Workflow.from_dict(json.loads(json.dumps(data)))
    assert again.steps["fetch"].options.policies == (policy(kind),)
    assert again.to_dict() == data


@every_pattern
def test_it_is_drawn_and_described_and_leaves_the_shape_as_it_is(kind: type[Policy]) -> None:
    workflow = fetching([policy(kind)])
    assert kind.pattern in workflow.mermaid()
    [described] = workflow.describe()["steps"]
    assert described["policies"] == [f"{kind.pattern} shop"]
    assert workflow.check().digest == fetching([]).check().digest


# Around one call


@every_pattern
async def test_values_and_verdicts_pass(kind: type[Policy]) -> None:
    bench = Bench(policy(kind))
    assert await bench.now(7, {"item": 1}) == 7
    assert await bench.now(8, {"item": 2}) == 8
    verdicts: list[Outcome] = [Halt("stop"), Retry(after=1.0), Fail("no")]
    for number, verdict in enumerate(verdicts, 3):
        with pytest.raises(type(verdict)) as raised:
            await bench.now(verdict, {"item": number})
        assert raised.value is verdict
        assert await bench.now(verdict.args, {"item": 10 + number}) is not verdict
    carried = Continue(3)
    assert await bench.now(carried, {"item": 9}) is carried


@every_pattern
async def test_an_error_passes_unless_the_pattern_is_for_it(kind: type[Policy]) -> None:
    bench, error = Bench(policy(kind)), ValueError("no")
    with pytest.raises(ValueError) as raised:
        await bench.now(error, {"item": 1})
    assert raised.value is error


@every_pattern
async def test_a_cancelled_call_leaves_nothing_behind(kind: type[Policy]) -> None:
    bench, step = Bench(policy(kind)), Step()
    task = bench.begin(step, {"item": 1})
    await turns()
    assert step.begun == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert step.cancelled == 1 and not step.open
    assert await bench.now(7, {"item": 1}) == 7


@every_pattern
async def test_its_state_is_told_in_plain_data(kind: type[Policy]) -> None:
    bench = Bench(policy(kind))
    before = json.loads(json.dumps(bench.state.about()))
    await bench.now(7, {"item": 1})
    after = json.loads(json.dumps(bench.state.about()))
    assert before.keys() == after.keys() and before != after


@every_pattern
async def test_it_closes_in_time_even_if_a_call_is_under_way(kind: type[Policy]) -> None:
    bench, step = Bench(policy(kind)), Step()
    task = bench.begin(step, {"item": 1})
    await turns()
    bench.state.drain()
    bench.state.drain()
    await soon(bench.state.close(0.0))
    step.end(7)
    await asyncio.wait([task], timeout=BOUND)
    assert task.done() and json.dumps(bench.state.about())


# Around a step

EXPECTED = {
    "value": ("completed", 1, "fetch 1, last"),
    "error": ("compensated", None, "fetch 1, undo first"),
    "fail": ("compensated", None, "fetch 1, undo first"),
    "retry": ("completed", 2, "fetch 1, fetch 2, last"),
    "halt": ("completed", 2, "fetch 1, fetch 2, last"),
    "undo": ("compensated", 1, "fetch 1, last, undo fetch, undo first"),
}
"""Input → status, value of the step that has the pattern, and what ran; the same as with no pattern."""


def patterned(policies: Sequence[Policy]) -> tuple[Workflow, dict[str, list[str]]]:
    """A workflow whose second step does what the input says, and what has run, by input."""
    workflow, ran = Workflow("patterned", input={"item": str}), {item: list[str]() for item in EXPECTED}

    @workflow.step
    def first(item: str) -> None: ...

    @first.undo
    def undo_first(item: str) -> None:
        ran[item].append("undo first")

    @workflow.step(after=["first"], retries=1, retry_on=(), policies=policies)
    async def fetch(item: str, ctx: Context) -> int:
        ran[item].append(f"fetch {ctx.attempt}")
        if item == "error":
            raise ValueError("no")
        if item == "fail":
            raise Fail("no")
        if item == "retry" and ctx.attempt == 1:
            raise Retry(after=0.0)
        if item == "halt" and ctx.attempt == 1:
            raise Halt("later")
        return ctx.attempt

    @fetch.undo
    def undo_fetch(item: str) -> None:
        ran[item].append("undo fetch")

    @workflow.step(after=["fetch"])
    def last(item: str) -> None:
        ran[item].append("last")
        if item == "undo":
            raise ValueError("enough")

    return workflow, ran


@pytest.mark.parametrize("policies", [[], [policy(kind) for kind in POLICIES]], ids=["none", "all"])
def test_under_run_workflow_a_step_with_patterns_goes_as_with_none(policies: Sequence[Policy]) -> None:
    workflow, ran = patterned(policies)
    found = {}
    for item in EXPECTED:
        trace = run_workflow(workflow, {"item": item}, resumes=1)
        found[item] = trace.status, trace.results.get("fetch"), ", ".join(ran[item])
    assert found == EXPECTED


@every_pattern
async def test_in_a_mesh_verdicts_retries_and_undo_go_as_with_no_pattern(kind: type[Policy]) -> None:
    workflow, ran = patterned([policy(kind)])
    found = {}
    async with Mesh(workflow) as mesh:
        for item in EXPECTED:
            transaction = await mesh.stimulate("patterned", {"item": item})
            if await transaction.ended(BOUND) == "halted":
                await transaction.resume()
                await transaction.ended(BOUND)
            found[item] = transaction.status, transaction.results().get("fetch"), ", ".join(ran[item])
        [about] = mesh.node.about()["patterns"]
    assert found == EXPECTED
    assert (about["pattern"], about["name"]) == (kind.pattern, "shop") and "error" not in about


@every_pattern
async def test_a_mesh_that_closes_while_its_step_runs_leaves_nothing_running(kind: type[Policy]) -> None:
    workflow, step = Workflow("held", input={"item": int}), Step()

    @workflow.step(policies=[policy(kind)])
    async def hold(item: int) -> None:
        await step()

    async with Mesh(workflow) as mesh:
        await mesh.stimulate("held", {"item": 1})
        await turns()
        assert step.begun == 1
        before = asyncio.all_tasks()
        await mesh.close(drain=0.0)
    await turns()
    assert step.cancelled == 1 and not step.open
    assert not (asyncio.all_tasks() & before) - {asyncio.current_task()}
