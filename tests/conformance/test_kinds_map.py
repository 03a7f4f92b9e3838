"""map: over any number of elements."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from pydantic import SecretStr

from bitactor import DefinitionError, Element, Halt, Result, Value, Workflow
from bitactor.export.step_counts import step_counts
from mesh import Mesh, Transaction
from mesh.cli.waterfall.render import to_json
from mesh.ingress.render import as_json, pulses_as_plain
from mesh.sinks.plain import plain, plain_pulse
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes, begin, dying_map
from tests.conformance.support import failure_of, journal, ran, resident, result_of
from tests.e2e.support import BOUND, Peak, audit, finish, pulse_lines, undone, until


@claim("Kinds: map", "It is over any iterable: an input, a step's result, or a value.")
@pytest.mark.parametrize("over", ["numbers", Result("made"), Value([1, 2, 3])])
async def test_over_what_is_there(over: Any) -> None:
    workflow = Workflow("mapped", input={"numbers": list[int]})
    workflow.step(name="made")(lambda: [1, 2, 3])

    @workflow.map(over=over)
    def double(element: int) -> int:
        return element * 2

    assert await result_of(workflow, {"numbers": [1, 2, 3]}) == [2, 4, 6]


def counted(upto: int) -> Iterator[int]:
    yield from range(upto)


async def counted_slowly(upto: int) -> AsyncIterator[int]:
    for number in range(upto):
        await asyncio.sleep(0)
        yield number


def counted_from(upto: int, start: int) -> Iterator[int]:
    return iter(range(start, upto))


@claim("Kinds: map", "Or over an iterator factory, or an async iterable.")
@pytest.mark.parametrize("factory", [counted, counted_slowly, counted_from])
@pytest.mark.parametrize("is_async", [True, False])
async def test_over_a_factory(factory: Any, is_async: bool) -> None:
    workflow = Workflow("made", input={"upto": int})

    async def doubles(element: int) -> int:
        return element * 2

    def double(element: int) -> int:
        return element * 2

    workflow.map(doubles if is_async else double, name="doubled", over=factory, batch=3)
    assert await result_of(workflow, {"upto": 7}) == [0, 2, 4, 6, 8, 10, 12]
    if factory is counted_slowly and not is_async:
        workflow.map(double, name="elsewhere", over=factory, spawn="thread")
        with pytest.raises(DefinitionError, match="async source"):
            workflow.check()


def shipping(log: list[str] | None = None) -> Workflow:
    """Charge, then send; a charge can be undone, and order 13 cannot be sent."""
    workflow = Workflow("shipping", input={"order": int, "rate": int})

    @workflow.step
    async def charge(order: int, rate: int) -> int:
        return order * rate

    @charge.undo
    async def refund(order: int) -> None:
        if log is not None:
            log.append(f"refund {order}")

    @workflow.step
    async def send(order: int, charge: int) -> str:
        if order == 13:
            raise ValueError("no such order")
        return f"{order} for {charge}"

    return workflow


@claim("Kinds: map", "One step or a nested workflow per element; outer arguments are visible inside.")
async def test_over_a_workflow() -> None:
    workflow = Workflow("shop", input={"orders": list[int]}, ttl=8)
    workflow.step(name="rate")(lambda: 3)

    @workflow.map(over="orders")
    def priced(element: int, rate: int) -> int:
        return element * rate

    workflow.map(name="shipped", workflow=shipping(), over="orders", bind={"order": Element()})
    transaction = await ran(workflow, {"orders": [1, 2]})
    assert transaction.results()["priced"] == [3, 6]
    assert await transaction.result() == ["1 for 3", "2 for 6"]
    assert {"shipped/0/charge", "shipped/1/send"} <= set(journal(transaction, "completed"))


@claim(
    "Kinds: map",
    "`batch` bounds what is in memory: no more than that is taken from the source before it is worked on, over a "
    "workflow one more.",
)
@pytest.mark.parametrize("nested", [False, True])
async def test_batch(nested: bool) -> None:
    ahead = Peak()
    held: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            held.append(number)
            ahead.most = max(ahead.most, len(held))
            yield number

    workflow = Workflow("bounded", ttl=8)
    if nested:
        inner = Workflow("inner", input={"element": int})
        inner.step(name="works", spawn="inline")(lambda element: held.remove(element))
        workflow.map(name="each", over=source, workflow=inner, batch=10)
    else:
        workflow.map(name="each", over=source, batch=10)(lambda element: held.remove(element))
    assert (await ran(workflow)).status == "completed"
    assert ahead.most == 10 + nested and held == []


async def in_pages(upto: int) -> AsyncIterator[int]:
    """A source that learns only from another page that there is no more."""
    for number in range(upto):
        await asyncio.sleep(0)
        yield number
    await asyncio.sleep(0)


@claim("Kinds: map", "No batch is empty, but the one that finds a source of nothing.")
@pytest.mark.parametrize("source", [counted, in_pages, counted_from, "numbers"])
@pytest.mark.parametrize("nested", [False, True])
async def test_no_empty_batch(store: str, source: Any, nested: bool) -> None:
    workflow = Workflow("full", input={"upto": int, "numbers": list[int]}, ttl=20)
    if nested:
        inner = Workflow("inner", input={"element": int})
        inner.step(name="works", spawn="inline")(lambda element: element)
        workflow.map(name="each", over=source if source is not in_pages else counted, workflow=inner, batch=3)
    else:
        each = workflow.map(name="each", over=source, batch=3)(lambda element: element)
        each.undo(lambda element: None)
    workflow.step(name="ends")(lambda each, numbers: 1 / (len(each) - len(numbers)))
    async with Mesh(workflow, store=store) as mesh:
        for upto, batches in ((0, 1), (2, 1), (3, 1), (6, 2), (7, 3)):
            given = {"upto": upto, "numbers": list(range(upto))}
            transaction = await finish(mesh, workflow, given)
            expected = [f"each/batch-{number}" for number in range(batches)]
            assert [step for step in journal(transaction, "completed") if "batch" in step] == expected
            assert transaction.status == "compensated"
            assert nested or undone(transaction) == expected[::-1]


@claim("Kinds: map", "Results are `ordered`, or as completed.")
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("nested", [True, False])
async def test_order(ordered: bool, nested: bool) -> None:
    ended = [asyncio.Event() for _ in range(4)]

    async def last_first(element: int) -> int:
        """Each waits for the one behind it."""
        if element < 3:
            await ended[element + 1].wait()
        ended[element].set()
        return element

    workflow = Workflow("order", ttl=8)
    if nested:
        inner = Workflow("inner", input={"element": int})
        inner.step(name="works")(last_first)
        workflow.map(name="each", over=Value([0, 1, 2, 3]), workflow=inner, ordered=ordered)
    else:
        workflow.map(name="each", over=Value([0, 1, 2, 3]), ordered=ordered)(last_first)
    assert await result_of(workflow) == ([0, 1, 2, 3] if ordered else [3, 2, 1, 0])


@claim("Kinds: map", '`on_error="fail"`: an element that fails fails the map, and says which it was.')
async def test_on_error_fail() -> None:
    workflow = Workflow("strict", input={"rows": list})

    @workflow.map(over="rows", batch=2)
    def parse(element: str) -> int:
        return int(element)

    transaction = await ran(workflow, {"rows": ["1", "2", "x"]})
    failure = await failure_of(transaction)
    assert transaction.status == "compensated" and isinstance(failure.__cause__, ValueError)
    assert any("element 2" in note for note in failure.__cause__.__notes__)


@claim("Kinds: map", '`on_error="collect"` keeps index, element and error.')
@pytest.mark.parametrize("batch", [2, 100])
async def test_on_error_collect(batch: int) -> None:
    workflow = Workflow("lenient", input={"rows": list})

    @workflow.map(over="rows", batch=batch, on_error="collect")
    def parse(element: str) -> int:
        return int(element)

    result = await result_of(workflow, {"rows": ["1", "x", "3"]})
    assert result["results"] == [1, 3]
    [error] = result["errors"]
    assert (error["index"], error["element"]) == (1, "x") and "ValueError" in error["error"]


@claim("Kinds: map", '`on_error="collect"` over a nested workflow keeps index, element and error, too.')
async def test_on_error_collect_nested() -> None:
    inner = Workflow("checked", input={"order": int})
    inner.step(name="load")(lambda order: order)
    inner.flunk("refuse", "no order {load}", when=lambda load: load == 13)
    inner.step(name="sent", after=["refuse"])(lambda load: f"sent {load}")
    workflow = Workflow("lenient shop", input={"orders": list[int]}, ttl=8)
    workflow.map(name="shipped", workflow=inner, over="orders", bind={"order": Element()}, on_error="collect", batch=2)
    result = await result_of(workflow, {"orders": [1, 13, 3]})
    assert result["results"] == ["sent 1", "sent 3"]
    [error] = result["errors"]
    assert (error["index"], error["element"]) == (1, 13) and "no order 13" in error["error"]


@claim("Kinds: map", "Maps nest: a map over the results of a map, and a map in a map.")
async def test_nested_maps() -> None:
    inner = Workflow("row", input={"cells": list[int]})

    @inner.map(over="cells")
    def double(element: int) -> int:
        return element * 2

    workflow = Workflow("table", input={"rows": list}, ttl=8)
    workflow.map(name="rows_doubled", workflow=inner, over="rows", bind={"cells": Element()})
    workflow.map(name="sums", over="rows_doubled")(lambda element: sum(element))
    transaction = await ran(workflow, {"rows": [[1, 2], [], [3]]})
    assert transaction.results()["rows_doubled"] == [[2, 4], [], [6]]
    assert await transaction.result() == [6, 0, 6]


@claim("Kinds: map", "It is resumable from its last batch: what was done before is not done again, nor read again.")
async def test_resuming(sqlite: str, tmp_path: Path) -> None:
    transaction = begin("dying_map", sqlite, tmp_path)
    notes = Notes(tmp_path)
    assert notes.lines[-1] == "element 35"
    workflow = dying_map(notes)
    async with Mesh(workflow, store=sqlite) as mesh:
        taken = await mesh.transaction(transaction or mesh.node.store.reader().find("dying map", "the one") or "")
        assert await taken.result(BOUND) == [number * 2 for number in range(100)]
        audit(taken)
    after = notes.lines[notes.lines.index("element 35") + 1 :]
    assert after == ["opened at 30", *(f"element {number}" for number in range(30, 100))]


@claim("Kinds: map", "Cost per element does not grow with the length of the map, nor with the batch.")
async def test_cost_is_flat() -> None:
    """In pulses, which are exact, and in time on the processor, generously: quadratic cost would be tenfold and
    more."""

    async def cost(length: int, batch: int) -> tuple[float, float]:
        workflow = Workflow("flat", input={"length": int})
        workflow.map(name="each", over=lambda length: range(length), batch=batch, keep=False, spawn="inline")(
            lambda element: None
        )
        best = float("inf")
        async with Mesh(workflow) as mesh:
            for _ in range(3):
                before = time.process_time()
                transaction = await mesh.stimulate(workflow, {"length": length})
                assert await transaction.result(BOUND * 3) == {"count": length}
                best = min(best, (time.process_time() - before) / length)
            return best, len(transaction.raw_pulses()) / length

    short, long, wide = await cost(3_000, 100), await cost(60_000, 100), await cost(60_000, 3_000)
    assert long[1] <= short[1] and long[0] < 5 * short[0]
    assert wide[1] < long[1] and wide[0] < 5 * long[0]


@claim("Kinds: map", "A million records go through in bounded memory.")
async def test_a_million() -> None:
    workflow = Workflow("million")
    seen: dict[int, int] = {}

    def numbers() -> Iterator[dict[str, int]]:
        for number in range(1_000_000):
            yield {"number": number}

    def add(total: int, batch: list[int]) -> int:
        return total + sum(batch)

    @workflow.map(over=numbers, batch=1_000, reduce=add, initial=0, spawn="inline")
    def parse(element: dict) -> int:
        if element["number"] in (100_000, 999_999):
            seen[element["number"]] = resident()
        return element["number"]

    async with Mesh(workflow) as mesh:
        assert await (await mesh.stimulate(workflow)).result(BOUND * 6) == sum(range(1_000_000))
    grown = seen[999_999] - seen[100_000]
    # The journal, which is in memory here, has some pulses a batch, 2 MB in all; the elements would be 200.
    assert grown < 40_000_000, f"{grown:,} bytes more for 900,000 elements more"


@claim("Kinds: map", "An inline element is not a hop of its own, its batch is.")
async def test_hops() -> None:
    workflow = Workflow("hops")
    workflow.map(name="each", over=Value(list(range(25))), batch=10)(lambda element: element)
    transaction = await ran(workflow)
    hops = {pulse.hop for pulse in transaction.pulses() if pulse.kind == "completed" and "batch" in pulse.step}
    assert len(hops) == 3
    assert max(pulse.seq for pulse in transaction.pulses()) < 25


def shown_everywhere(transaction: Transaction) -> list[list[Any]]:
    """What is shown of its batches that are done: in code, by HTTP, by a sink, by `trace` from a store and by asking a
    node."""
    raw, read = transaction.raw_pulses(), transaction.pulses()
    ways = [
        json.loads(as_json(pulses_as_plain(read))),
        [plain_pulse(pulse) for pulse in raw],
        json.loads(to_json(raw))["pulses"],
        json.loads(to_json(read))["pulses"],
    ]
    assert "hunter2" not in json.dumps(ways)
    done = [pulse.token_out for pulse in read if pulse.kind == "completed" and "batch" in pulse.step]
    return [
        [plain(value) for value in done],
        *(
            [pulse["token_out"] for pulse in way if pulse["kind"] == "completed" and "batch" in pulse["step"]]
            for way in ways
        ),
    ]


@claim("Kinds: map", "What a batch took and made is shown as values wherever pulses are, with secrets masked.")
async def test_batches_are_shown_as_values() -> None:
    workflow = Workflow("shown", input={"rows": list[int]}, ttl=8)

    @workflow.map(name="each", over="rows", batch=2, on_error="collect")
    def parse(element: int) -> dict:
        return {"inverse": 6 // element, "password": SecretStr("hunter2")}

    transaction = await ran(workflow, {"rows": [1, 0, 3]})
    for shown in shown_everywhere(transaction):
        assert shown == [
            {
                "taken": 2,
                "more": True,
                "results": [{"inverse": 6, "password": "**********"}],
                "errors": [{"index": 1, "element": 0, "error": ANY}],
                "accumulated": None,
                "elements": [],
            },
            {
                "taken": 1,
                "more": False,
                "results": [{"inverse": 2, "password": "**********"}],
                "errors": [],
                "accumulated": None,
                "elements": [],
            },
        ]
    for pulses in (transaction.raw_pulses(), transaction.pulses()):
        assert step_counts(transaction.plan, pulses).by_place["s0_0_s0"] == {"done": 2, "failed": 1}


@claim("Kinds: map", "The inputs that a batch made for nested workflows are shown as values, too.")
async def test_nested_inputs_are_shown_as_values() -> None:
    inner = Workflow("inner", input={"element": int, "password": SecretStr})
    inner.step(name="works")(lambda element: element)
    workflow = Workflow("shown", ttl=8)
    bind = {"password": Value(SecretStr("hunter2")), "element": Element()}
    workflow.map(name="each", over=Value([5, 6]), workflow=inner, bind=bind)
    transaction = await ran(workflow)
    for shown in shown_everywhere(transaction):
        assert [batch["results"] for batch in shown] == [[[0, [5, "**********"]], [1, [6, "**********"]]]]


@claim("Kinds: map", "Results that only look like what a batch records are shown as they are.")
async def test_what_looks_like_a_batch() -> None:
    workflow = Workflow("odd", ttl=8)
    odd = [1, True, b"\xc1", b"", b"\xc0", b""]
    workflow.step(name="batch-7")(lambda: odd)
    workflow.map(name="each", over=Value([0]))(lambda element: [element, [b"\xc1"]])
    pulses = {pulse.step: pulse.token_out for pulse in (await ran(workflow)).pulses() if pulse.kind == "completed"}
    assert pulses["batch-7"] == odd and pulses["each/batch-0"]["results"] == [[0, [b"\xc1"]]]


@claim("Kinds: map", "Elements are undone, last first, when a later step fails.")
@pytest.mark.parametrize("nested", [False, True])
async def test_undo(nested: bool) -> None:
    log: list[str] = []
    workflow = Workflow("taken back", ttl=8)
    if nested:
        bind = {"order": Element(), "rate": Value(1)}
        workflow.map(name="each", workflow=shipping(log), over=Value([1, 2, 3]), batch=1, bind=bind)
    else:

        @workflow.map(name="each", over=Value([1, 2, 3]), batch=2)
        def charge(element: int) -> int:
            return element

        @charge.undo
        def refund(element: int, result: int) -> None:
            log.append(f"refund {result}")

    workflow.flunk("fails", "the end", after=["each"])
    transaction = await ran(workflow)
    assert (transaction.status, log) == ("compensated", ["refund 3", "refund 2", "refund 1"])


@claim("Kinds: map", "When one of its elements fails, the others are undone.")
async def test_a_failing_element_undoes_the_others() -> None:
    log: list[str] = []
    workflow = Workflow("one fails", ttl=8)
    workflow.map(
        name="each",
        workflow=shipping(log),
        over=Value([1, 2, 13]),
        batch=1,
        bind={"order": Element(), "rate": Value(1)},
    )
    transaction = await ran(workflow)
    assert (transaction.status, log) == ("compensated", ["refund 13", "refund 2", "refund 1"])
    assert undone(transaction) == ["each/2/charge", "each/1/charge", "each/0/charge"]


@claim("Kinds: map", "A map over nothing is an empty list.")
async def test_empty() -> None:
    workflow = Workflow("nothing", ttl=8)
    workflow.map(name="each", over=Value([]))(lambda element: element)
    workflow.map(name="orders", workflow=shipping(), over=Value([]), bind={"order": Element(), "rate": Value(1)})
    transaction = await ran(workflow)
    assert transaction.results() == {"each": [], "orders": []}


@claim("Kinds: map", "Halting in one of its elements keeps the others, and resuming goes on from there.")
async def test_halting(store: str) -> None:
    from_here = Workflow("asks", input={"element": int})
    runs: list[int] = []
    first_time = [True]

    @from_here.step
    async def asks(element: int) -> Any:
        runs.append(element)
        if element == 2 and first_time:
            first_time.clear()
            return Halt("look at it")
        return element * 10

    workflow = Workflow("halting map", ttl=8)
    workflow.map(name="each", workflow=from_here, over=Value([1, 2, 3, 4]), batch=2)
    async with Mesh(workflow, store=store) as mesh:
        transaction = await finish(mesh, workflow)
        assert transaction.status == "halted"
        await transaction.resume()
        assert await transaction.result(BOUND) == [10, 20, 30, 40]
        assert sorted(runs) == [1, 2, 2, 3, 4]
        await until(lambda: pulse_lines(transaction)[-1] == "finished")
        audit(transaction)
