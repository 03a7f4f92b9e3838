"""Kinds that are made of steps and nested workflows, and those nested in each other."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from bitactor import DefinitionError, Element, Input, Result, Value, Workflow, WorkflowTooDeep
from bitactor.testing import FakeClock
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes, begin, halting_inside
from tests.conformance.support import failure_of, journal, ran, result_of
from tests.e2e.support import BOUND, audit, pass_time, pulse_lines, turns, undone, until


def billing(log: list[str] | None = None) -> Workflow:
    """Charge, which can be undone, then a receipt."""
    workflow = Workflow("billing", input={"amount": int})

    @workflow.step
    async def charge(amount: int) -> int:
        return amount

    @charge.undo
    async def refund(result: int) -> None:
        if log is not None:
            log.append(f"refund {result}")

    @workflow.step
    async def receipt(charge: int) -> str:
        return f"receipt for {charge}"

    return workflow


# collect, template, debug, flunk


@claim("Kinds: collect, template, debug, flunk", "`collect` gathers arguments into a mapping, optionally transformed.")
async def test_collect() -> None:
    workflow = Workflow("gathered", input={"name": str})
    workflow.step(name="a")(lambda: {"x": [1]})
    workflow.step(name="b")(lambda: 2)
    workflow.collect("all", ["a", "b", "name"])
    workflow.collect(
        "renamed", {"first": Result("a", "x", 0), "second": "b"}, transform=lambda found: sum(found.values())
    )
    transaction = await ran(workflow, {"name": "Ada"})
    assert transaction.results()["all"] == {"a": {"x": [1]}, "b": 2, "name": "Ada"}
    assert await transaction.result() == 3


@claim("Kinds: collect, template, debug, flunk", "`template` is a formatted string.")
async def test_template() -> None:
    workflow = Workflow("written", input={"user": dict, "price": float})
    workflow.template("text", "Dear {user.name}, {user[tags][0]}: {price:.2f} {{EUR}}")
    assert (
        await result_of(workflow, {"user": {"name": "Ada", "tags": ["vip"]}, "price": 3.14159})
        == "Dear Ada, vip: 3.14 {EUR}"
    )
    missing = await ran(workflow, {"user": {"name": "Ada", "tags": []}, "price": 1})
    assert "user[tags][0]" in str(await failure_of(missing))


@claim(
    "Kinds: collect, template, debug, flunk",
    "`debug` is a logged look at arguments and context, and hands the arguments on.",
)
async def test_debug(caplog: pytest.LogCaptureFixture) -> None:
    workflow = Workflow("looked at", input={"name": str})
    workflow.step(name="a")(lambda: [1, 2])
    workflow.debug("look", "a", "name", level="warning")
    with caplog.at_level(logging.DEBUG, "bitactor.step"):
        transaction = await ran(workflow, {"name": "Ada"})
    assert await transaction.result() == {"a": [1, 2], "name": "Ada"}
    [record] = [record for record in caplog.records if record.name == "bitactor.step.looked at.look"]
    assert record.levelname == "WARNING"
    for word in ("[1, 2]", "'Ada'", transaction.id):
        assert word in record.getMessage()


@claim("Kinds: collect, template, debug, flunk", "`flunk` is a deliberate failure with a formatted message.")
async def test_flunk() -> None:
    workflow = Workflow("stopped", input={"amount": int})
    workflow.step(name="a")(lambda: None).undo(lambda: None)
    workflow.flunk("stop", "no more than {amount}", after=["a"], when=lambda amount: amount > 10)
    assert (await ran(workflow, {"amount": 1})).status == "completed"
    transaction = await ran(workflow, {"amount": 11})
    assert (transaction.status, undone(transaction)) == ("compensated", ["a"])
    assert "no more than 11" in str(await failure_of(transaction))


# compose


@claim(
    "Kinds: compose",
    "A nested workflow is one step: it takes inputs by name or by `bind`, and its result is the step's.",
)
async def test_compose() -> None:
    workflow = Workflow("shop", input={"amount": int}, ttl=8)
    workflow.compose("by_name", billing())
    workflow.compose("bound", billing(), bind={"amount": Input("amount").map(lambda amount: amount * 2)})
    workflow.collect("both", ["by_name", "bound"])
    transaction = await ran(workflow, {"amount": 4})
    assert await transaction.result() == {"by_name": "receipt for 4", "bound": "receipt for 8"}
    assert {"by_name/charge", "bound/receipt"} <= set(journal(transaction, "completed"))


@claim("Kinds: compose", "Its undo is part of ours.")
async def test_compose_undo() -> None:
    log: list[str] = []
    workflow = Workflow("shop", input={"amount": int}, ttl=8)
    workflow.step(name="before")(lambda: None).undo(lambda: log.append("before"))
    workflow.compose("inner", billing(log), after=["before"])
    workflow.step(name="behind", after=["inner"])(lambda: None).undo(lambda: log.append("behind"))
    workflow.flunk("stop", "the end", after=["behind"])
    transaction = await ran(workflow, {"amount": 4})
    assert (transaction.status, log) == ("compensated", ["behind", "refund 4", "before"])


@claim("Kinds: compose", "Halting inside it resumes correctly, in another process too, and its value is not lost.")
async def test_compose_halt(sqlite: str, tmp_path: Path) -> None:
    transaction = begin("halting_inside", sqlite, tmp_path)
    notes = Notes(tmp_path)
    async with Mesh(halting_inside(notes), store=sqlite) as mesh:
        taken = await mesh.transaction(transaction)
        assert taken.status == "halted"
        await taken.resume()
        assert await taken.result(BOUND) == "answered"
        audit(taken)
    assert notes.lines == ["before", "first", "asks", "asks", "last", "after"]


@claim("Kinds: compose", "It spends one hop budget, and one that could not suffice is refused when it is declared.")
def test_compose_budget() -> None:
    workflow = Workflow("deep", input={"amount": int}, ttl=2)
    workflow.compose("inner", billing())
    workflow.check()
    workflow = Workflow("too deep", input={"amount": int}, ttl=2)
    workflow.compose("inner", billing())
    with pytest.raises(WorkflowTooDeep, match="inner"):
        workflow.step(name="behind", after=["inner"])(lambda: None)
        workflow.check()


@claim("Kinds: compose", "It lives under one deadline.")
async def test_compose_deadline() -> None:
    clock = FakeClock()
    inner = Workflow("inner")

    @inner.step
    async def hangs() -> None:
        await asyncio.Event().wait()

    workflow = Workflow("limited", deadline=5.0, ttl=4, grace=0.1)
    workflow.compose("inner", inner)
    async with Mesh(workflow, clock=clock) as mesh:
        transaction = await mesh.stimulate(workflow)
        await until(lambda: "spawned inner/hangs" in pulse_lines(transaction))
        await turns()
        await pass_time(clock, 4.9)
        assert transaction.status == "running"
        await pass_time(clock, 0.2)
        await pass_time(clock, 1)
        assert await transaction.ended(BOUND) == "compensated"


# switch


def routed(**options: Any) -> Workflow:
    """A switch on `kind`, whose branches are a workflow, a function, and a predicate's."""
    workflow = Workflow("routed", input={"kind": str, "amount": int}, ttl=8)
    workflow.step(name="discount")(lambda: 3)

    def gift(discount: int) -> str:
        return f"gift, {discount} off"

    def long_word(kind: str) -> bool:
        return len(kind) > 6

    cases: list[tuple[Any, Any]] = [
        ("paid", billing()),
        ("gift", gift),
        (long_word, lambda kind: f"long: {kind}"),
        ("paid", gift),
    ]
    workflow.switch("route", on="kind", cases=cases, **options)
    return workflow


@claim("Kinds: switch", "Ordered cases by value or predicate: the first that fits is run, and no other.")
@pytest.mark.parametrize(
    ("kind", "result"), [("paid", "receipt for 5"), ("gift", "gift, 3 off"), ("something", "long: something")]
)
async def test_switch(kind: str, result: str) -> None:
    transaction = await ran(routed(), {"kind": kind, "amount": 5})
    assert await transaction.result() == result
    inside = [step for step in journal(transaction, "spawned") if step.startswith("route/")]
    assert len(inside) == (2 if kind == "paid" else 1)


@claim("Kinds: switch", "`default` is run when no case fits.")
async def test_switch_default() -> None:
    workflow = routed(default=lambda kind, amount: f"{amount} {kind}")
    assert await result_of(workflow, {"kind": "odd", "amount": 5}) == "5 odd"


@claim("Kinds: switch", "No match and no default is an error unless declared optional.")
async def test_switch_no_match() -> None:
    transaction = await ran(routed(), {"kind": "odd", "amount": 5})
    failure = str(await failure_of(transaction))
    assert transaction.status == "compensated" and "'odd'" in failure and "'paid'" in failure
    transaction = await ran(routed(optional=True), {"kind": "odd", "amount": 5})
    assert await transaction.result() is None and "skipped route" in pulse_lines(transaction)


@claim("Kinds: switch", "Branches see outer results, and are undone with the rest.")
async def test_switch_undo() -> None:
    log: list[str] = []
    workflow = Workflow("routed", input={"kind": str}, ttl=8)
    workflow.step(name="amount")(lambda: 7)
    workflow.switch("route", on="kind", cases={"paid": billing(log)})
    workflow.flunk("stop", "{route}", after=["route"])
    transaction = await ran(workflow, {"kind": "paid"})
    assert (transaction.status, log) == ("compensated", ["refund 7"])
    assert "receipt for 7" in str(await failure_of(transaction))


# group and around


@claim(
    "Kinds: group and around",
    "`group`: a hook before, which may override inputs, and one after, whose answer is the result.",
)
async def test_group() -> None:
    order: list[str] = []

    async def before(amount: int) -> dict[str, int]:
        order.append("before")
        return {"amount": amount * 10}

    async def after(result: str) -> str:
        order.append("after")
        return result.upper()

    workflow = Workflow("grouped", input={"amount": int}, ttl=8)
    workflow.group("bill", billing(), before_all=before, after_all=after)
    transaction = await ran(workflow, {"amount": 5})
    assert (await transaction.result(), order) == ("RECEIPT FOR 50", ["before", "after"])
    assert journal(transaction, "completed")[:4] == ["bill/before", "bill/charge", "bill/receipt", "bill/after"]


@claim("Kinds: group and around", "Its steps are undone when a later outer step fails.")
async def test_group_undo() -> None:
    log: list[str] = []
    workflow = Workflow("grouped", input={"amount": int}, ttl=8)
    workflow.group("bill", billing(log), before_all=lambda amount: None)
    workflow.flunk("stop", "the end", after=["bill"])
    assert ((await ran(workflow, {"amount": 5})).status, log) == ("compensated", ["refund 5"])


def guarded(log: list[str], *, fails_after: bool = False) -> Workflow:
    """Billing within a lock."""
    workflow = Workflow("guarded", input={"amount": int}, ttl=8)
    lock = asyncio.Lock()

    @workflow.around(workflow=billing(log))
    async def locked(proceed: Any, amount: int) -> str:
        async with lock:
            log.append(f"locked for {amount}")
            try:
                result = await proceed()
            finally:
                log.append("unlocked")
        return f"({result})"

    if fails_after:
        workflow.flunk("stop", "the end", after=["locked"])
    return workflow


@claim(
    "Kinds: group and around",
    "`around`: a function wrapped around a nested workflow (a transaction, a lock); its answer is the result.",
)
async def test_around() -> None:
    log: list[str] = []
    transaction = await ran(guarded(log), {"amount": 5})
    assert (await transaction.result(), log) == ("(receipt for 5)", ["locked for 5", "unlocked"])
    assert "locked/charge" in journal(transaction, "completed")


@claim("Kinds: group and around", "The steps within `around` are undone when a later outer step fails.")
async def test_around_undo() -> None:
    log: list[str] = []
    transaction = await ran(guarded(log, fails_after=True), {"amount": 5})
    assert (transaction.status, log) == ("compensated", ["locked for 5", "unlocked", "refund 5"])


@claim(
    "Kinds: group and around",
    "When a step within `around` fails, what the function holds is released, and then it is undone.",
)
async def test_a_failure_within_around() -> None:
    log: list[str] = []
    inner = billing(log)
    inner.flunk("stop", "no", after=["receipt"])
    workflow = Workflow("guarded", input={"amount": int}, ttl=8)

    @workflow.around(workflow=inner)
    async def held(proceed: Any) -> Any:
        try:
            return await proceed()
        finally:
            log.append("released")

    transaction = await ran(workflow, {"amount": 5})
    assert (transaction.status, log) == ("compensated", ["released", "refund 5"])


# recurse and iterate


@claim("Kinds: recurse and iterate", "`recurse`: output feeds the next input, until a condition holds.")
async def test_recurse() -> None:
    halve = Workflow("halve", input={"number": int, "by": int})
    halve.step(name="divide")(lambda number, by: number // by)
    halve.step(name="answer")(lambda divide: {"number": divide})
    workflow = Workflow("until", input={"number": int}, ttl=20)
    workflow.recurse("down", halve, at_most=10, until=lambda result: result["number"] < 10, bind={"by": Value(2)})
    transaction = await ran(workflow, {"number": 100})
    assert await transaction.result() == {"number": 6}
    assert journal(transaction, "completed")[-1] == "down" or "down/4/answer" in journal(transaction, "completed")
    assert not [step for step in journal(transaction, "spawned") if step.startswith("down/5")]


@claim("Kinds: recurse and iterate", "Or at most n times.")
async def test_at_most() -> None:
    once = Workflow("once", input={"number": int})
    once.step(name="add")(lambda number: number + 1)
    workflow = Workflow("bounded", input={"number": int}, ttl=8)
    workflow.recurse("up", once, at_most=3, until=lambda number: False)

    @workflow.iterate(start="up", at_most=4)
    async def double(state: int) -> int:
        return state * 2

    assert await result_of(workflow, {"number": 0}) == 48


@claim("Kinds: recurse and iterate", "`iterate`: a function on its own answer, until a condition holds.")
async def test_iterate() -> None:
    workflow = Workflow("newton", input={"square": float}, ttl=60)

    @workflow.iterate(start=Value(1.0), until=lambda state: abs(state * state - 2) < 1e-9, at_most=50)
    def improve(state: float, square: float) -> float:
        return (state + square / state) / 2

    transaction = await ran(workflow, {"square": 2})
    assert abs(await transaction.result() - 2**0.5) < 1e-9
    assert len([step for step in journal(transaction, "spawned") if step.startswith("improve")]) < 10


@claim("Kinds: recurse and iterate", "A bound is obligatory, and so is a hop budget that allows it.")
def test_bounds() -> None:
    workflow = Workflow("endless", input={"number": int}, ttl=8)
    with pytest.raises((DefinitionError, TypeError), match="at_most"):
        workflow.recurse("up", billing(), until=lambda result: False)  # type: ignore[call-arg]
    with pytest.raises(DefinitionError, match="bound is obligatory"):
        workflow.iterate(start="number", until=lambda state: False)(lambda state: state)
    with pytest.raises(WorkflowTooDeep):
        workflow.iterate(start="number", at_most=9)(lambda state: state)
        workflow.check()


@claim("Kinds: recurse and iterate", "All rounds are undone, the last first.")
async def test_recurse_undo() -> None:
    log: list[str] = []
    workflow = Workflow("rounds", input={"amount": int}, ttl=12)
    once = Workflow("once", input={"amount": int})
    once.step(name="add")(lambda amount: amount + 1).undo(lambda result: log.append(f"undo {result}"))
    workflow.recurse("up", once, at_most=3)
    workflow.flunk("stop", "the end", after=["up"])
    assert ((await ran(workflow, {"amount": 0})).status, log) == ("compensated", ["undo 3", "undo 2", "undo 1"])


# Nested in each other


def house(log: list[str]) -> Workflow:
    """A map over streets of a map over houses, in a recurse with a switch in it, in a compose, in a group."""
    paint = Workflow("paint", input={"element": str, "colour": str})

    @paint.step
    async def brush(element: str, colour: str) -> str:
        return f"{colour} {element}"

    @brush.undo
    async def scrape(result: str) -> None:
        log.append(result)

    street = Workflow("street", input={"houses": list[str], "colour": str})
    street.map(name="each", workflow=paint, over="houses", batch=1)
    town = Workflow("town", input={"streets": list, "colour": str})
    town.map(name="each", workflow=street, over="streets", bind={"houses": Element()}, batch=1)
    again = Workflow("again", input={"left": int, "streets": list})
    again.switch("which", on="left", cases={0: lambda: None}, default=chosen(town))
    again.collect("next", {"left": Input("left").map(lambda left: left - 1), "painted": "which"})
    outer = Workflow("outer", input={"streets": list})
    outer.recurse("twice", again, at_most=2, bind={"left": Value(1)})
    workflow = Workflow("whole", input={"streets": list}, ttl=40)
    workflow.group("all", outer, before_all=lambda streets: None, after_all=lambda result: result["painted"])
    return workflow


def chosen(town: Workflow) -> Workflow:
    workflow = Workflow("chosen", input={"streets": list})
    workflow.compose("town", town, bind={"colour": Value("red")})
    return workflow


@claim(
    "Kinds: nested in each other",
    "Map in map, switch in recurse, compose in switch, recurse in group: each step has its whole path.",
)
async def test_nesting() -> None:
    transaction = await ran(house([]), {"streets": [["a", "b"], ["c"]]})
    assert await transaction.result() is None, "the second round has nothing left to paint"
    painted = [step for step in journal(transaction, "completed") if step.endswith("brush")]
    assert painted == [
        f"all/twice/1/which/town/each/{street}/each/{number}/brush" for street, number in ((0, 0), (0, 1), (1, 0))
    ]


@claim(
    "Kinds: nested in each other",
    "However deep they nest, there is one undo order: the last that was done is undone first.",
)
async def test_nested_undo() -> None:
    log: list[str] = []
    workflow = house(log)
    workflow.flunk("stop", "the end", after=["all"])
    transaction = await ran(workflow, {"streets": [["a", "b"], ["c"]]})
    assert (transaction.status, log) == ("compensated", ["red c", "red b", "red a"])


@claim("Kinds: nested in each other", "However deep they nest, there is one hop budget, which every level spends.")
async def test_nested_budget() -> None:
    transaction = await ran(house([]), {"streets": [["a"]]})
    budgets = {pulse.step: pulse.ttl for pulse in transaction.pulses() if pulse.kind == "spawned"}
    assert budgets["all/before"] == 39
    deepest = next(ttl for step, ttl in budgets.items() if step.endswith("brush"))
    assert deepest == min(ttl for step, ttl in budgets.items() if step.startswith("all/twice/1/which"))
