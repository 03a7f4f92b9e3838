"""Where a step's arguments come from, in which order steps run, and what is refused before anything does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from bitactor import (
    CycleError,
    DefinitionError,
    DuplicateName,
    Element,
    Input,
    InvalidInput,
    MissingReturn,
    Ok,
    RemoteError,
    Result,
    UnknownArgument,
    Value,
    Workflow,
)
from mesh import Mesh
from tests.conformance.claims import claim
from tests.conformance.support import Meeting, failure_of, finished, journal, ran, result_of
from tests.e2e.support import BOUND, pulse_lines, until


@claim("Arguments", "A parameter takes a step's result or an input field of the same name.")
async def test_arguments_by_name() -> None:
    workflow = Workflow("by name", input={"price": int})

    @workflow.step
    async def tax(price: int) -> int:
        return price // 5

    @workflow.step
    async def total(price: int, tax: int) -> int:
        return price + tax

    assert await result_of(workflow, {"price": 100}) == 120


@claim("Arguments", "`bind={...}` overrides with `Input(name, *path)`, `Result(step, *path)` and `Value(v)`.")
async def test_arguments_by_binding() -> None:
    workflow = Workflow("bound", input={"order": dict})

    @workflow.step
    async def load() -> dict:
        return {"lines": [{"sku": "a"}, {"sku": "b"}]}

    @workflow.step(
        bind={"order": Input("order", "id"), "load": Result("load", "lines", 1, "sku"), "currency": Value("EUR")}
    )
    async def label(order: int, load: str, currency: str) -> str:
        return f"{order} {load} {currency}"

    assert await result_of(workflow, {"order": {"id": 7}}) == "7 b EUR"


@claim("Arguments", "Inside a map `bind` takes `Element(*path)`.")
async def test_arguments_from_an_element() -> None:
    workflow = Workflow("elements", input={"orders": list})

    @workflow.map(over="orders", bind={"sku": Element("lines", 0, "sku")})
    def first_sku(sku: str) -> str:
        return sku

    orders = [{"lines": [{"sku": "a"}]}, {"lines": [{"sku": "b"}]}]
    assert await result_of(workflow, {"orders": orders}) == ["a", "b"]


@claim("Arguments", "Each source takes `.map(fn)` for a transform.")
async def test_transforms() -> None:
    workflow = Workflow("transformed", input={"name": str, "numbers": list})

    @workflow.step
    async def load() -> list:
        return [3, 1, 2]

    bind = {
        "a": Input("name").map(str.upper),
        "b": Result("load").map(sorted),
        "c": Value(20).map(lambda value: value + 1),
    }

    @workflow.step(bind=bind)
    async def take(a: str, b: list, c: int) -> list:
        return [a, b, c]

    @workflow.map(over="numbers", bind={"number": Element().map(lambda number: -number)})
    def negative(number: int) -> int:
        return number

    @workflow.step
    async def both(take: list, negative: list) -> list:
        return [*take, negative]

    assert await result_of(workflow, {"name": "ada", "numbers": [1, 2]}) == ["ADA", [1, 2, 3], 21, [-1, -2]]


@claim("Arguments", "A path goes through mappings, attributes and list indices.")
async def test_paths() -> None:
    workflow = Workflow("paths")

    @workflow.step
    async def load() -> dict:
        return {"users": [{"born": datetime(1815, 12, 10)}]}  # noqa: DTZ001 (which has attributes)

    @workflow.step(bind={"year": Result("load", "users", 0, "born", "year"), "last": Result("load", "users", -1)})
    async def take(year: int, last: dict) -> list:
        return [year, sorted(last)]

    assert await result_of(workflow) == [1815, ["born"]]


@claim("Arguments", "A path that misses is an error naming the path and what was there.")
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("user", "email"), ["'email'", "['user']", "keys ['name']"]),
        (("user", "name", 0, 1, 2), ["2", "a str"]),
        ((5,), ["5"]),
    ],
)
async def test_a_missing_path(path: tuple[Any, ...], said: list[str]) -> None:
    workflow = Workflow("missing")
    runs: list[str] = []

    @workflow.step
    async def load() -> Any:
        return [1] if path == (5,) else {"user": {"name": "Ada"}}

    @workflow.step(bind={"to": Result("load", *path)})
    async def send(to: Any) -> None:
        runs.append("send")

    failure = await failure_of(await ran(workflow))
    assert isinstance(failure.__cause__, InvalidInput)
    for word in ("'to'", "load", *said):
        assert word in str(failure), word
    assert runs == []


@claim("Arguments", "`after=[...]` orders without passing anything.")
async def test_after() -> None:
    workflow = Workflow("ordered")
    order: list[str] = []

    @workflow.step
    async def prepare() -> None:
        await asyncio.sleep(0)
        order.append("prepare")

    @workflow.step(after=["prepare"])
    async def use() -> None:
        order.append("use")

    await ran(workflow)
    assert order == ["prepare", "use"]


@claim(
    "Arguments", "`when=` false: the step is skipped, its result is `None`, and it is neither undone nor compensated."
)
async def test_when() -> None:
    workflow = Workflow("when", input={"express": bool})
    calls: list[str] = []

    @workflow.step(when=lambda express: express)
    async def ship(express: bool) -> str:
        calls.append("ship")
        return "fast"

    @ship.undo
    async def unship() -> None:
        calls.append("undo")

    @ship.compensate
    async def consider(error: Exception) -> None:
        calls.append("compensate")

    @workflow.step
    async def bill(ship: str | None) -> None:
        calls.append(f"bill {ship}")
        raise ValueError

    transaction = await ran(workflow, {"express": False})
    assert (calls, transaction.status) == (["bill None"], "compensated")
    assert "skipped ship" in pulse_lines(transaction) and transaction.results()["ship"] is None


@claim("Arguments", "`guard=` may answer with a value instead; then the step counts as done with it.")
async def test_guard() -> None:
    workflow = Workflow("guarded", input={"key": str})
    known = {"a": 1, "nothing": None}
    runs: list[str] = []

    def cached(key: str) -> Any:
        return Ok(known[key]) if key in known else None

    @workflow.step(guard=cached)
    async def compute(key: str) -> int:
        runs.append(key)
        return 100

    @workflow.step
    async def use(compute: int | None) -> Any:
        return compute

    assert await result_of(workflow, {"key": "a"}) == 1
    assert await result_of(workflow, {"key": "nothing"}) is None
    assert runs == []
    assert await result_of(workflow, {"key": "b"}) == 100
    assert runs == ["b"]


@claim(
    "Arguments",
    "Unknown names are refused when declared or at `workflow.check()`, and the error suggests the likely one.",
)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda workflow: workflow.step(lambda shipmnt: None),
        lambda workflow: workflow.step(name="x")(lambda cutomer: None),
        lambda workflow: workflow.step(name="x", bind={"who": Input("cutomer")})(lambda who: None),
        lambda workflow: workflow.step(name="x", bind={"who": Result("shipmnt")})(lambda who: None),
        lambda workflow: workflow.step(name="x", after=["shipmnt"])(lambda: None),
        lambda workflow: workflow.step(name="x", bind={"cutomer": Value(1)})(lambda customer: None),
        lambda workflow: workflow.template("x", "Dear {cutomer}"),
        lambda workflow: workflow.collect("x", ["shipmnt"]),
        lambda workflow: workflow.collect("x", ["cutomer"]),
        lambda workflow: workflow.map(name="x", over="cutomer")(lambda element: None),
        lambda workflow: workflow.switch("x", on="cutomer", cases={"Ada": lambda: None}),
        lambda workflow: workflow.step(name="x", when=lambda cutomer: True)(lambda customer: None),
        lambda workflow: workflow.returns("shipmnt"),
    ],
)
def test_unknown_names(spoil: Callable[[Workflow], Any]) -> None:
    workflow = Workflow("unknown", input={"customer": str})
    workflow.step(name="shipment")(lambda customer: None)
    with pytest.raises((UnknownArgument, MissingReturn), match=r"Did you mean '(customer|shipment)'\?"):
        spoil(workflow)
        workflow.check()


@claim("Arguments", "Cycles are refused when declared or at `workflow.check()`; the error names the circle.")
def test_cycles() -> None:
    workflow = Workflow("circle")
    workflow.step(name="a", after=["c"])(lambda: None)
    workflow.step(name="b")(lambda a: None)
    with pytest.raises(CycleError, match=r"(a → b → c → a|b → c → a → b|c → a → b → c)"):
        workflow.step(name="c")(lambda b: None)
        workflow.check()
    itself = Workflow("itself")
    itself.compose("inner", itself)
    with pytest.raises(CycleError, match="nested in itself"):
        itself.check()


@claim("Arguments", "Duplicate names are refused when declared, of what is nested too.")
def test_duplicate_names() -> None:
    workflow = Workflow("twice", input={"customer": str})
    workflow.step(name="a")(lambda: None)
    with pytest.raises(DuplicateName, match="'a'"):
        workflow.step(name="a")(lambda: None)
    inner = Workflow("inner")
    inner.step(name="before")(lambda: None)
    with pytest.raises(DuplicateName, match="'before'"):
        workflow.group("g", inner, before_all=lambda: None)
        workflow.check()
    with pytest.raises(DuplicateName, match="'twice'"):
        Mesh(workflow_of("twice"), workflow_of("twice"))


def workflow_of(name: str) -> Workflow:
    """One with one step."""
    workflow = Workflow(name)
    workflow.step(name="works")(lambda: None)
    return workflow


@claim("Arguments", "A missing return is refused at `workflow.check()`, and the error suggests the likely step.")
def test_missing_return() -> None:
    workflow = workflow_of("returns nothing")
    workflow.returns("work")
    with pytest.raises(MissingReturn, match=r"Did you mean 'works'\?"):
        workflow.check()
    with pytest.raises(MissingReturn, match="no steps"):
        Workflow("empty").check()


@claim("Arguments", "A name that could be a step's or an input field's is refused as ambiguous.")
def test_ambiguous_names() -> None:
    workflow = Workflow("ambiguous", input={"customer": str})
    with pytest.raises(DefinitionError, match="ambiguous"):
        workflow.step(name="customer")(lambda: None)


@claim("Arguments", "What is wrong with a workflow is never first found at run time: a mesh does not open with it.")
def test_a_mesh_refuses_what_cannot_work() -> None:
    workflow = Workflow("wrong")
    workflow.step(name="a")(lambda b: None)
    with pytest.raises(UnknownArgument):
        Mesh(workflow)


class Order(BaseModel):
    customer: str
    amount: int = 1
    note: str | None = None


@claim("Arguments", "Inputs have types, defaults and optionality (pydantic).")
async def test_inputs() -> None:
    for declared in (Order, {"customer": str, "amount": (int, 1), "note": (str | None, None)}):
        workflow = Workflow("inputs", input=declared)

        @workflow.step
        async def take(customer: str, amount: int, note: str | None) -> list:
            return [customer, amount, note]

        async with Mesh(workflow) as mesh:
            for given, taken in (
                ({"customer": "Ada"}, ["Ada", 1, None]),
                ({"customer": "Ada", "amount": "3", "note": "!"}, ["Ada", 3, "!"]),
            ):
                assert await (await mesh.stimulate(workflow, given)).result(BOUND) == taken
            with pytest.raises(InvalidInput) as caught:
                await mesh.stimulate(workflow, {"amount": "many"})
            assert {field for field, _ in caught.value.fields} == {"customer", "amount"}
            assert mesh.node.about()["running"] == 0


@claim("Arguments", "Independent steps run concurrently.")
async def test_concurrency() -> None:
    workflow = Workflow("side by side")
    meeting = Meeting(3)

    for name in ("a", "b", "c"):

        @workflow.step(name=name)
        async def come() -> None:
            await meeting.join()

    assert (await ran(workflow)).status == "completed"


@claim("Arguments", "A step starts when *its own* dependencies are done, never at a level barrier.")
async def test_no_level_barriers() -> None:
    workflow = Workflow("no levels")
    second_began = asyncio.Event()

    @workflow.step
    async def a() -> None:
        """On the first level with `slow`."""

    @workflow.step
    async def slow() -> None:
        await second_began.wait()

    @workflow.step
    async def second(a: None) -> None:
        second_began.set()

    assert (await ran(workflow)).status == "completed", (
        "with a barrier, `second` would wait for `slow`, and `slow` for `second`"
    )


@claim("Arguments", "A slow sibling never delays a fast chain.")
async def test_a_slow_sibling(store: str) -> None:
    workflow = Workflow("fast chain", input={"start": int})
    go = asyncio.Event()

    @workflow.step
    async def sleeper() -> str:
        await go.wait()
        return "awake"

    before = "start"
    for number in range(6):
        workflow.step(name=f"s{number}", bind={"value": Input("start") if before == "start" else Result(before)})(
            plus_one
        )
        before = f"s{number}"

    async with Mesh(workflow, store=store) as mesh:
        transaction = await mesh.stimulate(workflow, {"start": 0})
        await until(lambda: "completed s5" in pulse_lines(transaction))
        assert transaction.status == "running" and transaction.results()["s5"] == 6
        assert "completed sleeper" not in pulse_lines(transaction)
        go.set()
        assert await transaction.result(BOUND) == 6


async def plus_one(value: int) -> int:
    return value + 1


@claim("Arguments", "Steps whose result nobody uses still run.")
@pytest.mark.parametrize("said", [False, True])
async def test_unused_results(store: str, said: bool) -> None:
    workflow = Workflow("unused")
    workflow.step(name="audit")(lambda: "kept")
    answer = workflow.step(name="answer")(lambda: 42)
    if said:
        workflow.returns(answer)
    async with finished(workflow, store=store) as transaction:
        assert await transaction.result() == 42 and transaction.results()["audit"] == "kept"
        assert sorted(journal(transaction, "completed")) == ["answer", "audit"]


@claim("Arguments", "`inline` steps run on the supervisor's own turn.")
async def test_inline() -> None:
    workflow = Workflow("inline")
    turns: list[int] = []
    here: list[int] = []

    @workflow.step(spawn="inline")
    def first() -> None:
        asyncio.get_running_loop().call_soon(turns.append, 1)
        here.append(threading.get_ident())

    @workflow.step(spawn="inline")
    def second(first: None) -> int:
        here.append(threading.get_ident())
        return len(turns)

    assert await result_of(workflow) == 0, "the loop has not turned in between"
    assert set(here) == {threading.get_ident()}


@claim("Arguments", "They are values: no two steps share a mutable object, on memory as on SQLite.")
async def test_values(store: str) -> None:
    workflow = Workflow("values", ttl=3)
    kept: list[Any] = []

    @workflow.step
    async def gives() -> dict:
        kept.append({"list": [1]})
        return kept[0]

    @workflow.step
    async def spoils(gives: dict) -> str:
        gives["list"].append("spoilt")
        kept[0]["list"].append("spoilt too")
        return "x"

    @workflow.step(after=["spoils"])
    async def looks(gives: dict) -> dict:
        return gives

    assert await result_of(workflow, store=store) == {"list": [1]}


class Picky(BaseModel):
    x: int

    @field_validator("x")
    @classmethod
    def check(cls, value: int) -> int:
        raise LookupError("a validator may raise anything")


@claim("Arguments", "Whatever a model of the user's raises on being made is the failure of the step that wanted it.")
async def test_a_model_that_refuses_in_its_own_way(store: str) -> None:
    workflow = Workflow("picky", ttl=2)

    @workflow.step
    async def gives() -> dict:
        return {"x": 1}

    @workflow.step
    async def takes(gives: Picky) -> None:
        raise AssertionError("never called")

    async with Mesh(workflow, store=store) as mesh:
        transactions = [await mesh.stimulate(workflow) for _ in range(3)]
        for transaction in transactions:
            assert await transaction.ended(BOUND) == "compensated"
            assert isinstance(transaction.errors()[0], LookupError | RemoteError)
