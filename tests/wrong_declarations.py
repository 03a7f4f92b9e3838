"""Declarations that cannot work, one a line: what is declared, and words of the error that it gets, the step's name
first and what to do about it last.  Each is refused, or warned of, while it is declared or by `check()`."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial, singledispatch
from typing import Annotated, Any

from pydantic import BaseModel, Field

from bitactor import Backoff, Context, Element, Input, Resource, Result, Value, Workflow, consumer
from bitactor.patterns import Batching, Cache, Fallback, Timeout


class Line(BaseModel):
    sku: str


class OwnContext(Context):
    pass


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


def asks_for_own_context(context: OwnContext) -> None: ...


def text() -> str:
    return "one"


def number() -> int:
    return 1


def nothing() -> None: ...


def rows() -> list[str]:
    return ["one"]


def counts(n: int) -> int:
    return n


def spell(word: str) -> str:
    return word


def dated(when: dt.datetime) -> dt.datetime:
    return when


def span(stop: int) -> range:
    return range(stop)


def listed(rows: list[Any]) -> None: ...


def ranged(when: range) -> None: ...


def spread(rows: dict[str, set[dict[str, int]]]) -> None: ...


def spread_lines(rows: frozenset[Line]) -> None: ...


def lined(line: Line) -> Line:
    return line


def rated(element: Any, rate: int) -> Any:
    return element


def flag() -> bool:
    return True


def make_line() -> Line:
    return Line(sku="a")


def reads(result: dict[Any, Any]) -> int:
    return 1


def regress(state: int) -> str:
    return str(state)


def spelt(value: int) -> str:
    return str(value)


@singledispatch
def dispatched(x: Any) -> Any:
    return x


def answering() -> Workflow:
    workflow = Workflow("nested", input={"x": int})
    workflow.add(counts, name="inner", bind={"n": Input("x")})
    return workflow


def improve(state: int) -> int:
    return state


def takes_back(result: int) -> None: ...


def limited(x: int, limt: int = 5) -> int:
    return limt


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


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("no")


UNSHOWN = Unshown()


class Odd:
    __name__ = "odd"
    __qualname__ = "\ud800"

    def __call__(self, signal: Any) -> None: ...


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


def with_default() -> Workflow:
    workflow = Workflow("nested", input={"x": int, "limt": (int, 5)})
    workflow.add(lambda x, limt: x, name="inner")
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
        lambda w: w.map(lambda element: element, name="m", over=Input("s").map(lambda: [1])),  # type: ignore[arg-type, misc]
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
    "when asks for a step that is not waited for": (
        lambda w: (w.add(lambda: 1, name="y"), first(w, when=lambda y: y)),
        ("`when`", "'a'", "'y'", "add it to what this one waits for, after=['y']"),
    ),
    "when asks for the step itself": (lambda w: first(w, when=lambda a: a), ("`when`", "'a'", "a step it waits for.")),
    "when asks for what is not there": (lambda w: first(w, when=lambda y: y), ("`when`", "'a'", "'y'")),
    "guard asks for what is not there": (lambda w: first(w, guard=lambda y: y), ("`guard`", "'a'", "'y'")),
    "backoff asks for more": (lambda w: first(w, retries=1, backoff=lambda y: y), ("backoff", "'a'", "'y'")),
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
    # Durations, names, contexts
    "a timeout of ages": (lambda w: first(w, timeout=1e300), ("'a'", "timeout=1e+300", "at most 1,000,000,000")),
    "a timeout without end": (lambda w: first(w, timeout=float("inf")), ("'a'", "timeout=inf", "a number")),
    "a deadline of ages": (lambda w: Workflow("v", deadline=1e300), ("'v'", "deadline=", "at most 1,000,000,000")),
    "a grace of ages": (lambda w: Workflow("v", grace=1e10), ("'v'", "grace=", "at most 1,000,000,000")),
    "an undo timeout of ages": (lambda w: Workflow("v", undo_timeout=1e10), ("'v'", "undo_timeout=", "at most")),
    "a consumer's deadline of ages": (lambda w: consumer("told", deadline=1e300), ("'told'", "deadline=", "at most")),
    "a check every ages": (lambda w: Resource("db", list, check=same, check_every=1e300), ("'db'", "check_every=")),
    "a policy of ages": (lambda w: Timeout("late", 1e300), ("'late'", "seconds=1e+300", "at most 1,000,000,000")),
    "a workflow called ..": (lambda w: Workflow(".."), ("'..'", "URL", "name it otherwise")),
    "a workflow with a dot for a part": (lambda w: Workflow("a/./b"), ("'a/./b'", "URL", "name it otherwise")),
    "a context of one's own": (lambda w: w.add(asks_for_own_context), ("asks_for_own_context", "'context'", "Context")),
    # What a signal's consumer says of itself
    "a group that is no name": (lambda w: consumer("told", group=3)(same), ("'told'", "group", "not 3")),  # type: ignore[arg-type]
    "a group that stores cannot keep": (lambda w: consumer("told", group="\ud800")(same), ("'told'", "group")),
    "a consumer whose function is called oddly": (lambda w: consumer("told")(Odd()), ("'told'", "group=")),
    # Options that are True or False
    "a text for broadcast": (lambda w: consumer("told", broadcast="no")(same), ("'told'", "broadcast='no'")),  # type: ignore[arg-type]
    "a text for in_doubt": (
        lambda w: first(w).undo(in_doubt="no")(lambda x: None), ("w/a.undo", "in_doubt='no'", "True or False")
    ),
    "a text for undo_in_doubt": (
        lambda w: first(w, undo=lambda x: None, undo_in_doubt="no"), ("'w'", "undo_in_doubt='no'", "True or False")
    ),
    "a text for deferred": (lambda w: first(w, deferred="no"), ("'w'", "deferred='no'", "True or False")),
    "a text for required": (lambda w: first(w, required="no"), ("'a'", "required='no'", "True or False")),
    **{
        f"{value!r} for {option}": (
            lambda w, option=option, value=value: w.map(
                lambda element: element, name="m", over="s", **{option: value}
            ),
            ("'m'", f"{option}={value!r}", "True or False"),
        )
        for option in ("ordered", "keep", "whole")
        for value in ("no", 0)
    },
    "a text for optional": (
        lambda w: w.switch("s1", "x", {1: nested()}, optional="no"), ("'s1'", "optional='no'", "True or False")  # type: ignore[arg-type]
    ),
    # What is of another kind than an option asks for
    "a text as sources": (lambda w: w.collect("c", "xs"), ("'c'", "sources='xs'", "give a list")),
    "a number as sources": (lambda w: w.collect("c", 3), ("'c'", "sources=3", "give a list")),  # type: ignore[arg-type]
    "a function as an input's type": (lambda w: Workflow("v", input={"y": same}), ("'v'", "'y'", "give its type")),
    "a mapping as an input's type": (lambda w: Workflow("v", input={"x": int, "y": {"a": int}}), ("'v'", "'y'", "int")),
    "a default of another type": (
        lambda w: Workflow("v", input={"y": (int, "many")}), ("'v'", "'y'", "'many'", "of that type")
    ),
    "a default of another type in a field": (
        lambda w: Workflow("v", input={"y": Annotated[list, Field(default=4)]}), ("'v'", "'y'", "4", "of that type")
    ),
    "a number as an input's type": (lambda w: Workflow("v", input={"y": 3}), ("'v'", "'y'", "give each field a type")),
    "an input with a model's method's name": (
        lambda w: Workflow("v", input={"model_dump": int}), ("'v'", "'model_dump'", "conflicts")
    ),
    "a resource that provides a number": (lambda w: Resource("db", list, provides=3), ("'db'", "provides=3", "class")),  # type: ignore[arg-type]
    "a resource that requires a text": (lambda w: Resource("db", list, requires="db"), ("'db'", "requires='db'")),
    "a backoff that grows by True": (lambda w: first(w, backoff=Backoff(factor=True)), ("Backoff(", "factor must be")),
    "a backoff before now": (lambda w: first(w, backoff=Backoff(initial=-1)), ("Backoff(", "initial is")),
    "a number as the result": (lambda w: w.returns(3), ("'w'", "returns(3)", "give a step")),  # type: ignore[arg-type]
    "a number as resources": (lambda w: Workflow("v", resources=3), ("'v'", "resources=3", "give a list")),  # type: ignore[arg-type]
    "a list as a spawner": (lambda w: first(w, spawn=["loop"]), ("'a'", "spawn=['loop']")),
    "a path that stores cannot keep": (
        lambda w: w.add(same, name="a", bind={"value": Input("x", "\ud800")}), ("'a'", "bind['value']", "surrogates")
    ),
    "a path of fractions": (
        lambda w: w.map(same, name="m", over="s", bind={"value": Element(1.5)}),  # type: ignore[arg-type]
        ("'m'", "bind['value']", "1.5", "indices"),
    ),
    # Annotations that cannot fit
    "a text for a number": (
        lambda w: [w.add(text), w.add(counts, name="b", bind={"n": Result("text")})],
        ("'b'", "'n' is annotated with int", "'text'", "with str", "convert it"),
    ),
    "a range for a list": (
        lambda w: w.add(listed, name="b", bind={"rows": Input("x").map(span)}),
        ("'b'", "'rows' is annotated with list", "'input.x'", "with range", "convert it"),
    ),
    "a constant range for a list": (
        lambda w: w.add(listed, bind={"rows": Value(range(3))}), ("'listed'", "'rows'", "with range", "convert it"),
    ),
    "a list for a range": (
        lambda w: [w.add(rows), w.add(ranged, name="b", bind={"when": Result("rows")})],
        ("'b'", "'when' is annotated with range", "list[str]", "convert it"),
    ),
    "a set of mappings": (
        lambda w: w.add(spread, bind={"rows": Input("s")}), ("'spread'", "'rows'", "set[dict", "no hash", "list[…]"),
    ),
    "a set of models that change": (
        lambda w: w.add(spread_lines, bind={"rows": Input("s")}), ("'rows'", "a Line has no hash", "frozen"),
    ),
    "nothing for a number": (
        lambda w: [w.add(nothing), w.add(counts, name="b", bind={"n": Result("nothing")})],
        ("'b'", "'n' is annotated with int", "with None", "convert it"),
    ),
    "a list for a moment": (
        lambda w: [w.add(rows), w.add(dated, name="b", bind={"when": Result("rows")})],
        ("'b'", "'when'", "datetime", "list[str]", "convert it"),
    ),
    "a number for a model": (
        lambda w: [first(w), w.add(number), w.add(lined, name="b", bind={"line": Result("number")})],
        ("'b'", "'line'", "Line", "int", "convert it"),
    ),
    "an input for a text": (lambda w: w.add(spell, name="b", bind={"word": Input("x")}), ("'b'", "'word'", "str")),
    "a constant for a number": (lambda w: w.add(counts, name="b", bind={"n": Value("one")}), ("'b'", "'n'", "int")),
    "an element for a number": (
        lambda w: [w.add(rows), w.map(counts, name="m", over="rows", bind={"n": Element()})],
        ("'m'", "'n'", "int", "an element", "str"),
    ),
    "a number to iterate": (
        lambda w: [w.add(number), w.map(same, name="m", over="number", bind={"value": Element()})],
        ("'m'", "what it iterates", "int"),
    ),
    "a number to iterate, a workflow for each": (
        lambda w: [w.add(number), w.map(name="m", workflow=nested(), over="number", bind={"x": Element()})],
        ("'m'", "what it iterates", "int"),
    ),
    "a default that cannot be shown": (
        lambda w: transformed(w, lambda a, b, c=UNSHOWN: a),
        ("'a'", "called with (value)", "takes (a, b, c=…)"),
    ),
    "a text for what a map shares": (
        lambda w: [w.add(text), w.map(rated, name="m", over="s", bind={"rate": Result("text")})],
        ("'m'", "'rate'", "int", "str"),
    ),
    "a text to start from": (
        lambda w: [w.add(text), w.iterate(improve, start="text", at_most=2)],
        ("'improve'", "'state'", "int", "str"),
    ),
    "a text for a nested input": (
        lambda w: [w.add(rows), w.compose("c", nested(), bind={"x": Result("rows")})],
        ("'c'", "'x'", "int", "list[str]"),
    ),
    "a text for a branch": (
        lambda w: [w.add(text), w.switch("s1", "x", {1: counts}, bind={"n": Result("text")})],
        ("'s1'", "'n'", "int", "str"),
    ),
    "a text for a hook": (
        lambda w: [w.add(text), w.group("g", nested(), before_all=counts, bind={"n": Result("text")})],
        ("'g'", "'n'", "int", "str"),
    ),
    "a result for its undo": (lambda w: w.add(text, undo=takes_back), ("undo", "'text'", "'result'", "int", "str")),
    "a bool for a number": (  # an `int` is taken exactly, and True is none
        lambda w: [w.add(flag), w.add(counts, name="b", bind={"n": Result("flag")})],
        ("'b'", "'n'", "int", "bool", "convert it"),
    ),
    "a nested result for a hook": (
        lambda w: w.group("g", answering(), after_all=reads, bind={"x": Input("x")}),
        ("'g'", "'result'", "dict", "the result of 'nested'", "int"),
    ),
    "an answer that is no state": (
        lambda w: w.iterate(regress, start="x", at_most=3), ("'regress'", "'state'", "int", "the round before", "str")
    ),
    "what a transform returns": (
        lambda w: w.add(counts, name="b", bind={"n": Input("x").map(spelt)}), ("'b'", "'n'", "int", "str", "convert it")
    ),
    "what the last of two transforms returns": (
        lambda w: w.add(counts, name="b", bind={"n": Input("x").map(same).map(str)}), ("'b'", "'n'", "int", "str")
    ),
    "a part of another type": (
        lambda w: [first(w), w.add(make_line), w.add(counts, name="b", bind={"n": Result("make_line", "sku")})],
        ("'b'", "'n'", "int", "'make_line.sku'", "str"),
    ),
    # What cannot be called or counted
    "a singledispatch function": (lambda w: w.add(dispatched), ("'dispatched'", "singledispatch", "wrap it in a def")),
    "a batch of ages": (
        lambda w: w.map(lambda element: 1, name="m", over="s", batch=10**19), ("'m'", "batch=", "at most")
    ),
    "a conversion of a template": (lambda w: w.template("t", "{x!q}"), ("{x!q}", "one of r, s, a")),
    # Near misses
    "a default beside an input": (lambda w: w.add(limited, name="a"), ("'a'", "'limt'", "call it 'limit'")),
    "a default in another style": (lambda w: w.add(lambda x, isUrgent=False: x, name="a"), ("'a'", "'is_urgent'")),
    "a default beside a step": (
        lambda w: [w.add(number), w.add(lambda x, nubmer=1: x, name="b")],
        ("'b'", "'nubmer'", "call it 'number'"),
    ),
    "a default in a when": (lambda w: first(w, when=lambda limt=1: limt > 0), ("`when`", "'a'", "'limit'")),
    "a default in an undo": (lambda w: first(w, undo=lambda reslt=None: reslt), ("undo", "'a'", "call it 'result'")),
    "a default in a map": (
        lambda w: w.map(lambda element, limt=1: element, name="m", over="s"),
        ("'m'", "'limt'", "call it 'limit'"),
    ),
    "a default of a nested workflow": (
        lambda w: w.compose("c", with_default(), bind={"x": Input("x")}),
        ("'c'", "'limt'", "call it 'limit'"),
    ),
    "a default in a fallback": (
        lambda w: w.add(lambda limit: limit, name="a", policies=[Fallback("f", lambda limt=1: limt)]),
        ("'f'", "'limt'", "call it 'limit'"),
    ),
}  # fmt: skip
