"""map: its batches and where they end, its sources and how they break, what it keeps, and what cannot be declared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from saga_driver import Driver

from bitactor import DefinitionError, InvalidInput, Result, UnknownArgument, Value, Workflow
from bitactor.declare.source import Element
from bitactor.kinds.cursor import Cursor
from bitactor.messages.codec import SignalTooLarge, pack
from bitactor.saga import Saga
from bitactor.testing import Crash, Trace, run_workflow


def spawned(trace: Trace) -> list[str]:
    return [pulse.step for pulse in trace.pulses if pulse.kind == "spawned"]


def doubling(count: int, batch: int, **options: Any) -> Workflow:
    workflow = Workflow("w")
    workflow.map(name="each", over=Value([*range(count)]), batch=batch, spawn="inline", **options)(double)
    return workflow


def double(element: int) -> int:
    return 2 * element


def increment() -> Workflow:
    nested = Workflow("nested", input={"x": int})
    nested.step(name="work", spawn="inline")(lambda x: x + 1)
    return nested


# Batches


@pytest.mark.parametrize(
    ("count", "batch", "batches"),
    [(0, 3, 1), (1, 3, 1), (2, 3, 1), (3, 3, 1), (4, 3, 2), (6, 3, 2), (2, 1, 2), (1, 1, 1)],
)
def test_no_batch_is_empty_but_the_first_of_a_source_of_nothing(count: int, batch: int, batches: int) -> None:
    trace = run_workflow(doubling(count, batch))
    assert trace.result == [2 * number for number in range(count)]
    assert spawned(trace) == ["each", *(f"each/batch-{number}" for number in range(batches))]


def test_a_batch_is_one_hop_and_one_append() -> None:
    trace = run_workflow(doubling(250, 100))
    assert trace.kinds == [
        "accepted", "spawned each", "spawned each/batch-0", "completed each/batch-0", "spawned each/batch-1",
        "completed each/batch-1", "spawned each/batch-2", "completed each/batch-2", "completed each", "finished",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_over_a_workflow_a_batch_is_followed_by_its_elements(count: int) -> None:
    workflow = Workflow("w")
    workflow.map(name="each", over=Value([*range(count)]), workflow=increment(), bind={"x": Element()}, batch=2)
    trace = run_workflow(workflow)
    assert trace.result == [number + 1 for number in range(count)]
    expected = {
        0: ["batch-0"],
        1: ["batch-0", "0/work"],
        2: ["batch-0", "0/work", "1/work"],
        3: ["batch-0", "0/work", "1/work", "batch-1", "2/work"],
    }
    assert spawned(trace)[1:] == [f"each/{path}" for path in expected[count]]


def test_maps_within_maps_over_lists_some_of_which_are_empty() -> None:
    rows = Workflow("rows", input={"cells": list})
    rows.map(name="cell", over="cells", batch=2, spawn="inline")(double)
    workflow = Workflow("w")
    workflow.map(name="row", over=Value([[], [1, 2], [3]]), workflow=rows, bind={"cells": Element()})
    assert run_workflow(workflow).result == [[], [2, 4], [6]]


def test_an_empty_map_gives_what_its_options_make_of_nothing() -> None:
    assert run_workflow(doubling(0, 5)).result == []
    assert run_workflow(doubling(0, 5, keep=False)).result == {"count": 0}
    assert run_workflow(doubling(0, 5, on_error="collect")).result == {"results": [], "errors": []}
    assert run_workflow(doubling(0, 5, reduce=lambda total, batch: total + sum(batch), initial=7)).result == 7


def test_whole_batches() -> None:
    workflow = Workflow("w")
    workflow.map(name="each", over=Value([1, 2, 3, 4]), batch=2, whole=True, spawn="inline")(
        lambda elements, index: (index, sum(elements))
    )
    assert [tuple(pair) for pair in run_workflow(workflow).result] == [(0, 3), (2, 7)]


# One element ahead


class Watched:
    """A source whose reading is noted, beside what is done with its elements."""

    def __init__(self, length: int) -> None:
        self.length, self.notes = length, [""] * 0

    def read(self, start: int = 0) -> Iterator[int]:
        for number in range(start, self.length):
            self.notes.append(f"read {number}")
            yield number
        self.notes.append("over")

    async def aread(self, start: int = 0) -> AsyncIterator[int]:
        for number in self.read(start):
            yield number

    def works(self, element: int) -> int:
        self.notes.append(f"work {element}")
        return element


@pytest.mark.parametrize("is_async", [False, True])
def test_one_element_is_read_ahead_and_only_once_the_batch_is_worked_on(is_async: bool) -> None:
    watched = Watched(4)
    workflow = Workflow("w")
    workflow.map(name="each", over=watched.aread if is_async else watched.read, batch=2, spawn=None)(watched.works)
    assert run_workflow(workflow).result == [0, 1, 2, 3]
    assert watched.notes == [
        "read 0", "read 1", "work 0", "work 1", "read 2", "read 3", "work 2", "work 3", "over",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("is_async", [False, True])
def test_an_element_that_was_read_ahead_is_not_lost_in_a_crash(count: int, start: bool, is_async: bool) -> None:
    watched = Watched(count)

    async def aread() -> AsyncIterator[int]:
        for number in watched.read():
            yield number

    factories: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): lambda: watched.read(), (False, True): watched.read,
        (True, False): aread, (True, True): watched.aread,
    }  # fmt: skip
    workflow = Workflow("w", ttl=20)
    workflow.map(name="each", over=factories[is_async, start], batch=2)(watched.works)
    driver = Driver(workflow)
    while driver.flying:
        driver.run(driver.flying[0])
        driver.crash()
    assert driver.result() == [*range(count)]
    assert [note for note in watched.notes if note.startswith("work")] == [f"work {number}" for number in range(count)]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("retries", "opened"), [(0, [0]), (1, [0, 4])])
def test_a_source_that_breaks_after_a_full_batch_breaks_the_next(
    retries: int, opened: list[int], is_async: bool
) -> None:
    unsteady = Unsteady(6, 4)
    workflow = Workflow("w", ttl=20)
    workflow.map(name="each", over=unsteady.aread if is_async else unsteady.read, batch=4, retries=retries)(double)
    trace = run_workflow(workflow)
    kinds = [kind for kind in trace.kinds if "batch-" in kind and not kind.startswith("spawned")]
    assert kinds[0] == "completed each/batch-0" and kinds[1] == f"{'retried' if retries else 'failed'} each/batch-1"
    assert unsteady.opened == opened
    assert trace.result == [0, 2, 4, 6, 8, 10] if retries else isinstance(trace.errors[0], ConnectionError)


def test_a_second_try_after_the_look_ahead_loses_nothing_and_looks_no_further() -> None:
    watched = Watched(4)
    broken = [True]

    def total(so_far: int, results: list[int]) -> int:
        if broken:
            broken.clear()
            raise ValueError("once")
        return so_far + sum(results)

    workflow = Workflow("w", ttl=20)
    workflow.map(name="each", over=watched.read, batch=2, retries=1, reduce=total, initial=0)(watched.works)
    assert run_workflow(workflow).result == 6
    assert [note for note in watched.notes if not note.startswith("work")] == [
        "read 0", "read 1", "read 2", "read 3", "over",
    ]  # fmt: skip


def test_an_attempt_whose_time_was_over_reads_no_further() -> None:
    old, new = object(), object()
    cursor = Cursor(iter(range(6)), 0, old)
    assert cursor.take(0, 2) == [0, 1]
    cursor.holder = new
    assert cursor.has_more(old) and cursor.take(0, 2) == [0, 1] and cursor.has_more(new)
    assert cursor.advance_to(2) and cursor.take(0, 2) == [2, 3]
    assert cursor.has_more(old) and cursor.ahead == []


class Ends:
    """An iterator that must not be asked again once it has ended."""

    def __init__(self) -> None:
        self.left = 2

    def __iter__(self) -> Ends:
        return self

    def __next__(self) -> int:
        self.left -= 1
        if self.left < -1:
            raise AssertionError("asked again")
        if self.left < 0:
            raise StopIteration
        return self.left


def test_a_source_that_has_ended_is_not_asked_again() -> None:
    workflow = Workflow("w")
    tries: list[int] = []
    workflow.map(name="each", over=Ends, batch=2, retries=2, reduce=lambda total, got: tries.append(1) or 1 / 0)(double)
    trace = run_workflow(workflow)
    assert len(tries) == 3 and isinstance(trace.errors[0], ZeroDivisionError)


@pytest.mark.parametrize("nested", [False, True])
def test_journals_with_an_empty_batch_still_end(nested: bool) -> None:
    """A version before recorded that there may be more after a full batch."""
    workflow = Workflow("w", ttl=20)
    if nested:
        workflow.map(name="each", over=Value([1, 2]), workflow=increment(), bind={"x": Element()}, batch=2)
    else:
        step = workflow.map(name="each", over=Value([1, 2]), batch=2, spawn="inline")(double)
        step.undo(lambda element: None)
    driver = Driver(workflow)
    results = pack([[0, [pack(1)]], [1, [pack(2)]]] if nested else [2, 4])
    driver.answer("each/batch-0", [2, True, results, b"", pack(None), b"" if nested else pack([1, 2])])
    for path in driver.flying if nested else ():
        driver.run(path)
    assert driver.flying == ["each/batch-1"]
    driver.crash()
    driver.run_all()
    assert driver.result() == ([2, 3] if nested else [2, 4])
    assert Saga.fold(driver.plan, driver.journal).snapshot() == driver.saga.state.snapshot()


# Sources


class Unsteady:
    """A source that breaks once in the middle, as connections do."""

    def __init__(self, length: int, breaks_at: int) -> None:
        self.length, self.breaks_at = length, breaks_at
        self.opened: list[int] = []
        self.closed = 0

    def read(self, start: int) -> Iterator[int]:
        self.opened.append(start)
        try:
            for number in range(start, self.length):
                if number == self.breaks_at:
                    self.breaks_at = -1
                    raise ConnectionError("reset by peer")
                yield number
        finally:
            self.closed += 1

    async def aread(self, start: int) -> AsyncIterator[int]:
        for number in self.read(start):
            yield number


@pytest.mark.parametrize("source", ["plain", "read past", "async"])
def test_a_source_that_breaks_in_the_middle_of_a_batch_loses_nothing_when_the_batch_is_tried_again(source: str) -> None:
    unsteady = Unsteady(10, 5)
    factories: dict[str, Callable[..., Any]] = {
        "plain": lambda start: unsteady.read(start), "read past": lambda: unsteady.read(0), "async": unsteady.aread,
    }  # fmt: skip
    workflow = Workflow("w", ttl=20)
    workflow.map(name="each", over=factories[source], batch=4, retries=1)(double)
    trace = run_workflow(workflow)
    assert trace.result == [2 * number for number in range(10)]
    assert unsteady.opened == ([0, 0] if source == "read past" else [0, 4])


def test_a_second_try_of_a_batch_gets_the_same_elements() -> None:
    tries: list[int] = []
    workflow = Workflow("w")

    @workflow.map(over=lambda start: iter(range(start, 6)), batch=4, retries=1, spawn="inline")
    def each(element: int) -> int:
        tries.append(element)
        if tries.count(5) == 1 and element == 5:
            raise ValueError("once")
        return element

    assert run_workflow(workflow).result == [0, 1, 2, 3, 4, 5]
    assert tries == [0, 1, 2, 3, 4, 5, 4, 5]


def test_a_source_is_closed_when_its_map_is_done_not_when_the_transaction_is() -> None:
    unsteady = Unsteady(3, -1)
    rows = Workflow("rows", input={"x": int})
    rows.map(name="cell", over=lambda: unsteady.read(0), batch=2, spawn="inline")(double)
    workflow = Workflow("w", ttl=20)
    workflow.map(name="row", over=Value([*range(20)]), workflow=rows, bind={"x": Element()}, batch=1)
    driver = Driver(workflow)
    most = 0
    while driver.flying:
        for path in driver.flying:
            driver.run(path)
            most = max(most, len(unsteady.opened) - unsteady.closed)
    assert driver.status == "completed"
    assert most <= 1


def test_after_a_crash_a_map_goes_on_with_the_batch_it_was_in() -> None:
    opened: list[int] = []

    def source(start: int) -> Iterator[int]:
        opened.append(start)
        return iter(range(start, 7))

    workflow = Workflow("w")
    workflow.map(name="each", over=source, batch=3, spawn="inline")(double)
    driver = Driver(workflow)
    driver.run("each/batch-0")
    driver.run("each/batch-1")
    driver.crash()
    driver.run_all()
    assert driver.result() == [0, 2, 4, 6, 8, 10, 12]
    assert opened == [0, 6]


@pytest.mark.parametrize("source", [3, None, "text", b"bytes", {"a": 1}])
def test_what_is_no_list_is_refused_by_its_kind(source: Any) -> None:
    workflow = Workflow("w", input={"rows": Any})
    workflow.map(name="each", over="rows", spawn="inline")(double)
    trace = run_workflow(workflow, {"rows": source})
    assert isinstance(trace.errors[0], InvalidInput)
    assert f"is over a {type(source).__name__}, which is no list or iterable of elements" in str(trace.errors[0])


# Results


def test_results_too_large_for_one_value_fail_the_map_and_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitactor.saga.rules.transaction.MAX_TOKEN_BYTES", 1_000)
    nested = Workflow("nested", input={"x": int})
    nested.step(name="work", spawn="inline")(lambda x: "x" * 300)
    workflow = Workflow("w", ttl=20)
    before = workflow.step(name="before", spawn="inline")(lambda: 1)
    before.undo(lambda: None)
    workflow.map(
        name="each", over=Value([*range(20)]), workflow=nested, bind={"x": Element()}, batch=2, after=["before"]
    )
    trace = run_workflow(workflow)
    assert trace.status == "compensated"
    assert isinstance(trace.errors[0], SignalTooLarge)
    assert "are more than 1,000 bytes, which is too much for one value; use reduce=…" in str(trace.errors[0])
    assert trace.undone == ["before"]


def test_collected_errors_come_in_the_order_of_the_elements_with_what_can_be_shown_of_them() -> None:
    class Opaque:
        def __repr__(self) -> str:
            return "<opaque>"

    nested = Workflow("nested", input={"x": int, "parity": int})
    nested.step(name="first", spawn="inline", when=lambda parity: parity == 0)(lambda x: x)

    @nested.step(spawn="inline")
    def last(x: int, first: int | None) -> int:
        if x != 1:
            raise ValueError(f"bad {x}")
        return x

    workflow = Workflow("w", ttl=20)
    workflow.map(
        name="each",
        over=lambda: iter([(0, Opaque()), (1, Opaque()), (2, Opaque()), (3, Opaque())]),
        workflow=nested,
        bind={"x": Element(0), "parity": Element(0).map(lambda x: x % 2)},
        on_error="collect",
        batch=10,
    )
    result = run_workflow(workflow).result
    assert result["results"] == [1]
    assert [(error["index"], error["error"]) for error in result["errors"]] == [
        (0, "ValueError: bad 0"), (2, "ValueError: bad 2"), (3, "ValueError: bad 3"),
    ]  # fmt: skip
    assert "<opaque>" in result["errors"][0]["element"]


def test_undo_goes_batch_by_batch_element_by_element_last_first() -> None:
    undone: list[tuple[int, Any]] = []
    workflow = Workflow("w")
    step = workflow.map(name="each", over=Value([1, 2, 3, 4, 5]), batch=2, spawn="inline")(double)
    step.undo(lambda element, result: undone.append((element, result)))
    workflow.flunk("stop", "no", after=["each"])
    trace = run_workflow(workflow)
    assert undone == [(5, 10), (4, 8), (3, 6), (2, 4), (1, 2)]
    assert trace.undone == ["each/batch-2", "each/batch-1", "each/batch-0"]


def test_a_crash_of_the_batch_itself() -> None:
    trace = run_workflow(doubling(5, 2))
    workflow = doubling(5, 2)
    workflow.step(name="after", spawn="inline")(lambda each: each)
    assert run_workflow(workflow, faults={"after": Crash()}).result == trace.result


# Declaring


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"batch": 0}, "batch=0; it must be a whole number, at least 1"),
    "batch of truth": ({"batch": True}, "batch=True"),
    "on_error": ({"on_error": "colect"}, "Did you mean 'collect'?"),
    "initial": ({"initial": 3}, "there is no reduce="),
    "keep and reduce": ({"keep": False, "reduce": max}, "leave one out"),
    "whole and collect": ({"whole": True, "on_error": "collect"}, "have no meaning there"),
    "process": ({"spawn": "process"}, "spawn='process'"),
    "required": ({"required": False}, "required=False is for single steps"),
    "no such option": ({"batches": 3}, "unknown option 'batches'"),
    "nobody": ({"bind": {"other": Result("nobody")}}, "takes the result of 'nobody', which does not exist"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_map_that_cannot_work_is_refused(what: str) -> None:
    options, message = NONSENSE[what]
    workflow = Workflow("w")
    with pytest.raises(DefinitionError) as caught:
        workflow.map(name="each", over=Value([1]), **options)(_takes_all)
        workflow.check()
    assert message in str(caught.value)


def _takes_all(element: int, other: int = 0) -> int:
    return element


def test_an_element_must_go_somewhere() -> None:
    workflow = Workflow("w")
    workflow.map(name="each", over=Value([1]))(lambda row: row)
    with pytest.raises(UnknownArgument, match="'row' is neither an input field nor a step"):
        workflow.check()
    workflow = Workflow("w")
    workflow.map(name="each", over=Value([1]))(lambda: 1)
    with pytest.raises(DefinitionError, match="the function takes no element; call a parameter `element`"):
        workflow.check()
    with pytest.raises(
        DefinitionError, match=r"no input of 'nested' takes the element; bind one: bind=\{'x': Element\(\)\}"
    ):
        workflow.map(name="all", over=Value([1]), workflow=increment())


def test_elements_are_only_in_maps_and_maps_are_over_something() -> None:
    workflow = Workflow("w")
    with pytest.raises(DefinitionError, match="there are elements only inside a map"):
        workflow.step(name="a", bind={"x": Element()})(lambda x: x)
    with pytest.raises(DefinitionError, match="needs over="):
        workflow.map(name="each")(double)
    with pytest.raises(DefinitionError, match="over a function, or over workflow="):
        workflow.map(double, name="each", over=Value([1]), workflow=increment(), bind={"x": Element()})


def test_elements_that_shall_be_undone_alone_are_refused_with_the_cure() -> None:
    one, lot = Workflow("one", input={"path": str}), Workflow("lot", input={"paths": list[str]})
    one.step(lambda path: path, name="load").undo(lambda result: None)
    lot.map(workflow=one, name="all", over="paths", bind={"path": Element()}, on_error="collect")
    with pytest.raises(
        DefinitionError, match=r"step 'all' of 'lot'.*begin a transaction for each: stimulate\('one', …, key=…\)"
    ):
        lot.check()
