"""Types that a checker is expected to see at the methods that declare; `make lint` checks this file, and nothing runs
it.

What is wrong here is marked as ignored, and an ignored line without an error is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, assert_type

from pydantic import BaseModel

from bitactor import Backoff, Element, Step, Then, Workflow
from bitactor.ports import TransactionRow
from bitactor.testing import Trace, run_workflow
from mesh import BlockingMesh, Mesh
from mesh.testing import FixtureMesh
from mesh.transaction import BlockingTransaction, Transaction

line = Workflow("line", input={"amount": int})
order = Workflow("order", input={"amounts": list[int]})


@line.step(retries=3, backoff=Backoff(0.5), retry_on=[OSError], timeout=2.0, spawn="thread", policies=())
def reserve(amount: int) -> int:
    return amount


@line.step
async def ship(reserve: int) -> str:
    return str(reserve)


@line.deferred(after=[reserve, "ship"], priority=3, limit="partner", required=False)
def notify(ship: str) -> None: ...


@order.map(over="amounts", batch=10, on_error="collect", timeout=2.0)
def double(element: int) -> int:
    return 2 * element


@order.iterate(start=double, at_most=3, retries=1)
def halve(state: list[int]) -> list[int]:
    return state[::2]


@order.around(workflow=line, bind={"amount": Element()})
async def locked(proceed: Any) -> dict[str, int]:
    return {}


def add(x: int, /) -> str:
    return str(x)


assert_type(reserve(1), int)
assert_type(ship.planned("again").name, str)
assert_type(notify("a"), None)
assert_type(double(1), int)
assert_type(halve([1]), list[int])
assert_type(order.add(add, retries=2), Step[[int], str])
assert_type(order.map(add, over="amounts"), Step[[int], str])
assert_type(order.map(name="lines", workflow=line, over="amounts"), Step[..., Any])
assert_type(order.iterate(add, start="amounts", at_most=2), Step[[int], str])
assert_type(order.compose("once", line, after=[double], when=lambda: True), Step[..., Any])
assert_type(order.template("text", "{double}", spawn=None), Step[..., Any])
unnamed: Callable[[Callable[[int], str]], Step[[int], str]] = order.step(name="other")

order.step(retires=3)  # type: ignore[call-overload]
order.step(retries="3")  # type: ignore[call-overload]
order.deferred(timeout="2s")  # type: ignore[call-overload]
order.map(over="amounts", bacth=3)  # type: ignore[call-overload]
order.iterate(start=3, at_most=2)  # type: ignore[call-overload]
order.iterate(start="amounts")  # type: ignore[call-overload]
order.add(add, policies=3)  # type: ignore[arg-type]
order.compose("c", line, retries=3)  # type: ignore[call-arg]
order.switch("s", "double", {1: line}, timeout=2.0)  # type: ignore[call-arg]
order.group("g", line, limit="partner")  # type: ignore[call-arg]
order.recurse("r", line, at_most=3, spawn="loop")  # type: ignore[call-arg]
order.template("t", "{double}", after=3)  # type: ignore[arg-type]


# Results


class Order(BaseModel):
    lines: int


class Colour(StrEnum):
    RED = "red"


def count(amounts: list[int]) -> dict[str, list[int]] | None:
    raise NotImplementedError


async def orders(amounts: list[int]) -> list[Order]:
    raise NotImplementedError


async def pair(amounts: list[int]) -> tuple[int, str]:
    raise NotImplementedError


def pairs(amounts: list[int]) -> list[tuple[int, str]]:
    raise NotImplementedError


async def colour(amounts: list[int]) -> Colour:
    raise NotImplementedError


def more(amounts: list[int]) -> Then:
    raise NotImplementedError


shipped = line.returns(ship)
assert_type(line, Workflow[Any])
assert_type(shipped, Workflow[str])
assert_type(line.returns(reserve), Workflow[int])
assert_type(line.returns(notify), Workflow[None])
assert_type(order.returns(order.add(count)), Workflow[dict[str, list[int]] | None])
assert_type(Workflow[str]("declared"), Workflow[str])
declared: Workflow[int] = Workflow("declared")
wider: Workflow[int | str] = shipped
assert_type(shipped.returns("reserve"), Workflow[Any])
assert_type(order.returns(order.template("text", "{double}")), Workflow[Any])

# What comes back as something else than was returned
assert_type(order.returns(order.add(orders)), Workflow[Any])
assert_type(order.returns(order.add(pair)), Workflow[Any])
assert_type(order.returns(order.add(pairs)), Workflow[Any])
assert_type(order.returns(order.add(colour)), Workflow[Any])
assert_type(order.returns(order.add(more)), Workflow[Any])

assert_type(run_workflow(shipped, {"amount": 1}), Trace[str])
assert_type(run_workflow(shipped, {"amount": 1}).result, str)
assert_type(run_workflow(line).result, Any)


def blocking(mesh: Mesh, fixture: FixtureMesh) -> None:
    assert_type(mesh.run(shipped, {"amount": 1}, timeout=3), str)
    assert_type(mesh.run(line), Any)
    assert_type(mesh.run("line"), Any)
    assert_type(mesh.submit(declared), BlockingTransaction[int])
    assert_type(mesh.submit(declared).result(), int)
    assert_type(mesh.submit(declared).value(), int)
    assert_type(mesh.submit(declared).progress(), dict[str, Any])
    assert_type(mesh.submit(declared).undo("why"), str)
    assert_type(fixture.run(shipped), str)


def in_a_block() -> None:
    with Mesh(shipped) as mesh:
        assert_type(mesh, BlockingMesh)
        assert_type(mesh.stimulate(shipped, key="k"), BlockingTransaction[str])
        assert_type(mesh.submit(shipped).value(), str)
        assert_type(mesh.run(shipped, {"amount": 1}, timeout=3), str)
        assert_type(mesh.transaction("id"), BlockingTransaction[Any])
        assert_type(mesh.transactions(limit=3), list[TransactionRow])
        mesh.run(shipped, amount=1)  # type: ignore[call-arg]
        mesh.submit(shipped, key=1)  # type: ignore[arg-type]
        mesh.transactions(limit="3")  # type: ignore[arg-type]
        mesh.transaction()  # type: ignore[call-arg]
        mesh.submit(shipped).ended("3")  # type: ignore[arg-type]


async def awaiting(mesh: Mesh, fixture: FixtureMesh) -> None:
    assert_type(await mesh.stimulate(shipped), Transaction[str])
    assert_type(await (await mesh.stimulate(shipped, key="k")).result(5), str)
    assert_type(await (await fixture.stimulate(shipped)).result(), str)
    assert_type(await mesh.stimulate("line"), Transaction[Any])
    assert_type(await mesh.transaction("id"), Transaction[Any])
    await mesh.stimulate(shipped, amount=1)  # type: ignore[arg-type]


narrower: Workflow[int] = shipped  # type: ignore[assignment]
Mesh(shipped).run(shipped).is_integer()  # type: ignore[attr-defined]
