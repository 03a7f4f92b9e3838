"""Exceptions with causes, contexts, notes and members, raised wherever a hop can run, have the same shape wherever they
are looked at."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from bitactor import WorkflowFailed
from bitactor.export.failure import failure_of_plain
from bitactor.messages.codec import decode_token, encode_token
from bitactor.messages.faults import chain_lines, chain_of, error_of, fault_as_plain, fault_of, fault_of_plain, notes_of
from bitactor.messages.pulse import Pulse
from bitactor.messages.signal import Fault, Reply
from bitactor.messages.wire import decode_message, encode_message
from bitactor.testing import run_workflow
from mesh import Mesh
from mesh.cli.waterfall.rows import timelines
from mesh.ingress.render import as_json, pulses_as_plain
from mesh.network.client import Client
from mesh.runtime.settled import at_once
from mesh.sinks.otel.spans import SpanAssembler
from mesh.transaction import Transaction, transaction_as_plain
from registry import RegistryServer
from tests.amounts import examples
from tests.e2e import error_trees as trees

TEXTS = st.text("abcxyz äß€.:", max_size=12)
LEAVES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(trees.KINDS)),
        "text": TEXTS,
        "notes": st.lists(TEXTS.filter(str.strip), max_size=2),
        "link": st.just(""),
        "linked": st.none(),
        "members": st.just([]),
    }
)


@st.composite
def error_trees(draw: st.DrawFn) -> dict[str, Any]:
    """A tree of at most seven exceptions: more would not all be taken along."""

    def make(most: int) -> dict[str, Any]:
        tree, left = {**draw(LEAVES), "members": []}, most - 1
        for _ in range(draw(st.integers(0, min(3, left)))):
            if left:
                part = draw(st.integers(1, left))
                tree["members"].append(make(part))
                left -= part
        if left and draw(st.booleans()):
            tree |= {"link": draw(st.sampled_from(["cause", "context"])), "linked": make(left)}
        return tree

    return make(7)


TREES = error_trees()
DECLARED = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in (trees.Declared, trees.DeclaredButOdd)}


@examples(quick=100, long=5_000)
@given(tree=TREES)
def test_a_fault_has_the_shape_of_its_exception(tree: dict[str, Any]) -> None:
    shape = trees.of_exception(trees.make(tree))
    reply = Reply("t", "h", 1, 0, "fail", fault=fault_of(trees.make(tree)))
    back = decode_message(encode_message(reply))
    assert isinstance(back, Reply) and back.fault is not None
    assert trees.of_fault(back.fault) == shape
    assert trees.of_exception(error_of(back.fault, DECLARED)) == shape
    plain = json.loads(json.dumps(fault_as_plain(back.fault)))
    assert trees.of_plain(plain) == shape
    assert trees.of_exception(error_of(fault_of_plain(plain), {})) == shape
    assert fault_as_plain(fault_of_plain(plain)) == plain


@pytest.mark.parametrize("link", ["cause", "context", "members"])
def test_what_comes_with_an_exception_is_bounded(link: str) -> None:
    error: BaseException = ValueError("x" * 50_000)
    for number in range(200):
        if link == "members":
            error = ExceptionGroup(str(number), [error, *(KeyError(other) for other in range(5))])
        else:
            above = ValueError("y" * 50_000)
            setattr(above, f"__{link}__", error)
            error = above
    error.__notes__ = [f"{number} {'z' * 5_000}" for number in range(1_000)]
    fault = fault_of(error)
    assert len(encode_message(Reply("t", "h", 1, 0, "fail", fault=fault))) < 500_000
    plain = fault_as_plain(fault)
    assert decode_token(encode_token(plain)) == plain
    assert fault_as_plain(fault_of(error_of(fault, {}))) != {}
    assert len(chain_lines(fault)) < 100
    if link == "members":
        assert "and 5 more members" in "".join(chain_lines(fault))


def fat(number: int) -> BaseException:
    """One whose texts take as many bytes as they may."""
    text = f"{number} " + "\udcff" * 50_000
    error = ValueError(text)
    error.__notes__ = [text] * 1_000
    return error


def noted(notes: list[str]) -> BaseException:
    error = ValueError("e")
    error.__notes__ = notes
    return error


def in_a_row(count: int, make: Callable[[int], BaseException]) -> BaseException:
    """So many exceptions, each the cause of the next; the first is number 0."""
    error = make(0)
    for number in range(1, count):
        above = make(number)
        above.__cause__, error = error, above
    return error


LARGE: dict[str, tuple[Callable[[], BaseException], str]] = {
    "a message": (lambda: ValueError("x" * 5_000_000), "… (5,000,000 characters)"),
    "arguments": (lambda: ValueError(["x"] * 1_000_000), "… (5,000,000 characters)"),
    "a note": (lambda: noted(["n" * 5_000_000]), "… (5,000,000 characters)"),
    "notes": (lambda: noted(["n"] * 1_000), "(and 984 more notes)"),
    "causes": (lambda: in_a_row(10_000, ValueError), "(9,980 more in this row are left out, the first of all: ValueEr"),
    "large causes": (lambda: in_a_row(40, fat), " more in this row are left out, the first of all: ValueError: 0 "),
    "members": (lambda: ExceptionGroup("g", [ValueError(n) for n in range(100_000)]), "and 99,969 more members"),
    "large members": (lambda: ExceptionGroup("g", [fat(n) for n in range(40)]), " more members"),
    "large causes of members": (
        lambda: ExceptionGroup("g", [in_a_row(10, fat) for _ in range(10)]), " more in this row are left out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_what_is_large_is_cut_and_says_so(name: str) -> None:
    make, words = LARGE[name]
    error = make()
    fault = fault_of(error)
    assert len(encode_message(Reply("t", "h", 1, 0, "fail", fault=fault))) < 3_000_000
    assert any(words in line for line in (fault.message, *chain_lines(fault)))
    assert fault.type.endswith(type(error).__name__) and fault.message[:2] == str(error)[:2]
    assert len(chain_of(fault)) >= ("causes" in name or "members" in name)
    assert error_of(fault, {}) is not None and encode_token(fault_as_plain(fault))


class Seen(list[tuple[str, str, trees.Shape]]):
    """Place, transaction and shape of each that was raised."""

    def __repr__(self) -> str:  # Hypothesis shows the arguments of what fails
        return f"<{len(self)} shapes>"


@examples(quick=15, long=2_000, suppress_health_check=list(HealthCheck))
@given(tree=TREES)
def check_places(runner: asyncio.Runner, mesh: Mesh, seen: Seen, tree: Any) -> None:
    """The tree raised in each place of a mesh."""
    shape = trees.of_exception(trees.make(tree))
    for place, transaction in runner.run(_raised_everywhere(mesh, tree)).items():
        seen.append((place, transaction.id, _expected(place, shape)))
        check(place, transaction, shape)


def test_it_has_the_same_shape_wherever_it_was_raised_and_is_looked_at(tmp_path: Path) -> None:
    seen = Seen()
    with asyncio.Runner() as runner:
        mesh = Mesh(*trees.workflows().values(), store=f"sqlite:///{tmp_path}/errors.db", processes=1)
        runner.run(mesh.__aenter__())
        try:
            check_places(runner, mesh, seen)
        finally:
            runner.run(mesh.__aexit__(None, None, None))
        runner.run(_reopened(tmp_path, seen))


@examples(quick=25, long=2_000)
@given(tree=TREES)
def test_and_in_a_consumer(tree: dict[str, Any]) -> None:
    trace = run_workflow(trees.thrower, tree)
    shape = trees.of_exception(trees.make(tree))
    assert trees.of_exception(trace.errors[0]) == shape
    _check_shown(trace.pulses, "failed", shape)


@examples(quick=5, long=500, suppress_health_check=list(HealthCheck))
@given(tree=TREES)
def check_elsewhere(runner: asyncio.Runner, owner: Mesh, client: Client, tree: Any) -> None:
    """The tree raised on another node, and looked at from a third process."""
    shape = trees.of_exception(trees.make(tree))
    transaction = runner.run(_begun(owner, "loop", tree))
    assert trees.of_exception(transaction.errors()[0]) == shape
    failure = runner.run(_asked(client, transaction.id))
    assert (failure.workflow, failure.step, failure.attempt) == ("loop", "loop/s", 1)
    assert failure.__cause__ is failure.errors[0]
    assert trees.of_exception(failure.errors[0]) == shape
    _check_shown(runner.run(client.pulses(transaction.id)), "failed", shape)


def test_and_on_another_node_and_seen_by_a_client(tmp_path: Path) -> None:
    registry, workflow = f"ipc://{tmp_path}/registry", trees.workflows()["loop"]
    with asyncio.Runner() as runner, RegistryServer(registry):
        owner, client = Mesh(workflow, registry=registry, hosts=False, patience=60.0), Client(registry)
        open_ones = AsyncExitStack()
        try:
            for one in (owner, Mesh(workflow, registry=registry), client):
                runner.run(open_ones.enter_async_context(one))
            check_elsewhere(runner, owner, client)
        finally:
            runner.run(open_ones.aclose())


def check(place: str, transaction: Transaction, raised: trees.Shape) -> None:
    """The shape of what was raised in one place, in each way of looking at it."""
    shape, at = _expected(place, raised), place in ("compensate", "undo")
    live = transaction.errors()[at]
    assert _without_prefix(trees.of_exception(live)) == shape, (place, live)
    about = json.loads(as_json(at_once(transaction_as_plain(transaction))))
    assert _without_prefix(trees.of_plain(about["errors"][at])) == shape
    failure = failure_of_plain(place, transaction.id, transaction.status, about["errors"], ())
    assert (failure.workflow, failure.attempt) == (place, 1) and failure.step.startswith(f"{place}/")
    kind = "undo_failed" if place == "undo" else "failed"
    pulses = transaction.raw_pulses()
    if place == "compensate":
        return  # what it raised stands beside the error
    _check_shown(pulses, kind, shape)
    (data,) = [
        pulse["data"]
        for pulse in pulses_as_plain(transaction.pulses())
        if _is_of_step(pulse["data"], pulse["kind"], kind)
    ]
    assert _without_prefix(trees.of_plain(json.loads(as_json(data))["fault"])) == shape


def _is_of_step(data: Any, kind: str, wanted: str) -> bool:
    return kind == wanted and "ended_by" not in (data or {})


def _check_shown(pulses: Sequence[Pulse], kind: str, shape: trees.Shape) -> None:
    """In `bitactor trace`, and in spans."""
    (pulse,) = [pulse for pulse in pulses if _is_of_step(pulse.data, pulse.kind, kind)]
    assert pulse.data is not None
    assert _without_prefix(trees.of_fault(Fault(*pulse.data["fault"]))) == shape
    (notes,) = [row.notes for row in timelines(pulses)[0].rows if row.hop == pulse.hop]
    assert [trees.normal(note) for note in notes[1:]] == trees.lines(shape)
    events = [event for span in SpanAssembler().feed(pulses) for event in span.events if event.name == "exception"]
    assert trees.are_in(trees.in_order(shape), events[-1].attributes["exception.stacktrace"])


async def _begun(mesh: Mesh, workflow: str, tree: dict[str, Any]) -> Transaction:
    transaction = await mesh.stimulate(workflow, {"tree": tree})
    await transaction.ended(60)
    return transaction


async def _asked(client: Client, transaction: str) -> WorkflowFailed:
    with pytest.raises(WorkflowFailed) as caught:
        await client.result(transaction, 60)
    return caught.value


async def _raised_everywhere(mesh: Mesh, tree: dict[str, Any]) -> dict[str, Transaction]:
    found = {place: await mesh.stimulate(place, {"tree": tree}) for place in mesh.workflows}
    for transaction in found.values():
        await transaction.ended(60)
    return found


async def _reopened(tmp_path: Path, seen: list[tuple[str, str, trees.Shape]]) -> None:
    """What another process would find in the store."""
    async with Mesh(*trees.workflows().values(), store=f"sqlite:///{tmp_path}/errors.db", processes=1) as mesh:
        for place, known, shape in seen:
            transaction = await mesh.transaction(known)
            error = transaction.errors()[place in ("compensate", "undo")]
            assert _without_prefix(trees.of_exception(error)) == shape, place


def _expected(place: str, shape: trees.Shape) -> trees.Shape:
    if place == "map":
        return shape._replace(notes=(*shape.notes, "element 0 of step 's' of 'map'"))
    return shape


def _without_prefix(shape: trees.Shape) -> trees.Shape:
    """Without what is said of an error that came before the step."""
    return shape._replace(message=re.sub("^deciding on '[^']*': ", "", shape.message))


def test_a_long_chain_costs_what_is_kept_of_it() -> None:
    asked = 0

    class Told(Exception):
        def __str__(self) -> str:
            nonlocal asked
            asked += 1
            return "told"

    error = Told()
    for _ in range(2_000):
        later = Told()
        later.__context__ = error
        error = later
    fault = fault_of(error)
    assert asked <= 100
    inner, depth = fault, 1
    while chain := chain_of(inner):
        inner, depth = chain[0][1], depth + 1
    assert depth == 20 and "left out" in str(notes_of(inner))
