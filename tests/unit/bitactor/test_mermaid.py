"""Workflows as pictures.  That Mermaid can read them was looked at with its own parser; here it is what they say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from bitactor import Context, Element, Halt, Input, InvalidInput, Result, Retry, Then, Value, Workflow, consumer
from bitactor.export.mermaid import mermaid
from bitactor.patterns import RateLimit
from bitactor.testing import Lose, Trace, run_workflow
from mesh import Mesh


def one(x: int) -> int:
    return x


def two(one: int) -> int:
    return one


def undo_one(result: int) -> None: ...


def boom(x: int) -> int:
    raise ValueError(x)


def each(element: int) -> int:
    if element < 0:
        raise ValueError(element)
    return element


def grow(state: int) -> int:
    return state + 1


def nested(first: Callable[..., Any] = one) -> Workflow:
    workflow = Workflow("nested", input={"x": int})
    workflow.add(first, name="one", undo=undo_one)
    workflow.add(two)
    return workflow


def outer(**fields: Any) -> Workflow:
    return Workflow("outer", input={"x": int, **fields}, ttl=30)


def lines(drawn: str) -> list[str]:
    return [line.strip() for line in drawn.splitlines()]


def box(drawn: str, name: str) -> str:
    """The label of the box that shows this name; the last one, if there are several."""
    return re.findall(rf'"({re.escape(name)}(?:<br/>| · )?[^"]*)"[\]}})]', drawn)[-1]


def look(drawn: str, place: str) -> set[str]:
    return {
        line.split()[2] for line in lines(drawn) if line.startswith("class ") and place in line.split()[1].split(",")
    }


def test_the_whole_of_a_small_picture() -> None:
    workflow = Workflow("small", input={"x": int, "y": str})
    workflow.add(
        one,
        undo=undo_one,
        undo_in_doubt=False,
        retries=2,
        timeout=2.5,
        limit="pool",
        policies=[RateLimit("r", per_second=1)],
    )
    workflow.add(
        two, name="second", bind={"one": Result("one", "a", 0)}, guard=lambda one: None, spawn="inline", required=False
    )
    workflow.add(one, name="third", after=["one"], when=lambda x: x > 1)
    workflow.template("text", "{y}")
    assert workflow.mermaid() == (
        "flowchart TD\n"
        '    input(["small"])\n'
        '    s0["one<br/>↩ undo<br/>retries 2, timeout 2.5 s, pool pool<br/>rate limit"]\n'
        '    s1["second<br/>? guard<br/>not required, inline"]\n'
        '    s2{{"third<br/>? when"}}\n'
        '    s3["text<br/>template"]\n'
        '    result(["result"])\n'
        '    s0 -->|"one = a.0"| s1\n'
        '    s0 -.->|"after"| s2\n'
        '    input -->|"x"| s0\n'
        '    input -->|"x"| s2\n'
        '    input -->|"y"| s3\n'
        "    s3 --> result\n"
        "    classDef undoable stroke-width: 3px\n"
        "    class s0 undoable\n"
        "    classDef guarded stroke-dasharray: 4 3\n"
        "    class s2 guarded\n"
    )


def test_a_consumer_has_a_signal_and_no_result() -> None:
    @consumer("user.created")
    def greet(signal: Any) -> None: ...

    drawn = mermaid(greet.check())
    assert 'input(["signal user.created"])' in drawn and "result" not in drawn and "input --> s0" not in drawn


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('a "b" <c>', "a #34;b#34; #60;c#62;"),
        ("x | [y] {z}", "x #124; #91;y#93; #123;z#125;"),
        ("& ; ` \\", "#38; #59; #96; #92;"),
        ("größe → 日本 🙂", "größe → 日本 🙂"),
        ("1. load", "1#46; load"),
        ("- load", "#45; load"),
        ("*bold* $$x$$", "#42;bold#42; #36;#36;x#36;#36;"),
        ("end", "end"),
        ("3.5 x-y", "3.5 x-y"),
    ],
)
def test_names_are_shown_as_they_are(name: str, shown: str) -> None:
    workflow = outer()
    workflow.add(one, name=name)
    workflow.compose(f"{name} ", nested(), bind={"x": Result(name)})
    workflow.switch(f"{name}  ", Result(name), {name: one}, bind={"x": Input("x")})
    drawn = workflow.mermaid()
    assert f's0["{shown}"]' in drawn and f'subgraph s1["{shown}  · compose"]' in drawn
    assert re.sub(r"#\d+;", "", drawn).count('"') % 2 == 0


# What is nested


def test_a_nested_workflow_is_a_frame() -> None:
    workflow = outer()
    workflow.compose("inner", nested(), when=lambda x: x > 1)
    workflow.add(two, name="last", bind={"one": Result("inner")})
    drawn = lines(workflow.mermaid())
    at = drawn.index('subgraph s0["inner · ? when · compose"]')
    assert drawn[at + 1 : at + 4] == ['s0_0_s0["one<br/>↩ undo"]', 's0_0_s1["two"]', "end"]
    assert {"s0_0_s0 --> s0_0_s1", 's0 -->|"one = inner"| s1', 'input -->|"x"| s0'} <= set(drawn)
    assert look(workflow.mermaid(), "s0") == {"guarded"}


def test_a_switch_asks_and_has_an_arrow_for_each_case() -> None:
    def is_big(x: int) -> bool:
        return x > 9

    workflow = outer(how=dict[str, Any])
    workflow.switch(
        "route",
        Input("how", "kind"),
        [("card", nested()), (is_big, one), (lambda x: True, one)],
        default=one,
        bind={"x": Input("x")},
    )
    drawn = lines(workflow.mermaid())
    assert 's0_on{"input.how.kind?"}' in drawn and 'subgraph s0_0["nested"]' in drawn
    assert [line for line in drawn if line.startswith("s0_on -->")] == [
        """s0_on -->|"'card'"| s0_0""",
        's0_on -->|"is_big"| s0_1_s0',
        's0_on -->|"condition 3"| s0_2_s0',
        's0_on -->|"otherwise"| s0_3_s0',
    ]


def test_what_repeats_has_an_arrow_back_with_its_bound() -> None:
    workflow = outer()
    workflow.recurse("again", nested(), at_most=3)
    drawn = lines(workflow.mermaid())
    assert 'subgraph s0["again · recurse, at most 3 rounds"]' in drawn
    assert 's0_0_s1 -.->|"at most 3 rounds"| s0_0_s0' in drawn


def test_an_iterate_is_one_box_with_an_arrow_to_itself() -> None:
    workflow = outer()
    workflow.iterate(grow, start="x", at_most=5)
    drawn = lines(workflow.mermaid())
    assert {
        's0[["grow<br/>iterate, at most 5 rounds"]]',
        's0 -.->|"at most 5 rounds"| s0',
        'input -->|"start = x"| s0',
    } <= set(drawn)


def test_a_map_is_one_box_or_a_frame() -> None:
    workflow = outer(rows=list[int])
    workflow.map(each, over="rows", batch=1_000).undo(lambda element: None)
    workflow.map(name="all", over="each", workflow=nested(), bind={"x": Element()}, batch=5)
    drawn = workflow.mermaid()
    assert 's0[["each<br/>map, batches of 1,000<br/>↩ undo"]]' in drawn and look(drawn, "s0") == {"undoable"}
    assert 'subgraph s1["all · map, batches of 5"]' in drawn and 's1_1_s0["one<br/>↩ undo"]' in drawn
    assert "s1_0" not in drawn and 's0 -->|"over = each"| s1' in drawn


def test_a_group_and_an_around_stand_before_and_after() -> None:
    async def lock(proceed: Callable[[], Any]) -> Any:
        return await proceed()

    workflow = outer()
    workflow.group("grouped", nested(), before_all=lambda x: None, after_all=lambda result: result)
    workflow.around(lock, workflow=nested())
    drawn = lines(workflow.mermaid())
    assert {'s0_1_s0["before"]', 's0_2_s0["after"]', "s0_1_s0 --> s0_0_s0", "s0_0_s1 --> s0_2_s0"} <= set(drawn)
    assert {'subgraph s1["lock · around"]', 's1_0_s0["lock"]', 's1_0_s0 -->|"proceeds"| s1_1_s0'} <= set(drawn)


def test_frames_stand_in_frames() -> None:
    middle = Workflow("middle", input={"x": int}, ttl=20)
    middle.recurse("rounds", nested(), at_most=2)
    workflow = outer(rows=list[int])
    workflow.map(name="all", over="rows", workflow=middle, bind={"x": Element()})
    drawn = workflow.mermaid()
    assert '            s0_1_s0_0_s0["one<br/>↩ undo"]\n' in drawn
    trace = run_workflow(workflow, {"x": 1, "rows": [1, 2, 3]})
    assert box(workflow.mermaid(trace.pulses), "one") == "one<br/>↩ undo<br/>6 done"


# What happened


def ran(workflow: Workflow, x: int = 1, **more: Any) -> tuple[str, Trace]:
    options = {name: more.pop(name) for name in ("faults", "resumes") if name in more}
    trace = run_workflow(workflow, {"x": x, **more}, **options)
    return workflow.mermaid(trace.pulses), trace


def test_a_run_that_went_well() -> None:
    workflow = outer()
    workflow.add(one, when=lambda x: x > 5)
    workflow.add(one, name="done")
    drawn, _ = ran(workflow)
    assert box(drawn, "one") == "one<br/>? when<br/>skipped" and look(drawn, "s0") == {"guarded", "skipped"}
    assert box(drawn, "done") == "done<br/>done" and look(drawn, "s1") == {"done"}
    assert 'result(["result<br/>completed"])' in drawn and look(drawn, "result") == {"done"}
    assert "fill:#d3f2dc" in drawn and "fill:#fbd5d5" not in drawn


def test_a_run_that_failed_and_was_undone() -> None:
    workflow = outer()
    workflow.compose("inner", nested())
    workflow.add(boom, after=["inner"], retries=1)
    workflow.add(one, name="never", after=["boom"])
    drawn, trace = ran(workflow)
    assert trace.status == "compensated"
    assert box(drawn, "inner") == "inner · compose · undone" and look(drawn, "s0") == {"undone"}
    assert box(drawn, "one") == "one<br/>↩ undo<br/>undone" and box(drawn, "two") == "two<br/>done"
    assert box(drawn, "boom") == "boom<br/>retries 1<br/>failed" and box(drawn, "never") == "never"
    assert look(drawn, "s1") == look(drawn, "result") == {"failed"}


def test_a_container_is_what_its_steps_are() -> None:
    workflow = outer()
    workflow.compose("inner", nested(boom))
    drawn, _ = ran(workflow)
    assert box(drawn, "inner") == "inner · compose · failed"


def test_an_undo_that_failed() -> None:
    def refuses(result: int) -> None:
        raise ValueError

    workflow = outer()
    workflow.add(one, undo=refuses)
    workflow.add(boom, after=["one"])
    drawn, trace = ran(workflow)
    assert (
        trace.status == "stuck"
        and box(drawn, "one") == "one<br/>↩ undo<br/>undo failed"
        and look(drawn, "s0") == {"undoable", "failed"}
    )


def test_what_is_not_required_may_fail() -> None:
    workflow = outer()
    workflow.add(boom, required=False)
    workflow.add(one)
    drawn, trace = ran(workflow)
    assert trace.status == "completed" and look(drawn, "s0") == {"failed"} and look(drawn, "result") == {"done"}


def test_a_halted_run_and_one_that_is_still_running() -> None:
    def halts(x: int) -> Halt:
        return Halt("later")

    workflow = outer()
    workflow.add(one)
    workflow.add(halts)
    drawn, trace = ran(workflow)
    assert box(drawn, "halts") == "halts<br/>halted" and look(drawn, "s1") == look(drawn, "result") == {"halted"}
    half = workflow.mermaid([pulse for pulse in trace.pulses if pulse.kind in ("accepted", "spawned")])
    assert box(half, "one") == "one<br/>running" and look(half, "result") == {"running"}


def test_what_was_lost_and_delivered_again_is_done() -> None:
    workflow = outer()
    workflow.add(one)
    drawn, trace = ran(workflow, faults={"one": [Lose()]})
    assert trace.kinds.count("spawned one") == 2 and box(drawn, "one") == "one<br/>done"


def test_elements_of_a_map_are_counted() -> None:
    workflow = outer(rows=list[int])
    workflow.map(each, over="rows", batch=2, on_error="collect")
    drawn, _ = ran(workflow, rows=[1, 2, -3, 4, 5])
    assert box(drawn, "each") == "each<br/>map, batches of 2<br/>4 done, 1 failed" and look(drawn, "s0") == {"failed"}


def test_elements_that_are_workflows_are_counted_too() -> None:
    inner = Workflow("inner", input={"x": int})
    inner.add(one, undo=undo_one)
    inner.add(each, name="check", bind={"element": Result("one")}, required=False)
    inner.add(one, name="big", bind={"x": Result("one")}, when=lambda x: x > 2)
    workflow = outer(rows=list[int])
    workflow.map(name="all", over="rows", workflow=inner, bind={"x": Element()}, batch=2)
    drawn, _ = ran(workflow, rows=[1, 2, -3, 4])
    assert box(drawn, "all") == "all · map, batches of 2 · done"
    assert box(drawn, "one") == "one<br/>↩ undo<br/>4 done"
    assert box(drawn, "check") == "check<br/>not required<br/>3 done, 1 failed"
    assert box(drawn, "big") == "big<br/>? when<br/>3 skipped, 1 done"


def test_undone_elements_are_counted() -> None:
    workflow = outer(rows=list[int])
    workflow.map(each, over="rows", batch=2).undo(lambda element: None)
    workflow.add(boom, after=["each"])
    drawn, _ = ran(workflow, rows=[1, 2, 3])
    assert box(drawn, "each").endswith("3 undone")


def test_rounds_are_counted() -> None:
    workflow = outer()
    workflow.iterate(grow, start="x", at_most=4)
    workflow.recurse("again", nested(), at_most=3)
    drawn, _ = ran(workflow)
    assert box(drawn, "grow").endswith("4 done")
    assert box(drawn, "two") == "two<br/>3 done"


def test_only_the_chosen_branch_happened() -> None:
    workflow = outer()
    workflow.switch("route", "x", {1: nested(), 2: nested(), 3: one})
    drawn, _ = ran(workflow, 2)
    assert (look(drawn, "s0_0_s0"), look(drawn, "s0_1_s0"), look(drawn, "s0_2_s0")) == (
        {"undoable"},
        {"undoable", "done"},
        set(),
    )


def test_groups_and_tries() -> None:
    workflow = outer()
    workflow.group("grouped", nested(), before_all=lambda x: None)
    attempts = iter((Retry(), 3))
    workflow.add(lambda: next(attempts), name="tried", retries=1)
    drawn, _ = ran(workflow)
    assert box(drawn, "before") == "before<br/>done" and box(drawn, "tried") == "tried<br/>retries 1<br/>done"


def test_planned_steps_are_counted_where_they_were_declared() -> None:
    workflow = outer()
    page = workflow.add(one, name="page", deferred=True)

    @workflow.step
    def seeds(x: int) -> Then:
        return Then(x, steps=[page.planned(f"page-{number}", bind={"x": Value(number)}) for number in range(3)])

    @workflow.step
    def countdown(seeds: int, ctx: Context) -> Any:
        return Then(0, steps=[countdown.planned(bind={"seeds": Value(seeds - 1)})]) if seeds else 0

    drawn, trace = ran(workflow, 2)
    assert trace.status == "completed"
    assert box(drawn, "page") == "page<br/>3 done" and look(drawn, "d0") == {"deferred", "done"}
    assert 's0 -.->|"planned"| d0' in drawn and box(drawn, "countdown") == "countdown<br/>3 done"


def test_several_runs_are_added_up() -> None:
    workflow = outer()
    workflow.add(each, name="checked", bind={"element": Input("x")})
    pulses = []
    for number, x in enumerate((1, 2, -3)):
        trace = run_workflow(workflow, {"x": x})
        pulses += [pulse._replace(transaction=f"{number:032x}") for pulse in trace.pulses]
    drawn = workflow.mermaid(pulses)
    assert box(drawn, "checked") == "checked<br/>2 done, 1 failed"
    assert 'result(["result<br/>2 completed, 1 compensated"])' in drawn and look(drawn, "result") == {"failed"}


def test_pulses_of_another_workflow_are_refused() -> None:
    workflow = outer()
    workflow.add(one)
    with pytest.raises(InvalidInput, match="the pulses are of 'nested', and none of 'outer'"):
        workflow.mermaid(run_workflow(nested(), {"x": 1}).pulses)


def test_what_was_stopped_has_not_failed() -> None:
    async def waits(x: int) -> None:
        await asyncio.Event().wait()

    workflow = outer()
    workflow.add(waits)
    workflow.add(boom)

    async def main() -> str:
        async with Mesh(workflow, store="memory://") as mesh:
            transaction = await mesh.stimulate("outer", {"x": 1})
            assert await transaction.ended(30) == "compensated"
            return workflow.mermaid(transaction.pulses())

    drawn = asyncio.run(main())
    assert box(drawn, "waits") == "waits<br/>stopped" and look(drawn, "s0") == {"skipped"}
    assert box(drawn, "boom") == "boom<br/>failed"


def test_what_a_mesh_tells_is_drawn_alike() -> None:
    """As `tx.pulses()` has it, with tokens decoded; and a function around steps, which needs a mesh."""

    async def lock(proceed: Callable[[], Any]) -> Any:
        return await proceed()

    workflow = outer(rows=list[int])
    workflow.map(each, over="rows", batch=2, on_error="collect")
    workflow.around(lock, workflow=nested())

    async def main() -> tuple[str, str]:
        async with Mesh(workflow, store="memory://") as mesh:
            transaction = await mesh.stimulate("outer", {"x": 1, "rows": [1, -2, 3]})
            await transaction.result(timeout=30)
            return workflow.mermaid(transaction.pulses()), workflow.mermaid(transaction.raw_pulses())

    shown, raw = asyncio.run(main())
    assert shown == raw
    assert box(shown, "each").endswith("2 done, 1 failed")
    assert 's1_0_s0["lock<br/>done"]' in shown and box(shown, "two") == "two<br/>done"
