"""Scopes in the saga: their places used again, what comes late to them, what they spend, halting and failing half-way,
and their journal."""

from __future__ import annotations

import time
from typing import Any

import pytest
from saga_driver import FAULT, Driver

from bitactor import Halt, Result, Value, Workflow
from bitactor.declare.source import Element
from bitactor.errors import StoreError, TooManyHops, TtlExpired
from bitactor.saga import Evaluated, Recovered, Replied, RetryDue, Saga, evolve
from bitactor.saga.events import Proceeded
from bitactor.testing import Crash, run_workflow


def working(*, undo: bool = False, **options: Any) -> Workflow:
    """One element's work: a step and one after it."""
    nested = Workflow("nested", input={"x": int}, ttl=30)

    @nested.step(spawn="thread", **options)
    def first(x: int) -> int:
        return x + 1

    if undo:
        first.undo(in_doubt=True)(lambda ctx: None)

    @nested.step(spawn="thread")
    def second(first: int | None) -> int | None:
        return first

    return nested


def mapping(nested: Workflow, count: int, *, batch: int = 10, **options: Any) -> Workflow:
    """That work for each element, and a step after it."""
    workflow = Workflow("w", ttl=30)
    workflow.map(
        name="each", over=Value([*range(count)]), workflow=nested, bind={"x": Element()}, batch=batch, **options
    )

    @workflow.step(spawn="thread")
    def report(each: Any) -> Any:
        return each

    return workflow


# Places


def test_a_long_map_over_a_workflow_uses_its_places_again() -> None:
    driver = Driver(mapping(working(), 20_000, keep=False))
    driver.run_all()
    assert driver.status == "completed"
    assert driver.result() == {"count": 20_000}
    assert len(driver.saga.state.steps) < 100
    assert len(driver.saga.state.by_name) == 2


def test_so_do_containers_within_it() -> None:
    inner = working()
    outer = Workflow("outer", input={"x": int}, ttl=30)
    outer.compose("sub", inner)
    outer.switch("route", on="sub", cases=[(lambda value: value % 2 == 0, inner)], default=inner)
    outer.map(name="lines", over=Value([1, 2, 3]), workflow=inner, bind={"x": Element()}, batch=2)
    driver = Driver(mapping(outer, 500, keep=False))
    driver.run_all()
    assert driver.status == "completed"
    assert len(driver.saga.state.steps) < 500


def test_an_element_costs_as_much_in_a_long_map_as_in_a_short_one() -> None:
    def seconds(count: int) -> float:
        driver = Driver(mapping(working(), count, keep=False))
        began = time.process_time()
        driver.run_all()
        return (time.process_time() - began) / count

    seconds(200)
    assert min(seconds(4_000) for _ in range(2)) < 3 * seconds(400)


def test_a_reply_that_comes_late_to_a_place_used_again_means_nothing_there() -> None:
    driver = Driver(mapping(working(), 2, batch=1))
    driver.run("each/batch-0")
    late = driver.reply("each/0/first", value=99)
    place = driver.saga.state.by_name["each/0/first"]
    driver.run("each/0/first")
    driver.run("each/0/second")
    driver.run("each/batch-1")
    assert driver.saga.state.by_name["each/1/first"] == place, "the place was not used again; this test shows nothing"
    assert driver.feed(Replied(place, late)) == []
    assert driver.feed(Replied(place, late._replace(outcome="fail", fault=FAULT))) == []
    assert driver.feed(RetryDue(place)) == []
    driver.run_all()
    assert driver.result() == [1, 2]


def test_a_place_of_which_something_may_still_come_is_not_used_again() -> None:
    driver = Driver(mapping(working(timeout=1.0, required=False), 2, batch=1))
    driver.run("each/batch-0")
    late = driver.reply("each/0/first", value=99)
    place = driver.saga.state.by_name["each/0/first"]
    driver.expire("each/0/first")
    driver.run("each/0/second")
    driver.run("each/batch-1")
    assert driver.saga.state.by_name["each/1/first"] != place
    assert [pulse.kind for pulse in driver.feed(Replied(place, late))] == ["late"]
    driver.run_all()
    assert driver.result() == [None, 2]


def test_branches_with_steps_of_the_same_name_are_not_mixed_up() -> None:
    def branch(name: str, factor: int) -> Workflow:
        made = Workflow(name, input={"x": int}, ttl=30)
        inner = Workflow(f"{name}-inner", input={"x": int}, ttl=30)
        inner.step(name="work", spawn="inline")(lambda x: x * factor)
        made.compose("notify", inner)
        return made

    outer = Workflow("outer", input={"x": int}, ttl=30)
    outer.switch("route", on="x", cases={0: branch("a", 10), 1: branch("b", 100)}, default=branch("c", 1_000))
    workflow = Workflow("w", ttl=30)
    workflow.map(name="each", over=Value([0, 1, 2, 0, 1, 2]), workflow=outer, bind={"x": Element()}, batch=1)
    assert run_workflow(workflow).result == [0, 100, 2_000, 0, 100, 2_000]
    addresses = [step.address for step in workflow.check().all_steps() if step.kind == "step"]
    assert len(addresses) == len(set(addresses)), "a host finds a step by its address"
    assert "w/each/route/notify/work" in addresses


# Hop budget


def chain(length: int, name: str = "chain") -> Workflow:
    workflow = Workflow(name, input={"x": int}, ttl=100)
    for number in range(length):
        workflow.step(name=f"s{number}", spawn="inline", after=[f"s{number - 1}"] if number else ())(lambda x: x)
    return workflow


def test_a_budget_exactly_used_up_within_a_scope_is_enough_and_one_less_is_not() -> None:
    workflow = Workflow("w", ttl=100)
    workflow.compose("sub", chain(3), bind={"x": Value(1)})
    assert run_workflow(workflow, ttl=3).status == "completed"
    trace = run_workflow(workflow, ttl=2)
    assert trace.status == "compensated"
    assert isinstance(trace.errors[0], TtlExpired)
    assert [pulse.step for pulse in trace.pulses if pulse.kind == "tombstone"] == ["sub/s2"]


def test_a_container_passes_on_the_least_that_any_of_its_scopes_has_left() -> None:
    workflow = Workflow("w", ttl=100)
    nested = Workflow("nested", input={"x": int}, ttl=50)
    nested.compose("long", chain(4), when=lambda x: x == 1)
    nested.step(name="short", spawn="inline")(lambda x: x)
    workflow.map(name="each", over=Value([0, 1, 2]), workflow=nested, bind={"x": Element()})
    workflow.step(name="after", spawn="inline")(lambda each: each)
    driver = Driver(workflow, ttl=20)
    driver.run_all()
    assert driver.ttl("each/1/long/s3") == 16
    assert driver.ttl("after") == 15


def test_rounds_spend_one_after_the_other_and_batches_do_not() -> None:
    workflow = Workflow("w", ttl=100)
    workflow.recurse("climb", chain(2), at_most=3, bind={"x": Value(1)})
    workflow.iterate(name="grow", start=Value(1), at_most=4, after=["climb"], spawn="inline")(lambda state: state + 1)
    workflow.map(name="each", over=Value([*range(10)]), batch=2, after=["grow"], spawn="inline")(
        lambda element: element
    )
    driver = Driver(workflow, ttl=20)
    driver.run_all()
    assert [driver.ttl(f"climb/{number}/s1") for number in (1, 2, 3)] == [18, 16, 14]
    assert [driver.ttl(f"grow/{number}") for number in (1, 2, 3, 4)] == [13, 12, 11, 10]
    assert {driver.ttl(f"each/batch-{number}") for number in range(5)} == {9}


def test_what_is_skipped_or_answered_within_a_scope_spends_nothing() -> None:
    nested = Workflow("nested", input={"x": int}, ttl=50)
    nested.step(name="skipped", when=lambda x: x < 0, spawn="inline")(lambda x: x)
    step = nested.step(name="answered", guard=lambda x: x * 2, after=["skipped"], spawn="inline")(lambda x: x)
    step.undo(lambda result: None)
    workflow = Workflow("w", ttl=100)
    workflow.compose("sub", nested, bind={"x": Value(21)})

    @workflow.step(spawn="inline")
    def fail(sub: int) -> None:
        raise ValueError(sub)

    driver = Driver(workflow, ttl=10)
    driver.run_all()
    assert driver.ttl("fail") == 9
    assert driver.saga.state.errors[0][1].message == "42"
    assert driver.kinds("undone", "spawned") == ["spawned sub", "spawned fail"]


@pytest.mark.parametrize("required", [True, False])
def test_max_hops_counts_the_hops_of_scopes(required: bool) -> None:
    nested = Workflow("nested", input={"x": int})
    nested.step(name="work", spawn="inline", required=required)(lambda x: x)
    workflow = Workflow("w", max_hops=4)
    workflow.map(name="each", over=Value([1, 2, 3, 4, 5]), workflow=nested, bind={"x": Element()})
    trace = run_workflow(workflow)
    assert trace.status == "compensated" if required else "completed"
    if required:
        assert isinstance(trace.errors[0], TooManyHops)
        assert "'w/each/work' would be hop 5 of 'w', which may take 4 (max_hops)" in str(trace.errors[0])
    else:
        assert trace.result == [1, 2, 3, None, None]


# Doubt and undo


def test_a_step_that_was_not_required_and_is_in_doubt_is_undone_with_the_others_last_first() -> None:
    workflow = Workflow("w", ttl=30, grace=1.0)
    workflow.compose("sub", working(undo=True, timeout=1.0, required=False), bind={"x": Value(1)})
    step = workflow.step(name="book", spawn="thread", after=["sub"])(lambda: 1)
    step.undo(lambda: None)
    workflow.step(name="fail", spawn="thread", after=["book"])(lambda: 1)
    driver = Driver(workflow)
    driver.expire("sub/first")
    driver.run("sub/second")
    driver.run("book")
    driver.answer("fail", outcome="fail")
    driver.feed_grace()
    driver.run_all()
    assert driver.kinds("undone") == ["undone book", "undone sub/first"]
    assert next(pulse.data for pulse in driver.journal if pulse.direction == "undo" and pulse.step == "sub/first") == {
        "in_doubt": True
    }
    assert driver.status == "compensated"


def test_a_step_that_was_not_required_and_turns_out_not_to_have_happened_is_passed() -> None:
    driver = Driver(mapping(working(timeout=1.0, required=False, undo=True), 1))
    driver.run("each/batch-0")
    late = driver.reply("each/0/first", "fail", fault=FAULT)
    place = driver.saga.state.by_name["each/0/first"]
    driver.expire("each/0/first")
    driver.feed(Replied(place, late))
    driver.run_all()
    assert driver.status == "completed"
    driver.undo()
    driver.run_all()
    assert driver.kinds("undone") == []
    assert driver.status == "compensated"


def test_lost_then_failed_without_being_required_is_in_doubt_and_goes_on() -> None:
    """The run of a lost worker may have happened, whatever a later delivery says."""
    driver = Driver(mapping(working(required=False, undo=True), 1))
    driver.run("each/batch-0")
    driver.lose("each/0/first")
    driver.answer("each/0/first", outcome="fail")
    driver.run_all()
    assert driver.status == "completed"
    driver.undo()
    driver.run_all()
    assert driver.kinds("undone") == ["undone each/0/first"]


def test_a_completed_transaction_is_taken_back_once_scopes_and_all() -> None:
    driver = Driver(mapping(working(undo=True), 3, batch=2))
    driver.run_all()
    assert driver.status == "completed"
    driver.undo()
    driver.crash()
    driver.run_all()
    assert driver.status == "compensated"
    assert driver.kinds("undone") == ["undone each/2/first", "undone each/1/first", "undone each/0/first"]
    seen = len(driver.journal)
    driver.undo()
    assert len(driver.journal) == seen


# Halting, failing and deciding half-way


@pytest.mark.parametrize("crash", [False, True])
def test_a_map_halted_in_the_middle_goes_on_where_it_was(crash: bool) -> None:
    driver = Driver(mapping(working(), 4, batch=2))
    driver.run("each/batch-0")
    driver.answer("each/0/first", outcome="halt", reason="wait")
    driver.run("each/1/first")
    assert driver.status == "halted"
    if crash:
        driver.crash()
        assert driver.status == "halted"
    driver.resume()
    assert driver.flying == ["each/0/first", "each/1/second"]
    driver.run_all()
    assert driver.result() == [1, 2, 3, 4]
    assert [pulse.attempt for pulse in driver.journal if pulse.step == "each/0/first" and pulse.kind == "spawned"] == [
        1,
        2,
    ]


def test_a_round_that_ends_while_halting_is_decided_on_after_the_resume_and_once() -> None:
    asked: list[int] = []
    workflow = Workflow("w", ttl=30)
    workflow.recurse(
        "climb", working(), at_most=5, until=lambda result: asked.append(result) or result > 2, bind={"x": Value(0)}
    )
    workflow.step(name="other", spawn="thread")(lambda: 1)
    driver = Driver(workflow)
    driver.run("climb/1/first")
    driver.answer("other", outcome="halt", reason="")
    driver.run("climb/1/second")
    assert driver.status == "halted"
    assert asked == []
    driver.crash()
    driver.resume()
    assert asked == [1]
    driver.run_all()
    assert driver.status == "completed"
    assert asked == [1, 2, 3]


def test_a_decision_heard_twice_or_after_a_cancel_changes_nothing() -> None:
    workflow = Workflow("w", ttl=30)
    workflow.recurse("climb", working(undo=True), at_most=5, until=lambda result: result > 2, bind={"x": Value(0)})
    driver = Driver(workflow)
    driver.run("climb/1/first")
    driver.run("climb/1/second")
    again = driver.evaluated[-1]
    assert again.opening is not None
    assert driver.feed(again) == []
    driver.run("climb/2/first")
    seen = driver.saga.snapshot()
    assert driver.feed(again) == []
    assert driver.saga.snapshot() == seen
    driver.cancel()
    assert driver.feed(again) == []
    driver.answer("climb/2/second", outcome="cancelled")
    driver.run_all()
    assert driver.status == "cancelled"
    assert driver.kinds("undone") == ["undone climb/2/first", "undone climb/1/first"]


def test_a_cancel_between_two_rounds_finds_the_question_and_drops_it() -> None:
    workflow = Workflow("w", ttl=30)
    workflow.recurse("climb", working(), at_most=5, until=lambda result: result > 2, bind={"x": Value(0)})
    driver = Driver(workflow)
    driver.run("climb/1/first")
    pulses, _ = driver.saga.react(
        Replied(driver.saga.state.by_name["climb/1/second"], driver.reply("climb/1/second", value=1)), 0
    )
    driver.journal += pulses
    decided = driver.decision(driver.saga.state.by_name["climb"])
    driver.cancel()
    assert driver.status == "cancelled"
    assert driver.feed(decided) == []


def test_user_code_that_fails_between_two_rounds_fails_the_container() -> None:
    workflow = Workflow("w", ttl=30)
    workflow.recurse("climb", working(undo=True), at_most=5, until=lambda result: 1 / 0, bind={"x": Value(0)})
    trace = run_workflow(workflow)
    assert trace.status == "compensated"
    assert isinstance(trace.errors[0], ZeroDivisionError)
    assert trace.undone == ["climb/1/first"]


def test_what_waits_is_decided_once_also_if_it_became_ready_while_halting() -> None:
    asked: list[str] = []
    nested = Workflow("nested", input={"x": int}, ttl=30)
    nested.step(name="first", spawn="thread")(lambda x: x)
    nested.step(name="second", spawn="thread", when=lambda first: asked.append("when") or True)(lambda first: first)
    workflow = Workflow("w", ttl=30)
    workflow.compose("sub", nested, bind={"x": Value(0)})
    workflow.step(name="other", spawn="thread")(lambda: 1)
    driver = Driver(workflow)
    driver.answer("other", outcome="halt", reason="")
    driver.run("sub/first")
    driver.resume()
    driver.run_all()
    assert driver.status == "completed"
    assert asked == ["when"]


# Failures that are caught


def test_an_element_that_fails_within_a_map_within_a_map_is_the_innermost_one_s_affair() -> None:
    inner = mapping_of(working(), 2, "lines", on_error="collect")
    driver = Driver(mapping(inner, 2, on_error="collect"))
    driver.run("each/batch-0")
    for path in ("each/0/lines/batch-0", "each/1/lines/batch-0"):
        driver.run(path)
    driver.answer("each/0/lines/1/first", outcome="fail")
    driver.run_all()
    errors = [{"index": 1, "element": 1, "error": "ValueError: boom"}]
    assert driver.result() == {
        "results": [{"results": [1], "errors": errors}, {"results": [1, 2], "errors": []}],
        "errors": [],
    }


def mapping_of(nested: Workflow, count: int, name: str, **options: Any) -> Workflow:
    workflow = Workflow("outer", input={"x": int}, ttl=30)
    workflow.map(name=name, over=Value([*range(count)]), workflow=nested, bind={"x": Element()}, **options)
    return workflow


def test_what_still_runs_in_an_element_that_failed_is_awaited_and_nothing_new_begins_in_it() -> None:
    inner = mapping_of(working(), 2, "lines", on_error="collect")
    inner.step(name="beside", spawn="thread")(lambda x: x)
    inner.step(name="behind", spawn="thread")(lambda beside: beside)
    driver = Driver(mapping(inner, 1, on_error="collect"))
    driver.run("each/batch-0")
    driver.run("each/0/lines/batch-0")
    driver.answer("each/0/beside", outcome="fail")
    assert driver.flying == ["each/0/lines/0/first", "each/0/lines/1/first"]
    driver.answer("each/0/lines/0/first", outcome="fail")
    driver.answer("each/0/lines/1/first", 7)
    assert driver.flying == ["each/batch-1"] or driver.flying == ["report"]
    driver.run_all()
    assert driver.result() == {"results": [], "errors": [{"index": 0, "element": 0, "error": "ValueError: boom"}]}


def test_an_element_that_failed_and_then_lost_its_process_is_not_begun_again() -> None:
    driver = Driver(mapping(parallel(), 1, on_error="collect"))
    driver.run("each/batch-0")
    driver.answer("each/0/a", outcome="fail")
    assert driver.flying == ["each/0/b"]
    driver.crash()
    assert not any(path.startswith("each/0") for path in driver.flying)
    driver.run_all()
    assert driver.status == "completed"


def parallel() -> Workflow:
    workflow = Workflow("nested", input={"x": int}, ttl=30)
    workflow.step(name="a", spawn="thread")(lambda x: x)
    workflow.step(name="b", spawn="thread")(lambda x: x)
    return workflow


def test_a_halt_or_a_then_within_an_element_that_failed_is_not_followed() -> None:
    driver = Driver(mapping(parallel(), 1, on_error="collect"))
    driver.run("each/batch-0")
    driver.answer("each/0/a", outcome="fail")
    driver.answer("each/0/b", outcome="halt", reason="too late")
    assert driver.status == "running"
    driver.run_all()
    assert driver.status == "completed"


def test_failed_elements_leave_no_places_behind() -> None:
    nested = mapping_of(working(), 2, "lines")
    workflow = mapping(nested, 300, batch=5, on_error="collect", keep=False)
    driver = Driver(workflow)
    while driver.flying:
        for path in driver.flying:
            if path.endswith("lines/1/first"):
                driver.answer(path, outcome="fail")
            elif path in driver.flying:
                driver.run(path)
        driver.forget_commands()
    assert driver.status == "completed"
    assert len(driver.result()["errors"]) == 300
    assert len(driver.saga.state.steps) < 200


# Functions around steps


def around() -> Workflow:
    workflow = Workflow("w", ttl=30)

    @workflow.around(workflow=working(), bind={"x": Value(1)}, retries=2)
    async def hold(proceed: Any) -> Any:
        return await proceed()

    return workflow


def test_a_function_that_answers_before_its_steps_are_done_fails_and_does_not_hang() -> None:
    driver = Driver(around())
    proceed(driver)
    pulses = driver.answer("hold/around", 1)
    assert "failed hold/around" in [f"{pulse.kind} {pulse.step}" for pulse in pulses]
    assert (
        "answered before the steps it is around were done; let it `await proceed()`"
        in driver.saga.state.errors[0][1].message
    )


def proceed(driver: Driver) -> None:
    index = driver.saga.state.by_name["hold/around"]
    driver.feed(Proceeded(index, driver.saga.state.deliveries[index]))


def test_a_retry_of_the_function_spends_nothing() -> None:
    driver = Driver(around())
    proceed(driver)
    driver.answer("hold/around", outcome="retry", after_ns=1)
    driver.feed(RetryDue(driver.saga.state.by_name["hold/around"]))
    assert [pulse.ttl for pulse in driver.journal if pulse.step == "hold/around" and pulse.kind == "spawned"] == [
        29,
        29,
    ]


def test_halting_with_hops_stranded_by_a_crash_does_not_wait_for_them() -> None:
    workflow = around()
    workflow.step(name="other", spawn="thread")(lambda: 1)
    driver = Driver(workflow)
    proceed(driver)
    driver.crash()
    driver.answer("other", outcome="halt", reason="")
    proceed(driver)
    assert driver.status == "halted"
    driver.resume()
    assert driver.flying == ["other", "hold/around"] or driver.flying == ["hold/around", "other"]
    proceed(driver)
    assert "hold/first" in driver.flying


# The journal


def eventful() -> Driver:
    """A transaction in which a bit of everything happened."""
    inner = Workflow("inner", input={"x": int}, ttl=30)
    inner.map(name="lines", over=Value([1, 2, 3]), batch=2, spawn="inline")(lambda element, x: element * x)
    inner.recurse("climb", working(undo=True), at_most=2, bind={"x": Result("lines", 0)})
    driver = Driver(mapping(inner, 2, batch=1))
    driver.run("each/batch-0")
    driver.run("each/0/lines/batch-0")
    driver.lose("each/0/lines/batch-1")
    driver.crash()
    driver.run("each/0/lines/batch-1")
    driver.run("each/0/climb/1/first")
    driver.answer("each/0/climb/1/second", outcome="halt", reason="")
    driver.resume()
    driver.run_all()
    driver.undo()
    driver.run_all()
    assert driver.status == "compensated"
    return driver


def test_every_prefix_of_a_journal_folds_to_what_the_live_state_was_and_can_be_taken_over() -> None:
    driver = eventful()
    live = Saga(driver.plan, driver.saga.state.transaction)
    for length, pulse in enumerate(driver.journal, 1):
        evolve(live.state, pulse)
        folded = Saga.fold(driver.plan, driver.journal[:length])
        assert folded.snapshot() == live.snapshot()
        folded.react(Recovered("another", folded.state.epoch + 1), driver.now_ns)


def test_a_journal_with_a_pulse_too_few_or_twice_is_refused() -> None:
    driver = eventful()
    journal = driver.journal
    for at in range(len(journal) - 1):
        with pytest.raises(StoreError):
            Saga.fold(driver.plan, [*journal[:at], *journal[at + 1 :]])
    for at in range(len(journal)):
        with pytest.raises(StoreError):
            Saga.fold(driver.plan, [*journal[: at + 1], *journal[at:]])


def test_damage_that_hides_its_gap_is_refused_or_read_but_never_a_crash() -> None:
    driver = eventful()
    journal = driver.journal
    refused = 0
    for at in range(1, len(journal)):
        without = [*journal[:at], *(pulse._replace(seq=pulse.seq - 1) for pulse in journal[at + 1 :])]
        twice = [*journal[: at + 1], *(pulse._replace(seq=pulse.seq + 1) for pulse in journal[at:])]
        emptied = [
            *journal[:at],
            journal[at]._replace(data={"opening": [["0", 9, []]], "decided": {}}),
            *journal[at + 1 :],
        ]
        for damaged in (without, twice, emptied):
            try:
                Saga.fold(driver.plan, damaged)
            except StoreError:
                refused += 1
    assert refused > 2 * len(journal)


def test_a_planned_step_in_a_journal_that_the_workflow_does_not_have_is_refused_as_such() -> None:
    driver = Driver(mapping(working(), 1))
    driver.run_all()
    at = next(
        number
        for number, pulse in enumerate(driver.journal)
        if pulse.kind == "completed" and pulse.step == "each/0/first"
    )
    planned = driver.journal[at]._replace(data={"planned": [["nobody", "y", {}, []]]})
    with pytest.raises(StoreError, match="asks for 'nobody'"):
        Saga.fold(driver.plan, [*driver.journal[:at], planned])


def test_decisions_nobody_asked_for_mean_nothing() -> None:
    driver = Driver(mapping(working(), 2))
    for index in range(len(driver.saga.state.steps)):
        assert driver.feed(Evaluated(index, False)) == []
        assert driver.feed(Evaluated(index, True, {}, opening=())) == []


def test_a_crash_within_a_scope_redelivers_just_what_was_in_flight() -> None:
    trace = run_workflow(mapping(working(), 3), faults={"report": Crash()})
    assert trace.result == [1, 2, 3]
    assert [pulse.data for pulse in trace.of("report") if pulse.kind == "spawned"][1] == {
        "delivery": 2,
        "lost": "its process ended",
    }
    assert all(
        len([pulse for pulse in trace.of(f"each/{at}/first") if pulse.kind == "spawned"]) == 1 for at in range(3)
    )


def test_halting_from_a_function_of_a_map() -> None:
    calls: list[int] = []
    workflow = Workflow("w", ttl=30)

    @workflow.map(over=Value([1, 2, 3]), batch=2, spawn="inline")
    def each(element: int) -> int:
        calls.append(element)
        if len(calls) == 3:
            raise Halt("wait")
        return element

    trace = run_workflow(workflow, resumes=1)
    assert trace.result == [1, 2, 3]
    assert calls == [1, 2, 3, 3]
