"""`Then`: steps planned while a transaction runs; what they wait for, what they spend, and what cannot be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from saga_driver import FAULT, Driver

from bitactor import Context, DefinitionError, DuplicateName, Halt, Input, InvalidOutcome, Result, Value, Workflow
from bitactor.declare.source import Element
from bitactor.declare.then import Planned, Then
from bitactor.errors import TtlExpired
from bitactor.messages.codec import pack
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Reply
from bitactor.saga import Accept, Dispatch, Replied, Saga
from bitactor.testing import Crash, Hang, Trace, run_workflow


def spawned(trace: Trace) -> list[tuple[str, int]]:
    """Path and hop budget of each hop, in order."""
    return [(pulse.step, pulse.ttl) for pulse in trace.pulses if pulse.kind == "spawned"]


def countdown(*, ttl: int = 8) -> Workflow:
    """A step that replaces itself until it has counted down; another one waits for it."""
    workflow = Workflow("countdown", input={"start": int}, ttl=ttl)

    @workflow.step(spawn="inline", bind={"n": Input("start")})
    def count(n: int) -> Any:
        return Then(n, steps=[count.planned(bind={"n": Value(n - 1)})]) if n else "done"

    @workflow.step(spawn="inline")
    def report(count: str) -> str:
        return f"counted: {count}"

    return workflow


def test_a_step_that_replaces_itself_gives_its_dependents_the_last_result() -> None:
    trace = run_workflow(countdown(), {"start": 2})
    assert trace.result == "counted: done"
    assert spawned(trace) == [("count", 7), ("count#2", 6), ("count#3", 5), ("report", 4)]
    assert trace.results == {"count": "done", "report": "counted: done", "count#2": 1, "count#3": "done"}


def test_each_hop_of_a_chain_of_replacements_is_caused_by_the_one_before() -> None:
    trace = run_workflow(countdown(), {"start": 2})
    hops = {pulse.step: pulse for pulse in trace.pulses if pulse.kind == "spawned"}
    assert hops["count"].causes == ()
    assert hops["count#2"].causes == (hops["count"].hop,)
    assert hops["count#3"].causes == (hops["count#2"].hop,)
    assert hops["report"].causes == (hops["count#3"].hop,)


def test_a_chain_that_never_ends_dies_of_its_hop_budget_and_says_along_which_way() -> None:
    trace = run_workflow(countdown(ttl=4), {"start": 100})
    assert trace.status == "compensated"
    assert isinstance(trace.errors[0], TtlExpired)
    assert "countdown/count → countdown/count" in str(trace.errors[0])
    assert [pulse.step for pulse in trace.pulses if pulse.kind == "tombstone"] == ["count#5"]


def test_the_budget_cannot_be_had_back_by_waiting_only_for_an_early_step() -> None:
    """A planned step waits for the one that asked for it, whatever else it names."""
    workflow = Workflow("loop", ttl=6)

    @workflow.step(spawn="inline")
    def seed() -> int:
        return 1

    @workflow.step(spawn="inline", bind={"x": Result("seed")})
    def again(x: int) -> Then:
        return Then(x, steps=[again.planned(bind={"x": Result("seed")})])

    trace = run_workflow(workflow)
    assert trace.status == "compensated"
    assert [ttl for step, ttl in spawned(trace) if step.startswith("again")] == [4, 3, 2, 1, 0]


def test_a_retry_of_a_planned_step_spends_nothing_although_its_emitter_was_replaced_since() -> None:
    workflow = Workflow("w", ttl=8)
    attempts: list[int] = []

    @workflow.deferred(spawn="inline", retries=1, backoff=lambda error: 60.0)
    def flaky(ctx: Context) -> str:
        attempts.append(ctx.ttl)
        if len(attempts) == 1:
            raise ValueError("once")
        return "ok"

    @workflow.step(spawn="inline", bind={"n": Value(4)})
    def go(n: int) -> Any:
        more = [flaky.planned("flaky")] if n == 4 else []
        return Then(n, steps=[go.planned(bind={"n": Value(n - 1)}), *more]) if n else n

    assert run_workflow(workflow).status == "completed"
    assert attempts == [6, 6]


def test_the_previous_result_and_planned_siblings_can_be_bound() -> None:
    workflow = Workflow("w", ttl=20)

    @workflow.deferred(spawn="inline")
    def double(x: int) -> int:
        return 2 * x

    @workflow.step(spawn="inline", bind={"x": Value(0)})
    def start(x: int) -> Any:
        if x:
            return x
        return Then(
            5,
            steps=[
                double.planned("ten", bind={"x": Result("start")}),
                double.planned("twenty", bind={"x": Result("ten")}),
                start.planned(bind={"x": Result("twenty")}),
            ],
        )

    trace = run_workflow(workflow)
    assert trace.result == 20
    assert [step for step, _ in spawned(trace)] == ["start", "ten", "twenty", "start#2"]


def test_a_step_planned_earlier_can_be_bound_by_a_later_then() -> None:
    workflow = Workflow("w", ttl=20)

    @workflow.deferred(spawn="inline")
    def note(x: int) -> int:
        return x + 1

    @workflow.step(spawn="inline", bind={"n": Value(1)})
    def go(n: int) -> Any:
        if n == 1:
            return Then(
                n,
                steps=[note.planned("first", bind={"x": Value(10)}), go.planned(bind={"n": Value(2)}, after=["first"])],
            )
        return Then(n, steps=[note.planned("second", bind={"x": Result("first")})]) if n == 2 else n

    trace = run_workflow(workflow)
    assert trace.results["second"] == 12


def test_who_waits_for_a_replaced_step_waits_for_the_last_also_if_planned_meanwhile_by_another() -> None:
    """`late` names `chain`, whose own hop is done, but not what replaces it."""
    workflow = Workflow("w", ttl=20)

    @workflow.deferred(spawn="inline")
    def late(chain: Any) -> Any:
        return chain

    @workflow.step(spawn="thread", bind={"n": Value(2)})
    def chain(n: int) -> Any:
        return n

    @workflow.step(spawn="thread")
    def other() -> Any:
        return 1

    plan = workflow.check()
    saga = Saga(plan, "0" * 32)
    saga.react(Accept(None, (), 20, None), 0)
    answer(saga, "chain", 2, [chain.planned(bind={"n": Value(1)})])
    assert answer(saga, "other", 0, [late.planned("late")]) == []
    assert answer(saga, "chain#2", 7) == ["late"]
    assert saga.state.tokens[saga.state.steps[saga.state.by_name["late"]].arguments[0].slot] == 7


def answer(saga: Saga, step: str, value: Any, planned: Sequence[Planned] | None = None) -> list[str]:
    """A hop answers; the paths that are dispatched thereupon."""
    index = saga.state.by_name[step]
    more = None if planned is None else pack(Then(value, planned).data())
    reply = Reply(
        saga.state.transaction, saga.state.hops[index], saga.state.deliveries[index], 0, "ok", value, planned=more
    )
    _, commands = saga.react(Replied(index, reply), 0)
    return [saga.state.steps[command.step].name for command in commands if isinstance(command, Dispatch)]


def test_who_was_not_required_and_is_in_doubt_does_not_hold_up_what_is_planned_after_it() -> None:
    workflow = Workflow("w", ttl=20, grace=0.1)

    @workflow.deferred(spawn="inline")
    def more() -> int:
        return 1

    @workflow.step(spawn="thread", timeout=1.0, required=False)
    def perhaps() -> int:
        return 1

    @workflow.step(spawn="inline", after=["perhaps"])
    def go() -> Then:
        return Then(0, steps=[more.planned("more", after=["perhaps"])])

    trace = run_workflow(workflow, faults={"perhaps": Hang()})
    assert trace.status == "completed"
    assert "completed more" in trace.kinds


def test_nor_does_one_that_turned_out_not_to_have_happened() -> None:
    workflow = Workflow("w", ttl=20)

    @workflow.deferred(spawn="inline")
    def more() -> int:
        return 1

    workflow.step(name="perhaps", spawn="thread", timeout=1.0, required=False)(lambda: 1)
    workflow.step(name="go", spawn="thread", after=["perhaps"])(lambda: 1)
    driver = Driver(workflow)
    late = driver.reply("perhaps", "fail", fault=FAULT)
    driver.expire("perhaps")
    driver.feed(Replied(driver.saga.state.by_name["perhaps"], late))
    driver.answer("go", 1, planned=pack(Then(1, [more.planned("more", after=["perhaps"])]).data()))
    assert driver.flying == ["more"]


def test_everything_a_declared_step_says_holds_for_its_planned_copies_too() -> None:
    """Its predicate, its guard and its order; none of them is dropped in silence."""
    workflow = Workflow("w", ttl=20)
    ran: list[int] = []

    @workflow.deferred(spawn="inline", when=lambda x: x > 1, guard=lambda x: "known" if x > 2 else None)
    def work(x: int) -> str:
        ran.append(x)
        return "worked"

    @workflow.step(spawn="inline")
    def go() -> Then:
        return Then(0, steps=[work.planned(f"work-{x}", bind={"x": Value(x)}) for x in (1, 2, 3)])

    trace = run_workflow(workflow)
    assert ran == [2]
    assert [trace.results[f"work-{x}"] for x in (1, 2, 3)] == [None, "worked", "known"]
    assert "skipped work-1" in trace.kinds


def test_a_container_can_be_planned() -> None:
    nested = Workflow("nested", input={"x": int})

    @nested.step(spawn="inline")
    def double(x: int) -> int:
        return 2 * x

    workflow = Workflow("w", ttl=20)
    sub = workflow.compose("sub", nested, bind={"x": Value(1)})

    @workflow.step(spawn="inline", after=["sub"])
    def go() -> Then:
        return Then(0, steps=[sub.planned("again", bind={"x": Value(21)})])

    trace = run_workflow(workflow)
    assert trace.results["again"] == 42
    assert "completed again/double" in trace.kinds


def test_what_was_planned_is_undone_in_reverse_with_what_each_itself_came_to() -> None:
    workflow = Workflow("w", ttl=20)
    undone: list[Any] = []

    @workflow.deferred(spawn="inline")
    def side(x: int) -> int:
        return x

    side.undo(lambda result: undone.append(("side", result)))

    @workflow.step(spawn="inline", bind={"n": Value(2)})
    def count(n: int) -> Any:
        return (
            Then(n, steps=[count.planned(bind={"n": Value(n - 1)}), side.planned(f"side-{n}", bind={"x": Value(n)})])
            if n
            else "end"
        )

    count.undo(lambda result: undone.append(("count", result)))

    @workflow.step(spawn="inline", after=["count"])
    def fail(count: str) -> None:
        raise ValueError(count)

    trace = run_workflow(workflow)
    assert trace.status == "compensated"
    assert str(trace.errors[0]) == "end"
    assert undone == [("side", 1), ("count", "end"), ("side", 2), ("count", 1), ("count", 2)]


def emitter(asked: Callable[[Any], Sequence[Planned]]) -> Workflow:
    workflow = Workflow("w", input={"field": int}, ttl=20)

    @workflow.deferred(spawn="inline")
    def other(x: int) -> int:
        return x

    @workflow.step(spawn="inline")
    def before() -> int:
        return 1

    before.undo(lambda: None)

    @workflow.step(spawn="inline", after=["before"], retries=2)
    def go() -> Then:
        return Then(1, steps=asked(other))

    @workflow.step(spawn="inline")
    def behind(go: int) -> int:
        return go

    return workflow


NONSENSE: dict[str, tuple[Callable[[Any], Sequence[Planned]], str]] = {
    "an unknown step": (
        lambda other: [Planned("othr", "x", {}, ())],
        "asks for 'othr', which is not declared. Did you mean 'other'?",
    ),
    "a name that is taken": (lambda other: [other.planned("before")], "there is one; give it another name"),
    "the name of an input": (lambda other: [other.planned("field")], "is an input; give it another name"),
    "an unknown parameter": (
        lambda other: [other.planned("a", bind={"y": Value(1)})],
        "no parameter of it. Known: 'x'",
    ),
    "a result of nobody": (
        lambda other: [other.planned("a", bind={"x": Result("befor")})],
        "no step. Did you mean 'before'?",
    ),
    "an input as a result": (
        lambda other: [other.planned("a", bind={"x": Result("field")})],
        "'field', which is no step",
    ),
    "an unknown input": (
        lambda other: [other.planned("a", bind={"x": Input("fiel")})],
        "no input. Did you mean 'field'?",
    ),
    "after nobody": (lambda other: [other.planned("a", after=["nobody"])], "after 'nobody', which is no step"),
    "itself": (lambda other: [other.planned("a", after=["a"])], "wait for each other: a → a"),
    "a circle": (
        lambda other: [other.planned("a", after=["b"]), other.planned("b", after=["a"])],
        "wait for each other",
    ),
    "a circle through what waits for us": (
        lambda other: [other.planned("a", bind={"x": Result("behind")}), Planned("go", "go", {}, ("a",))],
        "wait for each other",
    ),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_asking_for_nonsense_fails_the_step_and_undoes(what: str) -> None:
    asked, message = NONSENSE[what]
    trace = run_workflow(emitter(asked), {"field": 1})
    assert trace.status == "compensated", trace.kinds
    assert isinstance(trace.errors[0], InvalidOutcome)
    assert message in str(trace.errors[0])
    assert trace.undone == ["before"]
    assert "retried go" not in trace.kinds


@pytest.mark.parametrize(
    "planned", [b"\xc1", b"", pack(7), pack([7]), pack([["other", "a", 3, []]]), pack([["other", "a", {"x": 3}, []]])]
)
def test_bytes_that_are_no_plan_fail_the_step(planned: bytes) -> None:
    workflow = emitter(lambda other: ())
    saga = Saga(workflow.check(), "0" * 32)
    saga.react(Accept(None, (1,), 20, None), 0)
    answer(saga, "before", 1)
    index = saga.state.by_name["go"]
    saga.react(Replied(index, Reply(saga.state.transaction, saga.state.hops[index], 1, 0, "ok", 1, planned=planned)), 0)
    assert saga.state.errors[0][1].type == "bitactor.errors:InvalidOutcome"
    assert saga.state.phase == "undoing"


def test_a_transform_cannot_be_kept_in_a_journal_and_two_steps_cannot_share_a_name() -> None:
    workflow = emitter(lambda other: [other.planned("a", bind={"x": Value(1).map(str)})])
    trace = run_workflow(workflow, {"field": 1})
    assert "has a transform, and a function cannot be kept in a journal" in str(trace.errors[0])
    with pytest.raises(DuplicateName):
        Then(0, steps=[Planned("a", "x", {}, ()), Planned("b", "x", {}, ())])
    with pytest.raises(DefinitionError, match="made by"):
        Then(0, steps=["a"])  # type: ignore[list-item]
    with pytest.raises(DefinitionError, match="without '/' and '#'"):
        workflow.steps["go"].planned("a/b")


def crawling(*, fail: bool = False) -> Workflow:
    """A step within a nested workflow that replaces itself and plans a sibling, once for each of two elements."""
    nested = Workflow("nested", input={"n": int}, ttl=30)

    @nested.deferred(spawn="inline")
    def save(x: int) -> int:
        return x

    @nested.step(spawn="inline", bind={"left": Input("n")})
    def walk(left: int) -> Any:
        return (
            Then(
                left,
                steps=[
                    walk.planned(bind={"left": Value(left - 1)}),
                    save.planned(f"save-{left}", bind={"x": Value(left)}),
                ],
            )
            if left
            else 0
        )

    @nested.step(spawn="inline")
    def total(walk: int, n: int) -> int:
        return walk + n

    workflow = Workflow("w", ttl=30)

    workflow.map(name="each", over=Value([1, 2]), workflow=nested, bind={"n": Element()})

    @workflow.step(spawn="inline")
    def after(each: list[int]) -> list[int]:
        if fail:
            raise ValueError("no")
        return each

    return workflow


def test_a_then_plans_into_its_own_scope() -> None:
    trace = run_workflow(crawling())
    assert trace.result == [1, 2]
    assert [step for step, _ in spawned(trace) if step.startswith("each/1")] == [
        "each/1/walk", "each/1/walk#2", "each/1/save-2", "each/1/walk#3", "each/1/save-1", "each/1/total",
    ]  # fmt: skip


def test_what_a_then_spends_within_a_container_the_container_has_spent() -> None:
    trace = run_workflow(crawling())
    budgets = dict(spawned(trace))
    assert budgets["each/1/total"] == 30 - 4
    assert budgets["after"] == budgets["each/1/total"] - 1


def test_a_then_within_a_container_survives_a_crash() -> None:
    whole = run_workflow(crawling())
    crashed = run_workflow(crawling(), faults={"after": Crash()})
    assert crashed.result == whole.result


def test_a_planned_step_cannot_take_the_name_of_what_its_group_has_yet_to_run() -> None:
    nested = Workflow("nested")

    @nested.deferred(spawn="inline")
    def extra() -> None: ...

    @nested.step(spawn="inline")
    def go() -> Then:
        return Then(0, steps=[extra.planned("after")])

    workflow = Workflow("w")
    workflow.group("load", nested, after_all=lambda result: result)
    trace = run_workflow(workflow)
    assert trace.status == "compensated"
    assert "asks for a step 'after', and there is one" in str(trace.errors[0])


def test_a_function_in_a_container_plans_nothing() -> None:
    workflow = Workflow("w")

    @workflow.deferred(spawn="inline")
    def extra() -> None: ...

    @workflow.iterate(start=Value(1), at_most=3, spawn="inline")
    def grow(state: int) -> Then:
        return Then(state, steps=[extra.planned()])

    trace = run_workflow(workflow)
    assert "A function in a container plans nothing; give the container a workflow" in str(trace.errors[0])


def test_halting_keeps_what_was_planned() -> None:
    workflow = Workflow("w", ttl=9)
    tries: list[int] = []

    @workflow.deferred(spawn="inline")
    def stop() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise Halt("wait")
        return "went on"

    @workflow.step(spawn="inline")
    def go() -> Then:
        return Then(0, steps=[stop.planned("stop")])

    trace = run_workflow(workflow, resumes=1)
    assert trace.status == "completed"
    assert trace.results["stop"] == "went on"
    assert [pulse.attempt for pulse in pulses_of(trace, "stop") if pulse.kind == "spawned"] == [1, 2]


def pulses_of(trace: Trace, step: str) -> list[Pulse]:
    return [pulse for pulse in trace.pulses if pulse.step == step]
