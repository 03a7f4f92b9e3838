"""The async and the blocking face, method for method: the same names, parameters, words and answers."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from bitactor import Halt, Workflow
from bitactor.declare.stimulus import StimulusKeywords, StimulusOptions
from bitactor.messages.pulse import Pulse
from bitactor.testing import FakeClock, SequentialIds
from mesh import BlockingMesh, BlockingTransaction, Mesh, Transaction
from mesh.testing import FixtureMesh

FACES = [(Mesh, BlockingMesh), (Transaction, BlockingTransaction)]
ONLY = {
    "Mesh.blocking": "gives the other face",
    "BlockingMesh.node": "an attribute of a Mesh, which its class does not show",
}
"""What only one of the faces has, and why."""


def members(face: type) -> dict[str, Any]:
    return {name: inspect.getattr_static(face, name) for name in dir(face) if not name.startswith("_")}


@pytest.mark.parametrize(("awaited", "blocking"), FACES)
def test_the_faces_have_the_same_members(awaited: type, blocking: type) -> None:
    one, other = members(awaited), members(blocking)
    differences = {f"{awaited.__name__}.{name}" for name in one.keys() - other.keys()} | {
        f"{blocking.__name__}.{name}" for name in other.keys() - one.keys()
    }
    assert differences <= set(ONLY)
    assert {type(one[name]) is property for name in one.keys() & other.keys()} == {True, False}
    for name in one.keys() & other.keys():
        assert (type(one[name]) is property) == (type(other[name]) is property), name


def test_every_exception_is_one() -> None:
    for name in ONLY:
        face, _, member = name.partition(".")
        [(one, other)] = [pair for pair in FACES if face in (kind.__name__ for kind in pair)]
        assert (member in members(one)) != (member in members(other))


@pytest.mark.parametrize(
    ("awaited", "blocking", "name"),
    [
        (awaited, blocking, name)
        for awaited, blocking in FACES
        for name, member in members(awaited).items()
        if inspect.isfunction(member) and f"{awaited.__name__}.{name}" not in ONLY
    ],
)
def test_a_method_is_the_same_in_both(awaited: type, blocking: type, name: str) -> None:
    one, other = getattr(awaited, name), getattr(blocking, name)
    ours, theirs = inspect.signature(one), inspect.signature(other)
    assert ours.parameters == theirs.parameters
    assert str(ours.return_annotation).removeprefix("Blocking") == str(theirs.return_annotation).removeprefix(
        "Blocking"
    )
    assert not inspect.iscoroutinefunction(other)
    assert other.__name__ == name
    blocks = "\n\nBlocks the calling thread meanwhile."
    assert (blocks in str(inspect.getdoc(other))) == inspect.iscoroutinefunction(one)
    assert str(inspect.getdoc(other)).replace(blocks, "", 1) == inspect.getdoc(one)


@pytest.mark.parametrize("name", ["stimulate", "submit", "run", "transaction", "transactions", "dead_letters"])
def test_a_mesh_of_the_fixture_takes_what_a_mesh_takes(name: str) -> None:
    taken = inspect.signature(getattr(FixtureMesh, name)).parameters.values()
    for parameter in inspect.signature(getattr(Mesh, name)).parameters.values():
        assert parameter.name in {other.name for other in taken} or any(
            other.kind is inspect.Parameter.VAR_KEYWORD for other in taken
        )


def test_the_options_of_a_stimulus_are_written_down_twice_and_agree() -> None:
    assert tuple(StimulusKeywords.__annotations__) == StimulusOptions._fields
    named = [name for name in inspect.signature(Mesh.stimulate).parameters if name in StimulusKeywords.__annotations__]
    assert tuple(named) == StimulusOptions._fields


# The same answers


def workflows() -> list[Workflow]:
    pays = Workflow("pays", input={"amount": int}, ttl=3)

    @pays.step
    async def reserve(amount: int) -> int:
        return amount * 2

    @reserve.undo
    async def release() -> None: ...

    @pays.step
    async def charge(reserve: int) -> str:
        if reserve < 0:
            raise ValueError(f"{reserve} is nothing to charge")
        return f"charged {reserve}"

    halts = Workflow("halts", ttl=1)

    @halts.step
    async def asks() -> Any:
        return Halt("look at it")

    return [pays, halts]


PROPERTIES = ("id", "root", "workflow", "status")
ASKED: list[tuple[str, tuple[Any, ...]]] = [
    ("result", ()), ("result", (5,)), ("ended", (5.0,)), ("value", ()), ("results", ()), ("errors", ()), ("faults", ()),
    ("progress", ()), ("pulses", ()), ("raw_pulses", ()), ("about", ()), ("snapshot", ()), ("plan", ()),
    ("request_cancel", ("too late",)), ("cancel", ("too late",)), ("undo", ("after all",)), ("undo", ()),
    ("resume", ()), ("ended", ()), ("pulses", ()), ("result", ("soon",)), ("undo", (1, 2)),
    *((name, ()) for name in PROPERTIES),
]  # fmt: skip
"""What a transaction is asked, in this order; the wrong too."""
ASKED_OF_MESHES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("transaction", ("0" * 32,), {}), ("transaction", (), {}), ("journal", ("0" * 32,), {}),
    ("transactions", (), {}), ("transactions", (), {"status": "completed", "limit": 1}),
    ("transactions", (), {"limit": 0}), ("transactions", (), {"limt": 1}),
    ("dead_letters", (), {}), ("dead_letters", (), {"limit": 0}), ("dead_letters", (), {"before": "x"}),
    ("send_again", ("x",), {}), ("send_again", (f"{'0' * 32}-1",), {}), ("send_again", (), {}),
    ("stimulate", ("pays", {"amount": 1}), {"key": "k", "ttl": 3}),
    ("stimulate", ("pays", {"amount": 2}), {"key": "k"}), ("stimulate", ("pays", {"amount": "x"}), {}),
    ("stimulate", ("pais",), {}), ("stimulate", ("pays",), {"amount": 1}), ("stimulate", ("pays",), {"timeout": 1}),
    ("stimulate", ("pays",), {"prority": 1}), ("stimulate", (), {}), ("stimulate", (3,), {}),
    ("begin", ("pays", {"amount": 3}, StimulusOptions()), {}), ("begin", ("pays", {}, StimulusOptions()), {}),
    ("about", (), {}), ("settings", (), {}), ("state", (), {}), ("workflows", (), {}), ("close", (), {}),
    ("state", (), {}), ("stimulate", ("pays", {"amount": 1}), {}), ("transactions", (), {}),
    ("dead_letters", (), {}), ("close", (), {}),
]  # fmt: skip


def test_everything_is_asked() -> None:
    assert members(Transaction).keys() == {name for name, _ in ASKED}
    rest = {"blocking": ONLY, "loop": "another", "submit": "blocks itself", "run": "blocks itself"}
    assert members(Mesh).keys() - rest.keys() == {name for name, *_ in ASKED_OF_MESHES}


def comparable(answer: Any) -> Any:
    """The answer as text, without what differs from run to run, and from one face to the other."""
    if isinstance(answer, Pulse):
        data = {name: item for name, item in (answer.data or {}).items() if name != "fault"}
        answer = answer._replace(at_ns=0, elapsed_ns=0, data=data)
    elif isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):
        return [comparable(item) for item in answer]
    elif isinstance(answer, Transaction | BlockingTransaction):
        answer = (type(answer).__name__, answer.id, answer.workflow)  # it may have ended, or not yet
    elif isinstance(answer, dict) and "node" in answer:
        answer = sorted(answer)  # of `mesh.about()`: counters of this very process
    elif hasattr(answer, "traceback"):
        answer = answer._replace(traceback="", data=b"")
    return re.sub(r"Blocking| at 0x[0-9a-f]+|(pulses|another)\.db", "", repr(answer))


def attempt(of: Any, name: str, given: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
    try:
        return comparable(ask(of, name, given, options))
    except Exception as error:
        return comparable(error)


async def attempt_awaited(of: Any, name: str, given: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
    try:
        answer = ask(of, name, given, options)
        return comparable(await answer if inspect.iscoroutine(answer) else answer)
    except Exception as error:
        return comparable(error)


def ask(of: Any, name: str, given: tuple[Any, ...], options: dict[str, Any] | None) -> Any:
    member = getattr(of, name)
    return member(*given, **(options or {})) if inspect.ismethod(member) else member


BEGUN = [("pays", {"amount": 2}), ("pays", {"amount": -2}), ("halts", None)]


def made(store: str) -> Mesh:
    return Mesh(*workflows(), store=store, clock=FakeClock(), ids=SequentialIds())


@pytest.fixture
def stores(store: str, tmp_path: Path) -> tuple[str, str]:
    """One for each face."""
    return (store, store) if store == "memory://" else (store, f"sqlite:///{tmp_path}/another.db")


def test_a_transaction_answers_the_same_in_both(stores: tuple[str, str]) -> None:
    async def awaited() -> list[Any]:
        async with made(stores[0]) as mesh:
            begun = [await mesh.stimulate(*each) for each in BEGUN]
            for transaction in begun:
                await transaction.ended()
            inside = [[await attempt_awaited(tx, name, given) for name, given in ASKED] for tx in begun]
        return [
            inside,
            [[await attempt_awaited(tx, name, given) for name, given in ASKED] for tx in begun],
        ]

    with made(stores[1]) as mesh:
        begun = [mesh.stimulate(*each) for each in BEGUN]
        for transaction in begun:
            transaction.ended()
        inside = [[attempt(tx, name, given) for name, given in ASKED] for tx in begun]
    outside = [[attempt(tx, name, given) for name, given in ASKED] for tx in begun]
    others = asyncio.run(awaited())
    for where, answers, other in (("open", inside, others[0]), ("closed", outside, others[1])):
        for case, mine, theirs in zip(BEGUN, answers, other, strict=True):
            for (name, given), one, two in zip(ASKED, mine, theirs, strict=True):
                assert one == two, (where, case, name, given)


def test_a_mesh_answers_the_same_in_both(stores: tuple[str, str]) -> None:
    async def awaited() -> list[Any]:
        async with made(stores[0]) as mesh:
            return [await attempt_awaited(mesh, name, given, options) for name, given, options in ASKED_OF_MESHES]

    with made(stores[1]) as mesh:
        answers = [attempt(mesh, name, given, options) for name, given, options in ASKED_OF_MESHES]
    for call, one, two in zip(ASKED_OF_MESHES, answers, asyncio.run(awaited()), strict=True):
        assert one == two, call
