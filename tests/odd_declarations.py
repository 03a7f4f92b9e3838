"""Declarations that look wrong and are right, one a line: none is refused, and none warned of."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Generic, Literal, NewType, Optional, Protocol, TypeVar, Union

from pydantic import BaseModel, BeforeValidator, Field, Json, RootModel, model_validator

from bitactor import (
    Backoff,
    Context,
    Continue,
    Element,
    Input,
    Ok,
    Resource,
    Result,
    Retry,
    Then,
    Value,
    Workflow,
    consumer,
)
from bitactor.patterns import Batching, Cache, Fallback, Timeout
from tests.wrong_declarations import (
    answering,
    counts,
    dated,
    dispatched,
    insert,
    nested,
    number,
    reads,
    regress,
    rows,
    spelt,
    text,
)

T = TypeVar("T")
Sku = NewType("Sku", str)
Short = Annotated[str, Field(max_length=3)]
Lenient = Annotated[int, BeforeValidator(int)]


class Colour(enum.Enum):
    RED = 1


class Line(BaseModel):
    sku: str


class Order(BaseModel):
    sku: str


class Parsed(BaseModel):
    sku: str

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, data: Any) -> Any:
        return {"sku": data} if isinstance(data, str) else data


class Names(RootModel[list[str]]):
    pass


class Sized(Protocol):
    def __len__(self) -> int: ...


class Box(Generic[T]):
    pass


class Async:
    async def __call__(self, x: int) -> int:
        return x


class Wrapping:
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@functools.cache
def cached(x: int) -> int:
    return x


def charged(x: int, context: Context | None = None) -> int:
    return x


class Service:
    def charge(self, x: int) -> int:
        return x

    @staticmethod
    def refund(result: int) -> None: ...


def wanting(annotation: Any) -> Callable[..., Any]:
    """A function whose one parameter is annotated so."""

    def take(value: Any) -> Any:
        return value

    take.__annotations__ = {"value": annotation}
    return take


def giving(annotation: Any) -> Callable[..., Any]:
    def give() -> Any:
        return None

    give.__annotations__ = {"return": annotation}
    return give


def fits(given: Any, wanted: Any) -> Callable[[Workflow], object]:
    """A step that answers one type, and one that takes another."""

    def declare(w: Workflow) -> object:
        return [w.add(giving(given), name="a"), w.add(wanting(wanted), name="b", bind={"value": Result("a")})]

    return declare


def compensated() -> Workflow:
    workflow = answering()
    workflow.steps["inner"].compensate(lambda: Continue({}))
    return workflow


def first(workflow: Workflow, **options: Any) -> Any:
    return workflow.add(lambda x: x, name="a", **options)


def either(*, fallback: int = 0) -> int:
    return fallback


@contextmanager
def opened() -> Iterator[int]:
    yield 1


@asynccontextmanager
async def opened_later() -> AsyncIterator[int]:
    yield 1


async def close_later(resource: Any) -> None: ...


def source(start: int) -> Iterator[int]:
    yield from range(start, 3)


async def source_later() -> AsyncIterator[int]:
    yield 1


def with_context(x: int, context: Context | None = None) -> int:
    return x


def with_old_context(x: int, hop: Optional[Context] = None) -> int:  # noqa: UP045
    return x


def with_annotated_context(x: int, hop: Annotated[Context, "of this hop"]) -> int:
    return x


async def map_with_context(element: Any, hop: Context, attempt: int) -> Any:
    return element


ODD: dict[str, Callable[[Workflow], object]] = {
    # Callbacks
    "a builtin by position": lambda w: w.add(wanting(Any), bind={"value": Input("word").map(str.upper)}),
    "a class by position": lambda w: w.add(wanting(Any), bind={"value": Input("x").map(str)}),
    "a builtin without a signature": lambda w: w.add(wanting(Any), bind={"value": Input("s").map(max)}),
    "a default behind the value": lambda w: w.add(wanting(Any), bind={"value": Input("x").map(lambda v, base=10: v)}),
    "anything by position": lambda w: w.add(wanting(Any), bind={"value": Input("x").map(lambda *a: a)}),
    "a partial by position": lambda w: w.add(
        wanting(Any), bind={"value": Input("x").map(functools.partial(lambda a, b: a, 1))}
    ),
    "a bound method by position": lambda w: w.collect("c", ["x"], transform={}.get),
    "a when of nothing": lambda w: first(w, when=lambda: True),
    "a guard of nothing": lambda w: first(w, guard=lambda: None),
    "an undo of nothing": lambda w: first(w, undo=lambda: None),
    "a compensate of nothing": lambda w: first(w, compensate=lambda: Continue(1)),
    "a backoff of nothing": lambda w: first(w, retries=1, backoff=lambda: 1.0),
    "a backoff without a cap": lambda w: first(w, retries=1, backoff=Backoff(cap=float("inf"))),
    "a key of nothing": lambda w: first(w, policies=[Cache("c", key=lambda: 1)]),
    "a fallback of anything": lambda w: first(w, policies=[Fallback("f", lambda **given: 1)]),
    "a handler with a default": lambda w: Batching(
        "b", size=2, interval=1.0, handler=functools.partial(insert, table="rows")
    ),
    "a function that is cached": lambda w: w.add(cached),
    "an object that wraps a function": lambda w: w.add(Wrapping(charged)),
    "a bound method": lambda w: w.add(Service().charge),
    "a static method": lambda w: first(w, undo=Service.refund),
    "a callable object that awaits": lambda w: w.add(Async(), name="a"),
    "a partial": lambda w: w.add(functools.partial(lambda x, y: x, y=1), name="a"),
    "a class as a step": lambda w: w.add(Order, bind={"sku": Value("one")}),
    "a parameter called self that is bound": lambda w: w.add(
        lambda self: self, name="a", bind={"self": Input("x")}
    ),
    "a source that yields": lambda w: w.map(wanting(Any), name="m", over=source, bind={"value": Element()}),
    "a source that yields later": lambda w: w.map(wanting(Any), name="m", over=source_later, bind={"value": Element()}),
    "a resource that yields in a context": lambda w: Resource("db", opened),
    "a resource that yields later": lambda w: Resource("db", opened_later, close=close_later),
    "a step as a branch": lambda w: w.switch("s1", "x", {1: first(w)}),
    "a class as a value of a case": lambda w: w.switch("s1", "x", [(bool, nested())]),
    "an input with a default in its type": lambda w: Workflow(
        "v", input={"y": Annotated[int, Field(default=4)], "z": Annotated[list, Field(default_factory=list)]}
    ),
    "an input with defaults that stand for none": lambda w: Workflow(
        "v", input={"y": (int, None), "z": (Annotated[int, Field(ge=0)], -1), "day": (str, "")}
    ),
    "a consumer of anything": lambda w: [consumer("told")(wanting(kind)) for kind in (Any, object, tuple, list[int])],
    "a consumer of a group with signs": lambda w: consumer("told", group="größe @@ 1")(wanting(Any)),
    "a resource that provides a generic": lambda w: Resource("db", list, provides=list[int]),
    "sources that are made": lambda w: w.collect("c", (name for name in ("x", "s"))),
    "a collect whose when is bound": lambda w: w.collect(
        "c", ["x"], when=lambda y: y, bind={"y": Input("limit")}
    ),
    # Times and names
    "thirty years": lambda w: first(w, timeout=1e9, policies=[Timeout("late", 1e9)]),
    "no grace": lambda w: Workflow("v", grace=0, undo_timeout=0),
    "dots in a name": lambda w: Workflow("a..b/...c/.d"),
    "spaces and signs in a name": lambda w: Workflow("größe & preis? #1 {x}"),
    "a step called ..": lambda w: w.add(lambda x: x, name=".."),
    # Contexts
    "a context that may be none": lambda w: w.add(with_context),
    "a context in the old way": lambda w: w.add(with_old_context),
    "a context with a note": lambda w: w.add(with_annotated_context),
    "a context of a map": lambda w: w.map(map_with_context, over="s"),
    "a context of an undo": lambda w: first(w, undo=with_context),
    # Annotations
    "a number for a bigger one": fits(int, float),
    "a bigger number for one": fits(float, int),
    "a number that may be a bool": fits(int, bool),
    "a text for a moment": fits(str, dt.datetime),
    "a text for a big number": fits(str, decimal.Decimal),
    "a text for an enum": fits(str, Colour),
    "a text for one of some": fits(str, Literal["a", "b"]),
    "a text for a new type": fits(str, Sku),
    "a new type for a text": fits(Sku, str),
    "a text for a short one": fits(str, Short),
    "a text for a lenient number": fits(str, Lenient),
    "a text for what it is the JSON of": fits(str, Json[list[int]]),
    "a text for a model that parses": fits(str, Parsed),
    "a list for a root model": fits(list[str], Names),
    "a mapping for a model": fits(dict[str, Any], Line),
    "one model for another": fits(Order, Line),
    "a model for a mapping": fits(Line, dict),
    "a tuple for a list": fits(tuple[int, ...], list),
    "a list of texts for one of numbers": fits(list[str], list[int]),
    "one of several": fits(Union[str, int], int),  # noqa: UP007
    "perhaps nothing": fits(Optional[int], int),  # noqa: UP045
    "a verdict or a number": fits(int | Retry, int),
    "what a Then carries": fits(Then, int),
    "what an Ok carries": fits(Ok, int),
    "a type variable": fits(T, int),
    "a protocol": fits(Sized, int),
    "a range for a list of numbers": fits(range, list[int]),
    "a range for a tuple": fits(range, tuple),
    "a range for a sequence": fits(range, Sequence[int]),
    "a range for a range": fits(range, range),
    "a range for a range or a list": fits(range, list | range),
    "a list for a set": fits(list[list[int]], set[tuple[int, ...]]),
    "a list for a set of mappings of any kind": fits(list[dict[str, int]], set[Mapping[str, int]]),
    "a list for a set or a list": fits(list[dict[str, int]], set[dict[str, int]] | list[dict[str, int]]),
    "a set of what has a hash": fits(set[Colour], frozenset[Colour]),
    "a sequence for a list": fits(Sequence[int], list),
    "an iterable of texts": fits(list[str], Iterable[str]),
    "a mapping of any kind": fits(dict[str, int], Mapping[str, int]),
    "anything": fits(Any, int),
    "an object": fits(object, int),
    "a skipped one": lambda w: [
        w.add(text, when=lambda: False), w.add(wanting(int | None), name="b", bind={"value": Result("text")})
    ],
    "one that a guard answers for": lambda w: [
        w.add(text, guard=lambda: 1), w.add(counts, name="b", bind={"n": Result("text")})
    ],
    "one that a policy answers for": lambda w: [
        w.add(text, policies=[Fallback("f", 1)]), w.add(counts, name="b", bind={"n": Result("text")})
    ],
    "one that is compensated": lambda w: [
        w.add(text, compensate=lambda: Continue(1)), w.add(counts, name="b", bind={"n": Result("text")})
    ],
    "one that is transformed": lambda w: [
        w.add(text), w.add(counts, name="b", bind={"n": Result("text").map(len)})
    ],
    "a part of it": lambda w: [w.add(rows), w.add(dated, name="b", bind={"when": Result("rows", 0)})],
    "a text for an input that says no": lambda w: w.add(wanting(Any), bind={"value": Value("one")}),
    "a deferred step that is given nothing": lambda w: [first(w), w.add(counts, name="b", deferred=True)],
    "an undo that takes less": lambda w: w.add(number, undo=lambda result: None),
    "an answer that is no state, but enough": lambda w: w.iterate(
        regress, start="x", until=lambda result: True, at_most=3
    ),
    "an answer that is no state, once": lambda w: w.iterate(regress, start="x", at_most=1),
    "a nested one that is compensated": lambda w: w.group(
        "g", compensated(), after_all=reads, bind={"x": Input("x")}
    ),
    "a transform that is decorated": lambda w: w.add(
        counts, name="b", bind={"n": Input("x").map(functools.cache(spelt))}
    ),
    "a transform into what is lenient": lambda w: w.add(wanting(Lenient), bind={"value": Input("x").map(str)}),
    "a singledispatch function by position": lambda w: w.add(
        wanting(Any), bind={"value": Input("x").map(dispatched)}
    ),
    "a transform in a partial": (
        lambda w: w.add(counts, name="b", bind={"n": Input("x").map(functools.partial(functools.cache(spelt)))})
    ),
    "retries of ages": lambda w: first(w, retries=10**19),
    "a part that may be there": lambda w: w.add(counts, name="b", bind={"n": Input("x", "sqq")}),
    "a template that converts": lambda w: w.template("t", "{x!r:>9} {x!s} {x!a}"),
    "the real part of a number": lambda w: w.add(counts, name="b", bind={"n": Input("x", "real")}),
    # Defaults
    "a default of its own": lambda w: w.add(lambda x, verbose=False: x, name="a"),
    "a default beside what is taken": lambda w: w.add(lambda limit, limt=1: limit, name="a"),
    "a default with another number": lambda w: w.add(lambda x, part_2=None: x, name="a"),
    "a default that is bound": lambda w: w.add(lambda x, limt=1: x, name="a", bind={"limt": Value(3)}),
    "a short default": lambda w: w.add(lambda w_=1, xy=2: w_, name="a"),
    "a keyword default": lambda w: w.add(either),
    "a consumer with a default": lambda w: consumer("told")(lambda signal, limt=1: signal),
}  # fmt: skip
