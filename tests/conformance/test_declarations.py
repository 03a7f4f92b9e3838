"""What is declared: found wrong before anything runs, and given to every function that asks for it."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional

import pytest

from bitactor import (
    Context,
    Continue,
    DefinitionError,
    DefinitionWarning,
    Element,
    Input,
    InvalidInput,
    Resource,
    Result,
    StepTimeout,
    Then,
    Value,
    Workflow,
    consumer,
)
from bitactor.patterns import RetryPolicy
from bitactor.testing import run_workflow
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.elsewhere import Notes
from tests.conformance.support import failure_of, finished, journal, ran, result_of
from tests.conformance.workers import decorated
from tests.e2e.support import BOUND

SECTION = "Context and builder"
MAIN = threading.main_thread()


async def where(x: int) -> list[Any]:
    await asyncio.sleep(0)
    return [x, threading.current_thread() is MAIN]


def blocking(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `def` that runs a coroutine function itself."""

    @functools.wraps(function)
    def run(**arguments: Any) -> Any:
        return [threading.current_thread() is MAIN, *asyncio.run(function(**arguments))]

    return run


def passing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `def` that passes the coroutine on, as most decorators do."""

    @functools.wraps(function)
    def run(**arguments: Any) -> Any:
        seen.append(threading.current_thread() is MAIN)
        return function(**arguments)

    return run


seen: list[bool] = []


class Client:
    number = 7


def awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def run(**arguments: Any) -> Any:
        return [threading.current_thread() is MAIN, function(**arguments)]

    return run


@claim(SECTION, "A `def` around a coroutine function runs in a thread, and an `async def` around a `def` on the loop.")
async def test_the_outer_function_says_where() -> None:
    workflow = Workflow("outer", input={"x": int})
    workflow.add(blocking(where), name="blocks")
    workflow.add(awaiting(lambda x: x), name="awaits")
    workflow.add(functools.partial(blocking(where)), name="partly")
    workflow.collect("all", ["blocks", "awaits", "partly"])
    assert await result_of(workflow, {"x": 1}) == {
        "blocks": [False, 1, False],
        "awaits": [True, 1],
        "partly": [False, 1, False],
    }


@claim(SECTION, "A coroutine that a `def` step passes on, as decorators do, is awaited on the loop.")
@pytest.mark.parametrize("spawn", [None, "inline", "loop", "thread"])
async def test_a_coroutine_that_is_passed_on(spawn: str | None) -> None:
    seen.clear()
    undone: list[Any] = []

    @passing
    async def undo(result: Any) -> None:
        await asyncio.sleep(0)
        undone.append([result, threading.current_thread() is MAIN])

    @passing
    async def compensate(x: int) -> Continue:
        await asyncio.sleep(0)
        return Continue([x, threading.current_thread() is MAIN])

    async def fail(x: int) -> None:
        raise ValueError(x)

    workflow = Workflow("passed", input={"x": int})
    workflow.add(passing(where), name="first", spawn=spawn, undo=undo)
    workflow.add(passing(fail), name="second", spawn=spawn, compensate=compensate)
    workflow.add(passing(where), name="third", spawn=spawn, policies=[RetryPolicy("again")])
    workflow.map(passing(where), name="each", over=Value([1, 2]), bind={"x": Element()})
    workflow.flunk("last", "no {first} {second} {third} {each}")
    transaction = await ran(workflow, {"x": 1})
    assert (transaction.status, undone) == ("compensated", [[[1, True], True]])
    assert transaction.results() | {"first": None} == {
        "first": None,
        "second": [1, True],
        "third": [1, True],
        "each": [[1, True], [2, True]],
    }
    assert seen[0] is (spawn in ("inline", "loop"))
    assert run_workflow(workflow, {"x": 1}).status == "compensated"


@claim(
    SECTION,
    "A decorated step and its undo, told by `bind` what that alone takes, run in a worker process.",
)
async def test_a_coroutine_that_is_passed_on_in_a_process(tmp_path: Path) -> None:
    transaction = await ran(decorated, {"x": 3, "where": str(tmp_path), "process": os.getpid()}, processes=1)
    assert transaction.status == "compensated"
    assert Notes(tmp_path).lines == ["forget 3, [False, False]"]


@claim(SECTION, "A coroutine that is passed on is ended by the step's timeout.")
async def test_a_coroutine_that_is_passed_on_has_no_more_time() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    workflow = Workflow("late")
    workflow.add(passing(wait), name="waits", timeout=0.05)
    failure = await failure_of(await ran(workflow))
    assert isinstance(failure.errors[0], StepTimeout)
    await asyncio.wait_for(ended.wait(), BOUND)


@claim(SECTION, "`bind` serves `when`, `guard`, `undo`, `compensate` and `backoff` as it does the step's function.")
async def test_bind_serves_all_functions_of_a_step() -> None:
    got: dict[str, Any] = {}
    workflow = Workflow("bound", input={"limit": int, "rates": list, "x": int})

    @workflow.step
    def account() -> dict[str, Any]:
        return {"number": 7}

    def remember(role: str, answer: Any) -> Callable[..., Any]:
        def take(most: int, number: int, twice: int, fixed: str) -> Any:
            got[role] = [most, number, twice, fixed]
            return answer

        return take

    def fail(x: int, fixed: str) -> None:
        raise ValueError(x)

    sources = {
        "most": Input("limit"),
        "number": Result("account", "number"),
        "twice": Input("x", transform=lambda x: 2 * x),
        "fixed": Value("f"),
    }
    workflow.add(
        lambda x: x,
        name="first",
        bind=sources,
        when=remember("when", True),
        guard=remember("guard", None),
        undo=remember("undo", None),
    )
    workflow.add(
        fail,
        name="second",
        after=["first"],
        bind=sources,
        retries=1,
        backoff=remember("backoff", 0.0),
        compensate=lambda most, number: got.setdefault("compensate", [most, number]) and None,
    )
    assert workflow.check().steps[1].run.takes == ("x",)
    for trace in (await ran(workflow, {"limit": 5, "rates": [], "x": 1}), None):
        status = run_workflow(workflow, {"limit": 5, "rates": [], "x": 1}).status if trace is None else trace.status
        assert status == "compensated"
        assert [got.pop(role, None) for role in ("when", "guard", "undo")] == [[5, 7, 2, "f"]] * 3
        assert got.pop("compensate") == [5, 7]
    again = Workflow("again", input={"x": int, "limit": int})
    again.add(fail, name="only", bind=sources | {"number": Value(7)}, retries=1, backoff=remember("backoff", 0.0))
    assert (await ran(again, {"x": 1, "limit": 5})).status == "compensated"
    assert got == {"backoff": [5, 7, 2, "f"]}


@claim(SECTION, "`bind` serves the undo of a map and of an iterate, and what `when` asks of any kind.")
async def test_bind_serves_functions_of_kinds() -> None:
    got: list[Any] = []
    nested = Workflow("nested", input={"x": int})
    nested.add(lambda x: x, name="inner")
    workflow = Workflow("kinds", input={"limit": int, "x": int})
    bind = {"most": Input("limit")}
    workflow.map(lambda element: element, name="each", over=Value([1, 2]), bind=bind).undo(
        lambda element, most: got.append(["each", element, most])
    )
    workflow.iterate(lambda state: state + 1, name="again", start="x", at_most=2, bind=bind, after=["each"]).undo(
        lambda result, most: got.append(["again", result, most])
    )
    workflow.compose("skipped", nested, bind=bind, when=lambda most: most > 9)
    workflow.flunk("last", "no {again} {skipped}")
    transaction = await ran(workflow, {"limit": 5, "x": 1})
    assert transaction.status == "compensated"
    assert journal(transaction, "skipped") == ["skipped"]
    assert got == [["again", 3, 5], ["again", 2, 5], ["each", 2, 5], ["each", 1, 5]]


@claim(SECTION, "What `bind` gives to nobody is refused, with the step's name.")
def test_bind_that_gives_to_nobody() -> None:
    workflow = Workflow("nobody", input={"x": int})
    workflow.add(lambda x: x, name="a", bind={"most": Input("x")}, undo=lambda mots=1: None)
    with pytest.raises(DefinitionError, match=r"'a'.*bind names 'most'"):
        workflow.check()


@claim(SECTION, "A parameter that is annotated with `Context`, be it optional or noted, gets its context.")
async def test_a_context_that_may_be_none() -> None:
    undone: list[int] = []

    def first(x: int, context: Context | None = None) -> int:
        assert context is not None
        return context.attempt

    def undo(result: int, hop: Optional[Context] = None) -> None:  # noqa: UP045
        assert hop is not None
        undone.append(hop.attempt)

    def each(element: int, hop: Annotated[Context, "of the batch"], attempt: int) -> list[int]:
        return [element, hop.attempt, attempt]

    async def around(proceed: Any, hop: Context | None = None) -> Any:
        assert hop is not None
        return [await proceed(), hop.attempt]

    def after(result: int, hop: "Context | None" = None) -> list[int]:  # noqa: UP037
        assert hop is not None
        return [result, hop.attempt]

    nested = Workflow("nested", input={"x": int})
    nested.add(lambda x: x, name="inner")
    workflow = Workflow("contexts", input={"x": int})
    workflow.add(first, undo=undo)
    workflow.map(each, over=Value([5]))
    workflow.around(around, name="held", workflow=nested)
    workflow.group("grouped", nested, after_all=after)
    workflow.flunk("last", "no {first} {each} {held} {grouped}")
    async with finished(workflow, {"x": 3}) as transaction:
        values = {pulse.step: pulse.token_out for pulse in transaction.pulses() if pulse.kind == "completed"}
    assert undone == [1]
    assert [values[step] for step in ("each", "held", "grouped")] == [[[5, 1, 1]], [3, 1], [3, 1]]


@claim(SECTION, "A parameter annotated with the class of a resource, be it optional or noted, gets the resource.")
async def test_a_resource_that_may_be_none() -> None:
    workflow = Workflow("clients", resources=[Resource("client", Client, provides=Client)])

    @workflow.step
    def first(a: Client | None = None) -> int:
        assert a is not None
        return a.number

    @workflow.step
    def second(b: Annotated[Client, "of ours"], first: int) -> int:
        return b.number + first

    assert await result_of(workflow) == 14


@claim(SECTION, "A consumer gets a context that may be None.")
async def test_a_consumer_gets_its_context() -> None:
    got: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @consumer("told")
    async def listen(signal: Any, hop: Context | None = None) -> None:
        assert hop is not None
        got.set_result(hop.transaction)

    workflow = Workflow("tells")

    @workflow.step
    async def tell(hop: Context | None = None) -> None:
        assert hop is not None
        await hop.emit("told")

    async with Mesh(workflow, listen) as mesh:
        await (await mesh.stimulate(workflow)).ended(BOUND)
        assert len(await asyncio.wait_for(got, BOUND)) == 32


@claim(SECTION, "A `Then` that is declared wrong is not tried again, whatever `retries` says.")
@pytest.mark.parametrize("policies", [(), (RetryPolicy("again"),)])
async def test_a_wrong_then_is_not_tried_again(policies: Any) -> None:
    tries: list[str] = []
    wrongs: dict[str, Callable[[], Any]] = {
        "no step": lambda: Then(1, steps=[5]),  # type: ignore[list-item]
        "twice": lambda: Then(1, steps=[later.planned("a"), later.planned("a")]),
        "a name": lambda: Then(1, steps=[later.planned("a/b")]),
        "a transform": lambda: Then(1, steps=[later.planned("a", bind={"y": Value(1).map(str)})]),
        "nobody": lambda: Then(1, steps=[later.planned("a", bind={"z": Value(1)})]),
    }
    workflow = Workflow("then", input={"way": str})

    @workflow.deferred
    def later(y: int) -> int:
        return y

    @workflow.step(retries=3, policies=policies)
    def first(way: str) -> Any:
        tries.append(way)
        return wrongs[way]()

    for way in wrongs:
        transaction = await ran(workflow, {"way": way})
        assert transaction.status == "compensated"
        assert run_workflow(workflow, {"way": way}).status == "compensated"
    assert tries == [way for way in wrongs for _ in range(2)]


@claim(SECTION, "A key, a trace context and metadata with a lone surrogate are refused, whatever the store.")
@pytest.mark.parametrize("store", ["memory://", "sqlite"])
async def test_strings_that_no_store_could_keep(store: str, sqlite: str) -> None:
    workflow = Workflow("texts", input={"x": str})
    workflow.add(lambda x: x, name="a")
    async with Mesh(workflow, store=sqlite if store == "sqlite" else store) as mesh:
        for option in ({"key": "\ud800"}, {"traceparent": "\ud800"}, {"metadata": {"a": "\ud800"}}, {"metadata": [1]}):
            with pytest.raises(InvalidInput) as caught:
                await mesh.stimulate(workflow, {"x": "a"}, **option)  # type: ignore[arg-type]
            assert next(iter(option)) in str(caught.value)
        with pytest.raises(InvalidInput, match="input of 'texts'"):
            await mesh.stimulate(workflow, {"x": "\ud800"})
        transaction = await mesh.stimulate(workflow, {"x": "a"}, key="🗝" * 255)
        assert await transaction.ended(BOUND) == "completed"
        with pytest.raises(InvalidInput, match="timeout=nan; give a number"):
            await transaction.ended(float("nan"))
        assert await transaction.undo("because \ud800") == "compensated"
        with pytest.raises(InvalidInput, match="reason=5; give a text"):
            await transaction.undo(5)  # type: ignore[arg-type]
        assert [row.status for row in await mesh.transactions()] == ["compensated"]


@claim(SECTION, "A parameter with a default that is called nearly as an input is warned of, and nothing else is done.")
def test_a_near_miss_is_warned_of() -> None:
    workflow = Workflow("near", input={"limit": int})
    workflow.add(lambda limt=5: limt, name="a")
    with pytest.warns(DefinitionWarning, match="step 'a' of 'near': parameter 'limt'.*call it 'limit'"):
        workflow.check()
    assert run_workflow(workflow, {"limit": 1}).result == 5


@claim(SECTION, "A result that can never become what a parameter is annotated with is refused by `check()`.")
def test_annotations_that_cannot_fit() -> None:
    workflow = Workflow("unfit")

    @workflow.step
    def first() -> str:
        return "one"

    @workflow.step
    def second(first: int) -> int:
        return first

    with pytest.raises(DefinitionError, match="step 'second' of 'unfit': 'first' is annotated with int"):
        workflow.check()
