"""Declarations that cannot work, one a line: what is declared, and words of the error that it gets, the step's name
first and what to do about it last.  Each is refused, or warned of, while it is declared or by `check()`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from bitactor import Element, Input, Resource, Result, Workflow
from bitactor.patterns import Batching, Cache, Fallback

Declare = Callable[[Workflow], object]


def same(value: Any) -> Any:
    return value


def generate(x: int) -> Iterator[int]:
    yield x


async def generate_later(x: int) -> AsyncIterator[int]:
    yield x


async def later(value: Any) -> Any:
    return value


async def insert(items: list[Any], table: str) -> list[Any]:
    return items


class Generating:
    def __call__(self, x: int) -> Iterator[int]:
        yield x


class Unreadable:
    """An object that can be called, and whose signature raises."""

    __name__ = "unreadable"

    def __call__(self, value: Any) -> Any:
        return value

    @property
    def __signature__(self) -> Any:
        raise RuntimeError("no")


class Service:
    def charge(self, x: int) -> int:
        return x

    def refund(self, result: int) -> None:
        """Give it back."""

    @classmethod
    def make(cls, x: int) -> int:
        return x

    @property
    def whole(self) -> int:
        return 1


def nested() -> Workflow:
    workflow = Workflow("nested", input={"x": int})
    workflow.add(lambda x: x, name="inner")
    return workflow


def transformed(workflow: Workflow, transform: Any) -> object:
    return workflow.add(same, name="a", bind={"value": Input("x", transform=transform)})


def first(workflow: Workflow, **options: Any) -> Any:
    return workflow.add(lambda x: x, name="a", **options)


WRONG: dict[str, tuple[Declare, tuple[str, ...]]] = {
    # Called by position
    "map of no parameters": (
        lambda w: w.add(same, name="a", bind={"value": Input("x").map(lambda: 1)}),  # type: ignore[arg-type, misc]
        ("'a'", "bind['value']", "called with (value)", "give it that parameter"),
    ),
    "transform of two": (lambda w: transformed(w, lambda a, b: a), ("'a'", "(value)", "takes (a, b)")),
    "transform by name alone": (lambda w: transformed(w, lambda *, value: value), ("'a'", "by position")),
    "transform is no function": (lambda w: transformed(w, 5), ("'a'", "is 5", "give a plain function")),
    "transform awaits": (lambda w: transformed(w, later), ("'a'", "cannot await", "plain function")),
    "transform yields": (lambda w: transformed(w, generate), ("'a'", "'generate'", "return a value")),
    "transform of a result": (
        lambda w: [first(w), w.add(same, name="b", bind={"value": Result("a").map(lambda: 1)})],  # type: ignore[arg-type, misc]
        ("'b'", "bind['value']", "called with (value)"),
    ),
    "transform of over=": (
        lambda w: w.map(lambda element: element, name="m", over=Input("s").map(list)),  # type: ignore[arg-type, misc]
        ("'m'", "the transform of over=", "called with (value)"),
    ),
    "transform of start=": (
        lambda w: w.iterate(lambda state: state, name="i", start=Input("x", transform=lambda: 1), at_most=2),
        ("'i'", "the transform of start=", "called with (value)"),
    ),
    "transform of on=": (
        lambda w: w.switch("s1", Input("x", transform=lambda: 1), {1: nested()}),
        ("'s1'", "the transform of on=", "called with (value)"),
    ),
    "transform of an element": (
        lambda w: w.map(lambda y: y, name="m", over="s", bind={"y": Element(transform=lambda: 1)}),
        ("'m'", "bind['y']", "called with (element)"),
    ),
    "transform in a collect's source": (
        lambda w: w.collect("c", {"value": Input("x", transform=lambda: 1)}),
        ("'c'", "bind['value']", "called with (value)"),
    ),
    "transform of a deferred step": (
        lambda w: [first(w), w.add(same, name="b", deferred=True, bind={"value": Input("x", transform=lambda: 1)})],
        ("'b'", "called with (value)"),
    ),
    "collect's transform": (lambda w: w.collect("c", ["x"], transform=lambda: 1), ("'c'", "called with (arguments)")),
    "collect's transform awaits": (lambda w: w.collect("c", ["x"], transform=later), ("'c'", "cannot await")),
    "until of no parameters": (
        lambda w: w.recurse("r", nested(), at_most=2, until=lambda: True),  # type: ignore[arg-type, misc]
        ("'r'", "until=", "called with (result)"),
    ),
    "until of an iterate": (
        lambda w: w.iterate(lambda state: state, name="i", start="x", at_most=2, until=lambda a, b: True),  # type: ignore[arg-type, misc]
        ("'i'", "until=", "called with (result)"),
    ),
    "reduce of one": (
        lambda w: w.map(lambda element: element, name="m", over="s", reduce=lambda results: results),  # type: ignore[arg-type, misc]
        ("'m'", "reduce=", "called with (reduced, results)", "give it these parameters"),
    ),
    "reduce awaits": (
        lambda w: w.map(lambda element: element, name="m", over="s", reduce=later),
        ("'m'", "reduce=", "plain function"),
    ),
    "predicate of a switch": (
        lambda w: w.switch("s1", "x", [(lambda: True, nested())]),
        ("'s1'", "predicate of case 1", "called with (value)"),
    ),
    "predicate that awaits": (lambda w: w.switch("s1", "x", [(later, nested())]), ("'s1'", "case 1", "cannot await")),
    "close of a resource": (lambda w: Resource("db", list, close=lambda: None), ("'db'", "close=", "(resource)")),  # type: ignore[arg-type, misc]
    "check of a resource": (lambda w: Resource("db", list, check=lambda a, b: a), ("'db'", "check=", "(resource)")),  # type: ignore[arg-type, misc]
    "handler of a batching": (
        lambda w: Batching("rows", size=2, interval=1.0, handler=insert),  # type: ignore[arg-type]
        ("'rows'", "handler=", "called with (items)"),
    ),
    # Called by name
    "when asks for what is not there": (lambda w: first(w, when=lambda y: y), ("`when`", "'a'", "'y'")),
    "guard asks for what is not there": (lambda w: first(w, guard=lambda y: y), ("`guard`", "'a'", "'y'")),
    "backoff asks for what is not there": (lambda w: first(w, retries=1, backoff=lambda y: y), ("backoff", "'a'", "'y'")),
    "undo asks for what is not there": (lambda w: first(w, undo=lambda y: y), ("undo", "'a'", "'y'")),
    "compensate asks for what is not there": (lambda w: first(w, compensate=lambda y: y), ("compensate", "'a'", "'y'")),
    "before_all asks for what is not there": (
        lambda w: w.group("g", nested(), before_all=lambda y: y),
        ("'g'", "'y'", "neither an input field nor a step"),
    ),
    "the key of a cache": (
        lambda w: first(w, policies=[Cache("c", key=lambda y: y)]),
        ("'c'", "'y'", "no argument of the step"),
    ),
    "the key of a cache awaits": (
        lambda w: first(w, policies=[Cache("c", key=later)]),
        ("'c'", "cannot be awaited", "plain function"),
    ),
    "a fallback asks for what is not there": (
        lambda w: first(w, policies=[Fallback("f", lambda y: y)]),
        ("'f'", "'y'", "no argument of the step"),
    ),
    "a when that takes anything": (lambda w: first(w, when=lambda *a: True), ("`when`", "'a'", "name the parameters")),
    "an undo that is none": (lambda w: first(w).undo(5), ("undo", "'a'", "is 5", "give a function")),
    "a compensate that is none": (lambda w: first(w).compensate("x"), ("compensate", "'a'", "give a function")),
    # Generators
    "a generator as a step": (lambda w: w.add(generate), ("'generate'", "yield", "return a value")),
    "an async generator as a step": (lambda w: w.add(generate_later), ("'generate_later'", "yield", "return a value")),
    "an object that yields": (lambda w: w.add(Generating(), name="g"), ("'g'", "yield", "return a value")),
    "a generator as a map": (
        lambda w: w.map(generate, over="s", bind={"x": Element()}),
        ("'generate'", "yield", "return a value"),
    ),
    "a generator as an undo": (lambda w: first(w, undo=generate), ("undo", "'a'", "return a value")),
    "a generator as a guard": (lambda w: first(w, guard=generate), ("`guard`", "'a'", "return a value")),
    "a generator as a branch": (lambda w: w.switch("s1", "x", {1: generate}), ("'s1'", "yield", "return a value")),
    "a generator as a hook": (
        lambda w: w.group("g", nested(), after_all=generate),
        ("'g'", "yield", "return a value"),
    ),
    "a generator as a resource": (
        lambda w: Resource("db", generate),
        ("'db'", "yield", "@contextmanager"),
    ),
    # Builtins, methods, and what is no function
    "a method of a builtin": (lambda w: w.add(str.upper), ("'upper'", "positional-only", "wrap it in a def")),
    "a builtin without a signature": (lambda w: w.add(max), ("'max'", "cannot be read", "wrap it in a def")),
    "a builtin as a when": (lambda w: first(w, when=len), ("`when`", "'a'", "wrap it in a def")),
    "an object whose signature raises": (lambda w: w.add(Unreadable()), ("'unreadable'", "wrap it in a def")),
    "a method of a class": (lambda w: w.add(Service.charge), ("'charge'", "'self'", "workflow.add(obj.charge)")),
    "an undo of a class": (lambda w: first(w, undo=Service.refund), ("undo", "'a'", "workflow.add(obj.refund)")),
    "a method of a class, as a branch": (
        lambda w: w.switch("s1", "x", {1: Service.charge}),
        ("'s1'", "'self'", "workflow.add(obj."),
    ),
    "a class method before there is a class": (
        lambda w: w.add(vars(Service)["make"]),
        ("classmethod", "make an object, and declare its method"),
    ),
    "a property": (lambda w: w.add(vars(Service)["whole"]), ("property", "declare its method")),
    "a function without a name": (lambda w: w.add(partial(same)), ("partial", "name=")),
}  # fmt: skip
