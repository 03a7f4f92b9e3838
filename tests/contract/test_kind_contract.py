"""What every kind of step promises, run over each of them; a new kind is one more line in `CASES`, and so is the one
from outside the packages, `tests/twice_kind.py`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from bitactor import Element, Halt, Input, Value, Workflow
from bitactor.errors import DefinitionError
from bitactor.kinds import KINDS
from bitactor.kinds.result_types import step_type
from bitactor.messages.signal import FORWARD
from bitactor.saga import Saga
from bitactor.saga.events import Proceeded
from bitactor.testing import run_workflow
from bitactor.testing.hops import NeedsMesh
from mesh import Mesh
from tests.twice_kind import Twice
from tests.unit.bitactor.saga_driver import Driver
from tests.wrong_kinds import WRONG, Thrice

BOUND = 30.0

# One workflow for each kind: `first`, the step of that kind, which is called `it`, and `last`


def double(x: int) -> int:
    return 2 * x


def pair(x: int) -> dict[str, int]:
    return {"x": 2 * x, "of": x}  # the token of a mapping is not its value


def finish(x: int) -> int:
    if x < 0:
        raise ValueError("below zero")
    return x


def undo(x: int) -> None: ...


def undo_element(element: int) -> None: ...


def each(element: int) -> int:
    return element


def grow(state: int) -> int:
    return state + 1


def below_zero(x: int) -> bool:
    return x < 0


def before() -> None: ...


async def surround(proceed: Callable[[], Awaitable[Any]]) -> Any:
    return await proceed()


def enough(x: int) -> bool:
    return False


def nested() -> Workflow:
    workflow = Workflow("nested", input={"x": int}, ttl=60)
    workflow.add(double, name="one", undo=undo, spawn="inline")
    workflow.add(pair, name="two", undo=undo, spawn="inline", bind={"x": Input("x")}, after=["one"])
    return workflow


CASES: dict[str, Callable[[Workflow], Any]] = {
    "step": lambda workflow: workflow.add(double, name="it", undo=undo),
    "map": lambda workflow: workflow.map(each, name="it", over=Value([1, 2, 3]), batch=2).undo(undo_element),
    "map of a workflow": lambda workflow: workflow.map(
        name="it", over=Value([1, 2, 3]), batch=2, workflow=nested(), bind={"x": Element()}
    ),
    "iterate": lambda workflow: workflow.iterate(grow, name="it", start="x", at_most=3),
    "around": lambda workflow: workflow.around(surround, name="it", workflow=nested()),
    "compose": lambda workflow: workflow.compose("it", nested()),
    "switch": lambda workflow: workflow.switch("it", "x", [(0, double)], default=nested()),
    "group": lambda workflow: workflow.group("it", nested(), before_all=before, after_all=double),
    "recurse": lambda workflow: workflow.recurse("it", nested(), at_most=2),
    "collect": lambda workflow: workflow.collect("it", ["x"]),
    "template": lambda workflow: workflow.template("it", "x is {x}"),
    "debug": lambda workflow: workflow.debug("it", "x"),
    "flunk": lambda workflow: workflow.flunk("it", "{x} is below zero", when=below_zero),
    "twice": lambda workflow: workflow.declare(Twice, name="it", workflow=nested(), note=enough),
}


class Noting(Workflow):
    """A workflow that notes the options of the step that was declared last by its kind."""

    noted: Mapping[str, Any] = {}

    def declare(self, kind: Any, function: Any = None, /, **options: Any) -> Any:
        self.noted = options
        return super().declare(kind, function, **options)


def made(case: str) -> Noting:
    workflow = Noting(case, input={"x": int}, ttl=60, redeliveries=100)
    workflow.add(double, name="first", undo=undo)
    step = CASES[case](workflow)
    assert workflow.steps["it"].label == case.partition(" ")[0], step
    it = workflow.steps["it"]
    it.options = replace(it.options, after=("first",), given=it.options.given | {"after"})
    workflow.add(finish, name="last", after=["it"])
    workflow.returns("it")
    return workflow


SUITE: list[Callable[[str], None]] = []


def every_case(test: Callable[[str], None]) -> Callable[[str], None]:
    """Let a test be part of the suite: it is run with each case."""
    SUITE.append(test)
    return pytest.mark.parametrize("case", CASES)(test)


def test_every_kind_is_here() -> None:
    assert {case.partition(" ")[0] for case in CASES} == {*KINDS}


def crash(driver: Driver, case: str) -> None:
    """Another process takes up, with a plan of its own."""
    driver.plan = made(case).check()
    driver.crash()


def run_all(driver: Driver) -> None:
    """Every hop, until there is none."""
    for _ in hops(driver):
        pass


def hops(driver: Driver) -> Iterator[None]:
    """Every hop, one for each `next`; a function around steps asks for them, and answers once they are done."""
    proceeded = set()
    while paths := driver.flying:
        for path in [path for path in paths if path != "it/around"] or paths:
            index = driver.saga.state.by_name[path]
            hop = (path, driver.saga.state.deliveries[index])
            if path != "it/around":
                driver.run(path)
            elif hop in proceeded:
                driver.answer(path, 1)
            else:
                proceeded.add(hop)
                driver.feed(Proceeded(index, hop[1]))
                break
            assert Saga.fold(driver.plan, driver.journal).state.snapshot() == driver.saga.state.snapshot()
            saga = driver.saga
            yield
            if saga is not driver.saga:
                break  # another process has taken up
        driver.forget_commands()


@every_case
def test_it_runs_under_run_workflow(case: str) -> None:
    if case == "around":
        with pytest.raises(NeedsMesh):
            run_workflow(made(case), {"x": 2})
        return
    trace = run_workflow(made(case), {"x": 2})
    assert trace.status == "completed" and not trace.errors
    driver = Driver(made(case), {"x": 2})
    run_all(driver)
    assert driver.result() == trace.result


@every_case
def test_the_fold_of_its_journal_is_its_state_and_another_process_ends_it_alike(case: str) -> None:
    driver, crashing = Driver(made(case), {"x": 2}), Driver(made(case), {"x": 2})
    run_all(driver)
    for _ in hops(crashing):
        crash(crashing, case)
    assert driver.status == crashing.status == "completed"
    assert driver.result() == crashing.result()
    done = driver.kinds("completed", "skipped")
    assert sorted(crashing.kinds("completed", "skipped")) == sorted(done)


@every_case
def test_transactions_side_by_side_on_one_plan_do_not_mix(case: str) -> None:
    workflow = made(case)
    drivers = [Driver(workflow, {"x": x}, transaction=f"{x:032x}") for x in (2, 3, 5)]
    running = [hops(driver) for driver in drivers]
    while running:
        running = [driver for driver in running if next(driver, "done") != "done"]
    for x, driver in zip((2, 3, 5), drivers, strict=True):
        alone = Driver(made(case), {"x": x})
        run_all(alone)
        assert (driver.status, driver.kinds(), driver.result()) == ("completed", alone.kinds(), alone.result())


@every_case
def test_its_result_is_plain_data_of_the_type_it_says(case: str) -> None:
    workflow = made(case)
    driver = Driver(workflow, {"x": 2})
    run_all(driver)
    TypeAdapter(step_type(workflow.steps["it"])).validate_json(json.dumps(driver.result()), strict=True)


@every_case
def test_it_takes_no_more_hops_than_it_says_and_each_is_another(case: str) -> None:
    driver = Driver(made(case), {"x": 2})
    run_all(driver)
    spawned = [pulse for pulse in driver.journal if pulse.kind == "spawned" and "opening" not in (pulse.data or {})]
    assert len({pulse.hop for pulse in spawned}) == len(spawned)
    assert driver.plan.ttl - min(pulse.ttl for pulse in spawned) <= driver.plan.depth


@every_case
def test_it_is_undone_last_first(case: str) -> None:
    driver = Driver(made(case), {"x": -1})
    run_all(driver)
    assert driver.status == "compensated"
    done = [pulse.step for pulse in driver.journal if pulse.kind == "completed" and pulse.direction == FORWARD]
    undone = [pulse.step for pulse in driver.journal if pulse.kind == "undone"]
    assert undone == [path for path in done if path in undone][::-1]
    assert {path for path in done if path.rpartition("/")[2] in ("first", "one", "two")} <= {*undone}


@every_case
def test_it_halts_and_is_resumed(case: str) -> None:
    driver, straight = Driver(made(case), {"x": 2}), Driver(made(case), {"x": 2})
    driver.run("first")
    driver.answer(driver.flying[0], outcome="halt", reason="")
    run_all(driver)
    assert driver.status == "halted"
    crash(driver, case)
    driver.resume()
    run_all(driver)
    run_all(straight)
    assert driver.status == "completed" and driver.result() == straight.result()


@every_case
def test_its_hops_spend_the_budget(case: str) -> None:
    driver = Driver(made(case), {"x": 2}, ttl=1)
    run_all(driver)
    assert driver.status == "compensated"
    buried = [pulse.step for pulse in driver.journal if pulse.kind == "tombstone"]
    assert buried and all(path.partition("/")[0] in ("it", "last") for path in buried)
    assert driver.kinds("undone") == ["undone first"]


@every_case
def test_its_picture_shows_every_step_and_what_happened(case: str) -> None:
    workflow = made(case)
    driver = Driver(workflow, {"x": 2})
    run_all(driver)
    plain, told = workflow.mermaid(), workflow.mermaid(driver.journal)
    for step in driver.plan.all_steps():
        assert step.name in plain and step.name in told
    assert "done" in told and "running" not in told


@every_case
def test_as_data_and_back_it_makes_an_equal_plan(case: str) -> None:
    workflow = made(case)
    data = workflow.to_dict()
    own, written = type(workflow.steps["it"].kind).keys, next(step for step in data["steps"] if step["name"] == "it")
    for name in own.keys() & workflow.noted.keys():
        assert name in written or name in written.get("bind", {}) or workflow.noted[name] in (None, own[name].default)
    again = Workflow.from_dict(json.loads(json.dumps(data)))
    assert again.check().digest == workflow.check().digest
    assert again.to_dict() == data and again.describe() == workflow.describe()
    described = next(step for step in workflow.describe()["steps"] if step["name"] == "it")
    assert described["kind"] == workflow.steps["it"].label


@pytest.mark.parametrize("durable", [False, True])
async def test_it_runs_and_is_undone_in_a_mesh(durable: bool, tmp_path: Path) -> None:
    workflows = {case: made(case) for case in CASES}
    async with Mesh(*workflows.values(), store=f"sqlite:///{tmp_path}/s.db" if durable else "memory://") as mesh:
        runs = {case: await mesh.stimulate(case, {"x": 2}) for case in CASES}
        failed = {case: await mesh.stimulate(case, {"x": -1}) for case in CASES}
        for case, workflow in workflows.items():
            expected = None if case == "around" else run_workflow(workflow, {"x": 2}).result
            assert case == "around" or await runs[case].result(BOUND) == expected
            assert (case, await runs[case].ended(BOUND)) == (case, "completed")
            assert (case, await failed[case].ended(BOUND)) == (case, "compensated")
            undone = [pulse.step for pulse in failed[case].raw_pulses() if pulse.kind == "undone"]
            assert undone[-1] == "first" and "done" in workflow.mermaid(runs[case].raw_pulses())


# What the contract finds


def fails(test: Callable[[str], None], case: str) -> bool:
    try:
        test(case)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("kind", [Thrice, *WRONG], ids=lambda kind: kind.label)
def test_a_kind_that_is_wrong_fails(kind: type[Thrice], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, kind.label, kind)  # as `register_kind` does, for this test only
    monkeypatch.setitem(
        CASES, kind.label, lambda workflow: workflow.declare(kind, name="it", workflow=nested(), note=enough)
    )
    finds = WRONG.get(kind)
    asked = [test for test in SUITE if finds in (None, test.__name__)]
    assert asked and [test.__name__ for test in asked if fails(test, kind.label)] == ([] if finds is None else [finds])


# The one from outside


@pytest.mark.parametrize("durable", [False, True])
async def test_a_kind_from_outside_halts_in_a_mesh_and_goes_on(durable: bool, tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(x: int) -> Any:
        asked.append("asked")
        return Halt("ask somebody") if len(asked) == 2 else x

    inner = Workflow("inner", input={"x": int}, ttl=60)
    inner.add(ask, name="ask")
    workflow = Workflow("halts", input={"x": int}, ttl=60)
    workflow.declare(Twice, name="it", workflow=inner)
    async with Mesh(workflow, store=f"sqlite:///{tmp_path}/s.db" if durable else "memory://") as mesh:
        transaction = await mesh.stimulate("halts", {"x": 5})
        assert await transaction.ended(BOUND) == "halted"
        await transaction.resume()
        assert await transaction.result(BOUND) == 5
        assert len(asked) == 3


def test_a_kind_from_outside_says_what_is_wrong() -> None:
    workflow = Workflow("w", input={"x": int})
    with pytest.raises(DefinitionError, match="a twice of 'w' needs workflow="):
        workflow.declare(Twice, name="it")
    with pytest.raises(DefinitionError, match="'it' of 'w': retries= is for the steps within it; say it there"):
        workflow.declare(Twice, name="it", workflow=nested(), retries=2)
    with pytest.raises(DefinitionError, match="step 'it' of 'w': workflow=3; give a Workflow"):
        workflow.declare(Twice, name="it", workflow=3)
    with pytest.raises(DefinitionError, match=r"there is no kind 'twise'\. Did you mean 'twice'"):
        Workflow.from_dict({"name": "w", "steps": [{"kind": "twise", "name": "it"}]})


def test_a_picture_of_a_kind_from_outside_has_its_mark_and_its_arrow() -> None:
    picture = made("twice").mermaid()
    assert "it · twice, one after the other" in picture and '-.->|"once more"|' in picture
