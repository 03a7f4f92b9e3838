"""Objects whose methods do what they should not, and every point where a workflow touches an object of the user's.

What a step handles is made by its number: `made(n)` is a fresh object of case n, `thrown(n)` an exception of it, and
`misdeed(n)` does what a method of such an object would do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, Field, field_validator, model_serializer

from bitactor import Backoff, Context, Continue, Fail, Halt, Input, Ok, Retry, Then, Workflow, consumer
from bitactor.declare.resource import Resource
from bitactor.declare.source import Element
from bitactor.errors import InvalidInput
from bitactor.patterns import Batching, Cache, CircuitBreaker, ErrorHandler, Fallback
from mesh import Mesh
from tests.e2e.support import SPAWNERS, for_spawner

BLOCKED_FOR: Final = 0.1
METHODS: Final = (
    "__repr__", "__str__", "__eq__", "__hash__", "__getattr__", "__getattribute__", "__reduce__", "__reduce_ex__",
    "__iter__", "__next__", "__len__", "__bool__", "__format__", "__getitem__", "__contains__", "__int__", "__float__",
    "__index__", "__lt__", "__ge__", "__gt__", "__mul__", "__call__", "__await__", "__fspath__", "__getstate__",
    "__deepcopy__", "__instancecheck__", "keys", "items", "get", "model_dump", "__class__", "__dict__", "__notes__",
    "args", "__cause__", "__traceback__", "close", "add_note", "with_traceback",
)  # fmt: skip
PROPERTIES: Final = ("__class__", "__dict__", "__notes__", "args", "__cause__", "__traceback__")


class AwkwardText(str):
    """A text of which nothing can be asked."""

    def _awkward(self, *_: Any) -> Any:
        raise SystemExit("awkward")

    __len__ = __getitem__ = __format__ = __eq__ = isascii = encode = __bool__ = splitlines = _awkward  # type: ignore[assignment]
    __hash__ = str.__hash__


LIES: Final = (None, 5, -1, True, "text", AwkwardText("odd"), NotImplemented, object(), 1e300, 10**400, float("inf"))


class AMapping(Mapping[str, Any]):
    """A mapping that is no dict."""

    def __getitem__(self, name: str) -> Any:
        return {"a": 1}[name]

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __len__(self) -> int:
        return 1


class AModel(BaseModel):
    """A model."""

    x: int = 1


@dataclasses.dataclass
class ADataclass:
    """A dataclass."""

    x: int = 1


class Plain:
    """An object of no kind that can be carried."""


BASES: Final[tuple[type, ...]] = (
    Plain, dict, list, tuple, set, str, int, float, AMapping, AModel, ADataclass, Retry, Halt, Ok, ValueError,
    ExceptionGroup,
)  # fmt: skip


class Case(NamedTuple):
    """What is wrong with one object: of what kind it is, which methods it has of its own, and what they do."""

    base: type
    methods: tuple[str, ...]
    deed: str
    """`raise | exit | interrupt | generator exit | block | lie`."""
    lie: Any = None


CASES: Final[dict[int, Case]] = {}
"""The cases of this example, by number."""
BLOCKED: Final[set[int]] = set()
"""Cases that have blocked; once is enough."""


class Trouble(Exception):
    """What a hostile method raises."""

    def __str__(self) -> str:
        raise RuntimeError("no message either")


def misdeed(number: int) -> Any:
    """Do what the case's methods do."""
    case = CASES[number]
    match case.deed:
        case "raise":
            raise Trouble(Plain())
        case "exit":
            raise SystemExit(0)
        case "interrupt":
            raise KeyboardInterrupt
        case "generator exit":
            raise GeneratorExit
        case "block":
            if number not in BLOCKED:
                BLOCKED.add(number)
                time.sleep(BLOCKED_FOR)
    return case.lie


def hostile_class(number: int, base: type) -> type:
    """A class below `base` with the case's methods."""

    def method(*_: Any, **__: Any) -> Any:
        return misdeed(number)

    own: dict[str, Any] = {name: property(method) if name in PROPERTIES else method for name in CASES[number].methods}
    return type("Hostile", (base,), {"__hash__": base.__hash__, **own})


_EMPTY: Final[Mapping[type, tuple[Any, ...]]] = {
    ExceptionGroup: ("two", [ValueError("one"), KeyError("other")]),
    ValueError: ("what happened",),
    Retry: (0, "again"),
    Halt: ("stop",),
    Ok: (1,),
    str: ("text",),
    int: (0,),
    float: (0.0,),
    list: ([1],),
    tuple: ([1],),
    set: ([1],),
    dict: ({"a": 1},),
}


def made(number: int, base: type | None = None) -> Any:
    """A fresh object of the case."""
    base = base or CASES[number].base
    if issubclass(base, BaseModel):  # whose constructor asks its class's methods: whoever makes one asks, not we
        plain = base()
        object.__setattr__(plain, "__class__", hostile_class(number, base))
        return plain
    return hostile_class(number, base)(*_EMPTY.get(base, ()))


def thrown(number: int) -> BaseException:
    """An exception of the case."""
    base = CASES[number].base
    error: BaseException = made(number, base if base in (ExceptionGroup, Retry, Halt) else ValueError)
    return error


def burdened(number: int) -> BaseException:
    """An ordinary exception, all of whose parts are such objects."""
    error = ValueError("what happened", made(number))
    error.__dict__.update(detail=made(number), __notes__=[made(number), "a note"])
    error.__cause__ = thrown(number)
    return error


# Points: workflows whose input is the number of a case

POINTS: Final[dict[str, Callable[[Mesh, int], Awaitable[Any]]]] = {}
"""Name → what begins a transaction that touches an object of the case."""
WORKFLOWS: Final[dict[str, Workflow]] = {}
CONSUMERS: Final[list[Any]] = []
Declaring = Callable[[Callable[..., Any]], Callable[..., Any]]


def point(
    name: str, *, places: tuple[str, ...] = (), **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have the decorated function declare the point's workflow; with `places` once for each spawner, as `place`."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        for place in places or ("",):
            called = f"{name}, {place}" if place else name
            workflow = WORKFLOWS[called] = Workflow(called, input={"n": int}, ttl=20, errors=[Fragile], **options)
            function(workflow, *([place] if place else []))
            POINTS[called] = _stimulate(workflow)
        return function

    return declare


def _stimulate(workflow: Workflow) -> Callable[[Mesh, int], Awaitable[Any]]:
    return lambda mesh, number: mesh.stimulate(workflow, {"n": number})


class Fragile(Exception):
    """An exception of a case that cannot be made again of its arguments."""

    def __init__(self, number: int, *_: Any) -> None:
        super().__init__(number, "fragile")
        if _:
            misdeed(number)


class Picky(type):
    """Of classes that look at what is an instance of them."""

    def __instancecheck__(cls, instance: object) -> Any:
        return misdeed(next(iter(CASES)))


class Chosen(Exception, metaclass=Picky):
    """An error that a step is tried again for."""


class Validated(BaseModel):
    """A model whose validator misbehaves."""

    n: int
    more: Any = Field(default_factory=lambda: made(next(iter(CASES))))

    @field_validator("n")
    @classmethod
    def _checked(cls, n: int) -> int:
        misdeed(n)
        return n


class Serialised(BaseModel):
    """A model whose serializer misbehaves."""

    n: int

    @model_serializer
    def _written(self) -> Any:
        return misdeed(self.n)


@point("result", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    workflow.step(name="it", spawn=place)(for_spawner(place, lambda n: made(n)))


@point("result within a result", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    workflow.step(name="it", spawn=place)(for_spawner(place, lambda n: {"rows": [made(n)]}))


@point("exception", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def it(n: int) -> None:
        raise thrown(n)

    workflow.step(name="it", spawn=place, retries=1, backoff=Backoff(initial=0.0))(for_spawner(place, it))


@point("arguments, notes and cause of an exception", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def it(n: int) -> None:
        raise burdened(n)

    workflow.step(name="it", spawn=place)(for_spawner(place, it))


@point("members of a group", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def it(n: int) -> None:
        raise BaseExceptionGroup("several", [burdened(n), thrown(n)])

    workflow.step(name="it", spawn=place)(for_spawner(place, it))


@point("an exception that cannot be made again")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int) -> None:
        raise Fragile(n)


@point("a validator of an argument", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def it(n: Validated) -> None:
        return None

    workflow.step(name="it", spawn=place, bind={"n": Input("n").map(lambda n: {"n": n})})(for_spawner(place, it))


@point("a serializer of a result", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    workflow.step(name="it", spawn=place)(for_spawner(place, lambda n: Serialised(n=n)))


@point("a transform")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", spawn="inline", bind={"x": Input("n").map(made)})(lambda x: x)


@point("what `when` answers")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", spawn="inline", when=lambda n: made(n))(lambda n: n)


@point("what `when` raises")
def _(workflow: Workflow) -> None:
    def when(n: int) -> bool:
        raise burdened(n)

    workflow.step(name="it", spawn="inline", when=when)(lambda n: n)


@point("what `guard` answers")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", spawn="inline", guard=lambda n: made(n))(lambda n: n)


@point("what `guard` raises")
def _(workflow: Workflow) -> None:
    def guard(n: int) -> None:
        raise thrown(n)

    workflow.step(name="it", spawn="inline", guard=guard)(lambda n: n)


@point("what a case's predicate answers")
def _(workflow: Workflow) -> None:
    workflow.switch("it", on="n", cases=[(lambda n: made(n), lambda n: n)], default=lambda n: -n)


class Compared:
    """A case that is compared with."""

    def __eq__(self, other: object) -> Any:
        return misdeed(next(iter(CASES)))

    __hash__ = object.__hash__


@point("a case that is compared")
def _(workflow: Workflow) -> None:
    workflow.switch("it", on="n", cases=[(Compared(), lambda n: n)], default=lambda n: -n)


@point("what `until` answers")
def _(workflow: Workflow) -> None:
    workflow.iterate(lambda state: state, name="it", start="n", until=lambda state: made(state), at_most=2)


_round: Final = Workflow("round", input={"n": int})
_round.step(name="again", spawn="inline")(lambda n: n)


@point("what `until` of a recursion raises")
def _(workflow: Workflow) -> None:
    def until(result: int) -> bool:
        raise burdened(result)

    workflow.recurse("it", _round, until=until, at_most=2)


@point("what `before_all` answers")
def _(workflow: Workflow) -> None:
    workflow.group("it", _round, before_all=lambda n: made(n), after_all=lambda result: made(result))


@point("what `compensate` answers", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def it(n: int) -> None:
        raise burdened(n)

    step = workflow.step(name="it", spawn=place, retries=1)(for_spawner(place, it))
    step.compensate(for_spawner(place, lambda error, n: made(n)))


@point("what `compensate` raises", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def it(n: int) -> None:
        raise thrown(n)

    def compensate(error: BaseException, n: int) -> None:
        raise burdened(n)

    workflow.step(name="it", spawn=place)(for_spawner(place, it)).compensate(for_spawner(place, compensate))


@point("what `compensate` goes on with")
def _(workflow: Workflow) -> None:
    def it(n: int) -> None:
        raise ValueError(n)

    workflow.step(name="it", spawn="thread")(it).compensate(lambda error, n: Continue(made(n)))


@point("what `undo` raises", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def undo(n: int) -> None:
        raise burdened(n)

    step = workflow.step(name="it", spawn=place)(for_spawner(place, lambda n: n))
    step.undo(for_spawner(place, undo), retries=0)
    workflow.flunk("end", "{it}")


@point("what `undo` answers", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    step = workflow.step(name="it", spawn=place)(for_spawner(place, lambda n: n))
    step.undo(for_spawner(place, lambda n: made(n)), retries=1)
    workflow.flunk("end", "{it}")


@point("what a backoff answers")
def _(workflow: Workflow) -> None:
    def it(n: int) -> None:
        raise ValueError(n)

    workflow.step(name="it", spawn="inline", retries=1, backoff=lambda error, n: made(n))(it)


@point("when to try again")
def _(workflow: Workflow) -> None:
    def it(n: int) -> None:
        verdict = Retry(after=0)
        verdict.after = made(n)
        raise verdict

    workflow.step(name="it", spawn="inline", retries=1)(it)


@point("a class that is tried again for")
def _(workflow: Workflow) -> None:
    def it(n: int) -> None:
        raise ValueError(n)

    workflow.step(name="it", spawn="inline", retries=1, retry_on=Chosen, backoff=Backoff(initial=0.0))(it)


@point("the reason of a failure")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", spawn="inline")(lambda n: Fail(made(n)))


@point("the reason of a halt")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", spawn="inline")(lambda n: Halt(made(n)))


@point("the value beside further steps")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", spawn="inline")(lambda n: Then(made(n), []))


@point("the name of a signal")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, ctx: Context) -> None:
        await ctx.emit(made(n), 1)


@point("a signal")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, ctx: Context) -> None:
        await ctx.emit("property.unheard", made(n))


@point("what a consumer answers")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, ctx: Context) -> None:
        await ctx.emit("property.answers", n)


@point("what a consumer raises")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, ctx: Context) -> None:
        await ctx.emit("property.raises", n)


@consumer("property.answers")
async def answers(signal: int) -> Any:
    return made(signal)


@consumer("property.raises")
def raises(signal: int) -> Any:
    raise burdened(signal)


CONSUMERS.extend((answers, raises))


@point("what a heartbeat says")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it", timeout=60.0)
    async def it(n: int, ctx: Context) -> None:
        ctx.heartbeat(made(n))


@point("what is logged", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    workflow.step(name="it", spawn=place)(
        for_spawner(place, lambda n, ctx: ctx.logger.warning("%s %r", made(n), made(n)))
    )


@point("the context")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, ctx: Context) -> Any:
        ctx.metadata["n"] = made(n)  # type: ignore[index]
        ctx.retries_left = made(n)
        return await ctx.resources.get(made(n))


@point("the source of a map", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    workflow.map(for_spawner(place, lambda element: 1), name="it", over=lambda n: made(n), batch=2, spawn=place)


@point("a source that is closed")
def _(workflow: Workflow) -> None:
    def source(n: int) -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            misdeed(n)
            raise thrown(n)

    def each(element: int) -> int:
        if element:
            raise ValueError(element)
        return element

    workflow.map(each, name="it", over=source, batch=2, spawn="inline")


@point("an asynchronous source")
def _(workflow: Workflow) -> None:
    async def source(n: int) -> AsyncIterator[Any]:
        yield made(n)
        raise thrown(n)

    workflow.map(for_spawner("loop", lambda element: element), name="it", over=source, batch=2)


@point("an element's transform")
def _(workflow: Workflow) -> None:
    workflow.map(
        lambda x: x, name="it", over=lambda n: [n], bind={"x": Element().map(made)}, on_error="collect", spawn="inline"
    )


@point("an element that fails", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def each(element: Any) -> None:
        raise burdened(next(iter(CASES)))

    workflow.map(for_spawner(place, each), name="it", over=lambda n: [made(n)], on_error="collect", spawn=place)


@point("elements that fail a map", places=SPAWNERS)
def _(workflow: Workflow, place: str) -> None:
    def each(element: int) -> None:
        raise thrown(element)

    workflow.map(for_spawner(place, each), name="it", over=lambda n: [n], spawn=place)


@point("what a reduction answers")
def _(workflow: Workflow) -> None:
    workflow.map(
        lambda element: made(element), name="it", over=lambda n: [n], reduce=lambda before, results: results[0],
        spawn="inline",
    )  # fmt: skip


@point("elements of a nested workflow")
def _(workflow: Workflow) -> None:
    workflow.map(name="it", workflow=_round, over=lambda n: [made(n)], bind={"n": Element()}, on_error="collect")


@point("what a collect makes")
def _(workflow: Workflow) -> None:
    workflow.collect("it", {"n": Input("n")}, transform=lambda values: made(values["n"]))


def _factory() -> Any:
    raise burdened(next(iter(CASES)))


@point("what a resource's factory raises", resources=[Resource("broken", _factory)])
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, broken: Any) -> None: ...


@point(
    "what a resource's check answers",
    resources=[Resource("checked", object, check=lambda _: made(next(iter(CASES))), check_every=0.001)],
)
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int, checked: Any) -> None: ...


@point("what a cache is keyed by")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", policies=[Cache("property", lambda n: made(n), coalesce=True)])(
        for_spawner("loop", lambda n: n)
    )


@point("what a cache formats")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", policies=[Cache("formatted", "{x}")], bind={"x": Input("n")})(
        for_spawner("loop", lambda x: made(x))
    )


@point("what a fallback answers")
def _(workflow: Workflow) -> None:
    def it(n: int) -> None:
        raise burdened(n)

    workflow.step(name="it", policies=[Fallback("property", lambda error, n: made(n)), ErrorHandler("log", "log")])(
        for_spawner("loop", it)
    )


@point("what breaks a circuit")
def _(workflow: Workflow) -> None:
    def it(n: int) -> None:
        raise thrown(n)

    workflow.step(name="it", policies=[CircuitBreaker("property", failures=1_000_000, open_for=1.0)])(
        for_spawner("loop", it)
    )


async def _handle(items: list[int]) -> Any:
    return made(items[0])


async def _handle_each(items: list[int]) -> Any:
    return [made(number) for number in items]


@point("what a batch's handler answers")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", policies=[Batching("property", size=1, interval=60.0, handler=_handle)])(
        for_spawner("loop", lambda n: n)
    )


@point("what a batch's handler answers for an item")
def _(workflow: Workflow) -> None:
    workflow.step(name="it", policies=[Batching("each", size=1, interval=60.0, handler=_handle_each)])(
        for_spawner("loop", lambda n: n)
    )


@point("a task of a step")
def _(workflow: Workflow) -> None:
    @workflow.step(name="it")
    async def it(n: int) -> None:
        async def child() -> None:
            raise SystemExit(made(n)) from thrown(n)

        async with asyncio.TaskGroup() as group:
            group.create_task(child())


# Points of the caller

_anything: Final = Workflow("anything", input={"x": Any})
_anything.step(name="it", spawn="inline")(lambda x: x)
_validated: Final = Workflow("validated", input=Validated)
_validated.step(name="it", spawn="inline")(lambda n: n)
OF_CALLERS: Final = (_anything, _validated)


async def _as_options(mesh: Mesh, number: int) -> Any:
    for name in ("key", "ttl", "deadline", "metadata", "traceparent", "max_concurrency", "priority"):
        try:
            return await mesh.stimulate(_anything, {"x": number}, **{name: made(number)})
        except InvalidInput:
            continue
    return None


POINTS |= {
    "an input": lambda mesh, number: mesh.stimulate(_anything, made(number)),
    "within an input": lambda mesh, number: mesh.stimulate(_anything, {"x": made(number)}),
    "a validator of an input": lambda mesh, number: mesh.stimulate(_validated, {"n": number}),
    "an input with a key": lambda mesh, number: mesh.stimulate(_anything, {"x": [made(number)]}, key=f"key {number}"),
    "within metadata": lambda mesh, number: mesh.stimulate(_anything, {"x": 1}, metadata={"m": made(number)}),
    "options of a stimulus": _as_options,
    "another key": lambda mesh, number: mesh.stimulate(_anything, {"x": 1}, key=made(number, str)),
    "another priority": lambda mesh, number: mesh.stimulate(_anything, {"x": 1}, priority=made(number, int)),
}
