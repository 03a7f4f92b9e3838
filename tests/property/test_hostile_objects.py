"""Whatever an object of the user's does when it is touched: its step ends and is named, no other transaction is
disturbed, and the node goes on.  The points where it is touched are those of `hostile_objects`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitactor import Retry, Workflow, WorkflowFailed
from bitactor.messages.duration import LONGEST, nanoseconds
from mesh import Mesh, Transaction
from tests.amounts import examples
from tests.e2e.support import BOUND, audit, until
from tests.property.hostile_objects import (
    BASES,
    BLOCKED,
    CASES,
    CONSUMERS,
    LIES,
    METHODS,
    OF_CALLERS,
    POINTS,
    WORKFLOWS,
    Case,
    Plain,
)

DEEDS = ("raise", "exit", "interrupt", "generator exit", "lie")

innocent = Workflow("innocent", input={"n": int}, ttl=3)
GATE: asyncio.Event


@innocent.step
async def first(n: int) -> int:
    await GATE.wait()
    return n + 1


@innocent.step(spawn="thread")
def second(first: int) -> int:
    return first + 1


@innocent.step(spawn="inline")
def third(second: int) -> int:
    return second + 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """What is wrong with an object."""
    methods = draw(st.one_of(st.sampled_from(METHODS).map(lambda name: (name,)), st.just(METHODS), st.just(())))
    deed = draw(st.sampled_from((*DEEDS * 4, "lie", "block")))
    case = Case(draw(st.sampled_from(BASES)), methods, deed, draw(st.sampled_from(LIES)))
    assume(not asks_for_years(case))  # and is to get them
    return case


def asks_for_years(case: Case) -> bool:
    """Whether this is a `Retry` that says a delay, which is one although it is longer than anybody waits."""
    return case.base is Retry and case.deed == "lie" and type(case.lie) in (int, float) and case.lie > BOUND


@contextmanager
def these(drawn: list[tuple[str, Case]]) -> Iterator[None]:
    """The cases, by the numbers that steps know them by."""
    CASES.update(enumerate(case for _, case in drawn))
    try:
        yield
    finally:
        CASES.clear()
        BLOCKED.clear()


async def begin(mesh: Mesh, name: str, number: int) -> Transaction | None:
    """The transaction; None if the caller was told that it cannot be."""
    try:
        return await POINTS[name](mesh, number)  # type: ignore[no-any-return]
    except Exception:  # a validator's own, say; nothing that would end a program
        if name in WORKFLOWS:
            raise
        return None


async def ended(mesh: Mesh, transaction: Transaction) -> None:
    """It ends, and says where it failed; its journal can be read, and says the same."""
    status = await transaction.ended(BOUND)
    audit(transaction)
    if status not in ("completed", "halted"):
        with pytest.raises(WorkflowFailed) as caught:
            await transaction.result(BOUND)
        told = [str(caught.value), *(fault.message for fault in transaction.faults())]
        assert any(f"{transaction.workflow}/" in text for text in told)
        assert all(issubclass(type(error), BaseException) for error in transaction.errors())
    again = await mesh.transaction(transaction.id)
    assert len(again.errors()) == len(transaction.errors())
    if status == "halted":
        await transaction.cancel()


async def together(drawn: list[tuple[str, Case]], store: str = "memory://") -> None:
    """Run a transaction for each point, at once, beside an innocent one."""
    global GATE
    GATE = asyncio.Event()
    workflows = {WORKFLOWS[name] for name, _ in drawn if name in WORKFLOWS}
    async with Mesh(innocent, *workflows, *OF_CALLERS, *CONSUMERS, store=store) as mesh:
        beside = await mesh.stimulate(innocent, {"n": 1})
        try:
            begun = [await begin(mesh, name, number) for number, (name, _) in enumerate(drawn)]
            for transaction in begun:
                if transaction is not None:
                    await ended(mesh, transaction)
        finally:
            GATE.set()
        assert await beside.result(BOUND) == 4
        await until(lambda: not mesh.node.unsettled())
        assert await (await mesh.stimulate(innocent, {"n": 2})).result(BOUND) == 5
        about: dict[str, Any] = mesh.about()
        assert about["healthy"] and not about["running"] and not about["parked"] and not about["zombies"]


def run(drawn: list[tuple[str, Case]], store: str = "memory://") -> None:
    """`together`, on a loop of its own."""
    logging.disable()  # what a handler makes of such objects is its own affair
    # pydantic has what their classes raise reported like a destructor's error, which needs their `repr`
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with these(drawn):
            asyncio.run(together(drawn, store))
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook


@given(st.lists(st.tuples(st.sampled_from(sorted(POINTS)), cases()), min_size=1, max_size=4))
@examples(quick=100, long=4_000)
def test_an_object_harms_nobody(drawn: list[tuple[str, Case]]) -> None:
    run(drawn)


@pytest.mark.parametrize("lie", [lie for lie in LIES if asks_for_years(Case(Retry, METHODS, "lie", lie))], ids=str)
def test_a_delay_of_years_is_waited_for_until_a_cancel(lie: float) -> None:
    async def wait() -> None:
        async with Mesh(WORKFLOWS["exception, inline"]) as mesh:
            transaction = await begin(mesh, "exception, inline", 0)
            assert transaction is not None
            await until(lambda: transaction.pulses()[-1].kind == "retried")
            last = transaction.pulses()[-1]
            assert last.step and last.error and last.data is not None and last.data["after_ns"] == nanoseconds(LONGEST)
            await transaction.cancel()
            assert await transaction.ended(BOUND) == "cancelled"

    with these([("exception, inline", Case(Retry, METHODS, "lie", lie))]):
        asyncio.run(wait())


def test_at_every_point_at_once_and_in_a_journal(sqlite: str) -> None:
    """Objects of which nothing can be had, one at each point, in one mesh."""
    run([(name, Case(Plain, METHODS, DEEDS[at % 4])) for at, name in enumerate(sorted(POINTS))], sqlite)
