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


def a_case() -> int:
    """The number of a case, where nobody hands one on."""
    return next(iter(CASES))


def throw(error: BaseException) -> Any:
    """Raise it."""
    raise error


class Fragile(Exception):
    """An exception of a case that cannot be made again of its arguments."""

    def __init__(self, number: int, *_: Any) -> None:
        super().__init__(number, "fragile")
        if _:
            misdeed(number)


class Picky(type):
    """Of classes that look at what is an instance of them."""

    def __instancecheck__(cls, instance: object) -> Any:
        return misdeed(a_case())


class Chosen(Exception, metaclass=Picky):
    """An error that a step is tried again for."""


class Validated(BaseModel):
    """A model whose validator misbehaves."""

    n: int
    more: Any = Field(default_factory=lambda: made(a_case()))

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


class Compared:
    """A case that is compared with."""

    def __eq__(self, other: object) -> Any:
        return misdeed(a_case())

    __hash__ = object.__hash__


# Points: workflows whose input is the number of a case

Declare = Callable[[Workflow, str], Any]
"""Declares what touches an object of the case, at a spawner."""


def step(function: Callable[..., Any], **options: Any) -> Declare:
    """A step."""
    return lambda workflow, place: workflow.step(name="it", spawn=place, **options)(for_spawner(place, function))


def compensated(function: Callable[..., Any], compensate: Callable[..., Any], **options: Any) -> Declare:
    """A step, and what is asked when it fails."""
    return lambda workflow, place: step(function, **options)(workflow, place).compensate(for_spawner(place, compensate))


def undone(undo: Callable[..., Any], retries: int) -> Declare:
    """A step that is undone."""

    def declare(workflow: Workflow, place: str) -> None:
        step(lambda n: n)(workflow, place).undo(for_spawner(place, undo), retries=retries)
        workflow.flunk("end", "{it}")

    return declare


def mapped(function: Callable[..., Any], over: Callable[..., Any], **options: Any) -> Declare:
    """A map."""
    return lambda workflow, place: workflow.map(
        for_spawner(place, function), name="it", over=over, spawn=place, **options
    )


def takes_validated(n: Validated) -> None: ...


def tried_again_oddly(n: int) -> None:
    verdict = Retry(after=0)
    verdict.after = odd = made(n)
    try:
        wanted = float(odd)  # type: ignore[arg-type]
    except BaseException:
        wanted = 0
    if wanted > 1:  # years, as an object says that passes for a number: what was asked for is not what is tried here
        verdict.after = 0
    raise verdict


def not_closing(n: int) -> Iterator[int]:
    try:
        yield from range(10)
    finally:
        misdeed(n)
        raise thrown(n)


async def elements(n: int) -> AsyncIterator[Any]:
    yield made(n)
    raise thrown(n)


async def using_context(n: int, ctx: Context) -> Any:
    ctx.metadata["n"] = made(n)  # type: ignore[index]
    ctx.retries_left = made(n)
    return await ctx.resources.get(made(n))


async def with_a_task(n: int) -> None:
    async def child() -> None:
        raise SystemExit(made(n)) from thrown(n)

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


async def handles(items: list[int]) -> Any:
    return made(items[0])


async def handles_each(items: list[int]) -> Any:
    return [made(number) for number in items]


@consumer("property.answers")
async def answers(signal: int) -> Any:
    return made(signal)


@consumer("property.raises")
def raises(signal: int) -> Any:
    raise burdened(signal)


CONSUMERS: Final = (answers, raises)
RESOURCES: Final = (
    Resource("broken", lambda: throw(burdened(a_case()))),
    Resource("checked", object, check=lambda _: made(a_case()), check_every=0.001),
)
AT_ONCE: Final = Backoff(initial=0.0)
ONE_ROUND: Final = Workflow("round", input={"n": int})
ONE_ROUND.step(name="again", spawn="inline")(lambda n: n)

EVERYWHERE: Final[dict[str, Declare]] = {
    "result": step(lambda n: made(n)),
    "result within a result": step(lambda n: {"rows": [made(n)]}),
    "exception": step(lambda n: throw(thrown(n)), retries=1, backoff=AT_ONCE),
    "arguments, notes and cause of an exception": step(lambda n: throw(burdened(n))),
    "members of a group": step(lambda n: throw(BaseExceptionGroup("several", [burdened(n), thrown(n)]))),
    "a validator of an argument": step(takes_validated, bind={"n": Input("n").map(lambda n: {"n": n})}),
    "a serializer of a result": step(lambda n: Serialised(n=n)),
    "what `compensate` answers": compensated(lambda n: throw(burdened(n)), lambda error, n: made(n), retries=1),
    "what `compensate` raises": compensated(lambda n: throw(thrown(n)), lambda error, n: throw(burdened(n))),
    "what `undo` raises": undone(lambda n: throw(burdened(n)), retries=0),
    "what `undo` answers": undone(lambda n: made(n), retries=1),
    "what is logged": step(lambda n, ctx: ctx.logger.warning("%s %r", made(n), made(n))),
    "the source of a map": mapped(lambda element: 1, lambda n: made(n), batch=2),
    "an element that fails": mapped(lambda element: throw(burdened(a_case())), lambda n: [made(n)], on_error="collect"),
    "elements that fail a map": mapped(lambda element: throw(thrown(element)), lambda n: [n]),
}
INLINE: Final[dict[str, Declare]] = {
    "an exception that cannot be made again": step(lambda n: throw(Fragile(n))),
    "a transform": step(lambda x: x, bind={"x": Input("n").map(made)}),
    "what `when` answers": step(lambda n: n, when=lambda n: made(n)),
    "what `when` raises": step(lambda n: n, when=lambda n: throw(burdened(n))),
    "what `guard` answers": step(lambda n: n, guard=lambda n: made(n)),
    "what `guard` raises": step(lambda n: n, guard=lambda n: throw(thrown(n))),
    "what a case's predicate answers": lambda workflow, _: workflow.switch(
        "it", on="n", cases=[(lambda n: made(n), lambda n: n)], default=lambda n: -n
    ),
    "a case that is compared": lambda workflow, _: workflow.switch(
        "it", on="n", cases=[(Compared(), lambda n: n)], default=lambda n: -n
    ),
    "what `until` answers": lambda workflow, _: workflow.iterate(
        lambda state: state, name="it", start="n", until=lambda state: made(state), at_most=2
    ),
    "what `until` of a recursion raises": lambda workflow, _: workflow.recurse(
        "it", ONE_ROUND, until=lambda result: throw(burdened(result)), at_most=2
    ),
    "what `before_all` answers": lambda workflow, _: workflow.group(
        "it", ONE_ROUND, before_all=lambda n: made(n), after_all=lambda result: made(result)
    ),
    "what a collect makes": lambda workflow, _: workflow.collect(
        "it", {"n": Input("n")}, transform=lambda values: made(values["n"])
    ),
    "what `compensate` goes on with": compensated(lambda n: throw(ValueError(n)), lambda error, n: Continue(made(n))),
    "what a backoff answers": step(lambda n: throw(ValueError(n)), retries=1, backoff=lambda error, n: made(n)),
    "when to try again": step(tried_again_oddly, retries=1),
    "a class that is tried again for": step(
        lambda n: throw(ValueError(n)), retries=1, retry_on=Chosen, backoff=AT_ONCE
    ),
    "the reason of a failure": step(lambda n: Fail(made(n))),
    "the reason of a halt": step(lambda n: Halt(made(n))),
    "the value beside further steps": step(lambda n: Then(made(n), [])),
    "a source that is closed": mapped(
        lambda element: throw(ValueError(element)) if element else element, not_closing, batch=2
    ),
    "an element's transform": mapped(lambda x: x, lambda n: [n], bind={"x": Element().map(made)}, on_error="collect"),
    "what a reduction answers": mapped(
        lambda element: made(element), lambda n: [n], reduce=lambda before, results: results[0]
    ),
    "elements of a nested workflow": lambda workflow, _: workflow.map(
        name="it", workflow=ONE_ROUND, over=lambda n: [made(n)], bind={"n": Element()}, on_error="collect"
    ),
}
ON_THE_LOOP: Final[dict[str, Declare]] = {
    "the name of a signal": step(lambda n, ctx: ctx.emit_later(made(n), 1)),
    "a signal": step(lambda n, ctx: ctx.emit_later("property.unheard", made(n))),
    "what a consumer answers": step(lambda n, ctx: ctx.emit_later("property.answers", n)),
    "what a consumer raises": step(lambda n, ctx: ctx.emit_later("property.raises", n)),
    "what a heartbeat says": step(lambda n, ctx: ctx.heartbeat(made(n)), timeout=60.0),
    "the context": lambda workflow, _: workflow.step(using_context, name="it"),
    "an asynchronous source": mapped(lambda element: element, elements, batch=2),
    "what a resource's factory raises": step(lambda n, broken: None),
    "what a resource's check answers": step(lambda n, checked: None),
    "what a cache is keyed by": step(lambda n: n, policies=[Cache("property", lambda n: made(n), coalesce=True)]),
    "what a cache formats": step(lambda x: made(x), policies=[Cache("formatted", "{x}")], bind={"x": Input("n")}),
    "what a fallback answers": step(
        lambda n: throw(burdened(n)),
        policies=[Fallback("property", lambda error, n: made(n)), ErrorHandler("log", "log")],
    ),
    "what breaks a circuit": step(
        lambda n: throw(thrown(n)), policies=[CircuitBreaker("property", failures=1_000_000, open_for=1.0)]
    ),
    "what a batch's handler answers": step(
        lambda n: n, policies=[Batching("property", size=1, interval=60.0, handler=handles)]
    ),
    "what a batch's handler answers for an item": step(
        lambda n: n, policies=[Batching("each", size=1, interval=60.0, handler=handles_each)]
    ),
    "a task of a step": lambda workflow, _: workflow.step(with_a_task, name="it"),
}

POINTS: Final[dict[str, Callable[[Mesh, int], Awaitable[Any]]]] = {}
"""Name → what begins a transaction that touches an object of the case."""
WORKFLOWS: Final[dict[str, Workflow]] = {}


def _add(name: str, place: str, declare: Declare) -> None:
    workflow = WORKFLOWS[name] = Workflow(name, input={"n": int}, ttl=20, errors=[Fragile], resources=RESOURCES)
    declare(workflow, place)
    POINTS[name] = lambda mesh, number: mesh.stimulate(workflow, {"n": number})


for _name, _declare in EVERYWHERE.items():
    for _place in SPAWNERS:
        _add(f"{_name}, {_place}", _place, _declare)
for _place, _points in (("inline", INLINE), ("loop", ON_THE_LOOP)):
    for _name, _declare in _points.items():
        _add(_name, _place, _declare)


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
